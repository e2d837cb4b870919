//! Synthetic anomalies in image space, to teach the detector what healthy is not.
//!
//! A shape (ellipse, box, smooth blob) with a soft edge is put on a brain pixel of a healthy slice;
//! inside it the tissue becomes darker or brighter with a texture of its own, takes the texture of
//! another brain (foreign patch interpolation, Tan et al., arXiv 2011.04197), or is shifted for
//! one range of intensities only (tissue-selective, after DISYRE, arXiv 2311.15453).

use rand::Rng;

use super::data::{Slice, blur, smooth_field};

/// An anomaly must change the pixels it covers by this much on average to be worth finding.
const MIN_CHANGE: f32 = 0.06;

/// Puts one to three anomalies into `slice`; `foreign` lends texture. Returns, per pixel, how far
/// it is anomalous (0..1).
pub(super) fn corrupt(slice: &mut Slice, foreign: &Slice, width: usize, rng: &mut impl Rng) -> Vec<f32> {
    let mut truth = vec![0f32; slice.pixels.len()];
    let candidates: Vec<usize> = (0..slice.brain.len()).filter(|&i| slice.brain[i]).collect();
    if candidates.is_empty() {
        return truth;
    }
    for _ in 0..1 + rng.random_range(0..5usize) / 3 {
        // A draw that changes next to nothing teaches nothing: try again, a few times.
        for _ in 0..4 {
            let centre = candidates[rng.random_range(0..candidates.len())];
            let shape = shape(centre, slice, width, rng);
            let changed = texture(slice, foreign, &shape, width, rng);
            let inside: f32 = shape.iter().sum();
            let change: f32 = changed.iter().zip(&slice.pixels).zip(&shape).map(|((a, b), m)| (a - b).abs() * m).sum();
            if inside >= 4. && change / inside >= MIN_CHANGE {
                slice.pixels = changed;
                truth.iter_mut().zip(&shape).for_each(|(t, m)| *t = t.max(*m));
                break;
            }
        }
    }
    truth
}

/// A soft shape around a pixel, 0..1, zero outside the brain.
fn shape(centre: usize, slice: &Slice, width: usize, rng: &mut impl Rng) -> Vec<f32> {
    let height = slice.pixels.len() / width;
    let (cx, cy) = ((centre % width) as f32, (centre / width) as f32);
    // Log-uniform radii: small lesions are as frequent as large ones. 1 pixel = 2 mm.
    let mut radius = || rng.random_range(1.2f32.ln()..18f32.ln()).exp();
    let first = radius();
    let second = (first * rng.random_range(0.5f32..2.)).clamp(1.2, 20.);
    let (sin, cos) = rng.random_range(0f32..std::f32::consts::PI).sin_cos();
    let kind = rng.random_range(0..4);
    let waves = if kind >= 2 { smooth_field(width, height, 14, rng) } else { vec![0.; width * height] };
    let ragged = rng.random_range(0.3f32..0.9);
    let mut mask: Vec<f32> = (0..slice.pixels.len())
        .map(|i| {
            let (dx, dy) = ((i % width) as f32 - cx, (i / width) as f32 - cy);
            let (u, v) = ((dx * cos + dy * sin) / first, (dy * cos - dx * sin) / second);
            let inside = match kind {
                0 => u.abs() < 1. && v.abs() < 1.,
                _ => (u * u + v * v).sqrt() + ragged * waves[i] < 1.,
            };
            f32::from(u8::from(inside && slice.brain[i]))
        })
        .collect();
    if rng.random_bool(0.7) {
        mask = blur(&mask, width, rng.random_range(0.4f32..1.6));
        mask.iter_mut().zip(&slice.brain).for_each(|(m, b)| *m *= f32::from(u8::from(*b)));
    }
    mask
}

/// The slice with the shape's inside changed.
fn texture(slice: &Slice, foreign: &Slice, shape: &[f32], width: usize, rng: &mut impl Rng) -> Vec<f32> {
    let height = slice.pixels.len() / width;
    let strength = rng.random_range(0.4f32..1.);
    let blend = |new: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..shape.len())
            .map(|i| {
                let alpha = strength * shape[i];
                ((1. - alpha) * slice.pixels[i] + alpha * new(i)).clamp(0., 1.)
            })
            .collect()
    };
    match rng.random_range(0..10) {
        // A level of its own, darker more often than brighter, with a texture.
        0..=5 => {
            let level =
                if rng.random_bool(0.65) { rng.random_range(0f32..0.55) } else { rng.random_range(0.75f32..1.) };
            let waves = smooth_field(width, height, 20, rng);
            let grain = rng.random_range(0f32..0.12);
            let noise: Vec<f32> = (0..shape.len()).map(|_| rng.random_range(-0.04f32..0.04)).collect();
            blend(&|i| level + grain * waves[i] + noise[i])
        }
        // Another brain's texture.
        6 | 7 => {
            let shift = rng.random_range(0..foreign.pixels.len());
            blend(&|i| foreign.pixels[(i + shift) % foreign.pixels.len()])
        }
        // One range of intensities moves, the rest stays.
        _ => {
            let middle = rng.random_range(0.2f32..0.95);
            let spread = rng.random_range(0.08f32..0.25);
            let amount = rng.random_range(0.15f32..0.6) * if rng.random_bool(0.6) { -1. } else { 1. };
            blend(&|i| {
                let distance = (slice.pixels[i] - middle) / spread;
                slice.pixels[i] + amount * (-distance * distance / 2.).exp()
            })
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
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let plain = |level: f32| Slice { pixels: vec![level; 96 * 112], brain: vec![true; 96 * 112], z_mm: 0. };
        let mut found = 0;
        for _ in 0..50 {
            let mut slice = plain(0.7);
            let truth = corrupt(&mut slice, &plain(0.3), 96, &mut rng);
            for (value, mark) in slice.pixels.iter().zip(&truth) {
                assert!((0. ..=1.).contains(value) && (0. ..=1.001).contains(mark));
                if *mark == 0. {
                    assert_eq!(*value, 0.7);
                }
            }
            found += usize::from(truth.iter().any(|&m| m > 0.5));
        }
        assert!(found > 40, "only {found} of 50 slices hold an anomaly");
    }
}
