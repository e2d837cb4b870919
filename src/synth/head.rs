//! The T1-weighted intensity at a position in the template's space.
//!
//! Takes a position in MNI mm and one subject's tissues; gives intensity relative to white matter (1.0), and whether the
//! position lies in the brain. The template holds the brain only. Fluid, the two tables of the skull with the marrow
//! between them, scalp and skin are layers by distance around it; neck and face are solids of muscle and fat, with a
//! spine, airways, sinuses and eyes.

use rand::Rng;

use super::template::{Distance, HeadTemplate};
use crate::volume::Grid;

/// The template's T1 intensity (0..1) of pure white matter.
const TEMPLATE_WHITE: f32 = 0.875;
/// The same of grey matter.
const TEMPLATE_GREY: f32 = 0.65;
/// The same of fluid.
const TEMPLATE_FLUID: f32 = 0.26;

/// Ratio of the fluid in a single brain's sulci to the fluid that the average brain's intensity suggests.
const SULCI: f32 = 2.2;

/// Intensity of air.
const AIR: f32 = 0.0;
/// Intensity of cortical bone, which has almost no signal.
const BONE: f32 = 0.06;

/// Brightness and thickness of one subject's tissues. Brightness varies between subjects as it does between scanners.
#[derive(Debug, Clone)]
pub(super) struct Tissues {
    grey: f32,
    pub(super) fluid: f32,
    fat: f32,
    marrow: f32,
    muscle: f32,
    skin: f32,
    /// Exponent that sharpens the template's average tissue shares to one subject's borders.
    crispness: f32,
    /// Log odds added to fluid; high values give the wide sulci and ventricles of an older brain.
    atrophy: f32,
    /// Share that is kept of the template's detail that tissue shares do not explain.
    detail: f32,
    fluid_mm: f32,
    table_mm: f32,
    marrow_mm: f32,
    scalp_mm: f32,
    fat_mm: f32,
}

impl Tissues {
    /// The tissues of a random subject.
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

/// A subject's deviations from the template at one position; each has standard deviation 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variation {
    /// Thickness of fluid, marrow and scalp, which varies over centimetres.
    pub thickness: [f32; 3],
    /// Odds of fluid and of white matter, which vary over a few millimetres.
    pub tissue: [f32; 2],
    /// Texture at the scale of one or two voxels.
    pub grain: f32,
}

/// A position, and its distances to the surfaces of the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    /// MNI mm.
    pub mni_mm: [f32; 3],
    /// To the surfaces of brain and skull.
    pub distance: Distance,
    /// To the surface of neck and face, in mm, negative inside.
    pub below: f32,
}

impl Position {
    /// `distance` may differ from the template's where another brain lies in the head.
    pub fn new(mni_mm: [f32; 3], distance: Distance) -> Self {
        Self { mni_mm, distance, below: neck(mni_mm).min(face(mni_mm)) }
    }
}

/// Intensity and tissue at one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Matter {
    /// T1-weighted intensity; white matter is 1.
    pub intensity: f32,
    /// True in the brain and the fluid of its sulci and ventricles.
    pub brain: bool,
    /// True in grey and white matter.
    pub parenchyma: bool,
}

/// Largest distance of any layer of the head from the inside of the template's skull, in mm.
const HEAD_REACH_MM: f32 = 28.0;

/// Half the width in mm of borders between tissues on `grid`, enough to avoid aliasing on large voxels.
pub(super) fn soft_border_mm(grid: &Grid) -> f32 {
    (0.45 * grid.spacing()[0] as f32).max(0.4)
}

/// Intensity and tissue at `p` (MNI mm). Borders between tissues are `soft_mm` wide on either side.
pub(super) fn matter(
    template: &HeadTemplate,
    tissues: &Tissues,
    p: [f32; 3],
    variation: impl FnOnce() -> Variation,
    soft_mm: f32,
) -> Matter {
    let distance = template.distance(p);
    let position = Position::new(p, distance);
    if distance.cranium > HEAD_REACH_MM && position.below > HEAD_REACH_MM {
        return Matter { intensity: AIR, brain: false, parenchyma: false };
    }
    let variation = variation();
    let (brain, fluid_share) = if distance.brain < 2.0 * soft_mm {
        brain(template, tissues, p, distance.brain, &variation)
    } else {
        (tissues.fluid, 1.0)
    };
    let inside = layered(brain, &[(0.0, tissues.fluid)], distance.brain, soft_mm);
    let intensity = around(tissues, &position, &variation, inside, soft_mm);
    let in_brain = distance.brain < 0.0;
    Matter { intensity, brain: in_brain, parenchyma: in_brain && fluid_share < 0.5 }
}

/// Intensity in the brain, and the share of fluid in it. `depth` is the distance to its surface, negative inside.
fn brain(template: &HeadTemplate, tissues: &Tissues, p: [f32; 3], depth: f32, variation: &Variation) -> (f32, f32) {
    let at = template.tissue(p);
    // In the maps, the average of many brains blurs the fluid of sulci. Where the template's T1 is darker than grey
    // matter, many of these brains have fluid. A subject's own sulci are further sheets of fluid through the cortex.
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

/// The folia of the cerebellum, which the template shows as one mass of grey matter: -1 in the fluid between them, 1 in
/// their white matter, 0 elsewhere in the brain.
fn folia(p: [f32; 3], variation: &Variation) -> f32 {
    let [_, y, z] = p;
    let inside = smooth_step(-ellipsoid(p, [0.0, -64.0, -40.0], [58.0, 40.0, 27.0]), 0.0, 4.0);
    if inside == 0.0 {
        return 0.0;
    }
    // The folia fan out around the fourth ventricle.
    let angle = (z + 32.0).atan2(-(y + 42.0));
    inside * (26.0 * angle + 1.5 * variation.tissue[0]).sin()
}

/// 1 on the sheet where a random field is zero, falling linearly to 0 where its magnitude reaches `width`.
fn sheet(field: f32, width: f32) -> f32 {
    (1.0 - field.abs() / width).max(0.0)
}

/// Intensity at a position of the head, where `inside` is the intensity within the skull.
pub(super) fn around(tissues: &Tissues, position: &Position, variation: &Variation, inside: f32, soft_mm: f32) -> f32 {
    let Position { mni_mm, distance, below } = *position;
    let [fluid, marrow, scalp] = variation.thickness;
    let from = (tissues.fluid_mm * (1.0 + 0.3 * fluid)).max(0.3);
    // There is no marrow where its thickness is below zero.
    let marrow_from = from + tissues.table_mm;
    let marrow_to = marrow_from + (tissues.marrow_mm * (1.0 + 0.7 * marrow)).max(0.0);
    let skull = marrow_to + tissues.table_mm;
    let surface = smooth_min(distance.cranium - skull - tissues.scalp_mm * (1.0 + 0.2 * scalp), below, 12.0);

    let (depth, grain) = (-surface, variation.grain);
    let fat = tissues.fat * (1.0 + 0.08 * grain);
    // Sheets of fat separate the muscles.
    let sheet = sheet(variation.tissue[0], 0.25) * smooth_step(depth, 6.0, 10.0);
    let muscle = tissues.muscle * (1.0 + 0.1 * grain) + 0.7 * sheet * (fat - tissues.muscle);
    let soft = layered(tissues.skin, &[(1.6, fat), (1.6 + tissues.fat_mm, muscle)], depth, soft_mm);
    let soft = bones_and_holes(tissues, mni_mm, soft, &variation.tissue, soft_mm);
    let bone = BONE * (1.0 + 0.3 * grain);
    let marrow = tissues.marrow * (1.0 + 0.15 * grain);
    let layers = [(from, bone), (marrow_from, marrow), (marrow_to, bone), (skull, soft)];
    let head = layered(inside, &layers, distance.cranium, soft_mm);
    layered(head, &[(0.0, AIR)], surface, soft_mm)
}

/// Intensity outside the skull, where spine, airways, sinuses and eyes replace the soft tissue `soft`.
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
    // Eyes, then air: nose, maxillary, sphenoid and frontal sinuses, mastoid cells, throat.
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
fn neck([x, y, z]: [f32; 3]) -> f32 {
    ellipse(x, y + 26.0, 62.0, 64.0).max(z + 40.0)
}

/// Distance to the face's surface: cheeks and jaw, with a nose.
fn face(p: [f32; 3]) -> f32 {
    let cheeks = ellipsoid(p, [0.0, 34.0, -64.0], [64.0, 62.0, 68.0]);
    smooth_min(cheeks, ellipsoid(p, [0.0, 94.0, -60.0], [13.0, 16.0, 18.0]), 10.0)
}

/// Approximate distance to an upright elliptic cylinder, exact on its surface.
fn ellipse(x: f32, y: f32, rx: f32, ry: f32) -> f32 {
    ((x / rx).hypot(y / ry) - 1.0) * rx.min(ry)
}

/// Approximate distance to an ellipsoid, exact on its surface.
fn ellipsoid(p: [f32; 3], centre: [f32; 3], radii: [f32; 3]) -> f32 {
    let norm = (0..3).map(|a| ((p[a] - centre[a]) / radii[a]).powi(2)).sum::<f32>().sqrt();
    (norm - 1.0) * radii.iter().copied().fold(f32::INFINITY, f32::min)
}

/// The intensity at `distance`: `inside`, then that of each layer from its distance on, with borders `soft_mm` wide on
/// either side.
fn layered(inside: f32, layers: &[(f32, f32)], distance: f32, soft_mm: f32) -> f32 {
    layers.iter().fold(inside, |below, &(from, intensity)| {
        below + smooth_step(distance, from - soft_mm, from + soft_mm) * (intensity - below)
    })
}

/// 0 below `low`, 1 above `high`, with a smooth transition in between.
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
        let template = HeadTemplate::embedded().expect("embedded template");
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
