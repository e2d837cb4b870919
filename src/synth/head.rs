//! From a position in the template to what a T1-weighted scan shows there.
//!
//! The template holds the brain only. Fluid, the two tables of the skull with the marrow between them, scalp and skin
//! are layers by distance around it; neck and face are solids of muscle and fat, with a spine, airways, sinuses and
//! eyes. Intensities are relative to white matter (1.0); all positions are MNI mm.

use rand::Rng;

use super::template::{Distance, Template};

/// What the template's T1 shows where it is sure of a tissue (0..1).
const TEMPLATE_WHITE: f32 = 0.875;
const TEMPLATE_GREY: f32 = 0.65;
const TEMPLATE_FLUID: f32 = 0.26;

/// How much more fluid a single brain's sulci hold than the darkness of the average tells.
const SULCI: f32 = 2.2;

/// Intensity of air and of cortical bone, which have next to no signal.
const AIR: f32 = 0.0;
const BONE: f32 = 0.06;

/// One subject's tissues: how bright and how thick. Brightness differs between subjects as it does between scanners.
#[derive(Debug, Clone)]
pub(super) struct Tissues {
    grey: f32,
    pub(super) fluid: f32,
    fat: f32,
    marrow: f32,
    muscle: f32,
    skin: f32,
    /// Exponent that takes the template's average shares to one subject's crisp borders.
    crispness: f32,
    /// Log odds added to fluid: wide sulci and ventricles as in an older brain, or narrow ones.
    atrophy: f32,
    /// How much of the template's own detail that tissue shares do not explain is kept.
    detail: f32,
    fluid_mm: f32,
    table_mm: f32,
    marrow_mm: f32,
    scalp_mm: f32,
    fat_mm: f32,
}

impl Tissues {
    /// A random subject's.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self {
            grey: rng.random_range(0.63..0.71),
            fluid: rng.random_range(0.20..0.29),
            fat: rng.random_range(0.95..1.4),
            marrow: rng.random_range(0.55..0.9),
            muscle: rng.random_range(0.38..0.5),
            skin: rng.random_range(0.45..0.65),
            crispness: rng.random_range(1.8..2.6),
            atrophy: rng.random_range(0.2..1.4),
            detail: rng.random_range(0.6..1.0),
            fluid_mm: rng.random_range(0.8..2.2),
            table_mm: rng.random_range(1.6..2.2),
            marrow_mm: rng.random_range(1.2..3.2),
            scalp_mm: rng.random_range(5.0..8.0),
            fat_mm: rng.random_range(2.2..4.2),
        }
    }
}

/// A subject's own departures from the template at one position; standard deviation 1 each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variation {
    /// Over centimetres: thickness of fluid, marrow and scalp.
    pub thickness: [f32; 3],
    /// Over a few millimetres: odds of fluid and of white matter.
    pub tissue: [f32; 2],
    /// Texture at the scale of a voxel or two.
    pub grain: f32,
}

/// What is at one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Matter {
    /// T1-weighted intensity; white matter is 1.
    pub intensity: f32,
    /// In the brain or the fluid of its sulci and ventricles.
    pub brain: bool,
    /// In grey or white matter.
    pub parenchyma: bool,
}

/// No layer of the head is further from the template's skull than this.
const HEAD_REACH_MM: f32 = 28.0;

/// What is at `p`. Borders between tissues are `soft_mm` wide on either side.
pub(super) fn matter(
    template: &Template,
    tissues: &Tissues,
    p: [f32; 3],
    variation: impl FnOnce() -> Variation,
    soft_mm: f32,
) -> Matter {
    let distance = template.distance(p);
    let below = neck(p).min(face(p));
    if distance.cranium > HEAD_REACH_MM && below > HEAD_REACH_MM {
        return Matter { intensity: AIR, brain: false, parenchyma: false };
    }
    let variation = variation();
    let (brain, fluid_share) = if distance.brain < 2.0 * soft_mm {
        brain(template, tissues, p, distance.brain, &variation)
    } else {
        (tissues.fluid, 1.0)
    };
    let inside = layered(brain, &[(0.0, tissues.fluid)], distance.brain, soft_mm);
    let intensity = around(tissues, p, distance, below, &variation, inside, soft_mm);
    let in_brain = distance.brain < 0.0;
    Matter { intensity, brain: in_brain, parenchyma: in_brain && fluid_share < 0.5 }
}

/// Intensity in the brain, and the share of fluid in it. `depth` is the distance to its surface, negative inside.
fn brain(template: &Template, tissues: &Tissues, p: [f32; 3], depth: f32, variation: &Variation) -> (f32, f32) {
    let at = template.tissue(p);
    // The maps hardly know the fluid of sulci, which the average of many brains washes out; where the template's T1
    // is darker than grey matter there is fluid in many of them. More is carved along sheets through the cortex, a
    // subject's own sulci.
    let dark = SULCI * (TEMPLATE_GREY - 0.02 - at.t1) / (TEMPLATE_GREY - TEMPLATE_FLUID);
    let sheet = sheet(variation.tissue[1], 0.4) * (1.0 - 2.5 * at.white).max(0.0) * smooth_step(depth, -22.0, -2.0);
    let fluid = (1.0 - at.grey - at.white).max(dark).max(0.8 * sheet).clamp(0.0, 1.0);
    let total = fluid + at.grey + at.white;
    let plain = (fluid * TEMPLATE_FLUID + at.grey * TEMPLATE_GREY + at.white * TEMPLATE_WHITE) / total;
    let unexplained = (at.t1 - plain) / (TEMPLATE_WHITE - TEMPLATE_FLUID);

    let odds = |share: f32, log_odds: f32| (share + 0.005).powf(tissues.crispness) * log_odds.exp();
    let folia = folia(p, variation);
    let fluid = odds(fluid, tissues.atrophy + variation.tissue[0] - 1.2 * folia);
    let white = odds(at.white, 0.8 * variation.tissue[1] + 1.6 * folia);
    let grey = odds(at.grey, 0.0);
    let total = fluid + grey + white;
    let mean = (fluid * tissues.fluid + grey * tissues.grey + white) / total;
    let detail = tissues.detail * unexplained.clamp(-0.25, 0.25) * (1.0 - tissues.fluid);
    let grain = 0.02 * variation.grain + 0.07 * folia;
    ((mean + detail + grain).max(0.5 * tissues.fluid), fluid / total)
}

/// The leaves of the cerebellum, which the template shows as one grey mass: -1 in fluid between them, 1 in their
/// white matter, 0 elsewhere in the brain.
fn folia(p: [f32; 3], variation: &Variation) -> f32 {
    let [_, y, z] = p;
    let inside = smooth_step(-ellipsoid(p, [0.0, -64.0, -40.0], [58.0, 40.0, 27.0]), 0.0, 4.0);
    if inside == 0.0 {
        return 0.0;
    }
    // They fan out around the fourth ventricle.
    let angle = (z + 32.0).atan2(-(y + 42.0));
    inside * (26.0 * angle + 1.5 * variation.tissue[0]).sin()
}

/// 1 on the sheet where a random field is zero, falling to 0 where it reaches `width`.
fn sheet(field: f32, width: f32) -> f32 {
    (1.0 - field.abs() / width).max(0.0)
}

/// Everything around the brain; `inside` is what lies within the skull, `below` the distance to neck and face.
pub(super) fn around(
    tissues: &Tissues,
    p: [f32; 3],
    distance: Distance,
    below: f32,
    variation: &Variation,
    inside: f32,
    soft_mm: f32,
) -> f32 {
    let [fluid, marrow, scalp] = variation.thickness;
    let from = (tissues.fluid_mm * (1.0 + 0.3 * fluid)).max(0.3);
    // The marrow has holes where its thickness goes below zero.
    let marrow_from = from + tissues.table_mm;
    let marrow_to = marrow_from + (tissues.marrow_mm * (1.0 + 0.7 * marrow)).max(0.0);
    let skull = marrow_to + tissues.table_mm;
    let surface = smooth_min(distance.cranium - skull - tissues.scalp_mm * (1.0 + 0.2 * scalp), below, 12.0);

    let (depth, grain) = (-surface, variation.grain);
    let fat = tissues.fat * (1.0 + 0.08 * grain);
    // Sheets of fat run between the muscles.
    let sheet = sheet(variation.tissue[0], 0.25) * smooth_step(depth, 6.0, 10.0);
    let muscle = tissues.muscle * (1.0 + 0.1 * grain) + 0.7 * sheet * (fat - tissues.muscle);
    let soft = layered(tissues.skin, &[(1.6, fat), (1.6 + tissues.fat_mm, muscle)], depth, soft_mm);
    let soft = bones_and_holes(tissues, p, soft, &variation.tissue, soft_mm);
    let bone = BONE * (1.0 + 0.3 * grain);
    let marrow = tissues.marrow * (1.0 + 0.15 * grain);
    let layers = [(from, bone), (marrow_from, marrow), (marrow_to, bone), (skull, soft)];
    let head = layered(inside, &layers, distance.cranium, soft_mm);
    layered(head, &[(0.0, AIR)], surface, soft_mm)
}

/// What lies in the soft tissue outside the skull: spine, airways, sinuses, eyes.
fn bones_and_holes(tissues: &Tissues, p: [f32; 3], soft: f32, wobble: &[f32; 2], soft_mm: f32) -> f32 {
    let [x, y, z] = p;
    let side = [x.abs(), y, z];
    let mut value = soft;
    let mut put = |surface: f32, intensity: f32| {
        let inside = smooth_step(-surface, -soft_mm, soft_mm);
        value += inside * (intensity - value);
    };
    // Spine: vertebral bodies in front of the canal, arches around it, the cord in its fluid.
    let under_skull = z + 74.0;
    put(ellipse(x, y + 24.0, 17.0, 14.0).max(under_skull), BONE);
    put(ellipse(x, y + 24.0, 14.0, 11.0).max(under_skull), tissues.marrow * 0.8);
    put(ellipse(x, y + 45.0, 17.0, 15.0).max(under_skull), BONE);
    put(ellipse(x, y + 45.0, 10.0, 9.0).max(z + 68.0), tissues.fluid);
    put(ellipse(x, y + 44.0, 6.5, 5.5).max(z + 66.0), 0.85);
    // Eyes, then the air: nose, sinuses of cheek and forehead, cells behind the ears, throat.
    put(ellipsoid(side, [33.0, 62.0, -42.0], [14.0, 14.0, 13.5]), tissues.fluid * 0.9);
    put(ellipsoid(p, [0.0, 62.0, -58.0], [11.0, 28.0, 18.0]) + 3.0 * wobble[0].abs(), AIR);
    put(ellipsoid(side, [28.0, 56.0, -66.0], [12.0, 14.0, 14.0]), AIR);
    put(ellipsoid(p, [0.0, 28.0, -40.0], [12.0, 14.0, 9.0]), AIR);
    put(ellipsoid(side, [9.0, 80.0, -14.0], [11.0, 5.0, 9.0]) + 1.5 * wobble[1].abs(), AIR);
    put(ellipsoid(side, [54.0, -34.0, -46.0], [10.0, 14.0, 16.0]) + 7.0 * wobble[1], AIR);
    put(ellipse(x, y - 6.0, 11.0, 7.0).max(z + 70.0) + wobble[0], AIR);
    value
}

/// Distance to the neck's surface.
pub(super) fn neck([x, y, z]: [f32; 3]) -> f32 {
    ellipse(x, y + 26.0, 62.0, 64.0).max(z + 40.0)
}

/// Distance to the face's surface: cheeks and jaw, with a nose.
pub(super) fn face(p: [f32; 3]) -> f32 {
    let cheeks = ellipsoid(p, [0.0, 34.0, -64.0], [64.0, 62.0, 68.0]);
    smooth_min(cheeks, ellipsoid(p, [0.0, 94.0, -60.0], [13.0, 16.0, 18.0]), 10.0)
}

/// Distance to an upright elliptic cylinder; exact on it, good near it.
fn ellipse(x: f32, y: f32, rx: f32, ry: f32) -> f32 {
    ((x / rx).hypot(y / ry) - 1.0) * rx.min(ry)
}

/// Distance to an ellipsoid; exact on it, good near it.
fn ellipsoid(p: [f32; 3], centre: [f32; 3], radii: [f32; 3]) -> f32 {
    let norm = (0..3).map(|a| ((p[a] - centre[a]) / radii[a]).powi(2)).sum::<f32>().sqrt();
    (norm - 1.0) * radii.iter().copied().fold(f32::INFINITY, f32::min)
}

/// `inside`, then each layer's intensity from its distance on, with borders `soft_mm` wide on either side.
fn layered(inside: f32, layers: &[(f32, f32)], distance: f32, soft_mm: f32) -> f32 {
    layers.iter().fold(inside, |below, &(from, intensity)| {
        below + smooth_step(distance, from - soft_mm, from + soft_mm) * (intensity - below)
    })
}

/// 0 below `low`, 1 above `high`, with a smooth way between.
pub(super) fn smooth_step(v: f32, low: f32, high: f32) -> f32 {
    let t = ((v - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// The smaller of two distances, rounded over `width` where they meet.
fn smooth_min(a: f32, b: f32, width: f32) -> f32 {
    let h = (width - (a - b).abs()).max(0.0) / width;
    a.min(b) - h * h * width / 4.0
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_ray_out_of_the_head_crosses_the_layers_in_order() {
        let template = Template::embedded().expect("embedded template");
        let tissues = Tissues::draw(&mut ChaCha8Rng::seed_from_u64(1));
        let none = || Variation { thickness: [0.0; 3], tissue: [0.0; 2], grain: 0.0 };
        let up = |z: f32| matter(&template, &tissues, [25.0, -20.0, z], none, 0.4);
        let ray: Vec<Matter> = (0..=180).map(|i| up(30.0 + 0.5 * i as f32)).collect();
        let leaves = ray.iter().position(|m| !m.brain).expect("the ray leaves the brain");
        assert!(ray[leaves..].iter().all(|m| !m.brain && !m.parenchyma));
        assert!(ray[..leaves].iter().any(|m| m.intensity > 0.9), "white matter");
        let outside: Vec<f32> = ray[leaves..].iter().map(|m| m.intensity).collect();
        let bone = outside.iter().position(|&v| v < 0.1).expect("inner table");
        let marrow = bone + outside[bone..].iter().position(|&v| v > 0.3).expect("marrow or scalp");
        let fat = outside.iter().position(|&v| v > 0.9).expect("fat");
        assert!(bone < marrow && marrow < fat);
        assert_eq!(outside[outside.len() - 1], 0.0, "air");
    }
}
