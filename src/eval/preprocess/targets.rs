//! The targets of preprocessing: each is a figure over all scans and the value that it must reach.
//!
//! Takes what was measured; gives a [`Target`] for each figure that the cohort has data for, in groups: brain masks,
//! registration, bias field, lesion masks, intensities, speed.

use serde::Serialize;

use super::ScanFigures;
use super::intensity::Row;
use super::speed::{ScanTime, Speed};

/// Lesions of at least this volume count for the target, in ml.
const LESION_ML: f64 = 2.0;

/// One figure with its target value.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// What is measured.
    pub what: &'static str,
    /// The measured value, as text.
    pub found: String,
    /// The target value, as text.
    pub asked: &'static str,
    /// Whether the measured value reaches the target.
    pub reached: bool,
    /// Number of scans, lesions or moves behind the figure.
    pub n: usize,
}

impl Target {
    /// The target with the text and the verdict that `judge` makes of the figures; `None` without figures.
    fn new(
        what: &'static str,
        asked: &'static str,
        figures: &[f64],
        judge: impl Fn(&[f64]) -> (String, bool),
    ) -> Option<Self> {
        if figures.is_empty() {
            return None;
        }
        let (found, reached) = judge(figures);
        Some(Self { what, found, asked, reached, n: figures.len() })
    }
}

/// All targets that there are figures for. `method` is the row of `cross_site` that has a target.
pub(super) fn targets(scans: &[ScanFigures], cross_site: Option<&[Row]>, method: &str, speed: &Speed) -> Vec<Target> {
    let groups =
        [masks(scans), registration(scans), bias(scans), lesions(scans), intensities(cross_site, method), times(speed)];
    groups.into_iter().flatten().flatten().collect()
}

/// Scans of the split. The others were used only for a synthetic skull, and have no site.
fn in_split(scans: &[ScanFigures]) -> impl Iterator<Item = &ScanFigures> {
    scans.iter().filter(|scan| !scan.site.is_empty())
}

/// Refused scans, brain masks, and the recognition of bare brains.
fn masks(scans: &[ScanFigures]) -> Vec<Option<Target>> {
    let heads = || in_split(scans).filter(|scan| scan.truly_stripped != Some(true));
    let bare = || in_split(scans).filter(|scan| scan.truly_stripped == Some(true));
    let share = |of: bool| f64::from(u8::from(of));
    let none = |f: &[f64]| (format!("{}", f.iter().sum::<f64>()), f.iter().sum::<f64>() == 0.0);
    let refused: Vec<f64> = in_split(scans).map(|scan| share(scan.refused.is_some())).collect();
    let head_dice: Vec<f64> = heads().filter_map(|scan| scan.mask_dice).collect();
    let skull_dice: Vec<f64> = scans.iter().filter_map(|scan| scan.synthetic_head_dice).collect();
    let recognised: Vec<f64> = bare().map(|scan| share(scan.stripped_input)).collect();
    let mistaken: Vec<f64> = heads().map(|scan| share(scan.stripped_input)).collect();
    let bare_dice: Vec<f64> = bare().filter_map(|scan| scan.mask_dice).collect();
    vec![
        Target::new("scans refused", "none", &refused, none),
        Target::new(
            "brain mask of whole heads, Dice with the reference",
            "mean >= 0.96, worst >= 0.92",
            &head_dice,
            |f| (mean_and_least(f), mean(f) >= 0.96 && least(f) >= 0.92),
        ),
        Target::new("brain mask of bare brains put into synthetic skulls, Dice", "mean >= 0.95", &skull_dice, |f| {
            (mean_and_least(f), mean(f) >= 0.95)
        }),
        Target::new("bare brains recognised", "100 %", &recognised, |f| {
            (format!("{:.1} %", 100.0 * mean(f)), mean(f) == 1.0)
        }),
        Target::new("whole heads taken for bare brains", "none", &mistaken, none),
        Target::new("brain mask of bare brains, Dice with their non-zero voxels", "mean >= 0.99", &bare_dice, |f| {
            (mean_and_least(f), mean(f) >= 0.99)
        }),
    ]
}

/// Registration of moved scans, and overlap with the template.
fn registration(scans: &[ScanFigures]) -> Vec<Option<Target>> {
    let moved: Vec<[f64; 2]> = scans.iter().flat_map(|scan| scan.moved.iter().copied()).collect();
    let near: Vec<f64> = moved.iter().map(|m| f64::from(u8::from(m[0] <= 1.5 && m[1] <= 1.5))).collect();
    let median = |axis: usize| {
        let mut values: Vec<f64> = moved.iter().map(|m| m[axis]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let dice: Vec<f64> = in_split(scans).filter(|scan| scan.refused.is_none()).map(|scan| scan.template_dice).collect();
    vec![
        Target::new(
            "scans moved by up to 30 degrees and 40 mm: registered again within 1.5 degrees and 1.5 mm",
            ">= 98 %",
            &near,
            |f| {
                let text = format!("{:.1} % (median {:.2} degrees, {:.2} mm)", 100.0 * mean(f), median(0), median(1));
                (text, mean(f) >= 0.98)
            },
        ),
        Target::new("brain in MNI space, Dice with the template's", "mean >= 0.93", &dice, |f| {
            (mean_and_least(f), mean(f) >= 0.93)
        }),
    ]
}

/// Correction of known bias fields.
fn bias(scans: &[ScanFigures]) -> Vec<Option<Target>> {
    let ratio: Vec<f64> = scans.iter().flat_map(|scan| scan.bias_ratio.iter().copied()).collect();
    let to_corrected: Vec<f64> = scans.iter().flat_map(|scan| scan.bias_ratio_corrected.iter().copied()).collect();
    vec![Target::new(
        "variation in white matter after a field of 30 % was added and corrected, relative to the original scan",
        "mean <= 1.05",
        &ratio,
        |f| {
            let text = format!(
                "mean {:.3}, worst {:.3}; {:.3} relative to the corrected scan",
                mean(f),
                greatest(f),
                mean(&to_corrected)
            );
            (text, mean(f) <= 1.05)
        },
    )]
}

/// Lesion masks resampled to the model's grid and back.
fn lesions(scans: &[ScanFigures]) -> Vec<Option<Target>> {
    let lesions: Vec<[f64; 3]> =
        scans.iter().flat_map(|scan| scan.lesions.iter().copied()).filter(|lesion| lesion[0] >= LESION_ML).collect();
    let dice: Vec<f64> = lesions.iter().map(|lesion| lesion[1]).collect();
    let volume: Vec<f64> = lesions.iter().map(|lesion| lesion[2].abs()).collect();
    vec![
        Target::new("lesion masks of 2 ml and more, to the model's grid and back, Dice", "worst >= 0.90", &dice, |f| {
            (mean_and_least(f), least(f) >= 0.90)
        }),
        Target::new("error of their volume", "worst <= 5 %", &volume, |f| {
            (format!("mean {:.2} %, worst {:.2} %", 100.0 * mean(f), 100.0 * greatest(f)), greatest(f) <= 0.05)
        }),
    ]
}

/// Agreement of two sites' intensities.
fn intensities(cross_site: Option<&[Row]>, method: &str) -> Vec<Option<Target>> {
    let row = cross_site.into_iter().flatten().find(|row| row.method == method);
    let times_closer: Vec<f64> = row.map(|row| row.times_closer).into_iter().collect();
    vec![Target::new(
        "distance of two sites' intensities, times smaller than with percentiles of the whole image",
        ">= 5 x",
        &times_closer,
        |f| (format!("{:.1} x", f[0]), f[0] >= 5.0),
    )]
}

/// Time and memory of one scan, and the gain of a second thread.
fn times(speed: &Speed) -> Vec<Option<Target>> {
    let seconds = |time: &Option<ScanTime>| -> Vec<f64> { time.iter().map(|time| time.core_seconds).collect() };
    let memory: Vec<f64> = speed.peak_memory_mb.into_iter().collect();
    let gain: Vec<f64> = speed.scans_per_second.iter().map(|[one, two]| two / one).collect();
    vec![
        Target::new("core-seconds, 2 mm head", "<= 1.0", &seconds(&speed.head_2mm), |f| {
            (format!("{:.3}", f[0]), f[0] <= 1.0)
        }),
        Target::new("core-seconds, 1 mm head of 256 x 256 x 180", "<= 2.5", &seconds(&speed.head_1mm), |f| {
            (format!("{:.3}", f[0]), f[0] <= 2.5)
        }),
        Target::new("peak memory of the process for that head, MB", "<= 600", &memory, |f| {
            (format!("{:.0}", f[0]), f[0] <= 600.0)
        }),
        Target::new("scans per second on two threads, relative to one", ">= 1.8", &gain, |f| {
            (format!("{:.2}", f[0]), f[0] >= 1.8)
        }),
    ]
}

fn mean_and_least(figures: &[f64]) -> String {
    format!("mean {:.4}, worst {:.4}", mean(figures), least(figures))
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len() as f64
}

fn least(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

fn greatest(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}
