//! The comparison of methods as Markdown and as JSON.

use std::fmt;

use serde::Serialize;

use super::Compared;
use super::figures::{Counts, auroc, dice, interval, pooled, quantile};
use crate::error::{Error, Result};
use crate::eval::config::MethodConfig;
use crate::score::ScoreConfig;
use crate::tables::EvaluationRow;

/// A figure with its 95 % bootstrap interval over scans.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure of all scans.
    pub value: f64,
    /// Lower and upper bound.
    pub interval: [f64; 2],
}

impl Estimate {
    /// The estimate of a statistic of `n` scans. `statistic` gets the indices of the scans that it is computed on.
    fn new(n: usize, statistic: &dyn Fn(&[usize]) -> f64) -> Self {
        let all: Vec<usize> = (0..n).collect();
        Self { value: statistic(&all), interval: interval(n, statistic) }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.3} to {:.3})", self.value, self.interval[0], self.interval[1])
    }
}

/// One method's figures of one scan with truth. Voxels are those of the native grid.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ScanFigures {
    pub scan_id: String,
    pub truth_ml: f64,
    pub called_ml: f64,
    /// Lesion voxels in the mask.
    pub shared: u64,
    /// Voxels in the mask.
    pub called: u64,
    /// Lesion voxels.
    pub truth: u64,
    pub dice: f64,
    pub average_precision: f64,
    pub lesions: usize,
    /// Lesions with at least a tenth of their volume in the mask.
    pub lesions_found: usize,
    /// Findings that touch no lesion.
    pub false_findings: usize,
    pub anomaly_score: f64,
    pub device_seconds: f64,
}

/// The figures of one method.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct MethodFigures {
    pub name: String,
    /// Threshold, fixed on the healthy scans.
    pub mask_threshold: f64,
    /// Over the voxels of all scans together.
    pub average_precision: Estimate,
    /// Over the voxels of all scans together, at the threshold with the highest Dice.
    pub best_dice: Estimate,
    /// Over the voxels of all scans together, at the healthy threshold.
    pub dice: Estimate,
    /// Quartiles of the scans' Dice at the healthy threshold.
    pub scan_dice: [f64; 3],
    /// F1 of lesions at the healthy threshold.
    pub lesion_f1: Estimate,
    /// Findings that touch no lesion, per scan with truth.
    pub false_findings_per_scan: f64,
    /// Area under the ROC curve of `anomaly_score`: scans with lesions against healthy scans.
    pub scan_auroc: Estimate,
    /// Share of lesion voxels, which is the average precision of a random ranking.
    pub prevalence: f64,
    /// Anomalous volume in healthy scans, ml: median and 90th percentile.
    pub healthy_ml: [f64; 2],
    /// Median time of a scan on the device, s.
    pub device_seconds: f64,
    pub scans: Vec<ScanFigures>,
    #[serde(skip)]
    counts: Vec<Counts>,
    #[serde(skip)]
    masks: Vec<Vec<u8>>,
}

/// Ratios of the first method to another, on the same scans.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Ratio {
    pub name: String,
    /// Ratio of the pooled average precisions.
    pub average_precision: Estimate,
    /// Ratio of the pooled best Dice.
    pub best_dice: Estimate,
    /// Device time of the other method over that of the first.
    pub speed: Estimate,
    /// Dice of the two methods' masks, each at its own threshold, over the voxels of all scans.
    pub mask_dice: Estimate,
}

/// Number of voxels in both masks.
fn both(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).map(|(&a, &b)| u64::from(a & b)).sum()
}

impl Ratio {
    /// Compares `first` with `other`.
    pub(super) fn new(first: &MethodFigures, other: &MethodFigures) -> Self {
        let n = first.scans.len();
        let estimate = |statistic: &dyn Fn(&[usize]) -> f64| Estimate::new(n, statistic);
        let pool = |method: &MethodFigures, draw: &[usize]| pooled(draw.iter().map(|&i| &method.counts[i]));
        let seconds =
            |method: &MethodFigures, draw: &[usize]| draw.iter().map(|&i| method.scans[i].device_seconds).sum::<f64>();
        let sum = |counts: &[u64], draw: &[usize]| draw.iter().map(|&i| counts[i]).sum::<u64>();
        let called = |m: &MethodFigures| {
            m.masks.iter().map(|mask| mask.iter().map(|&v| u64::from(v)).sum()).collect::<Vec<u64>>()
        };
        let shared: Vec<u64> = first.masks.iter().zip(&other.masks).map(|(a, b)| both(a, b)).collect();
        let (called_first, called_other) = (called(first), called(other));
        Self {
            name: format!("{} / {}", first.name, other.name),
            average_precision: estimate(&|draw| {
                pool(first, draw).average_precision / pool(other, draw).average_precision
            }),
            best_dice: estimate(&|draw| pool(first, draw).best_dice / pool(other, draw).best_dice),
            speed: estimate(&|draw| seconds(other, draw) / seconds(first, draw)),
            mask_dice: estimate(&|draw| dice(sum(&shared, draw), sum(&called_first, draw), sum(&called_other, draw))),
        }
    }
}

impl MethodFigures {
    pub(super) fn new(
        name: &str,
        mask_threshold: f32,
        compared: Vec<Compared>,
        healthy_scores: &[f64],
        healthy_ml: &[f64],
    ) -> Self {
        let (mut scans, mut counts, mut masks) = (Vec::new(), Vec::new(), Vec::new());
        for Compared { figures, counts: levels, mask } in compared {
            scans.push(figures);
            counts.push(levels);
            masks.push(mask);
        }
        let n = scans.len();
        let all: Vec<usize> = (0..n).collect();
        let estimate = |statistic: &dyn Fn(&[usize]) -> f64| Estimate::new(n, statistic);
        let sum = |of: &dyn Fn(&ScanFigures) -> u64, draw: &[usize]| draw.iter().map(|&i| of(&scans[i])).sum::<u64>();
        let dices: Vec<f64> = scans.iter().map(|scan| scan.dice).collect();
        let seconds: Vec<f64> = scans.iter().map(|scan| scan.device_seconds).collect();
        let f1 = |draw: &[usize]| {
            let found = sum(&|s| s.lesions_found as u64, draw);
            let missed = sum(&|s| s.lesions as u64, draw) - found;
            let wrong = sum(&|s| s.false_findings as u64, draw);
            2. * found as f64 / (2 * found + missed + wrong) as f64
        };
        Self {
            name: name.to_owned(),
            mask_threshold: f64::from(mask_threshold),
            average_precision: estimate(&|draw| pooled(draw.iter().map(|&i| &counts[i])).average_precision),
            best_dice: estimate(&|draw| pooled(draw.iter().map(|&i| &counts[i])).best_dice),
            dice: estimate(&|draw| dice(sum(&|s| s.shared, draw), sum(&|s| s.called, draw), sum(&|s| s.truth, draw))),
            scan_dice: [0.25, 0.5, 0.75].map(|q| quantile(&dices, q)),
            lesion_f1: estimate(&f1),
            false_findings_per_scan: sum(&|s| s.false_findings as u64, &all) as f64 / n as f64,
            scan_auroc: estimate(&|draw| {
                let lesioned: Vec<f64> = draw.iter().map(|&i| scans[i].anomaly_score).collect();
                auroc(&lesioned, healthy_scores)
            }),
            prevalence: pooled(counts.iter()).prevalence,
            healthy_ml: [0.5, 0.9].map(|q| quantile(healthy_ml, q)),
            device_seconds: quantile(&seconds, 0.5),
            scans,
            counts,
            masks,
        }
    }
}

impl MethodFigures {
    /// The figures as a row of the table `evaluations`.
    fn row(
        &self,
        report: &MethodReport,
        evaluation_id: &str,
        evaluated_at: i64,
        score: &ScoreConfig,
    ) -> Result<EvaluationRow> {
        let three = |e: Estimate| [e.value, e.interval[0], e.interval[1]].map(|v| v as f32);
        let [average_precision, average_precision_low, average_precision_high] = three(self.average_precision);
        let [best_dice, best_dice_low, best_dice_high] = three(self.best_dice);
        let [dice, dice_low, dice_high] = three(self.dice);
        let [lesion_f1, lesion_f1_low, lesion_f1_high] = three(self.lesion_f1);
        let [scan_auroc, scan_auroc_low, scan_auroc_high] = three(self.scan_auroc);
        let [scan_dice_q1, scan_dice_median, scan_dice_q3] = self.scan_dice.map(|v| v as f32);
        let [healthy_ml_median, healthy_ml_p90] = self.healthy_ml.map(|v| v as f32);
        Ok(EvaluationRow {
            evaluation_id: evaluation_id.to_owned(),
            evaluated_at,
            method: self.name.clone(),
            score: toml::to_string(score).map_err(|e| Error::Bug(format!("a method's settings: {e}")))?,
            bundle: report.bundle.clone(),
            bundle_digest: report.bundle_digest.clone(),
            device: report.device.clone(),
            cohort: report.cohort.clone(),
            n_lesioned: report.n_lesioned as i64,
            n_healthy: report.n_healthy as i64,
            mask_threshold: self.mask_threshold as f32,
            prevalence: self.prevalence as f32,
            average_precision,
            average_precision_low,
            average_precision_high,
            best_dice,
            best_dice_low,
            best_dice_high,
            dice,
            dice_low,
            dice_high,
            scan_dice_q1,
            scan_dice_median,
            scan_dice_q3,
            lesion_f1,
            lesion_f1_low,
            lesion_f1_high,
            false_findings_per_scan: self.false_findings_per_scan as f32,
            scan_auroc,
            scan_auroc_low,
            scan_auroc_high,
            healthy_ml_median,
            healthy_ml_p90,
            device_seconds: self.device_seconds as f32,
            reconstruction_l1: report.reconstruction_l1 as f32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

impl MethodReport {
    /// The figures as rows of the table `evaluations`. `methods` are the settings of the methods, in the same order.
    pub(super) fn rows(&self, methods: &[MethodConfig]) -> Result<Vec<EvaluationRow>> {
        let evaluation_id = uuid::Uuid::now_v7().to_string();
        let now = chrono::Utc::now().timestamp_micros();
        let figures = self.methods.iter().zip(methods);
        figures.map(|(figures, method)| figures.row(self, &evaluation_id, now, &method.score)).collect()
    }
}

/// The figures of all methods on the same scans.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct MethodReport {
    pub bundle: String,
    pub bundle_digest: String,
    pub device: String,
    pub cohort: String,
    pub n_lesioned: usize,
    pub n_healthy: usize,
    /// Mean |image - decoded tokens| in healthy brains, in units of the intensity range from 0 to 1.
    pub reconstruction_l1: f64,
    /// The same over the brains of the scans with truth, without their lesions.
    pub reconstruction_l1_lesioned: f64,
    pub methods: Vec<MethodFigures>,
    /// Ratios of the first method to each of the others.
    pub ratios: Vec<Ratio>,
}

/// A Markdown table.
impl fmt::Display for MethodReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} scans with lesions, {} healthy scans; bundle {}, {}. In brackets: the middle 95 % over scans drawn with\n\
             replacement. Thresholds are fixed on the healthy scans. Mean absolute error of the decoded tokens: {:.4} in\n\
             healthy brains, {:.4} in the healthy part of the others.\n",
            self.n_lesioned,
            self.n_healthy,
            self.bundle,
            self.device,
            self.reconstruction_l1,
            self.reconstruction_l1_lesioned
        )?;
        writeln!(
            f,
            "| method | pooled AP | pooled best Dice | Dice at the threshold | Dice per scan (quartiles) | lesion F1 | \
             false findings/scan | scan AUROC | healthy ml (median, 90 %) | s/scan |\n\
             |---|---|---|---|---|---|---|---|---|---|"
        )?;
        for m in &self.methods {
            let [low, middle, high] = m.scan_dice;
            writeln!(
                f,
                "| {} | {} | {} | {} | {low:.3} / {middle:.3} / {high:.3} | {} | {:.1} | {} | {:.1}, {:.1} | {:.2} |",
                m.name,
                m.average_precision,
                m.best_dice,
                m.dice,
                m.lesion_f1,
                m.false_findings_per_scan,
                m.scan_auroc,
                m.healthy_ml[0],
                m.healthy_ml[1],
                m.device_seconds,
            )?;
        }
        if !self.ratios.is_empty() {
            writeln!(
                f,
                "\n| first / other | pooled AP | pooled best Dice | faster, times | Dice of the masks |\n|---|---|---|---|---|"
            )?;
        }
        for ratio in &self.ratios {
            let Ratio { name, average_precision, best_dice, speed, mask_dice } = ratio;
            writeln!(f, "| {name} | {average_precision} | {best_dice} | {speed} | {mask_dice} |")?;
        }
        let prevalence = self.methods.first().map_or(f64::NAN, |m| m.prevalence);
        writeln!(
            f,
            "\nA random ranking has an average precision of {prevalence:.4}. Research software, not a medical device."
        )
    }
}
