//! From a scan as it came off the scanner to what the model sees.
//!
//! Takes one volume in any orientation, spacing and intensity unit, with or without skull, and gives [`Prepared`]: the
//! brain on the model's grid ([`model_grid`]: 80 x 96 x 96 voxels of 2 mm, RAS, MNI152 2009a space), intensities
//! 0..1, 0 outside the brain, with its mask and the affine from native world to MNI space.
//!
//! ```text
//! native ─► 2 mm working grid ─► bare brain? ─► skull strip ─► bias field ─► register ─► prior ─► model grid ─► normalize ─► qc
//!           (conform)            (stripped)     (skull_strip)  (bias)        (register)  (skull_   (conform)    (normalize)  (qc)
//!                                                                                         strip)
//! ```
//!
//! Every step is a pure function of its input and its part of [`PreprocessConfig`]. Voxels are interpolated once: from
//! the native grid, in blocks of at most 2 mm, straight to the model's grid. Refused as [`Error::Input`], by kind:
//! `constant` (nothing in it), `too_coarse` (voxels above 6 mm), `field_of_view` (too small for a brain, or no head at
//! all), `not_mri` (computed tomography), `no_brain` (nothing of a brain's volume, shape or contrast).

mod bias;
pub(crate) mod border;
mod conform;
mod contrast;
mod distance;
mod morphology;
mod normalize;
pub(crate) mod prior;
mod qc;
mod region;
pub(crate) mod register;
mod skull_strip;
mod stripped;
mod surface;
mod template;

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use bias::{BiasConfig, BiasField};
use conform::{Conformed, conformed};
pub use conform::{SPACING_MM, mask_to, model_grid};
pub use normalize::{NormalizeConfig, NormalizeMethod, normalize};
use qc::Evidence;
pub use qc::{Qc, QcConfig, RefuseConfig};
pub use region::{REGIONS, region};
pub use register::{RegisterConfig, Registration, register};
pub use skull_strip::{SkullStripConfig, skull_strip};
pub use stripped::StrippedConfig;
pub use template::{Template, template};
pub(crate) use {distance::signed_distance, stripped::brain_hull};

use crate::error::{Error, Result};
use crate::volume::resample::trilinear_within;
use crate::volume::{Affine, Grid, Volume};

/// Counted up when the same scan and settings would give another result.
pub const VERSION: u32 = 3;

/// The share of voxels of a scan that are sure to be air.
const AIR: f64 = 0.02;

/// Every so-many-th voxel is looked at for the air's intensity; prime, so that no plane or row is favoured.
const AIR_STEP: usize = 7;

/// All parameters of preprocessing; part of the recipe's fingerprint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreprocessConfig {
    /// Largest voxel side in mm that is still accepted.
    pub spacing_max_mm: f64,
    /// Smallest and largest field of view in mm along every axis that is still accepted.
    pub field_of_view_mm: [f64; 2],
    /// Smallest and largest volume in ml that is accepted as a brain.
    pub brain_volume_ml: [f64; 2],
    /// How a bare brain is recognised.
    pub stripped: StrippedConfig,
    /// How the brain is found in a head.
    pub skull_strip: SkullStripConfig,
    /// How the bias field is estimated.
    pub bias: BiasConfig,
    /// How the brain is registered to MNI space.
    pub register: RegisterConfig,
    /// How intensities are scaled.
    pub normalize: NormalizeConfig,
    /// When quality flags are raised.
    pub qc: QcConfig,
    /// What is refused as no MRI scan of a brain.
    pub refuse: RefuseConfig,
}

impl Default for PreprocessConfig {
    fn default() -> Self {
        Self {
            spacing_max_mm: 6.0,
            field_of_view_mm: [100.0, 800.0],
            brain_volume_ml: [400.0, 2600.0],
            stripped: StrippedConfig::default(),
            skull_strip: SkullStripConfig::default(),
            bias: BiasConfig::default(),
            register: RegisterConfig::default(),
            normalize: NormalizeConfig::default(),
            qc: QcConfig::default(),
            refuse: RefuseConfig::default(),
        }
    }
}

/// A scan ready for the model.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The brain on the model's grid: 0..1, 0 outside the brain.
    pub image: Volume<f32>,
    /// The brain mask on the model's grid: 0 or 1.
    pub brain: Volume<u8>,
    /// Native world mm to MNI mm: 12 parameters.
    pub to_mni: Affine,
    /// The scan's own grid.
    pub native: Grid,
    /// Volume of the brain in ml, in native space.
    pub brain_volume_ml: f64,
    /// True where the skull had been removed before.
    pub stripped_input: bool,
    /// Quality measures and flags.
    pub qc: Qc,
    /// Milliseconds spent in each step, in order.
    pub timings: Vec<(&'static str, f32)>,
}

/// The brain of one scan, in the scan's own world.
#[derive(Debug, Clone)]
pub struct Brain {
    /// 1 in the brain, 0 elsewhere, on a world-aligned 2 mm RAS grid that covers the field of view.
    pub mask: Volume<u8>,
    /// True where the skull had been removed before.
    pub stripped_input: bool,
    /// True where skull stripping had to fall back on thresholds, which find less of the brain.
    pub fallback: bool,
}

/// What every step gave, for looking at one scan and for measuring the steps.
#[derive(Debug, Clone)]
pub struct Steps {
    /// The scan on the working grid: world-aligned, 2 mm, RAS, the scanner's units above those of air.
    pub working: Volume,
    /// The brain before the template had its say.
    pub first_mask: Volume<u8>,
    /// The brain.
    pub brain: Brain,
    /// The bias field.
    pub field: BiasField,
    /// [`Steps::working`] over the bias field.
    pub corrected: Volume,
    /// Where the brain lies in MNI space.
    pub registration: Registration,
    /// The bias-corrected brain on the model's grid, in the scanner's units: what [`normalize`] takes. Outside the brain
    /// it says nothing.
    pub resampled: Volume,
    /// The end of it.
    pub prepared: Prepared,
}

/// Preprocesses one scan. Same input and settings, same result, bit for bit.
///
/// # Errors
/// [`Error::Input`] where the scan is refused; see the module's first lines for the kinds.
pub fn prepare(native: &Volume<f32>, cfg: &PreprocessConfig) -> Result<Prepared> {
    steps(native, cfg).map(|steps| steps.prepared)
}

/// As [`prepare`], and keeps what every step gave.
///
/// # Errors
/// As [`prepare`].
pub fn steps(native: &Volume<f32>, cfg: &PreprocessConfig) -> Result<Steps> {
    let mut timer = Timer::start();
    check(native, cfg)?;
    let scan = finite(native);
    timer.lap("check");
    let Conformed { mut working, finer } = conformed(&scan);
    timer.lap("conform");
    qc::refuse_scan(native, &working, &cfg.refuse)?;
    // Fields and scales multiply, so air must be at 0.
    let some: Vec<f32> = working.data.iter().copied().step_by(AIR_STEP).collect();
    let background = percentile(&some, AIR);
    working.data.iter_mut().for_each(|v| *v -= background);
    timer.lap("check");

    let mut brain = locate(&scan, &working, cfg)?;
    let first_mask = brain.mask.clone();
    timer.lap("skull_strip");
    let field = bias::estimate(&working, &first_mask, &cfg.bias);
    let mut corrected = working.clone();
    divide(&mut corrected, &field.on(&working.grid, &Affine::identity()));
    timer.lap("bias");
    let registration = register::register(&corrected, &first_mask, &cfg.register);
    let to_mni = registration.to_mni;
    timer.lap("register");
    qc::refuse_brain(&corrected, &first_mask, registration.ncc, &cfg.refuse)?;
    if !brain.stripped_input {
        let t1_like = contrast::t1_like(&working, &first_mask);
        brain.mask = border::refine(&first_mask, &t1_like, &to_mni, &cfg.skull_strip);
    }
    timer.lap("refine");

    let from_mni = to_mni.inverse().ok_or_else(|| Error::Bug("registration gave a singular map".into()))?;
    let on_model_grid = mask_to(&brain.mask, &model_grid(), &from_mni);
    timer.lap("mask");
    let mut resampled = trilinear_within(finer.as_deref().unwrap_or(&working), &on_model_grid, &from_mni);
    if finer.is_some() {
        resampled.data.iter_mut().for_each(|v| *v -= background);
    }
    timer.lap("resample");
    divide(&mut resampled, &field.on(&model_grid(), &from_mni));
    timer.lap("unbias");
    let image = normalize(&resampled, &on_model_grid, &cfg.normalize).ok_or_else(|| {
        Error::input(
            "no_brain",
            "the brain is not brighter than the background: check the scan's intensities (a mask, an inverted image?)",
        )
    })?;
    timer.lap("normalize");
    let kept = ml(&on_model_grid) / to_mni.determinant3().abs() / ml(&brain.mask);
    let qc = qc::judge(
        &Evidence {
            native: &native.grid,
            head: &working,
            corrected: &corrected,
            found: &brain,
            brain: &on_model_grid,
            template: template_brain(),
            to_mni: &to_mni,
            ncc: registration.ncc,
            mask_dice: dice(&on_model_grid, template_brain()) as f32,
            kept,
        },
        &cfg.qc,
    );
    timer.lap("qc");
    let prepared = Prepared {
        image,
        brain: on_model_grid,
        to_mni,
        native: native.grid,
        brain_volume_ml: ml(&brain.mask),
        stripped_input: brain.stripped_input,
        qc,
        timings: timer.laps,
    };
    Ok(Steps { working, first_mask, brain, field, corrected, registration, resampled, prepared })
}

/// The bias field of `image` within `brain`, both on one grid.
pub fn estimate_bias(image: &Volume, brain: &Volume<u8>, cfg: &BiasConfig) -> BiasField {
    bias::estimate(image, brain, cfg)
}

/// Twice what two masks on one grid share, over what both hold; 1 where both are empty.
pub fn dice(a: &Volume<u8>, b: &Volume<u8>) -> f64 {
    let both = a.data.iter().zip(&b.data).filter(|&(&a, &b)| a != 0 && b != 0).count();
    let sum = morphology::count(a) + morphology::count(b);
    if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
}

/// The template's brain on the model's grid.
pub fn template_brain() -> &'static Volume<u8> {
    static BRAIN: LazyLock<Volume<u8>> =
        LazyLock::new(|| mask_to(&template().brain, &model_grid(), &Affine::identity()));
    &BRAIN
}

/// Divides a volume by a field on the same grid.
fn divide(volume: &mut Volume, field: &Volume) {
    volume.data.iter_mut().zip(&field.data).for_each(|(v, f)| *v /= f);
}

/// Volume of a mask in ml.
fn ml(mask: &Volume<u8>) -> f64 {
    morphology::count(mask) as f64 * mask.grid.voxel_ml()
}

/// Recognises a bare brain or strips the skull, and refuses what has no brain's volume.
fn locate(scan: &Volume, working: &Volume, cfg: &PreprocessConfig) -> Result<Brain> {
    let stripped = stripped::stripped_brain(scan, &cfg.stripped);
    let stripped_input = stripped.is_some();
    let (mask, complete) = match stripped {
        Some(mask) => (mask, true),
        None => skull_strip::skull_strip(working, &cfg.skull_strip),
    };
    let found = ml(&mask);
    let [least, most] = cfg.brain_volume_ml;
    if !(least..=most).contains(&found) {
        return Err(Error::input(
            "no_brain",
            format!(
                "found {found:.0} ml that look like a brain, expected {least} to {most} ml: check that this is a \
                 T1-weighted head, or strip the skull beforehand"
            ),
        ));
    }
    Ok(Brain { mask, stripped_input, fallback: !complete })
}

/// Refuses what cannot hold a brain.
fn check(native: &Volume<f32>, cfg: &PreprocessConfig) -> Result<()> {
    let spacing = native.grid.spacing();
    if native.grid.is_empty() || native.grid.affine.inverse().is_none() {
        return Err(Error::input("field_of_view", "the volume has no extent: check its shape and affine"));
    }
    if spacing.iter().any(|&s| s > cfg.spacing_max_mm) {
        return Err(Error::input(
            "too_coarse",
            format!(
                "voxels of {:.1} x {:.1} x {:.1} mm are coarser than {} mm: a localiser or a thick-slice scan; \
                 leave it out, or resample it from a finer one",
                spacing[0], spacing[1], spacing[2], cfg.spacing_max_mm
            ),
        ));
    }
    let [least, most] = cfg.field_of_view_mm;
    let extent = [0, 1, 2].map(|a| spacing[a] * native.grid.shape[a] as f64);
    if extent.iter().any(|e| !(least..=most).contains(e)) {
        return Err(Error::input(
            "field_of_view",
            format!(
                "a field of view of {:.0} x {:.0} x {:.0} mm is not that of a head ({least} to {most} mm): check the \
                 voxel size in the header",
                extent[0], extent[1], extent[2]
            ),
        ));
    }
    let first = native.data[0];
    if native.data.iter().all(|v| *v == first || !v.is_finite()) {
        return Err(Error::input("constant", "all voxels are the same: the scan is empty, fetch it again"));
    }
    Ok(())
}

/// The scan with NaN and infinite voxels set to 0.
fn finite(native: &Volume<f32>) -> Cow<'_, Volume<f32>> {
    if native.data.iter().all(|v| v.is_finite()) {
        return Cow::Borrowed(native);
    }
    let mut clean = native.clone();
    clean.data.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
    Cow::Owned(clean)
}

/// The value below which the fraction `q` of `values` lies; 0 for none.
///
/// Counts leading bits first, then selects among those that share them: several times faster than to select among all,
/// and `values` stay as they are.
fn percentile(values: &[f32], q: f64) -> f32 {
    /// Sign, exponent and three bits of the mantissa.
    const BUCKETS: usize = 1 << 12;
    if values.is_empty() {
        return 0.0;
    }
    let bucket = |v: f32| (ordered(v) >> (u32::BITS - BUCKETS.ilog2())) as usize;
    let mut counts = [0u32; BUCKETS];
    values.iter().for_each(|&v| counts[bucket(v)] += 1);
    let mut rank = ((values.len() - 1) as f64 * q).round() as usize;
    let mut held = 0;
    while rank >= counts[held] as usize {
        rank -= counts[held] as usize;
        held += 1;
    }
    let mut near: Vec<f32> = values.iter().copied().filter(|&v| bucket(v) == held).collect();
    *near.select_nth_unstable_by(rank, f32::total_cmp).1
}

/// Bits of `v` that compare as [`f32::total_cmp`] does.
fn ordered(v: f32) -> u32 {
    let bits = v.to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

/// Milliseconds per step.
struct Timer {
    last: Instant,
    laps: Vec<(&'static str, f32)>,
}

impl Timer {
    fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    /// Adds the time since the last lap to `step`.
    fn lap(&mut self, step: &'static str) {
        let ms = self.last.elapsed().as_secs_f32() * 1000.0;
        match self.laps.iter_mut().find(|(name, _)| *name == step) {
            Some((_, sum)) => *sum += ms,
            None => self.laps.push((step, ms)),
        }
        self.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::resample::trilinear;

    /// The template's brain, tilted, shifted and a tenth smaller, with exact zeros around it, in 1.5 mm voxels whose axes
    /// run left, posterior, superior; and where it lies: native mm to MNI mm.
    fn bare_brain() -> (Volume, Affine) {
        let affine = Affine::from_rows([[-1.5, 0.0, 0.0, 110.0], [0.0, -1.5, 0.0, 120.0], [0.0, 0.0, 1.5, -100.0]]);
        let grid = Grid { shape: [147, 160, 140], affine };
        let (s, c) = 0.15f64.sin_cos();
        let to_mni =
            Affine::from_rows([[1.1, 0.0, 0.0, -4.0], [0.0, 1.1 * c, -1.1 * s, 6.0], [0.0, 1.1 * s, 1.1 * c, -9.0]]);
        let mut image = trilinear(&template().t1, &grid, &to_mni);
        let brain = mask_to(&template().brain, &grid, &to_mni);
        image.data.iter_mut().zip(&brain.data).for_each(|(v, &b)| *v = if b != 0 { 900.0 * *v } else { 0.0 });
        (image, to_mni)
    }

    fn kind(volume: &Volume) -> &'static str {
        prepare(volume, &PreprocessConfig::default()).expect_err("refused").kind()
    }

    #[test]
    fn a_bare_brain_arrives_where_the_template_has_it_with_its_own_volume() {
        let (scan, to_mni) = bare_brain();
        let prepared = prepare(&scan, &PreprocessConfig::default()).expect("a brain");
        assert!(prepared.stripped_input);
        assert_eq!(
            (prepared.image.grid, prepared.brain.grid, prepared.native),
            (model_grid(), model_grid(), scan.grid)
        );
        let own_ml = ml(&template().brain) / 1.1f64.powi(3);
        assert!(
            (prepared.brain_volume_ml / own_ml - 1.0).abs() < 0.02,
            "{} ml, not {own_ml}",
            prepared.brain_volume_ml
        );
        for p in [[0.0, 0.0, 0.0], [40.0, 30.0, 20.0], [-40.0, -60.0, 10.0]] {
            let (want, got) = (to_mni.apply(p), prepared.to_mni.apply(p));
            assert!(want.iter().zip(got).all(|(w, g)| (w - g).abs() < 1.5), "{p:?} went to {got:?}, not {want:?}");
        }
        assert!(prepared.image.data.iter().all(|v| (0.0..=1.0).contains(v)));
        let outside = prepared.image.data.iter().zip(&prepared.brain.data).filter(|&(_, &b)| b == 0);
        assert!(outside.map(|(v, _)| v).all(|&v| v == 0.0));
        assert_eq!(prepared.qc.flags, Vec::<&str>::new());
        assert!(dice(&prepared.brain, template_brain()) > 0.97);
    }

    #[test]
    fn storage_order_and_missing_values_do_not_change_the_result() {
        let (mut scan, _) = bare_brain();
        let cfg = PreprocessConfig::default();
        let first = prepare(&scan, &cfg).expect("a brain");
        let flipped = prepare(&scan.reoriented_ras(), &cfg).expect("a brain");
        let overlap = dice(&first.brain, &flipped.brain);
        assert!(overlap > 0.995, "flipping the storage order changed the brain: Dice {overlap}");
        scan.data[0] = f32::NAN;
        scan.data[1] = f32::INFINITY;
        assert!(prepare(&scan, &cfg).expect("a brain").image == first.image, "missing values in air changed the image");
    }

    #[test]
    fn what_cannot_hold_a_brain_is_refused_by_kind() {
        let (scan, _) = bare_brain();
        let rescaled = |factor: f64| {
            let mut grid = scan.grid;
            grid.affine.0.iter_mut().for_each(|row| row[..3].iter_mut().for_each(|v| *v *= factor));
            Volume::new(grid, scan.data.clone())
        };
        assert_eq!(kind(&Volume::zeros(scan.grid)), "constant");
        assert_eq!(kind(&Volume::new(scan.grid, vec![f32::NAN; scan.grid.len()])), "constant");
        assert_eq!(kind(&rescaled(7.0)), "too_coarse");
        assert_eq!(kind(&rescaled(0.3)), "field_of_view");
        assert_eq!(kind(&rescaled(3.9)), "field_of_view");
        assert_eq!(kind(&rescaled(0.6)), "no_brain");
        let mut flat = scan.clone();
        flat.grid.affine.0[2] = [0.0; 4];
        assert_eq!(kind(&flat), "field_of_view");
    }

    #[test]
    fn settings_survive_toml_and_unknown_keys_are_refused() {
        let cfg = PreprocessConfig::default();
        let text = toml::to_string(&cfg).expect("TOML");
        assert_eq!(toml::from_str::<PreprocessConfig>(&text).expect("settings"), cfg);
        assert_eq!(toml::from_str::<PreprocessConfig>("").expect("settings"), cfg);
        assert!(toml::from_str::<PreprocessConfig>("[skull_strip]\nfractional = 0.5").is_err());
    }
}
