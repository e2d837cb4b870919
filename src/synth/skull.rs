//! Puts a bare brain back into a synthetic head.
//!
//! A brain whose skull was removed comes with a border that nobody had to find again, so a head made around it is a
//! test of skull stripping on real tissue at the scanner's own resolution. The template's surface is laid onto the
//! brain's by an affine; from there outwards come the layers of [`super::head`]: fluid, inner table, marrow, outer
//! table, muscle, fat and skin with thicknesses and brightness of their own per seed, neck, face, eyes and airways.
//! What the brain's own border leaves out is put back too: fluid in the sulci, dura, the sagittal sinus.
//!
//! Takes the bare brain with 0 around it on any grid; gives the head on that grid, grown to all sides as the head
//! needs, and the true mask there: the brain with the fluid of its sulci, which is the brain's mask closed and filled.
//! Refuses a volume without a brain's worth of foreground.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::field::{Field, Region, normal_pair};
use super::head::{self, Tissues, Variation, smooth_step};
use super::template::{Distance, Template};
use crate::error::{Error, Result};
use crate::preprocess::template_surface::template_surface;
use crate::preprocess::{brain_hull, signed_distance};
use crate::volume::resample::{nearest, trilinear};
use crate::volume::{Affine, Grid, Volume};

/// Room around the hull's own grid in mm, more than the head needs.
const HULL_MARGIN_MM: f64 = 120.0;

/// How far the head reaches beyond the brain's box in mm: left, back and below, then right, front and above.
const MARGIN_MM: [[f64; 3]; 2] = [[28.0, 28.0, 75.0], [28.0, 42.0, 28.0]];

/// Distances around the brain are known this far, in mm; no layer of the head lies further out.
const REACH_MM: f32 = 30.0;

/// Middle of the template's brain in MNI mm.
const TEMPLATE_CENTRE_MM: [f64; 3] = [0.0, -18.0, 8.0];

/// Rounds of laying the template onto the brain's surface.
const FIT_ROUNDS: usize = 40;

/// Gaps of the brain's own mask narrower than twice this many mm are sulci.
const SULCUS_MM: f32 = 8.0;

/// The bare `brain` in a head of its own, and the true mask: brain and the fluid of its sulci.
///
/// The same arguments give the same voxels.
///
/// # Errors
/// [`Error::Input`] of kind `no_brain` where `brain` holds no bare brain.
pub fn put_in_head(brain: &Volume, seed: u64) -> Result<(Volume, Volume<u8>)> {
    let hull = brain_hull(brain, SULCUS_MM, HULL_MARGIN_MM).ok_or_else(|| {
        Error::input("no_brain", "this is no bare brain with 0 around it: give one whose skull was removed")
    })?;
    let template = Template::embedded()?;
    let to_mni = template_surface().fit(&hull, &centred(&hull), FIT_ROUNDS);
    let grid = grown(&brain.grid, &hull);
    // The hull's distance map is interpolated, so that its surface is smooth on voxels finer than its own.
    let distance = trilinear(&signed_distance(&hull, REACH_MM), &grid, &Affine::identity());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let head = Head::draw(&mut rng, &grid);
    let truth = distance.data.iter().map(|&d| u8::from(d < 0.0)).collect();
    let image = head.render(&template, brain, &distance, &to_mni);
    Ok((head.acquire(image, white_level(brain), &mut rng), Volume::new(grid, truth)))
}

/// The shift that puts the middle of `hull` where the template's brain has it.
fn centred(hull: &Volume<u8>) -> Affine {
    let [nx, ny, _] = hull.grid.shape;
    let (mut sum, mut n) = ([0.0; 3], 0.0);
    for i in (0..hull.data.len()).filter(|&i| hull.data[i] != 0) {
        let p = hull.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
        (0..3).for_each(|a| sum[a] += p[a]);
        n += 1.0;
    }
    Affine::translation(std::array::from_fn(|a| TEMPLATE_CENTRE_MM[a] - sum[a] / n))
}

/// The level of white matter: a high percentile of the brain.
fn white_level(brain: &Volume) -> f32 {
    let mut inside: Vec<f32> = brain.data.iter().copied().filter(|&v| v > 0.0).collect();
    let k = inside.len() * 4 / 5;
    inside.select_nth_unstable_by(k, f32::total_cmp).1.max(f32::MIN_POSITIVE)
}

/// `grid` with as many voxels more on every side as the head around `hull` needs.
fn grown(grid: &Grid, hull: &Volume<u8>) -> Grid {
    let [nx, ny, _] = hull.grid.shape;
    let mut bounds = [[f64::INFINITY; 3], [f64::NEG_INFINITY; 3]];
    for i in (0..hull.data.len()).filter(|&i| hull.data[i] != 0) {
        let p = hull.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
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

/// What differs from head to head.
struct Head {
    grid: Grid,
    tissues: Tissues,
    thickness: Field<3>,
    tissue: Field<2>,
    grain: Field<1>,
    bias: Field<1>,
    /// How bright dura and venous blood are; white matter is 1.
    dura: f32,
    sinus: f32,
    /// Standard deviation of the noise in each of the two channels; white matter is 1.
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

    /// Intensities relative to white matter, without noise. `distance` is that to the brain's hull.
    fn render(&self, template: &Template, brain: &Volume, distance: &Volume, to_mni: &Affine) -> Volume {
        let grid = self.grid;
        let white = white_level(brain);
        let soft_mm = (0.45 * grid.spacing()[0] as f32).max(0.4);
        let [nx, ny, _] = grid.shape;
        let bare = nearest(brain, &grid, &Affine::identity());
        let voxels = (0..grid.len()).into_par_iter().with_min_len(nx).map(|i| {
            let (own, value) = (distance.data[i], bare.data[i] / white);
            if own < -6.0 && value > 0.0 {
                return value;
            }
            let world = grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64));
            let p = to_mni.apply(world).map(|v| v as f32);
            self.matter(template, world.map(|v| v as f32), p, own, value, soft_mm)
        });
        let data = voxels.collect();
        Volume::new(grid, data)
    }

    /// The intensity at `world`, which is `p` in MNI space, `own` mm from the brain's hull, where the bare brain has
    /// `value`.
    fn matter(&self, template: &Template, world: [f32; 3], p: [f32; 3], own: f32, value: f32, soft_mm: f32) -> f32 {
        let at = template.distance(p);
        // The template's own cisterns lie between its brain and its skull; this brain's surface replaces the template's.
        let distance = Distance { brain: own, cranium: (at.cranium - at.brain).clamp(-20.0, 0.0) + own };
        let below = head::neck(p).min(head::face(p));
        if distance.cranium > REACH_MM - 2.0 && below > 0.0 {
            return 0.0;
        }
        let variation = Variation {
            thickness: self.thickness.at(world),
            tissue: self.tissue.at(world),
            grain: self.grain.at(world)[0],
        };
        let fluid = self.tissues.fluid * (1.0 + 0.1 * variation.grain);
        // Dura lies on the fluid in patches, the sagittal sinus along the top of the midline.
        let rim = smooth_step(distance.cranium, -0.5, 0.6) * smooth_step(variation.tissue[1], -0.3, 0.9);
        let along = (p[0].abs() - 3.5).max(-6.0 - distance.cranium).max(20.0 - p[2]);
        let venous = smooth_step(-along, -1.0, 1.0);
        let mut inside = fluid + rim * (self.dura - fluid);
        inside += venous * (self.sinus - inside);
        if value > 0.0 {
            inside = value;
        }
        head::around(&self.tissues, p, distance, below, &variation, inside, soft_mm)
    }

    /// Bias field and Rician noise, in the units of the bare brain.
    fn acquire(&self, mut image: Volume, white: f32, rng: &mut impl Rng) -> Volume {
        let [nx, ny, _] = self.grid.shape;
        for (i, value) in image.data.iter_mut().enumerate() {
            let p = self.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64)).map(|v| v as f32);
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
    fn a_brain_comes_back_inside_a_skull_with_air_around() {
        let affine = Affine::from_rows([[3.0, 0.0, 0.0, -90.0], [0.0, 3.0, 0.0, -120.0], [0.0, 0.0, 3.0, -70.0]]);
        let grid = Grid { shape: [60, 70, 55], affine };
        let data = (0..grid.len()).map(|i| {
            let p = affine.apply([i % 60, i / 60 % 70, i / 4200].map(|c| c as f64)).map(|c| c as f32);
            if template_surface().distance(p).0 < -1.0 { 500.0 } else { 0.0 }
        });
        let brain = Volume::new(grid, data.collect());
        let (head, truth) = put_in_head(&brain, 3).expect("a bare brain");
        assert_eq!(head.grid, truth.grid);
        assert!((0..3).all(|a| head.grid.shape[a] > grid.shape[a]));
        let mean = |d: &dyn Fn(f32) -> bool| {
            let [nx, ny, _] = head.grid.shape;
            let here = (0..head.data.len()).filter(|&i| {
                let p = head.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
                p[2] > 20.0 && d(template_surface().distance(p.map(|c| c as f32)).0)
            });
            let values: Vec<f32> = here.map(|i| head.data[i]).collect();
            values.iter().sum::<f32>() / values.len() as f32
        };
        assert!((mean(&|d| d < -6.0) / 500.0 - 1.0).abs() < 0.2, "the brain keeps its own intensities");
        // The skull's two tables are thinner than these voxels, so bone and marrow show as their mean.
        let (skull, scalp) = (mean(&|d| (1.0..5.0).contains(&d)), mean(&|d| (6.0..9.0).contains(&d)));
        assert!(mean(&|d| (0.0..1.0).contains(&d)) < 150.0, "fluid on the brain is dark");
        assert!(skull < 0.7 * scalp, "the skull at {skull} is darker than the scalp at {scalp}");
        assert!(mean(&|d| d > 26.0) < 30.0, "air is darker");
        assert_eq!(put_in_head(&brain, 3).expect("a bare brain").0, head, "same seed, same head");
        let empty = Volume::zeros(grid);
        assert_eq!(put_in_head(&empty, 3).expect_err("no brain").kind(), "no_brain");
    }
}
