//! Affine registration of the brain to the MNI152 template.
//!
//! Takes the 2 mm working volume and its brain mask; gives the [`Registration`]: the affine map from native world mm
//! to MNI mm with 12 parameters, its rigid part, and the correlation of scan and template.
//!
//! ```text
//! 27 rotations at 8 mm ─► the best of them ─► similarity at 8, 4 mm ─► affine at 4, 2 mm
//! ```
//!
//! The scan is explained as a sum of the template's tissue maps ([`cost`]), so that any contrast works. Refuses
//! nothing: without a brain, the centres of the masks are aligned and `ncc` is 0.

mod cost;
mod levels;
mod pose;
mod step;

use serde::{Deserialize, Serialize};

use self::cost::{NormalEquations, Weights, evaluate};
use self::levels::{LEVELS, Level, TemplatePoints};
use self::pose::{Pose, multiply, rotation};
use self::step::{Freedom, step};
use super::mask::volume_ml;
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::volume::{Affine, Volume};

/// Parameters of registration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegisterConfig {
    /// The search starts from rotations about each axis by minus this, zero and plus this, in degrees.
    pub start_turn_deg: f64,
    /// Weight of the masks' mean squared difference near the brain's border, relative to the share of the intensity's
    /// variance that the template does not explain.
    pub mask_weight: f64,
    /// Cost of stretching and shearing the head, per unit of squared strain.
    pub strain_weight: f64,
    /// Share of the brain's voxels at either end of its intensities that is clamped.
    pub tails: f64,
    /// A level ends when a step changes the cost by less than this share of it.
    pub tolerance: f64,
    /// Most iterations per level.
    pub iterations: usize,
}

impl Default for RegisterConfig {
    fn default() -> Self {
        Self {
            start_turn_deg: 30.0,
            mask_weight: 1.0,
            strain_weight: 0.1,
            tails: 0.01,
            tolerance: 1e-4,
            iterations: 30,
        }
    }
}

impl Validate for RegisterConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess.register");
        section.within("start_turn_deg", self.start_turn_deg, 0. ..=180.)?;
        let weights = [("mask_weight", self.mask_weight), ("strain_weight", self.strain_weight)];
        section.all_within(&weights, 0. ..=1000.)?;
        section.within("tails", self.tails, 0. ..=0.45)?;
        section.within("tolerance", self.tolerance, 0. ..=1.)?;
        section.within("iterations", self.iterations, 0..=10_000)
    }
}

/// The map to MNI space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Registration {
    /// Native world mm to MNI mm, 12 parameters.
    pub to_mni: Affine,
    /// The same position and rotation without a change of size or shape.
    pub rigid: Affine,
    /// Correlation in the template's brain between the scan and the best sum of the template's tissue maps, 0..1.
    /// Low where there is no brain.
    pub ncc: f32,
}

/// Rounds of the search at 8 mm: iterations from every pose, and the number of best poses kept.
const ROUNDS: [(usize, usize); 3] = [(3, 10), (6, 3), (12, 1)];
/// Least damping of a step, as a share of the second derivatives.
const DAMPING_MIN: f64 = 1e-4;
/// Damping of the first step of a level.
const START_DAMPING: f64 = 1e-2;

/// Registers `image` (any contrast), with its `brain` mask on the same grid, to the template.
pub fn register(image: &Volume<f32>, brain: &Volume<u8>, cfg: &RegisterConfig) -> Registration {
    let template = levels::template_points();
    let at = levels::centre(brain).unwrap_or(template.centre);
    let Some(scan) = levels::scan_levels(image, brain, cfg.tails) else {
        let shift = Affine::translation([0, 1, 2].map(|a| template.centre[a] - at[a]));
        return Registration { to_mni: shift, rigid: shift, ncc: 0.0 };
    };
    let size = (volume_ml(brain) / template.volume_ml).cbrt();
    let weights = Weights { mask: cfg.mask_weight, strain: cfg.strain_weight, size };
    let search = Search { template, scan: &scan, weights, cfg };
    let (similarity, normal) = search.similarity(at, size);
    let (pose, ncc) = search.affine(similarity, normal);
    let to_mni = |pose: Pose| pose.to_scan().inverse();
    Registration {
        to_mni: to_mni(pose).unwrap_or(Affine::identity()),
        rigid: to_mni(similarity.without_size()).unwrap_or(Affine::identity()),
        ncc: ncc as f32,
    }
}

/// Scan and template at all levels, finest first.
struct Search<'a> {
    template: &'a TemplatePoints,
    scan: &'a [Level; LEVELS],
    weights: Weights,
    cfg: &'a RegisterConfig,
}

impl Search<'_> {
    /// The best rotation, shift and size at 4 mm, from all starts at 8 mm.
    fn similarity(&self, at: [f64; 3], size: f64) -> (Pose, NormalEquations) {
        let mut poses: Vec<(Pose, Option<NormalEquations>)> = starts(self.cfg.start_turn_deg)
            .into_iter()
            .map(|turn| turn.map(|row| row.map(|v| v * size)))
            .map(|linear| (Pose { from: self.template.centre, at, linear }, None))
            .collect();
        for (iterations, kept) in ROUNDS {
            let descend = |(pose, before)| self.descend(2, pose, before, Freedom::Similarity, iterations);
            let mut tried: Vec<(Pose, NormalEquations)> = poses.into_iter().map(descend).collect();
            tried.sort_by(|a, b| a.1.cost.total_cmp(&b.1.cost));
            poses = tried.into_iter().take(kept).map(|(pose, normal)| (pose, Some(normal))).collect();
        }
        let (best, normal) = poses.swap_remove(0);
        self.descend(1, best, normal, Freedom::Similarity, self.cfg.iterations)
    }

    /// The affine pose near `similarity`, or `similarity` itself where its cost is lower, and the correlation there.
    fn affine(&self, similarity: Pose, normal: NormalEquations) -> (Pose, f64) {
        let (pose, normal) = self.descend(1, similarity, Some(normal), Freedom::Affine, self.cfg.iterations);
        let before = self.evaluate(0, &similarity, &normal);
        let (pose, normal) = self.descend(0, pose, Some(normal), Freedom::Affine, self.cfg.iterations);
        if normal.cost <= before.cost { (pose, normal.correlation) } else { (similarity, before.correlation) }
    }

    /// Descends from `pose` until the gain becomes small. The slope depends on how the template's maps explain the scan
    /// near `pose`: `before` holds that, and without it one more evaluation finds out.
    fn descend(
        &self,
        level: usize,
        mut pose: Pose,
        before: Option<NormalEquations>,
        freedom: Freedom,
        iterations: usize,
    ) -> (Pose, NormalEquations) {
        let mut damping = START_DAMPING;
        let before = before.unwrap_or_else(|| self.evaluate(level, &pose, &NormalEquations::zero()));
        let mut here = self.evaluate(level, &pose, &before);
        for _ in 0..iterations {
            let Some(next) = step(&pose, &here, freedom, damping) else { break };
            let there = self.evaluate(level, &next, &here);
            let gain = here.cost - there.cost;
            if gain > 0.0 {
                (here, pose) = (there, next);
                damping = (damping / 5.0).max(DAMPING_MIN);
            } else {
                damping *= 10.0;
            }
            if gain.abs() < self.cfg.tolerance * here.cost {
                break;
            }
        }
        (pose, here)
    }

    fn evaluate(&self, level: usize, pose: &Pose, before: &NormalEquations) -> NormalEquations {
        evaluate(&self.scan[level], &self.template.levels[level], pose, &self.weights, before)
    }
}

/// Rotations by zero, minus and plus `degrees` about each axis: about z first, about x last.
fn starts(degrees: f64) -> [[[f64; 3]; 3]; 27] {
    let angle = |i: usize| [0.0, -degrees, degrees][i % 3].to_radians();
    std::array::from_fn(|i| {
        let about_x = rotation([angle(i), 0.0, 0.0]);
        let about_y = rotation([0.0, angle(i / 3), 0.0]);
        multiply(&about_x, &multiply(&about_y, &rotation([0.0, 0.0, angle(i / 9)])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::template::{Template, template};
    use crate::volume::Grid;
    use crate::volume::resample::{nearest, trilinear};

    /// MNI mm to native mm of a head rotated about x, y and z by `degrees`, smaller than the template and shifted.
    fn to_native(degrees: [f64; 3]) -> Affine {
        let [x, y, z] = degrees.map(f64::to_radians);
        let turn = multiply(&rotation([x, 0.0, 0.0]), &multiply(&rotation([0.0, y, 0.0]), &rotation([0.0, 0.0, z])));
        let shape = [[0.92, 0.01, 0.0], [0.0, 0.95, 0.02], [0.0, 0.0, 0.88]];
        let linear = multiply(&turn, &shape);
        let shift = [12.0, -25.0, 31.0];
        Affine::from_rows(std::array::from_fn(|a| [linear[a][0], linear[a][1], linear[a][2], shift[a]]))
    }

    /// `map` of the template and its brain mask, moved by `to_native` onto a 2 mm grid.
    fn scan(map: &Volume<f32>, to_native: &Affine) -> (Volume<f32>, Volume<u8>) {
        let rows = [[2.0, 0.0, 0.0, -119.0], [0.0, 2.0, 0.0, -139.0], [0.0, 0.0, 2.0, -99.0]];
        let grid = Grid { shape: [130, 125, 130], affine: Affine::from_rows(rows) };
        let to_mni = to_native.inverse().expect("invertible");
        (trilinear(map, &grid, &to_mni), nearest(&template().brain, &grid, &to_mni))
    }

    /// The largest distance in mm between a voxel of the template's brain and its image after both maps.
    fn worst_mm(to_native: &Affine, to_mni: &Affine) -> f64 {
        let brain = &template().brain;
        let round = to_native.then(to_mni);
        let voxels = brain.data.iter().enumerate().filter(|&(_, &v)| v != 0).step_by(101);
        let distances = voxels.map(|(i, _)| {
            let p = brain.grid.world_mm(i);
            round.apply(p).iter().zip(p).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
        });
        distances.fold(0.0, f64::max)
    }

    fn registered(map: &Volume<f32>, degrees: [f64; 3]) -> (f64, Registration) {
        let to_native = to_native(degrees);
        let (image, brain) = scan(map, &to_native);
        let found = register(&image, &brain, &RegisterConfig::default());
        (worst_mm(&to_native, &found.to_mni), found)
    }

    #[test]
    fn a_known_affine_is_recovered_after_rotations_of_thirty_degrees() {
        for degrees in [[0.0; 3], [30.0, 0.0, 0.0], [-30.0, 30.0, -30.0], [10.0, -30.0, 30.0]] {
            let (worst, found) = registered(&template().t1, degrees);
            assert!(worst < 1.0, "{degrees:?} degrees: {worst} mm off");
            assert!(found.ncc > 0.9, "{}", found.ncc);
            assert!(found.rigid.spacing().iter().all(|s| (s - 1.0).abs() < 1e-6), "rigid keeps sizes");
            assert!((found.rigid.determinant3() - 1.0).abs() < 1e-6, "rigid does not mirror");
        }
    }

    #[test]
    fn neither_contrast_nor_gain_nor_a_smooth_field_matters() {
        let Template { t1, grey, white, brain } = template();
        let mapped = |value: &dyn Fn(usize) -> f32| Volume::new(t1.grid, (0..t1.data.len()).map(value).collect());
        // Fluid brightest, white matter darkest, as in a T2-weighted scan.
        let t2 = mapped(&|i| f32::from(brain.data[i]) * (1000.0 - 500.0 * grey.data[i] - 700.0 * white.data[i]));
        let (worst, found) = registered(&t2, [-12.0, 8.0, 20.0]);
        assert!(worst < 1.0 && found.ncc > 0.9, "{worst} mm, {}", found.ncc);
        let slices = t1.grid.shape[0] * t1.grid.shape[1];
        let shaded = mapped(&|i| t1.data[i] * 4000.0 * (1.3 - 0.6 * (i / slices) as f32 / 95.0) - 300.0);
        let (worst, found) = registered(&shaded, [-12.0, 8.0, 20.0]);
        assert!(worst < 1.5 && found.ncc > 0.8, "{worst} mm, {}", found.ncc);
    }

    #[test]
    fn noise_has_a_low_correlation() {
        let (mut image, brain) = scan(&template().t1, &to_native([0.0; 3]));
        let mut state = 1u32;
        image.data.iter_mut().for_each(|v| {
            // Numerical Recipes' linear congruential generator.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *v = (state >> 8) as f32;
        });
        assert!(register(&image, &brain, &RegisterConfig::default()).ncc < 0.1);
    }

    #[test]
    fn without_contrast_the_masks_are_aligned_and_without_a_mask_nothing_moves() {
        let to_native = to_native([5.0, -5.0, 5.0]);
        let (mut image, mut brain) = scan(&template().t1, &to_native);
        image.data.fill(7.0);
        let found = register(&image, &brain, &RegisterConfig::default());
        let worst = worst_mm(&to_native, &found.to_mni);
        assert!(worst < 6.0 && found.ncc == 0.0, "{worst} mm, {}", found.ncc);
        brain.data.fill(0);
        let found = register(&image, &brain, &RegisterConfig::default());
        assert_eq!((found.to_mni, found.ncc), (Affine::identity(), 0.0));
        brain.data[50_000] = 1;
        let found = register(&image, &brain, &RegisterConfig::default());
        assert!(found.to_mni.inverse().is_some() && found.ncc == 0.0);
    }
}
