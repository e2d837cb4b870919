//! Synthetic anomalies in image space, to teach the detector what healthy is not.
//!
//! A shape (ellipsoid, box, ragged blob) with a soft edge is put on a brain pixel of a healthy slice and goes on in the
//! slices around it. Inside it the tissue
//! - takes a level and a texture of its own, darker or brighter,
//! - takes another brain's texture (foreign patch interpolation, Tan et al., arXiv 2011.04197),
//! - is shifted for one range of intensities alone (tissue-selective, after DISYRE, arXiv 2311.15453), or
//! - keeps its texture and becomes darker or brighter as a whole.

use rand::Rng;

use super::data::{Slice, blur, smooth_field};

/// An anomaly must change the pixels it covers by this much on average to be worth finding.
const MIN_CHANGE: f32 = 0.06;

/// Where an anomaly leaves part of what it covers as it was, only pixels that changed by this much count as anomalous.
const MIN_PIXEL_CHANGE: f32 = 0.05;

/// The slices around one place of one brain.
pub(super) struct Slab<'a> {
    pub slices: &'a mut [Slice],
    /// How far each lies from the middle one, in slices; the middle one has 0.
    pub offsets: &'a [i64],
    pub width: usize,
}

/// Puts one to three anomalies into `slab`; `foreign`, as many slices of another brain, lends texture. Returns, per pixel
/// of the middle slice, how far it is anomalous (0..1).
pub(super) fn corrupt(slab: &mut Slab<'_>, foreign: &[Slice], rng: &mut impl Rng) -> Vec<f32> {
    let middle = slab.offsets.iter().position(|&offset| offset == 0).unwrap_or(0);
    let brain = &slab.slices[middle].brain;
    let mut truth = vec![0f32; brain.len()];
    let candidates: Vec<usize> = (0..brain.len()).filter(|&i| brain[i]).collect();
    if candidates.is_empty() {
        return truth;
    }
    for _ in 0..1 + rng.random_range(0..5usize) / 3 {
        // A draw that changes next to nothing teaches nothing: try again, a few times.
        for _ in 0..4 {
            let centre = candidates[rng.random_range(0..candidates.len())];
            let shapes = shapes(centre, slab, rng);
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
        }
    }
    truth
}

/// A soft shape around a pixel of the middle slice, 0..1 in every slice, zero outside the brain.
fn shapes(centre: usize, slab: &Slab<'_>, rng: &mut impl Rng) -> Vec<Vec<f32>> {
    let width = slab.width;
    let height = slab.slices[0].pixels.len() / width;
    let (cx, cy) = ((centre % width) as f32, (centre / width) as f32);
    // Log-uniform radii: small lesions are as frequent as large ones. 1 pixel = 1 slice = 2 mm.
    let first = rng.random_range(1.2f32.ln()..18f32.ln()).exp();
    let [second, third] = [0, 1].map(|_| (first * rng.random_range(0.5f32..2.)).clamp(1.2, 20.));
    // The middle slice need not cut it in its middle, and it need not stand upright.
    let depth = third * rng.random_range(-0.7f32..0.7);
    let lean = [0, 1].map(|_| rng.random_range(-0.5f32..0.5));
    let (sin, cos) = rng.random_range(0f32..std::f32::consts::PI).sin_cos();
    let kind = rng.random_range(0..5);
    // Two fields, mixed anew from slice to slice, make a ragged surface in three dimensions.
    let [coarse, fine] = if rng.random_bool(0.5) { [8, 18] } else { [14, 28] };
    let [near, far] = [coarse, fine].map(|knots| smooth_field(width, height, knots, rng));
    let ragged = if kind >= 2 { rng.random_range(0.3f32..0.9) } else { 0. };
    let soft = if rng.random_bool(0.7) { rng.random_range(0.4f32..1.6) } else { 0. };
    let one = |slice: &Slice, dz: f32| {
        let w = (dz - depth) / third;
        let (share_near, share_far) = (0.8 * (w * 1.5).cos(), 0.8 * (w * 1.5 + 1.).sin());
        let mut mask: Vec<f32> = (0..slice.pixels.len())
            .map(|i| {
                let (dx, dy) = ((i % width) as f32 - cx - lean[0] * dz, (i / width) as f32 - cy - lean[1] * dz);
                let (u, v) = ((dx * cos + dy * sin) / first, (dy * cos - dx * sin) / second);
                let inside = match kind {
                    0 => u.abs().max(v.abs()).max(w.abs()) < 1.,
                    _ => (u * u + v * v + w * w).sqrt() + ragged * (share_near * near[i] + share_far * far[i]) < 1.,
                };
                f32::from(u8::from(inside && slice.brain[i]))
            })
            .collect();
        if soft > 0. {
            mask = blur(&mask, width, soft);
            mask.iter_mut().zip(&slice.brain).for_each(|(m, b)| *m *= f32::from(u8::from(*b)));
        }
        mask
    };
    slab.slices.iter().zip(slab.offsets).map(|(slice, &dz)| one(slice, dz as f32)).collect()
}

/// The slices with the shape's inside changed, and whether it may have left part of it as it was.
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
        // A level of its own with a texture.
        0..=9 => {
            let level = if dark { rng.random_range(0f32..0.55) } else { rng.random_range(0.74f32..1.) };
            let waves = smooth_field(width, n / width, 20, rng);
            let (wave, noise) = (rng.random_range(0f32..0.12), rng.random_range(0f32..0.05));
            (blend(&mut |_, i| level + wave * waves[i] + rng.random_range(-1f32..1.) * noise), false)
        }
        // Another brain's texture.
        10..=12 => {
            let shift = rng.random_range(0..n);
            (blend(&mut |s, i| foreign[s].pixels[(i + shift) % n]), false)
        }
        // One range of intensities moves, the rest stays.
        13..=15 => {
            let (middle, spread) = (rng.random_range(0.2f32..0.95), rng.random_range(0.08f32..0.25));
            let amount = rng.random_range(0.15f32..0.6) * if dark { -1. } else { 1. };
            let moved = |v: f32| v + amount * (-((v - middle) / spread).powi(2) / 2.).exp();
            (blend(&mut |s, i| moved(slab.slices[s].pixels[i])), true)
        }
        // All of it becomes darker or brighter.
        _ => {
            let gain = if dark { rng.random_range(0.3f32..0.8) } else { rng.random_range(1.15f32..1.7) };
            (blend(&mut |s, i| slab.slices[s].pixels[i] * gain), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn what_is_marked_has_changed_and_the_rest_has_not() {
        const WIDTH: usize = 80;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let plain =
            |level: f32| vec![Slice { pixels: vec![level; WIDTH * 96], brain: vec![true; WIDTH * 96], z_mm: 0. }; 3];
        let (mut found, mut reaching) = (0, 0);
        for _ in 0..50 {
            let mut slices = plain(0.7);
            let mut slab = Slab { slices: &mut slices, offsets: &[-2, 0, 2], width: WIDTH };
            let truth = corrupt(&mut slab, &plain(0.3), &mut rng);
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
        assert!(reaching > 20, "only {reaching} of 50 anomalies go on in the slice below");
    }
}
