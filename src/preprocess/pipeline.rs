//! The steps of preprocessing, one after the other.
//!
//! Takes a native scan of any orientation, spacing and intensity unit; gives [`Prepared`], or [`Steps`] with the result
//! of every step. The picture and the reasons for refusal are in the [module's first lines](super).

use super::bias::{BiasField, estimate_bias};
use super::border;
use super::brain::Brain;
use super::check::{check, finite};
use super::config::PreprocessConfig;
use super::conform::{Conformed, conformed, mask_to, model_grid};
use super::contrast::t1_like;
use super::intensity::{of_ordinary_size, with_dark_air};
use super::locate::locate;
use super::mask::volume_ml;
use super::normalize::{NormalizeConfig, normalize};
use super::qc::{Evidence, Qc, judge, refuse_brain, refuse_scan};
use super::register::{Registration, register};
use super::skull_strip::SkullStripConfig;
use super::statistics::air_level;
use super::template::template_brain;
use super::timer::Timer;
use crate::error::{Error, Result};
use crate::volume::resample::trilinear_within;
use crate::volume::{Affine, Grid, Volume};

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
    /// True where the input already had no skull.
    pub stripped_input: bool,
    /// Quality measures and flags.
    pub qc: Qc,
    /// Milliseconds spent in each step, in order.
    pub timings: Vec<(&'static str, f32)>,
}

/// The result of every step, to inspect one scan and to evaluate the steps.
#[derive(Debug, Clone)]
pub struct Steps {
    /// The scan on the working grid (world-aligned, 2 mm, RAS), in the scanner's units above the level of air. Tiny and huge
    /// numbers are multiplied by a power of two.
    pub working: Volume,
    /// The brain before its border was refined with the template.
    pub first_mask: Volume<u8>,
    /// The brain.
    pub brain: Brain,
    /// The bias field.
    pub field: BiasField,
    /// [`Steps::working`] divided by the bias field.
    pub corrected: Volume,
    /// The map to MNI space.
    pub registration: Registration,
    /// The bias-corrected brain on the model's grid, in the scanner's units: the input of [`normalize`]. Its voxels
    /// outside the brain have no meaning.
    pub resampled: Volume,
    /// The result of preprocessing.
    pub prepared: Prepared,
}

/// Preprocesses one scan. The same input and settings give the same result, bit for bit.
///
/// # Errors
/// [`Error::Input`] where the scan is refused; the [module's first lines](super) list the kinds.
pub fn prepare(native: &Volume<f32>, cfg: &PreprocessConfig) -> Result<Prepared> {
    steps(native, cfg).map(|steps| steps.prepared)
}

/// As [`prepare`], with the result of every step.
///
/// # Errors
/// As [`prepare`].
pub fn steps(native: &Volume<f32>, cfg: &PreprocessConfig) -> Result<Steps> {
    let mut timer = Timer::start();
    check(native, cfg)?;
    let scan = with_dark_air(of_ordinary_size(finite(native)));
    timer.lap("check");
    let Conformed { mut working, finer } = conformed(&scan);
    timer.lap("conform");
    refuse_scan(native, &working, &cfg.refuse)?;
    // Bias field and intensity scale multiply, so air must be at 0.
    let air = air_level(&working);
    subtract(&mut working, air);
    timer.lap("check");

    let found = locate(&scan, &working, cfg)?;
    timer.lap("skull_strip");
    let field = estimate_bias(&working, &found.mask, &cfg.bias);
    let mut corrected = working.clone();
    divide(&mut corrected, &field, &Affine::identity());
    timer.lap("bias");
    let registration = register(&corrected, &found.mask, &cfg.register);
    let to_mni = registration.to_mni;
    timer.lap("register");
    refuse_brain(&corrected, &found.mask, registration.ncc, &cfg.refuse)?;
    let brain = refined(&found, &working, &to_mni, &cfg.skull_strip);
    timer.lap("refine");

    let from_mni = to_mni.inverse().ok_or_else(|| Error::Bug("registration gave a singular map".into()))?;
    let mask = mask_to(&brain.mask, &model_grid(), &from_mni);
    timer.lap("mask");
    let mut resampled = match &finer {
        Some(finer) => trilinear_within(finer, &mask, &from_mni),
        None => trilinear_within(&working, &mask, &from_mni),
    };
    if finer.is_some() {
        subtract(&mut resampled, air);
    }
    timer.lap("resample");
    divide(&mut resampled, &field, &from_mni);
    timer.lap("unbias");
    let image = scaled(&resampled, &mask, &cfg.normalize)?;
    timer.lap("normalize");
    let evidence = Evidence {
        native: &native.grid,
        head: &working,
        corrected: &corrected,
        found: &brain,
        brain: &mask,
        template: template_brain(),
        to_mni: &to_mni,
        ncc: registration.ncc,
        kept: volume_ml(&mask) / to_mni.determinant3().abs() / volume_ml(&brain.mask),
    };
    let qc = judge(&evidence, &cfg.qc);
    timer.lap("qc");
    let prepared = Prepared {
        image,
        brain: mask,
        to_mni,
        native: native.grid,
        brain_volume_ml: volume_ml(&brain.mask),
        stripped_input: brain.stripped_input,
        qc,
        timings: timer.laps(),
    };
    Ok(Steps { working, first_mask: found.mask, brain, field, corrected, registration, resampled, prepared })
}

/// Subtracts the level of air from every voxel.
fn subtract(image: &mut Volume, air: f32) {
    image.data.iter_mut().for_each(|v| *v -= air);
}

/// Divides `image` by the bias field; `to_native` takes its world mm to native world mm.
fn divide(image: &mut Volume, field: &BiasField, to_native: &Affine) {
    let field = field.on(&image.grid, to_native);
    image.data.iter_mut().zip(&field.data).for_each(|(v, f)| *v /= f);
}

/// The brain that was found in a head, with its border refined; a bare brain as it is.
fn refined(found: &Brain, working: &Volume, to_mni: &Affine, cfg: &SkullStripConfig) -> Brain {
    let mut brain = found.clone();
    if !found.stripped_input {
        brain.mask = border::refine(&found.mask, &t1_like(working, &found.mask), to_mni, cfg);
    }
    brain
}

/// Intensities of the brain on the scale 0..1.
fn scaled(resampled: &Volume, mask: &Volume<u8>, cfg: &NormalizeConfig) -> Result<Volume> {
    normalize(resampled, mask, cfg).ok_or_else(|| {
        Error::input(
            "no_brain",
            "the brain is not brighter than the background: check the scan's intensities (a mask, an inverted image?)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::mask::dice;
    use crate::preprocess::template::template;
    use crate::volume::resample::trilinear;

    /// The template's brain, tilted, shifted and a tenth smaller, with exact zeros around it, in 1.5 mm voxels whose axes
    /// run left, posterior, superior; and its map from native mm to MNI mm.
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
    fn a_bare_brain_is_laid_onto_the_template_and_keeps_its_own_volume() {
        let (scan, to_mni) = bare_brain();
        let prepared = prepare(&scan, &PreprocessConfig::default()).expect("a brain");
        assert!(prepared.stripped_input);
        assert_eq!(
            (prepared.image.grid, prepared.brain.grid, prepared.native),
            (model_grid(), model_grid(), scan.grid)
        );
        let own_ml = volume_ml(&template().brain) / 1.1f64.powi(3);
        assert!(
            (prepared.brain_volume_ml / own_ml - 1.0).abs() < 0.02,
            "{} ml, not {own_ml}",
            prepared.brain_volume_ml
        );
        for p in [[0.0, 0.0, 0.0], [40.0, 30.0, 20.0], [-40.0, -60.0, 10.0]] {
            let (want, got) = (to_mni.apply(p), prepared.to_mni.apply(p));
            assert!(
                want.iter().zip(got).all(|(w, g)| (w - g).abs() < 1.5),
                "{p:?} was mapped to {got:?}, not {want:?}"
            );
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
}
