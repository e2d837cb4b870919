//! Quality control of one preprocessed scan.
//!
//! Takes the volumes and the registration of one scan ([`Evidence`]); gives a few measures and a list of flags ([`Qc`]).
//! Flags never stop a scan; [`refuse_scan`] and [`refuse_brain`] refuse what is no brain at all.
//!
//! | flag | meaning |
//! |---|---|
//! | `small_brain`, `large_brain` | brain volume outside `brain_volume_ml` of the settings |
//! | `cut_by_field_of_view` | the brain touches the border of the scan over more than `edge_area_cm2`, or more than `cropped_max` of the template's brain lies outside the scan |
//! | `outside_model_grid` | more than 0.5 % of the brain lies outside the model's grid |
//! | `low_snr` | SNR below `snr_min` |
//! | `low_cnr` | contrast of white and grey matter over noise below `cnr_min` |
//! | `motion` | `entropy_focus` above `entropy_focus_max`, or `ghosting` above `ghosting_max` |
//! | `low_registration` | correlation with the template below `ncc_min` |
//! | `implausible_mask` | sphericity, symmetry or Dice with the template's mask below `sphericity_min`, `symmetry_min` or `mask_dice_min` |
//! | `skull_strip_fallback` | the surface failed and thresholds found the brain; parts may be missing |
//! | `thick_slices` | the largest voxel side is above `slice_max_mm` |

mod measure;
mod refuse;

use serde::{Deserialize, Serialize};

use super::brain::Brain;
use super::mask::{count, dice, volume_ml};
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::volume::{Affine, Grid, Volume};
pub use refuse::RefuseConfig;
pub(super) use refuse::{refuse_brain, refuse_scan};

/// Thresholds of the flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QcConfig {
    /// Smallest and largest ordinary brain volume in ml.
    pub brain_volume_ml: [f64; 2],
    /// Lowest ordinary signal-to-noise ratio.
    pub snr_min: f32,
    /// Lowest ordinary contrast-to-noise ratio.
    pub cnr_min: f32,
    /// Highest ordinary entropy focus criterion of a head with air around it.
    pub entropy_focus_max: f32,
    /// Highest ordinary brightness of ghosts in the air relative to the brain.
    pub ghosting_max: f32,
    /// Lowest ordinary correlation with the template.
    pub ncc_min: f32,
    /// Lowest ordinary sphericity of the mask.
    pub sphericity_min: f32,
    /// Lowest ordinary Dice of the mask with its mirror image.
    pub symmetry_min: f32,
    /// Lowest ordinary Dice of the mask with the template's in MNI space.
    pub mask_dice_min: f32,
    /// Largest share of the template's brain that may lie outside the field of view.
    pub cropped_max: f32,
    /// Largest area in cm2 over which a complete brain may touch the border of the scan, as the brain stem does.
    pub edge_area_cm2: f64,
    /// Largest ordinary voxel side in mm.
    pub slice_max_mm: f64,
}

impl Default for QcConfig {
    fn default() -> Self {
        Self {
            brain_volume_ml: [700.0, 2200.0],
            snr_min: 5.0,
            // 3.5 to 4.6 on IXI heads, 5.0 to 8.7 on bare brains, 3.0 on a FLAIR.
            cnr_min: 2.0,
            // 0.45 to 0.63 on IXI heads.
            entropy_focus_max: 0.75,
            // 0.003 to 0.048 on IXI heads; 0.06 to 0.10 with a ghost of a tenth.
            ghosting_max: 0.055,
            // 0.44 to 0.68 on IXI heads, 0.55 to 0.70 on bare brains, 0.51 on a FLAIR.
            ncc_min: 0.4,
            // 0.74 to 0.90 on all of them.
            sphericity_min: 0.7,
            // 0.93 to 0.99 on all of them.
            symmetry_min: 0.85,
            // 0.91 to 0.98 on all of them.
            mask_dice_min: 0.85,
            cropped_max: 0.03,
            edge_area_cm2: 15.0,
            slice_max_mm: 3.5,
        }
    }
}

impl Validate for QcConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess.qc");
        section.bounds("brain_volume_ml", self.brain_volume_ml, 0. ..=10_000.)?;
        let ratios =
            [("snr_min", self.snr_min), ("cnr_min", self.cnr_min), ("entropy_focus_max", self.entropy_focus_max)];
        section.all_within(&ratios, 0. ..=1000.)?;
        let shares = [
            ("ghosting_max", self.ghosting_max),
            ("sphericity_min", self.sphericity_min),
            ("symmetry_min", self.symmetry_min),
            ("mask_dice_min", self.mask_dice_min),
            ("cropped_max", self.cropped_max),
        ];
        section.all_within(&shares, 0. ..=1.)?;
        section.within("ncc_min", self.ncc_min, -1. ..=1.)?;
        section.within("edge_area_cm2", self.edge_area_cm2, 0. ..=10_000.)?;
        section.within("slice_max_mm", self.slice_max_mm, 0. ..=50.)
    }
}

/// Measures and flags of one scan.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Qc {
    /// Median intensity over the standard deviation of noise in the brain.
    pub snr: f32,
    /// Volume of the brain over that of the visible head; 1 for a bare brain.
    pub mask_ratio: f32,
    /// Difference of the mean intensities of white and grey matter over the standard deviation of noise in the brain.
    pub cnr: f32,
    /// Entropy focus criterion of the scan, 0..1: ghosts and blur raise it. Bare brains have other values than heads.
    pub entropy_focus: f32,
    /// Excess brightness of the brightest parts of the air over the rest of it, relative to the median of the brain;
    /// `None` where there is no air or it was set to zero.
    pub ghosting: Option<f32>,
    /// Share of the brain outside the field of view (by the template's brain) or outside the model's grid, whichever is
    /// larger.
    pub cropped_fraction: f32,
    /// Correlation with the template in the brain.
    pub registration_ncc: f32,
    /// Surface of a ball with the mask's volume over the mask's own surface.
    pub mask_sphericity: f32,
    /// Dice of the mask in MNI space with its mirror image.
    pub mask_symmetry: f32,
    /// Dice of the mask in MNI space with the template's.
    pub mask_dice: f32,
    /// Raised flags, in the order of the module's table.
    pub flags: Vec<&'static str>,
}

/// All flags, in the order of the module's table.
pub const QC_FLAGS: [&str; 11] = [
    "small_brain",
    "large_brain",
    "cut_by_field_of_view",
    "outside_model_grid",
    "low_snr",
    "low_cnr",
    "motion",
    "low_registration",
    "implausible_mask",
    "skull_strip_fallback",
    "thick_slices",
];

impl Qc {
    /// All measures with their names for people; `None` where a measure does not apply.
    pub fn measures(&self) -> [(&'static str, Option<f32>); 10] {
        [
            ("SNR", Some(self.snr)),
            ("CNR", Some(self.cnr)),
            ("mask ratio", Some(self.mask_ratio)),
            ("entropy focus", Some(self.entropy_focus)),
            ("ghosting", self.ghosting),
            ("cropped fraction", Some(self.cropped_fraction)),
            ("registration NCC", Some(self.registration_ncc)),
            ("mask sphericity", Some(self.mask_sphericity)),
            ("mask symmetry", Some(self.mask_symmetry)),
            ("mask Dice with template", Some(self.mask_dice)),
        ]
    }
}

/// One preprocessed scan, the input of [`judge`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    /// The scan's own grid.
    pub native: &'a Grid,
    /// The scan on the working grid, before the bias field was divided out.
    pub head: &'a Volume<f32>,
    /// The same scan divided by the bias field.
    pub corrected: &'a Volume<f32>,
    /// The brain on the working grid.
    pub found: &'a Brain,
    /// The brain on the model's grid.
    pub brain: &'a Volume<u8>,
    /// The template's brain on a grid in MNI space.
    pub template: &'a Volume<u8>,
    /// Native world mm to MNI mm.
    pub to_mni: &'a Affine,
    /// Correlation with the template in the brain.
    pub ncc: f32,
    /// Share of the brain inside the model's grid.
    pub kept: f64,
}

/// Measures a scan and raises its flags.
pub(super) fn judge(scan: &Evidence<'_>, cfg: &QcConfig) -> Qc {
    let mask = &scan.found.mask;
    let brain_ml = volume_ml(mask);
    let head = measure::thinned(scan.head);
    let (ghosting, mask_ratio) = if scan.found.stripped_input {
        (None, 1.0)
    } else {
        let (whole, brain) = (measure::foreground(&head), measure::thinned(mask));
        let ratio = count(&brain) as f32 / count(&whole).max(1) as f32;
        (measure::ghosting(&head, &brain, &whole), ratio.min(1.0))
    };
    let slice = scan.native.spacing().into_iter().fold(0.0, f64::max);
    let outside_view = measure::outside_view(scan.native, scan.template, scan.to_mni);
    let over_noise = measure::over_noise(scan.corrected, mask);
    let mut qc = Qc {
        snr: over_noise.signal,
        mask_ratio,
        cnr: over_noise.contrast,
        entropy_focus: measure::entropy_focus(&head),
        ghosting,
        cropped_fraction: outside_view.max(1.0 - scan.kept as f32).clamp(0.0, 1.0),
        registration_ncc: scan.ncc,
        mask_sphericity: measure::sphericity(mask),
        mask_symmetry: measure::symmetry(scan.brain),
        mask_dice: dice(scan.brain, scan.template) as f32,
        flags: Vec::new(),
    };
    let blurred = !scan.found.stripped_input && qc.entropy_focus > cfg.entropy_focus_max;
    let tests: [_; QC_FLAGS.len()] = [
        ("small_brain", brain_ml < cfg.brain_volume_ml[0]),
        ("large_brain", brain_ml > cfg.brain_volume_ml[1]),
        ("cut_by_field_of_view", measure::edge_area_cm2(mask) > cfg.edge_area_cm2 || outside_view > cfg.cropped_max),
        ("outside_model_grid", scan.kept < 0.995),
        ("low_snr", qc.snr < cfg.snr_min),
        ("low_cnr", qc.cnr < cfg.cnr_min),
        ("motion", blurred || qc.ghosting.is_some_and(|g| g > cfg.ghosting_max)),
        ("low_registration", qc.registration_ncc < cfg.ncc_min),
        (
            "implausible_mask",
            qc.mask_sphericity < cfg.sphericity_min
                || qc.mask_symmetry < cfg.symmetry_min
                || qc.mask_dice < cfg.mask_dice_min,
        ),
        ("skull_strip_fallback", scan.found.fallback),
        ("thick_slices", slice > cfg.slice_max_mm),
    ];
    qc.flags = tests.into_iter().filter(|(_, raised)| *raised).map(|(flag, _)| flag).collect();
    qc
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    /// A ball of 140 mm as head, its inner 110 mm as brain in three shells of tissue, with noise of standard deviation
    /// `sigma` in both channels of a magnitude image, and `ghost` times the head shifted by half the field of view.
    fn phantom(sigma: f32, ghost: f32) -> (Volume, Brain) {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -99.0], [0.0, 2.0, 0.0, -99.0], [0.0, 0.0, 2.0, -99.0]]);
        let grid = Grid { shape: [100; 3], affine };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut gauss = move || {
            let (u, v): (f32, f32) = (rng.random(), rng.random());
            (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos() * sigma
        };
        let radius = |i: usize| grid.world_mm(i).iter().map(|c| c * c).sum::<f64>().sqrt();
        let clean = |i: usize| match radius(i) {
            r if r < 40.0 => 130.0,
            r if r < 52.0 => 100.0,
            r if r < 70.0 => 60.0,
            _ => 0.0,
        };
        let shifted = |i: usize| i - i / 100 % 100 * 100 + (i / 100 + 50) % 100 * 100;
        let head = (0..grid.len()).map(|i| (clean(i) + ghost * clean(shifted(i)) + gauss()).hypot(gauss()));
        let head = Volume::new(grid, head.collect());
        let mask = Volume::new(grid, (0..grid.len()).map(|i| u8::from(radius(i) < 55.0)).collect());
        (head, Brain { mask, stripped_input: false, fallback: false })
    }

    fn judged(native: &Grid, head: &Volume, found: &Brain, kept: f64, ncc: f32) -> Qc {
        let (brain, to_mni) = (&found.mask, &Affine::identity());
        let template = brain;
        let scan = Evidence { native, head, corrected: head, found, brain, template, to_mni, ncc, kept };
        judge(&scan, &QcConfig::default())
    }

    #[test]
    fn the_measures_of_a_phantom_match_its_construction() {
        let (head, brain) = phantom(5.0, 0.0);
        let qc = judged(&head.grid, &head, &brain, 1.0, 0.9);
        assert!((qc.snr / 20.0 - 1.0).abs() < 0.2, "SNR {}, made with 100 / 5", qc.snr);
        assert!((qc.cnr / 6.0 - 1.0).abs() < 0.2, "CNR {}, made with 30 / 5", qc.cnr);
        assert!((qc.mask_ratio / (55f32 / 70.0).powi(3) - 1.0).abs() < 0.06, "ratio {}", qc.mask_ratio);
        assert!((qc.mask_sphericity - 1.0).abs() < 0.05, "sphericity of a ball: {}", qc.mask_sphericity);
        assert_eq!((qc.mask_symmetry, qc.cropped_fraction), (1.0, 0.0));
    }

    #[test]
    fn every_defect_raises_its_flag() {
        let (head, mut brain) = phantom(30.0, 0.0);
        brain.mask.data[..40_000].fill(1);
        brain.fallback = true;
        let slab = Affine::from_rows([[2.0, 0.0, 0.0, -99.0], [0.0, 2.0, 0.0, -99.0], [0.0, 0.0, 5.0, -99.0]]);
        let qc = judged(&Grid { shape: [100, 100, 20], affine: slab }, &head, &brain, 0.9, 0.3);
        for flag in ["cut_by_field_of_view", "outside_model_grid", "low_snr", "low_cnr", "low_registration"] {
            assert!(qc.flags.contains(&flag), "{flag} is missing in {:?}", qc.flags);
        }
        assert!(qc.flags.ends_with(&["skull_strip_fallback", "thick_slices"]), "{:?}", qc.flags);
    }

    #[test]
    fn the_flags_are_those_of_the_list() {
        let (head, mut found) = phantom(3.0, 0.0);
        found.fallback = true;
        let (brain, to_mni) = (&found.mask, &Affine::identity());
        let (native, head) = (&head.grid, &head);
        let scan = Evidence {
            native,
            head,
            corrected: head,
            found: &found,
            brain,
            template: brain,
            to_mni,
            ncc: 0.5,
            kept: 0.5,
        };
        // No scan is ordinary by these.
        let cfg = QcConfig {
            brain_volume_ml: [f64::INFINITY, f64::NEG_INFINITY],
            snr_min: f32::INFINITY,
            cnr_min: f32::INFINITY,
            entropy_focus_max: f32::NEG_INFINITY,
            ncc_min: 1.0,
            sphericity_min: f32::INFINITY,
            cropped_max: f32::NEG_INFINITY,
            edge_area_cm2: f64::NEG_INFINITY,
            slice_max_mm: 0.0,
            ..QcConfig::default()
        };
        assert_eq!(judge(&scan, &cfg).flags, QC_FLAGS);
    }

    #[test]
    fn a_ghost_in_the_air_raises_motion() {
        let flags = |ghost| {
            let (head, brain) = phantom(3.0, ghost);
            judged(&head.grid, &head, &brain, 1.0, 0.9).flags
        };
        assert!(!flags(0.0).contains(&"motion"));
        assert!(flags(0.2).contains(&"motion"));
    }

    #[test]
    fn ghosts_are_not_measured_in_zeroed_air() {
        let (head, brain) = phantom(0.0, 0.0);
        assert_eq!(judged(&head.grid, &head, &brain, 1.0, 0.9).ghosting, None);
    }
}
