//! The figures of an evaluation beside their bars.

use std::fmt;

use serde::Serialize;

use super::ScanFigures;
use super::intensity::Row;
use super::speed::Speed;
use crate::preprocess::NormalizeMethod;

/// Lesions from this volume on have a bar.
const LESION_ML: f64 = 2.0;

/// One bar.
#[derive(Debug, Clone, Serialize)]
pub struct Bar {
    /// What is measured.
    pub what: &'static str,
    /// What was found, for people.
    pub found: String,
    /// What is asked for, for people.
    pub asked: &'static str,
    /// Whether it was reached.
    pub reached: bool,
    /// How many scans, lesions or moves it rests on.
    pub n: usize,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The bars that the cohort has data for.
    pub bars: Vec<Bar>,
    /// Scan by scan.
    pub scans: Vec<ScanFigures>,
    /// Two sites' intensities by method, where the cohort has two.
    pub cross_site: Option<Vec<Row>>,
    /// Speed.
    pub speed: Speed,
}

impl Report {
    /// `method` is the row of `cross_site` that the bar is for.
    pub(super) fn new(
        scans: Vec<ScanFigures>,
        cross_site: Option<Vec<Row>>,
        method: NormalizeMethod,
        speed: Speed,
    ) -> Self {
        let mut report = Self { bars: Vec::new(), scans, cross_site, speed };
        report.bars = report.judge(&method.to_string());
        report
    }

    /// Bars that were not reached.
    pub fn missed(&self) -> usize {
        self.bars.iter().filter(|bar| !bar.reached).count()
    }

    fn judge(&self, method: &str) -> Vec<Bar> {
        let mut bars = Vec::new();
        let whole = |scan: &&ScanFigures| !scan.site.is_empty();
        let heads = || self.scans.iter().filter(whole).filter(|scan| scan.truly_stripped != Some(true));
        let bare = || self.scans.iter().filter(whole).filter(|scan| scan.truly_stripped == Some(true));
        let mut add = |what, asked, figures: &[f64], judge: &dyn Fn(&[f64]) -> (String, bool)| {
            if !figures.is_empty() {
                let (found, reached) = judge(figures);
                bars.push(Bar { what, found, asked, reached, n: figures.len() });
            }
        };

        let refused: Vec<f64> =
            self.scans.iter().filter(whole).map(|s| f64::from(u8::from(s.refused.is_some()))).collect();
        add("scans refused", "none", &refused, &|f| {
            (format!("{}", f.iter().sum::<f64>()), f.iter().sum::<f64>() == 0.0)
        });
        let dice: Vec<f64> = heads().filter_map(|s| s.mask_dice).collect();
        add("brain mask of whole heads, Dice with reference", "mean >= 0.96, worst >= 0.92", &dice, &|f| {
            (format!("mean {:.4}, worst {:.4}", mean(f), least(f)), mean(f) >= 0.96 && least(f) >= 0.92)
        });
        let dice: Vec<f64> = self.scans.iter().filter_map(|s| s.synthetic_head_dice).collect();
        add("brain mask of bare brains put into synthetic skulls, Dice", "mean >= 0.95", &dice, &|f| {
            (format!("mean {:.4}, worst {:.4}", mean(f), least(f)), mean(f) >= 0.95)
        });
        let recognised: Vec<f64> = bare().map(|s| f64::from(u8::from(s.stripped_input))).collect();
        add("bare brains recognised", "100 %", &recognised, &|f| (format!("{:.1} %", 100.0 * mean(f)), mean(f) == 1.0));
        let mistaken: Vec<f64> = heads().map(|s| f64::from(u8::from(s.stripped_input))).collect();
        add("whole heads taken for bare brains", "none", &mistaken, &|f| {
            (format!("{}", f.iter().sum::<f64>()), mean(f) == 0.0)
        });
        let dice: Vec<f64> = bare().filter_map(|s| s.mask_dice).collect();
        add("brain mask of bare brains, Dice with what is not 0 in them", "mean >= 0.99", &dice, &|f| {
            (format!("mean {:.4}, worst {:.4}", mean(f), least(f)), mean(f) >= 0.99)
        });
        let moved: Vec<[f64; 2]> = self.scans.iter().flat_map(|s| s.moved.iter().copied()).collect();
        let near: Vec<f64> = moved.iter().map(|m| f64::from(u8::from(m[0] <= 1.5 && m[1] <= 1.5))).collect();
        let angles = sorted(moved.iter().map(|m| m[0]));
        let shifts = sorted(moved.iter().map(|m| m[1]));
        add(
            "moved by up to 30 degrees and 40 mm, registered again within 1.5 degrees and 1.5 mm",
            ">= 98 %",
            &near,
            &|f| {
                let half = |values: &[f64]| values[values.len() / 2];
                let text =
                    format!("{:.1} % (median {:.2} degrees, {:.2} mm)", 100.0 * mean(f), half(&angles), half(&shifts));
                (text, mean(f) >= 0.98)
            },
        );
        let dice: Vec<f64> =
            self.scans.iter().filter(whole).filter(|s| s.refused.is_none()).map(|s| s.template_dice).collect();
        add("brain in MNI space, Dice with the template's", "mean >= 0.93", &dice, &|f| {
            (format!("mean {:.4}, worst {:.4}", mean(f), least(f)), mean(f) >= 0.93)
        });
        let ratio: Vec<f64> = self.scans.iter().flat_map(|s| s.bias_ratio.iter().copied()).collect();
        let against_corrected: Vec<f64> =
            self.scans.iter().flat_map(|s| s.bias_ratio_corrected.iter().copied()).collect();
        add(
            "variation in white matter with a field of 30 % put on and corrected, over the scan's own",
            "mean <= 1.05",
            &ratio,
            &|f| {
                let text = format!(
                    "mean {:.3}, worst {:.3}; {:.3} over the corrected scan's",
                    mean(f),
                    -least(&negative(f)),
                    mean(&against_corrected)
                );
                (text, mean(f) <= 1.05)
            },
        );
        let lesions: Vec<[f64; 3]> =
            self.scans.iter().flat_map(|s| s.lesions.iter().copied()).filter(|l| l[0] >= LESION_ML).collect();
        let dice: Vec<f64> = lesions.iter().map(|l| l[1]).collect();
        add("lesion masks of 2 ml and more, to the model's grid and back, Dice", "worst >= 0.90", &dice, &|f| {
            (format!("mean {:.4}, worst {:.4}", mean(f), least(f)), least(f) >= 0.90)
        });
        let volume: Vec<f64> = lesions.iter().map(|l| l[2].abs()).collect();
        add("error of their volume", "worst <= 5 %", &volume, &|f| {
            let worst = -least(&negative(f));
            (format!("mean {:.2} %, worst {:.2} %", 100.0 * mean(f), 100.0 * worst), worst <= 0.05)
        });
        if let Some(rows) = &self.cross_site {
            let best = rows.iter().find(|row| row.method == method);
            let times: Vec<f64> = best.map(|row| row.times_closer).into_iter().collect();
            add("two sites' intensities closer than by the whole image's percentiles", ">= 5 x", &times, &|f| {
                (format!("{:.1} x", f[0]), f[0] >= 5.0)
            });
        }
        let seconds =
            |measured: &Option<super::Measured>| -> Vec<f64> { measured.iter().map(|m| m.core_seconds).collect() };
        add("core-seconds, 2 mm head", "<= 1.0", &seconds(&self.speed.head_2mm), &|f| {
            (format!("{:.3}", f[0]), f[0] <= 1.0)
        });
        add("core-seconds, 1 mm head of 256 x 256 x 180", "<= 2.5", &seconds(&self.speed.head_1mm), &|f| {
            (format!("{:.3}", f[0]), f[0] <= 2.5)
        });
        let memory: Vec<f64> = self.speed.peak_memory_mb.into_iter().collect();
        add("peak memory of the process for that head, MB", "<= 600", &memory, &|f| {
            (format!("{:.0}", f[0]), f[0] <= 600.0)
        });
        let rates: Vec<f64> = self.speed.scans_per_second.iter().map(|[one, two]| two / one).collect();
        add("scans per second on two threads over one", ">= 1.8", &rates, &|f| (format!("{:.2}", f[0]), f[0] >= 1.8));
        bars
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.bars.iter().map(|bar| bar.what.len()).max().unwrap_or_default();
        for bar in &self.bars {
            let verdict = if bar.reached { "ok  " } else { "MISS" };
            writeln!(f, "{verdict}  {:<width$}  {:<28}  {}  (n = {})", bar.what, bar.asked, bar.found, bar.n)?;
        }
        if let Some(rows) = &self.cross_site {
            writeln!(f, "\nIntensities of two sites, in percent of white matter's")?;
            writeln!(
                f,
                "{:<14} {:>9} {:>8} {:>12} {:>6} {:>6} {:>13}",
                "method", "distance", "closer", "within site", "grey", "white", "lesion shift"
            )?;
            for row in rows {
                let shift = row.lesion_shift_percent.map_or_else(String::new, |s| format!("{s:.2}"));
                writeln!(
                    f,
                    "{:<14} {:>9.2} {:>7.1}x {:>12.2} {:>6.2} {:>6.2} {:>13}",
                    row.method,
                    row.site_distance_percent,
                    row.times_closer,
                    row.within_site_percent,
                    row.grey_difference_percent,
                    row.white_difference_percent,
                    shift
                )?;
            }
        }
        for (name, measured) in [("2 mm head", &self.speed.head_2mm), ("1 mm head", &self.speed.head_1mm)] {
            if let Some(measured) = measured {
                let steps: Vec<String> = measured.steps_ms.iter().map(|(step, ms)| format!("{step} {ms:.0}")).collect();
                writeln!(f, "\n{name}, ms on one thread: {}", steps.join(", "))?;
            }
        }
        Ok(())
    }
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len() as f64
}

fn least(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

fn negative(figures: &[f64]) -> Vec<f64> {
    figures.iter().map(|v| -v).collect()
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}
