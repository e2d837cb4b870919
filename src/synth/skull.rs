//! A synthetic head around a bare brain.
//!
//! The border of a brain whose skull was removed is known, so that a head made around it tests skull stripping on real
//! tissue at the scanner's own resolution. An affine lays the brain's surface onto the template's. Around it come the
//! layers of [`super::head`]: fluid, inner table, marrow, outer table, muscle, fat and skin, with thicknesses and
//! brightness drawn by the seed, then neck, face, eyes and airways. Fluid in the sulci, dura and sagittal sinus, which
//! skull stripping had removed, are added too.
//!
//! Takes the bare brain with 0 around it on any grid; gives the head on that grid, extended on all sides to hold it, and
//! the true mask there: the brain's mask closed and filled, so that it includes the fluid of the sulci. Refuses a volume
//! that is not a bare brain (`no_brain`).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::field::{Field, Region, normal_pair};
use super::head::{self, Position, Tissues, Variation, smooth_step};
use super::template::{Distance, HeadTemplate};
use crate::error::{Error, Result};
use crate::preprocess::template_surface::template_surface;
use crate::preprocess::{brain_hull, signed_distance};
use crate::volume::resample::{nearest, trilinear};
use crate::volume::{Affine, Grid, Volume};

/// Margin around the hull's own grid in mm, more than the head needs.
const HULL_MARGIN_MM: f64 = 120.0;

/// Margins of the head around the brain's box in mm: left, back and below, then right, front and above.
const MARGIN_MM: [[f64; 3]; 2] = [[28.0, 28.0, 75.0], [28.0, 42.0, 28.0]];

/// Limit of the distances around the brain in mm, beyond all layers of the head.
const REACH_MM: f32 = 30.0;

/// Centre of the template's brain in MNI mm.
const TEMPLATE_CENTRE_MM: [f64; 3] = [0.0, -18.0, 8.0];

/// Rounds of the fit of the brain's surface to the template's.
const FIT_ROUNDS: usize = 40;

/// Half the largest width of sulci in mm: narrower gaps of the brain's mask are closed.
const SULCUS_MM: f32 = 8.0;

/// The bare `brain` in a synthetic head, and the true mask: the brain with the fluid of its sulci.
///
/// The same arguments give the same voxels.
///
/// # Errors
/// [`Error::Input`] of kind `no_brain` where `brain` holds no bare brain.
pub fn put_in_head(brain: &Volume, seed: u64) -> Result<(Volume, Volume<u8>)> {
    let hull = brain_hull(brain, SULCUS_MM, HULL_MARGIN_MM).ok_or_else(|| {
        Error::input("no_brain", "this is no bare brain with 0 around it: give one whose skull was removed")
    })?;
    let template = HeadTemplate::embedded()?;
    let to_mni = template_surface().fit(&hull, &centred(&hull), FIT_ROUNDS);
    let grid = grown(&brain.grid, &hull);
    // Interpolating the hull's distance map gives a smooth surface on voxels finer than the hull's own.
    let distance = trilinear(&signed_distance(&hull, REACH_MM), &grid, &Affine::identity());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let head = Head::draw(&mut rng, &grid);
    let truth = distance.data.iter().map(|&d| u8::from(d < 0.0)).collect();
    let image = head.render(&template, brain, &distance, &to_mni);
    Ok((head.acquire(image, white_level(brain), &mut rng), Volume::new(grid, truth)))
}

/// The shift that moves the centre of `hull` to that of the template's brain.
fn centred(hull: &Volume<u8>) -> Affine {
    let (mut sum, mut n) = ([0.0; 3], 0.0);
    for i in (0..hull.data.len()).filter(|&i| hull.data[i] != 0) {
        let p = hull.grid.world_mm(i);
        (0..3).for_each(|a| sum[a] += p[a]);
        n += 1.0;
    }
    Affine::translation(std::array::from_fn(|a| TEMPLATE_CENTRE_MM[a] - sum[a] / n))
}

/// The intensity of white matter: a high percentile of the brain.
fn white_level(brain: &Volume) -> f32 {
    let mut inside: Vec<f32> = brain.data.iter().copied().filter(|&v| v > 0.0).collect();
    let k = inside.len() * 4 / 5;
    inside.select_nth_unstable_by(k, f32::total_cmp).1.max(f32::MIN_POSITIVE)
}

/// `grid`, extended on every side by the voxels that the head around `hull` needs.
fn grown(grid: &Grid, hull: &Volume<u8>) -> Grid {
    let mut bounds = [[f64::INFINITY; 3], [f64::NEG_INFINITY; 3]];
    for i in (0..hull.data.len()).filter(|&i| hull.data[i] != 0) {
        let p = hull.grid.world_mm(i);
        for a in 0..3 {
            bounds[0][a] = bounds[0][a].min(p[a] - MARGIN_MM[0][a]);
            bounds[1][a] = bounds[1][a].max(p[a] + MARGIN_MM[1][a]);
        }
    }
    let Some(to_index) = grid.affine.inverse() else { return *grid };
    let (mut before, mut after) = ([0f64; 3], [0f64; 3]);
    for corner in 0..8 {
        let index = to_index.apply([0, 1, 2].map(|a| bounds[corner >> a & 1][a]));
        for a in 0..3 {
            before[a] = before[a].max((-index[a]).ceil());
            after[a] = after[a].max((index[a] - (grid.shape[a] as f64 - 1.0)).ceil());
        }
    }
    let first = Affine::translation(before.map(|n| -n)).then(&grid.affine);
    Grid { shape: std::array::from_fn(|a| grid.shape[a] + (before[a] + after[a]) as usize), affine: first }
}

/// The properties of one head.
struct Head {
    grid: Grid,
    tissues: Tissues,
    thickness: Field<3>,
    tissue: Field<2>,
    grain: Field<1>,
    bias: Field<1>,
    /// Intensity of dura, relative to white matter.
    dura: f32,
    /// Intensity of venous blood, relative to white matter.
    sinus: f32,
    /// Standard deviation of the noise in each of the two channels, relative to white matter.
    noise: f32,
}

impl Head {
    fn draw(rng: &mut impl Rng, grid: &Grid) -> Self {
        let corners = (0..8).map(|c| grid.affine.apply([0, 1, 2].map(|a| ((c >> a & 1) * grid.shape[a]) as f64)));
        let mut region = Region { low: [f32::INFINITY; 3], high: [f32::NEG_INFINITY; 3] };
        for corner in corners.map(|corner| corner.map(|c| c as f32)) {
            region.low = std::array::from_fn(|a| region.low[a].min(corner[a]));
            region.high = std::array::from_fn(|a| region.high[a].max(corner[a]));
        }
        let bias = rng.random_range(0.03..0.09);
        Self {
            grid: *grid,
            tissues: Tissues::draw(rng),
            thickness: Field::random(rng, region, 24.0, 1.0),
            tissue: Field::random(rng, region, 7.0, 1.0),
            grain: Field::random(rng, region, 3.0, 1.0),
            bias: Field::random(rng, region, 80.0, bias),
            dura: rng.random_range(0.4..0.75),
            sinus: rng.random_range(0.35..0.9),
            noise: rng.random_range(0.01..0.025),
        }
    }

    /// Intensities relative to white matter, without noise. `distance` holds the signed distance to the brain's hull.
    fn render(&self, template: &HeadTemplate, brain: &Volume, distance: &Volume, to_mni: &Affine) -> Volume {
        let grid = self.grid;
        let white = white_level(brain);
        let soft_mm = head::soft_border_mm(&grid);
        let bare = nearest(brain, &grid, &Affine::identity());
        let voxels = (0..grid.len()).into_par_iter().with_min_len(grid.shape[0]).map(|i| {
            let (to_hull, value) = (distance.data[i], bare.data[i] / white);
            if to_hull < -6.0 && value > 0.0 {
                return value;
            }
            let world = grid.world_mm(i);
            let p = to_mni.apply(world).map(|v| v as f32);
            let at = template.distance(p);
            // The gap between brain and skull is the template's; the brain's surface is that of the hull.
            let cranium = (at.cranium - at.brain).clamp(-20.0, 0.0) + to_hull;
            let position = Position::new(p, Distance { brain: to_hull, cranium });
            self.intensity(&position, world.map(|v| v as f32), value, soft_mm)
        });
        let data = voxels.collect();
        Volume::new(grid, data)
    }

    /// The intensity at `position`, which is `world` in the scan's own mm, where the bare brain has `value`.
    fn intensity(&self, position: &Position, world: [f32; 3], value: f32, soft_mm: f32) -> f32 {
        let Position { mni_mm, distance, below } = *position;
        if distance.cranium > REACH_MM - 2.0 && below > 0.0 {
            return 0.0;
        }
        let variation = Variation {
            thickness: self.thickness.at(world),
            tissue: self.tissue.at(world),
            grain: self.grain.at(world)[0],
        };
        let fluid = self.tissues.fluid * (1.0 + 0.1 * variation.grain);
        // Dura covers the fluid in patches; the sagittal sinus runs along the top of the midline.
        let rim = smooth_step(distance.cranium, -0.5, 0.6) * smooth_step(variation.tissue[1], -0.3, 0.9);
        let to_sinus = (mni_mm[0].abs() - 3.5).max(-6.0 - distance.cranium).max(20.0 - mni_mm[2]);
        let venous = smooth_step(-to_sinus, -1.0, 1.0);
        let mut inside = fluid + rim * (self.dura - fluid);
        inside += venous * (self.sinus - inside);
        if value > 0.0 {
            inside = value;
        }
        head::around(&self.tissues, position, &variation, inside, soft_mm)
    }

    /// Applies bias field and Rician noise, in the units of the bare brain.
    fn acquire(&self, mut image: Volume, white: f32, rng: &mut impl Rng) -> Volume {
        for (i, value) in image.data.iter_mut().enumerate() {
            let p = self.grid.world_mm(i).map(|v| v as f32);
            let [real, imaginary] = normal_pair(rng).map(|v| self.noise * v);
            let gain = if *value == 0.0 { 1.0 } else { self.bias.at(p)[0].exp() };
            *value = white * (*value * gain + real).hypot(imaginary);
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_brain_gets_fluid_skull_scalp_and_air() {
        let affine = Affine::from_rows([[3.0, 0.0, 0.0, -90.0], [0.0, 3.0, 0.0, -120.0], [0.0, 0.0, 3.0, -70.0]]);
        let grid = Grid { shape: [60, 70, 55], affine };
        let data = (0..grid.len()).map(|i| {
            let p = grid.world_mm(i).map(|c| c as f32);
            if template_surface().distance(p).0 < -1.0 { 500.0 } else { 0.0 }
        });
        let brain = Volume::new(grid, data.collect());
        let (head, truth) = put_in_head(&brain, 3).expect("a bare brain");
        assert_eq!(head.grid, truth.grid);
        assert!((0..3).all(|a| head.grid.shape[a] > grid.shape[a]));
        let mean = |d: &dyn Fn(f32) -> bool| {
            let here = (0..head.data.len()).filter(|&i| {
                let p = head.grid.world_mm(i);
                p[2] > 20.0 && d(template_surface().distance(p.map(|c| c as f32)).0)
            });
            let values: Vec<f32> = here.map(|i| head.data[i]).collect();
            values.iter().sum::<f32>() / values.len() as f32
        };
        assert!((mean(&|d| d < -6.0) / 500.0 - 1.0).abs() < 0.2, "the brain keeps its own intensities");
        // The skull's two tables are thinner than these voxels, so that bone and marrow are averaged.
        let (skull, scalp) = (mean(&|d| (1.0..5.0).contains(&d)), mean(&|d| (6.0..9.0).contains(&d)));
        assert!(mean(&|d| (0.0..1.0).contains(&d)) < 150.0, "fluid on the brain is dark");
        assert!(skull < 0.7 * scalp, "the skull at {skull} is darker than the scalp at {scalp}");
        assert!(mean(&|d| d > 26.0) < 30.0, "air is darker");
        assert_eq!(put_in_head(&brain, 3).expect("a bare brain").0, head, "same seed, same head");
        let empty = Volume::zeros(grid);
        assert_eq!(put_in_head(&empty, 3).expect_err("no brain").kind(), "no_brain");
    }
}
