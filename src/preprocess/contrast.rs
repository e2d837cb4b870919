//! A T1-like contrast from a T2-weighted head, for finding the brain's border.
//!
//! Takes a head on the working grid (air at 0) and a first mask of its brain; gives the head itself where it is
//! T1-weighted or a FLAIR. Where fluid is the brightest tissue (T2-weighted), it gives intensities folded so that white
//! matter is brighter than grey matter, grey matter than fluid, and fluid than bone. The fold maps different tissues onto
//! one intensity, so that it serves for the border alone. Refuses nothing: a head without bright fluid is returned
//! unchanged.

use std::borrow::Cow;

use super::morphology::erode;
use super::statistics::{percentile, values_in};
use crate::volume::Volume;

/// Ratio of the brain's 95th percentile to its median above which the bright voxels may be fluid; 1.4 to 1.57 on the
/// T1-weighted heads of IXI.
const FLUID_MIN: f32 = 1.6;

/// Depth in mm of the brain's rim, which is mostly cortex and fluid.
const RIM_MM: f64 = 8.0;
/// Depth in mm below which the brain is mostly white matter.
const INSIDE_MM: f64 = 14.0;

/// Intensity relative to the brain's median, and the intensity that a T1-weighted scan shows of the same tissue: air and
/// cortical bone, muscle, white matter, grey matter, fluid.
const FOLD: [[f32; 2]; 5] = [[0.1, 0.0], [0.4, 0.45], [0.8, 1.0], [1.1, 0.7], [1.7, 0.25]];

/// `head` itself where its fluid is dark; folded to T1-like contrast where its fluid is bright.
pub(super) fn t1_like<'a>(head: &'a Volume, brain: &Volume<u8>) -> Cow<'a, Volume> {
    let inside = values_in(head, brain);
    let (median, bright) = (percentile(&inside, 0.5), percentile(&inside, 0.95));
    if median <= 0.0 || bright < FLUID_MIN * median || !rim_is_brighter(head, brain) {
        return Cow::Borrowed(head);
    }
    Cow::Owned(head.map(|v| folded(v / median)))
}

/// True where the rim of the brain is brighter than its inside, which T1 weighting rules out.
fn rim_is_brighter(head: &Volume, brain: &Volume<u8>) -> bool {
    let eroded = |mm: f64| erode(brain, (mm / head.grid.spacing()[0]).round() as usize);
    let mut rim = eroded(RIM_MM);
    rim.data.iter_mut().zip(&brain.data).for_each(|(v, b)| *v = b & !*v);
    let median = |mask: &Volume<u8>| percentile(&values_in(head, mask), 0.5);
    median(&rim) > median(&eroded(INSIDE_MM))
}

/// The piecewise linear map through [`FOLD`], constant beyond its ends.
fn folded(v: f32) -> f32 {
    let next = FOLD.partition_point(|knot| knot[0] <= v);
    match (FOLD.get(next.wrapping_sub(1)), FOLD.get(next)) {
        (Some([x0, y0]), Some([x1, y1])) => y0 + (v - x0) * (y1 - y0) / (x1 - x0),
        (Some([_, end]), None) | (None, Some([_, end])) => *end,
        (None, None) => v,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    /// A ball of 70 mm of white matter, grey matter and fluid (shells up to 45, 60 and 70 mm) in bone, with intensities
    /// `[white, grey, fluid, bone]`, and the mask of the ball.
    fn head([white, grey, fluid, bone]: [f32; 4]) -> (Volume, Volume<u8>) {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -79.0], [0.0, 2.0, 0.0, -79.0], [0.0, 0.0, 2.0, -79.0]]);
        let grid = Grid { shape: [80; 3], affine };
        let radius = |i: usize| grid.world_mm(i).iter().map(|c| c * c).sum::<f64>().sqrt();
        let image = (0..grid.len()).map(|i| match radius(i) {
            r if r < 45.0 => white,
            r if r < 60.0 => grey,
            r if r < 70.0 => fluid,
            _ => bone,
        });
        let brain = (0..grid.len()).map(|i| u8::from(radius(i) < 70.0));
        (Volume::new(grid, image.collect()), Volume::new(grid, brain.collect()))
    }

    #[test]
    fn t1_and_flair_pass_untouched() {
        for tissues in [[100.0, 68.0, 25.0, 6.0], [55.0, 70.0, 10.0, 4.0]] {
            let (scan, brain) = head(tissues);
            assert!(matches!(t1_like(&scan, &brain), Cow::Borrowed(_)), "{tissues:?}");
        }
        let (scan, _) = head([100.0, 68.0, 25.0, 6.0]);
        assert!(matches!(t1_like(&scan, &Volume::zeros(scan.grid)), Cow::Borrowed(_)), "an empty mask");
    }

    #[test]
    fn t2_gets_the_order_of_t1_in_any_unit() {
        for gain in [1.0, 40.0] {
            let tissues = [40.0, 58.0, 105.0, 4.0].map(|v| v * gain);
            let (scan, brain) = head(tissues);
            let like = t1_like(&scan, &brain);
            let of = |level: f32| like.data[scan.data.iter().position(|&v| v == level).expect("a tissue")];
            let [white, grey, fluid, bone] = tissues.map(of);
            assert!(white > grey && grey > fluid && fluid > bone, "{white} {grey} {fluid} {bone}");
        }
    }
}
