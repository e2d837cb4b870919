//! Synthetic anomalies in healthy slices, to train the detector on.
//!
//! A shape (ellipsoid, box, ragged blob, or the outline of a real lesion) with a soft edge is centred near a brain
//! pixel of a healthy slice and extends into the neighbouring slices. Inside it the tissue
//! - gets a new intensity and texture, darker or brighter,
//! - gets another brain's texture (foreign patch interpolation, Tan et al., arXiv 2011.04197),
//! - is shifted in one range of intensities (tissue-selective, after DISYRE, arXiv 2311.15453), or
//! - keeps its texture and becomes darker or brighter as a whole.
//!
//! Some anomalies displace the tissue around them (mass effect).

use rand::Rng;

use super::slice::{Slice, blur, read_bilinear, smooth_field};
use crate::volume::Volume;

/// Least mean change of the pixels that an anomaly covers; weaker ones are drawn again.
const MIN_CHANGE: f32 = 0.06;

/// Least change of a pixel that counts as anomalous, for anomalies that may leave part of their inside unchanged.
const MIN_PIXEL_CHANGE: f32 = 0.05;

/// Share of anomalies with the outline of a real lesion, if outlines are given.
const OUTLINE_SHARE: f64 = 0.35;

/// Share of the other anomalies that displace the tissue around them.
const MASS_SHARE: f64 = 0.2;

/// Distance between the voxels of an outline, and between pixels and slices of the model's grid, mm.
const SPACING_MM: f64 = 2.;

/// The outline of a real lesion: the voxels of 2 mm that it fills, in its bounding box.
#[derive(Debug, Clone)]
pub(super) struct Outline {
    /// Voxels along each axis.
    shape: [usize; 3],
    filled: Vec<bool>,
}

impl Outline {
    /// The outline of the lesion in a mask (above 0 where there is lesion) on any grid; `None` where it fills no voxel
    /// of 2 mm.
    pub(super) fn of(mask: &Volume) -> Option<Self> {
        let [nx, ny, _] = mask.grid.shape;
        let place = |i: usize| mask.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64));
        let world: Vec<[f64; 3]> = (0..mask.data.len()).filter(|&i| mask.data[i] > 0.).map(place).collect();
        let axis = |axis: usize| world.iter().map(move |p| p[axis]);
        let low = [0, 1, 2].map(|a| axis(a).fold(f64::INFINITY, f64::min));
        let high = [0, 1, 2].map(|a| axis(a).fold(f64::NEG_INFINITY, f64::max));
        if world.is_empty() {
            return None;
        }
        let shape = [0, 1, 2].map(|a| ((high[a] - low[a]) / SPACING_MM) as usize + 1);
        let mut volume = vec![0f64; shape.iter().product()];
        for p in &world {
            let [x, y, z] = [0, 1, 2].map(|a| ((p[a] - low[a]) / SPACING_MM) as usize);
            volume[x + shape[0] * (y + shape[1] * z)] += 1000. * mask.grid.voxel_ml();
        }
        let filled: Vec<bool> = volume.iter().map(|&mm3| mm3 >= SPACING_MM.powi(3) / 2.).collect();
        filled.contains(&true).then_some(Self { shape, filled })
    }

    /// Whether a place is inside, in voxels from the centre of the bounding box.
    fn holds(&self, at: [f32; 3]) -> bool {
        let mut index = [0usize; 3];
        for axis in 0..3 {
            let place = at[axis] + self.shape[axis] as f32 / 2.;
            if !(0.0..self.shape[axis] as f32).contains(&place) {
                return false;
            }
            index[axis] = place as usize;
        }
        self.filled[index[0] + self.shape[0] * (index[1] + self.shape[1] * index[2])]
    }
}

/// Neighbouring slices of one brain.
pub(super) struct Slab<'a> {
    pub(super) slices: &'a mut [Slice],
    /// Distance of each slice from the middle one, which has 0; in slices.
    pub(super) offsets: &'a [i64],
    /// Columns of a slice.
    pub(super) width: usize,
}

/// Puts one or two anomalies into `slab`. `foreign` has the same number of slices of another brain, for their texture;
/// `outlines` of real lesions may be empty. Gives, for each pixel of the middle slice, the opacity of the anomaly
/// (0..1).
pub(super) fn corrupt(slab: &mut Slab<'_>, foreign: &[Slice], outlines: &[Outline], rng: &mut impl Rng) -> Vec<f32> {
    let middle = slab.offsets.iter().position(|&offset| offset == 0).unwrap_or(0);
    let brain = &slab.slices[middle].brain;
    let mut truth = vec![0f32; brain.len()];
    let candidates: Vec<usize> = (0..brain.len()).filter(|&i| brain[i]).collect();
    if candidates.is_empty() {
        return truth;
    }
    for _ in 0..1 + rng.random_range(0..5usize) / 3 {
        // A draw that changes next to nothing is repeated, at most three times.
        for _ in 0..4 {
            let centre = candidates[rng.random_range(0..candidates.len())];
            let before = slab.slices.to_vec();
            let (body, push) = Body::draw(centre, slab, outlines, rng);
            if push {
                body.displace(slab);
            }
            let shapes = body.shapes(slab);
            let (changed, partial) = textures(slab, foreign, &shapes, rng);
            let (new, old, shape) = (&changed[middle], &slab.slices[middle].pixels, &shapes[middle]);
            let inside: f32 = shape.iter().sum();
            let change: f32 = new.iter().zip(old).zip(shape).map(|((a, b), m)| (a - b).abs() * m).sum();
            if inside >= 4. && change / inside >= MIN_CHANGE {
                for (i, t) in truth.iter_mut().enumerate() {
                    let counts = !partial || (new[i] - old[i]).abs() >= MIN_PIXEL_CHANGE;
                    *t = t.max(if counts { shape[i] } else { 0. });
                }
                slab.slices.iter_mut().zip(changed).for_each(|(slice, changed)| slice.pixels = changed);
                break;
            }
            slab.slices.clone_from_slice(&before);
        }
    }
    truth
}

/// The shape of an anomaly.
enum Form<'a> {
    Box,
    /// `ragged`: how far the surface deviates from the ellipsoid, in radii.
    Ellipsoid {
        ragged: f32,
    },
    /// `scale`: outline voxels per pixel; `axes`: the outline's axis along each axis of the slab; `flip`: the direction
    /// of each, 1 or -1.
    Outline {
        outline: &'a Outline,
        scale: f32,
        axes: [usize; 3],
        flip: [f32; 3],
    },
}

/// Place and shape of one anomaly, in pixels; slices are one pixel apart.
struct Body<'a> {
    form: Form<'a>,
    centre: [f32; 2],
    /// Semi-axes: two in the slice, one across slices.
    radii: [f32; 3],
    /// Distance of its centre from the middle slice.
    depth: f32,
    /// Shift of its centre from slice to slice.
    lean: [f32; 2],
    /// Sine and cosine of its rotation in the slice.
    turn: (f32, f32),
    /// Width of its edge.
    soft: f32,
    /// Two random fields, whose weights change from slice to slice: a ragged surface in three dimensions.
    fields: [Vec<f32>; 2],
}

impl<'a> Body<'a> {
    /// Draws a body near pixel `centre` of the middle slice, and whether it displaces tissue.
    fn draw(centre: usize, slab: &Slab<'_>, outlines: &'a [Outline], rng: &mut impl Rng) -> (Self, bool) {
        let width = slab.width;
        let height = slab.slices[0].pixels.len() / width;
        // Log-uniform radii: small lesions are as frequent as large ones.
        let first = rng.random_range(1f32.ln()..18f32.ln()).exp();
        let [second, third] = [0, 1].map(|_| (first * rng.random_range(0.5f32..2.)).clamp(1., 20.));
        let kind = rng.random_range(0..5);
        let [coarse, fine] = if rng.random_bool(0.5) { [8, 18] } else { [14, 28] };
        let fields = [coarse, fine].map(|knots| smooth_field(width, height, knots, rng));
        let ragged = if kind >= 2 { rng.random_range(0.3f32..0.9) } else { 0. };
        let mut form = if kind == 0 { Form::Box } else { Form::Ellipsoid { ragged } };
        let mut radii = [first, second, third];
        if !outlines.is_empty() && rng.random_bool(OUTLINE_SHARE) {
            let outline = &outlines[rng.random_range(0..outlines.len())];
            let scale = rng.random_range(0.7f32..2.);
            let mut axes = [0, 1, 2];
            (1..3).for_each(|i| axes.swap(i, rng.random_range(0..=i)));
            let flip = [0; 3].map(|_| if rng.random_bool(0.5) { -1. } else { 1. });
            radii = axes.map(|axis| outline.shape[axis] as f32 / 2. / scale);
            form = Form::Outline { outline, scale, axes, flip };
        }
        let push = !matches!(form, Form::Outline { .. }) && rng.random_bool(MASS_SHARE);
        let body = Self {
            form,
            centre: [(centre % width) as f32, (centre / width) as f32],
            // The middle slice need not cut it at its centre, and its axis need not be upright.
            depth: radii[2] * rng.random_range(-0.7f32..0.7),
            radii,
            lean: [0, 1].map(|_| rng.random_range(-0.5f32..0.5)),
            turn: rng.random_range(0f32..std::f32::consts::PI).sin_cos(),
            soft: if rng.random_bool(0.7) { rng.random_range(0.4f32..1.6) } else { 0. },
            fields,
        };
        (body, push)
    }

    /// A pixel's place along the body's axes, in pixels from its centre.
    fn place(&self, x: f32, y: f32, dz: f32) -> [f32; 3] {
        let (dx, dy) = (x - self.centre[0] - self.lean[0] * dz, y - self.centre[1] - self.lean[1] * dz);
        let (sin, cos) = self.turn;
        [dx * cos + dy * sin, dy * cos - dx * sin, dz - self.depth]
    }

    /// Distance of a pixel from the centre, in radii.
    fn distance(&self, x: f32, y: f32, dz: f32) -> f32 {
        let at = self.place(x, y, dz);
        (0..3).map(|axis| (at[axis] / self.radii[axis]).powi(2)).sum::<f32>().sqrt()
    }

    /// Its opacity in every slice, 0..1; 0 outside the brain.
    fn shapes(&self, slab: &Slab<'_>) -> Vec<Vec<f32>> {
        let width = slab.width;
        let one = |slice: &Slice, dz: f32| {
            let w = (dz - self.depth) / self.radii[2];
            let (share_near, share_far) = (0.8 * (w * 1.5).cos(), 0.8 * (w * 1.5 + 1.).sin());
            let inside = |i: usize| {
                let (x, y) = ((i % width) as f32, (i / width) as f32);
                match &self.form {
                    Form::Box => {
                        let at = self.place(x, y, dz);
                        (0..3).all(|axis| at[axis].abs() < self.radii[axis])
                    }
                    Form::Ellipsoid { ragged } => {
                        let surface = share_near * self.fields[0][i] + share_far * self.fields[1][i];
                        self.distance(x, y, dz) + ragged * surface < 1.
                    }
                    Form::Outline { outline, scale, axes, flip } => {
                        let at = self.place(x, y, dz);
                        let mut there = [0f32; 3];
                        (0..3).for_each(|axis| there[axes[axis]] = scale * flip[axis] * at[axis]);
                        outline.holds(there)
                    }
                }
            };
            let mut mask: Vec<f32> =
                (0..slice.pixels.len()).map(|i| f32::from(u8::from(slice.brain[i] && inside(i)))).collect();
            if self.soft > 0. {
                mask = blur(&mask, width, self.soft);
                mask.iter_mut().zip(&slice.brain).for_each(|(m, b)| *m *= f32::from(u8::from(*b)));
            }
            mask
        };
        slab.slices.iter().zip(slab.offsets).map(|(slice, &dz)| one(slice, dz as f32)).collect()
    }

    /// Moves the tissue inside into a ring of twice the radius, in each slice.
    fn displace(&self, slab: &mut Slab<'_>) {
        let width = slab.width;
        for (slice, &dz) in slab.slices.iter_mut().zip(slab.offsets) {
            let dz = dz as f32;
            let centre = [0, 1].map(|axis| self.centre[axis] + self.lean[axis] * dz);
            let from = slice.pixels.clone();
            for (i, pixel) in slice.pixels.iter_mut().enumerate().filter(|&(i, _)| slice.brain[i]) {
                let at = [(i % width) as f32, (i / width) as f32];
                let distance = self.distance(at[0], at[1], dz);
                if (1.0..2.0).contains(&distance) {
                    let nearer = 2. * (distance - 1.) / distance;
                    let [x, y] = [0, 1].map(|axis| centre[axis] + nearer * (at[axis] - centre[axis]));
                    // Air is not moved into the brain.
                    let value = read_bilinear(&from, width, [x, y]);
                    *pixel = if value > 0.05 { value } else { *pixel };
                }
            }
        }
    }
}

/// The pixels of the slices with the inside of the shape changed, and whether part of the inside may be unchanged.
fn textures(slab: &Slab<'_>, foreign: &[Slice], shapes: &[Vec<f32>], rng: &mut impl Rng) -> (Vec<Vec<f32>>, bool) {
    let width = slab.width;
    let n = shapes[0].len();
    let strength = rng.random_range(0.4f32..1.);
    let dark = rng.random_bool(0.6);
    let blend = |new: &mut dyn FnMut(usize, usize) -> f32| -> Vec<Vec<f32>> {
        let pixel = |s: usize, i: usize, new: f32| {
            let alpha = strength * shapes[s][i];
            ((1. - alpha) * slab.slices[s].pixels[i] + alpha * new).clamp(0., 1.)
        };
        (0..shapes.len()).map(|s| (0..n).map(|i| pixel(s, i, new(s, i))).collect()).collect()
    };
    match rng.random_range(0..20) {
        // A new intensity and texture.
        0..=9 => {
            let level = if dark { rng.random_range(0f32..0.62) } else { rng.random_range(0.74f32..1.) };
            let waves = smooth_field(width, n / width, 20, rng);
            let (wave, noise) = (rng.random_range(0f32..0.12), rng.random_range(0f32..0.05));
            (blend(&mut |_, i| level + wave * waves[i] + rng.random_range(-1f32..1.) * noise), false)
        }
        // Another brain's texture.
        10..=12 => {
            let shift = rng.random_range(0..n);
            (blend(&mut |s, i| foreign[s].pixels[(i + shift) % n]), false)
        }
        // A shift of one range of intensities.
        13..=15 => {
            let (middle, spread) = (rng.random_range(0.2f32..0.95), rng.random_range(0.08f32..0.25));
            let amount = rng.random_range(0.15f32..0.6) * if dark { -1. } else { 1. };
            let moved = |v: f32| v + amount * (-((v - middle) / spread).powi(2) / 2.).exp();
            (blend(&mut |s, i| moved(slab.slices[s].pixels[i])), true)
        }
        // The whole inside becomes darker or brighter.
        _ => {
            let gain = if dark { rng.random_range(0.3f32..0.8) } else { rng.random_range(1.15f32..1.7) };
            (blend(&mut |s, i| slab.slices[s].pixels[i] * gain), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn marked_pixels_have_changed_and_the_others_have_not() {
        const WIDTH: usize = 80;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let plain =
            |level: f32| vec![Slice { pixels: vec![level; WIDTH * 96], brain: vec![true; WIDTH * 96], z_mm: 0. }; 3];
        // A ball of 20 mm on voxels of 1 mm.
        let affine = Affine([[1., 0., 0., -15.], [0., 1., 0., -15.], [0., 0., 1., -15.]]);
        let grid = Grid { shape: [31; 3], affine };
        let ball =
            |i: usize| [i % 31, i / 31 % 31, i / 961].iter().map(|&v| (v as f32 - 15.).powi(2)).sum::<f32>() < 100.;
        let ball = Volume::new(grid, (0..29791).map(|i| f32::from(u8::from(ball(i)))).collect());
        let outlines = [Outline::of(&ball).unwrap()];
        assert_eq!(outlines[0].shape, [10; 3]);
        let mm3 = outlines[0].filled.iter().filter(|&&f| f).count() as f32 * 8.;
        assert!((mm3 / 4189. - 1.).abs() < 0.1, "{mm3} mm3 of 4/3 pi 10^3");
        let (mut found, mut reaching) = (0, 0);
        for _ in 0..50 {
            let mut slices = plain(0.7);
            let mut slab = Slab { slices: &mut slices, offsets: &[-2, 0, 2], width: WIDTH };
            let truth = corrupt(&mut slab, &plain(0.3), &outlines, &mut rng);
            for (value, mark) in slices[1].pixels.iter().zip(&truth) {
                assert!((0. ..=1.).contains(value) && (0. ..=1.001).contains(mark));
                if *mark == 0. {
                    assert!((*value - 0.7).abs() < MIN_PIXEL_CHANGE);
                }
            }
            found += usize::from(truth.iter().any(|&m| m > 0.5));
            reaching += usize::from(slices[0].pixels.iter().any(|&v| v != 0.7));
        }
        assert!(found > 40, "only {found} of 50 slices hold an anomaly");
        assert!(reaching > 20, "only {reaching} of 50 anomalies extend into the slice below");
    }
}
