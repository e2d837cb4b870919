//! A picture of brains: one row per volume with the axial, coronal and sagittal plane through the brain's centre.
//!
//! Takes volumes with their brain masks; gives the bytes of a PNG. Radiological convention: the subject's right is on
//! the left of axial and coronal planes, the front is on the left of sagittal ones; letters above the planes mark the
//! sides. All planes have the same scale, 2 pixels per mm, whatever the voxel size. The brain's mask is outlined; the
//! grey scale covers the 1st to the 99.5th percentile of the brain.
//!
//! Heads of many data sets show faces, so that only the brain is drawn: everything farther than 2 mm from the mask stays
//! black. Refuses an empty mask (`no_brain`) and a mask on another grid.

use super::canvas::{CHARACTER, Canvas, Colour, LINE, wrap};
use crate::error::{Error, Result};
use crate::preprocess::percentile;
use crate::volume::resample::trilinear;
use crate::volume::{Affine, Grid, Volume};

/// The last line of every picture.
pub const NOTICE: &str = "research software, not a medical device";

/// Scale of the picture.
const PIXELS_PER_MM: f64 = 2.0;
/// Distance from the mask in mm that is still drawn: enough to judge its edge, too little for a face.
const SHOWN_OUTSIDE_MM: f64 = 2.0;
/// Black frame around the largest brain of the picture, in mm.
const MARGIN_MM: f64 = 6.0;
/// Largest extent along an axis that is drawn, in mm; limits the picture where a mask is not that of a brain.
const FIELD_MAX_MM: f64 = 300.0;
/// Percentiles of the brain's intensities (0..1) at the black and the white end of the grey scale.
const WINDOW: [f64; 2] = [0.01, 0.995];

/// Width of the title's column in characters.
const TITLE_CHARACTERS: usize = 18;
/// Space between parts in pixels.
const GAP: usize = 8;

const OUTLINE: Colour = [255, 196, 0];
const OVERLAY: Colour = [255, 48, 48];
const TEXT: Colour = [220, 220, 220];

/// One row of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// The title, written at the left.
    pub title: &'a str,
    /// The image, with any intensities.
    pub volume: &'a Volume<f32>,
    /// The brain on the image's grid: not 0 inside. Nothing is drawn outside.
    pub brain: &'a Volume<u8>,
    /// A mask on the image's grid that is outlined in place of the brain. Of what lies outside the brain, only the outline is
    /// drawn.
    pub outlined: Option<&'a Volume<u8>>,
    /// Strength of a red tint, 0..1, on any grid in the image's world.
    pub overlay: Option<&'a Volume<f32>>,
}

/// A plane of the picture.
struct Plane {
    /// The world axes that run to the left and upwards.
    axes: [usize; 2],
    /// Letters for the left and the right end of the first axis.
    ends: [&'static str; 2],
}

const PLANES: [Plane; 3] = [
    Plane { axes: [0, 1], ends: ["R", "L"] },
    Plane { axes: [0, 2], ends: ["R", "L"] },
    Plane { axes: [1, 2], ends: ["A", "P"] },
];

/// Draws `panels` from top to bottom with `footer` below.
///
/// # Errors
/// [`Error::Input`] of kind `no_brain` where a mask is empty; [`Error::Bug`] where a mask is not on its volume's grid.
pub fn picture(panels: &[Panel<'_>], footer: &str) -> Result<Vec<u8>> {
    let extents = panels.iter().map(Extent::of).collect::<Result<Vec<_>>>()?;
    let field = [0, 1, 2].map(|axis| {
        let widest = extents.iter().map(|e| e.bounds[axis][1] - e.bounds[axis][0]).fold(0.0, f64::max);
        ((widest + 2.0 * MARGIN_MM).min(FIELD_MAX_MM) * PIXELS_PER_MM).round() as usize
    });
    let tile_height = field[1].max(field[2]);
    let row_height = LINE + tile_height + GAP;
    let title_width = TITLE_CHARACTERS * CHARACTER + 2 * GAP;
    let width = title_width + PLANES.iter().map(|plane| field[plane.axes[0]] + GAP).sum::<usize>();
    let mut last_lines = wrap(footer, (width - 2 * GAP) / CHARACTER);
    last_lines.push(NOTICE.into());

    let mut canvas = Canvas::new(width, GAP + panels.len() * row_height + last_lines.len() * LINE + GAP);
    let mut top = GAP;
    for (panel, extent) in panels.iter().zip(&extents) {
        for (i, line) in wrap(panel.title, TITLE_CHARACTERS).iter().enumerate() {
            canvas.write(line, GAP, top + LINE + i * LINE, TEXT);
        }
        let share = |mask: &Volume<u8>| mask.map(|v| f32::from(u8::from(v != 0)));
        let masks = Masks { brain: share(panel.brain), outlined: panel.outlined.map(share) };
        let window = window(panel);
        let mut left = title_width;
        for plane in &PLANES {
            let tile_width = field[plane.axes[0]];
            canvas.write(plane.ends[0], left, top, TEXT);
            canvas.write(plane.ends[1], left + tile_width - CHARACTER, top, TEXT);
            let grid = extent.slice(plane, [tile_width, tile_height]);
            draw(&mut canvas, [left, top + LINE], panel, &masks, window, &grid);
            left += tile_width + GAP;
        }
        top += row_height;
    }
    for line in &last_lines {
        canvas.write(line, GAP, top, TEXT);
        top += LINE;
    }
    canvas.encode()
}

/// The masks of a panel as shares of a voxel, which can be interpolated.
struct Masks {
    brain: Volume,
    outlined: Option<Volume>,
}

/// Extent of a brain in its world, in mm.
struct Extent {
    /// Smallest and largest coordinate along x, y, z.
    bounds: [[f64; 2]; 3],
    /// Centre of mass of the mask.
    centre: [f64; 3],
}

impl Extent {
    fn of(panel: &Panel<'_>) -> Result<Self> {
        if panel.brain.grid != panel.volume.grid || panel.outlined.is_some_and(|mask| mask.grid != panel.volume.grid) {
            return Err(Error::Bug(format!("the brain mask of '{}' is not on its image's grid", panel.title)));
        }
        let mut bounds = [[f64::INFINITY, f64::NEG_INFINITY]; 3];
        let (mut sum, mut voxels) = ([0.0; 3], 0.0);
        for (i, _) in panel.brain.data.iter().enumerate().filter(|&(_, &v)| v != 0) {
            let world = panel.brain.grid.world_mm(i);
            for ((bound, sum), w) in bounds.iter_mut().zip(&mut sum).zip(world) {
                *bound = [bound[0].min(w), bound[1].max(w)];
                *sum += w;
            }
            voxels += 1.0;
        }
        if voxels == 0.0 {
            let message = format!("the brain mask of '{}' is empty: there is nothing to draw", panel.title);
            return Err(Error::input("no_brain", message));
        }
        Ok(Self { bounds, centre: sum.map(|s| s / voxels) })
    }

    /// The grid of a plane's pixels: through the centre of mass, with the brain's box in its middle.
    fn slice(&self, plane: &Plane, shape: [usize; 2]) -> Grid {
        let step = 1.0 / PIXELS_PER_MM;
        let mut rows = self.centre.map(|c| [0.0, 0.0, 0.0, c]);
        for (column, (&axis, n)) in plane.axes.iter().zip(shape).enumerate() {
            let [low, high] = self.bounds[axis];
            // The world axes run to the left and upwards, pixels to the right and downwards.
            rows[axis][column] = -step;
            rows[axis][3] = (low + high) / 2.0 + (n as f64 - 1.0) / 2.0 * step;
        }
        let through = 3 - plane.axes[0] - plane.axes[1];
        rows[through][2] = step;
        Grid { shape: [shape[0], shape[1], 1], affine: Affine(rows) }
    }
}

/// The intensities at the black and the white end of the grey scale.
fn window(panel: &Panel<'_>) -> [f32; 2] {
    let brain = panel.volume.data.iter().zip(&panel.brain.data).filter(|&(v, &b)| b != 0 && v.is_finite());
    let values: Vec<f32> = brain.map(|(&v, _)| v).collect();
    WINDOW.map(|q| percentile(&values, q))
}

/// Draws one plane with its upper left pixel at `corner`.
fn draw(canvas: &mut Canvas, corner: [usize; 2], panel: &Panel<'_>, masks: &Masks, window: [f32; 2], grid: &Grid) {
    let world = Affine::identity();
    let image = trilinear(panel.volume, grid, &world);
    let overlay = panel.overlay.map(|overlay| trilinear(overlay, grid, &world));
    let cut = |mask: &Volume| trilinear(mask, grid, &world).data.iter().map(|&share| share >= 0.5).collect::<Vec<_>>();
    let inside = cut(&masks.brain);
    let outlined = masks.outlined.as_ref().map_or_else(|| inside.clone(), cut);

    let [nx, ny, _] = grid.shape;
    let is_in = |mask: &[bool], x: isize, y: isize| {
        (0..nx as isize).contains(&x) && (0..ny as isize).contains(&y) && mask[x as usize + nx * y as usize]
    };
    // The distance within the plane is never smaller than the distance in space, so that no more than the margin is drawn.
    let reach = SHOWN_OUTSIDE_MM * PIXELS_PER_MM;
    let steps = -(reach as isize)..=reach as isize;
    let disc: Vec<[isize; 2]> = (steps.clone().flat_map(|y| steps.clone().map(move |x| [x, y])))
        .filter(|[x, y]| (x * x + y * y) as f64 <= reach * reach)
        .collect();

    for (i, &is_inside) in inside.iter().enumerate() {
        let [x, y] = [(i % nx) as isize, (i / nx) as isize];
        let sides = [[-1, 0], [1, 0], [0, -1], [0, 1]];
        let edge = outlined[i] && sides.iter().any(|[dx, dy]| !is_in(&outlined, x + dx, y + dy));
        let shown = is_inside || disc.iter().any(|[dx, dy]| is_in(&inside, x + dx, y + dy));
        let colour = if edge {
            OUTLINE
        } else if shown {
            let grey = (image.data[i] - window[0]) / (window[1] - window[0]).max(f32::MIN_POSITIVE);
            let tint = overlay.as_ref().map_or(0.0, |o| o.data[i].clamp(0.0, 1.0));
            OVERLAY.map(|red| (255.0 * grey.clamp(0.0, 1.0) * (1.0 - tint) + f32::from(red) * tint) as u8)
        } else {
            continue;
        };
        canvas.paint(corner[0] + i % nx, corner[1] + i / nx, colour);
    }
}

#[cfg(test)]
mod tests {
    use lodepng::Bitmap;

    use super::*;

    const RADII: [f64; 3] = [60.0, 80.0, 50.0];
    const CENTRE: [f64; 3] = [10.0, -20.0, 30.0];

    /// An ellipsoid brain in a bright head, 1 x 2 x 3 mm voxels that run left, posterior, superior: 100 in the
    /// subject's left half, 300 in the right one, 500 outside.
    fn head() -> (Volume<f32>, Volume<u8>) {
        let affine = Affine([[-1.0, 0.0, 0.0, 110.0], [0.0, -2.0, 0.0, 90.0], [0.0, 0.0, 3.0, -60.0]]);
        let grid = Grid { shape: [200, 110, 60], affine };
        let (mut image, mut brain) = (Volume::zeros(grid), Volume::zeros(grid));
        for i in 0..grid.len() {
            let p = grid.world_mm(i);
            let r: f64 = (0..3).map(|a| ((p[a] - CENTRE[a]) / RADII[a]).powi(2)).sum();
            brain.data[i] = u8::from(r <= 1.0);
            image.data[i] = if r > 1.1 {
                500.0
            } else if p[0] > CENTRE[0] {
                300.0
            } else {
                100.0
            };
        }
        (image, brain)
    }

    /// A picture of [`head`]: its pixels and the left edges of its planes, from the brain's size (120 x 160 x 100 mm, to a
    /// voxel), the margin and 2 pixels per mm.
    struct Layout {
        width: usize,
        pixels: Vec<lodepng::RGB<u8>>,
        lefts: [usize; 3],
        field: [usize; 3],
    }

    fn layout(panels: &[Panel<'_>]) -> Layout {
        let file = picture(panels, "1483 ml").expect("a picture");
        let Bitmap { width, height, buffer: pixels } = lodepng::decode24(file).expect("a PNG");
        let extent = Extent::of(&panels[0]).expect("a brain");
        let field = extent.bounds.map(|[low, high]| ((high - low + 2.0 * MARGIN_MM) * 2.0).round() as usize);
        for (axis, mm) in [120.0, 160.0, 100.0].into_iter().enumerate() {
            assert!((field[axis] as f64 / 2.0 - 2.0 * MARGIN_MM - mm).abs() <= 4.0, "{field:?}");
        }
        let first = TITLE_CHARACTERS * CHARACTER + 2 * GAP;
        let lefts = [first, first + field[0] + GAP, first + 2 * (field[0] + GAP)];
        assert_eq!(width, lefts[2] + field[1] + GAP);
        assert_eq!(height, 2 * GAP + panels.len() * (LINE + field[1] + GAP) + 2 * LINE);
        Layout { width, pixels, lefts, field }
    }

    impl Layout {
        /// The pixel of the first row's plane `plane` at `mm` to the right and below the middle.
        fn pixel(&self, plane: usize, mm: [f64; 2]) -> [u8; 3] {
            let across = self.lefts[plane] as f64 + self.field[PLANES[plane].axes[0]] as f64 / 2.0 + mm[0] * 2.0;
            let down = (GAP + LINE) as f64 + self.field[1] as f64 / 2.0 + mm[1] * 2.0;
            self.pixels[down as usize * self.width + across as usize].into()
        }

        /// Distance from the middle to the outline along `direction` in a plane.
        fn edge_mm(&self, plane: usize, direction: [f64; 2]) -> Option<f64> {
            let steps = (0..170).map(|half| f64::from(half) / 2.0 + 0.25);
            steps.into_iter().find(|&r| self.pixel(plane, direction.map(|d| d * r)) == OUTLINE)
        }
    }

    #[test]
    fn the_outline_follows_the_brain_in_every_plane_whatever_the_voxels() {
        let (image, brain) = head();
        let panel = Panel { title: "anisotropic", volume: &image, brain: &brain, outlined: None, overlay: None };
        let picture = layout(&[panel, panel]);
        for (plane, axes) in [[0, 1], [0, 2], [1, 2]].into_iter().enumerate() {
            for (direction, axis) in
                [([1.0, 0.0], axes[0]), ([-1.0, 0.0], axes[0]), ([0.0, 1.0], axes[1]), ([0.0, -1.0], axes[1])]
            {
                let edge = picture.edge_mm(plane, direction).expect("an outline");
                assert!((edge - RADII[axis]).abs() <= 2.5, "plane {plane} {direction:?}: {edge} mm");
            }
        }
    }

    #[test]
    fn the_subjects_right_is_on_the_left_and_the_front_is_up() {
        let (mut image, brain) = head();
        let panel = Panel { title: "", volume: &image, brain: &brain, outlined: None, overlay: None };
        let picture = layout(&[panel]);
        for plane in [0, 1] {
            assert_eq!(picture.pixel(plane, [-30.0, 0.0]), [255; 3], "right");
            assert_eq!(picture.pixel(plane, [30.0, 0.0]), [0; 3], "left");
        }
        // A dark front and a bright back.
        for i in 0..image.data.len() {
            image.data[i] = if (i / 200 % 110) < 55 { 100.0 } else { 300.0 };
        }
        let picture = layout(&[Panel { title: "", volume: &image, brain: &brain, outlined: None, overlay: None }]);
        assert_eq!([picture.pixel(0, [0.0, -30.0]), picture.pixel(0, [0.0, 30.0])], [[0; 3], [255; 3]]);
        assert_eq!([picture.pixel(2, [-30.0, 0.0]), picture.pixel(2, [30.0, 0.0])], [[0; 3], [255; 3]]);
    }

    #[test]
    fn nothing_of_the_head_outside_the_brain_is_drawn() {
        let (image, brain) = head();
        let picture = layout(&[Panel { title: "", volume: &image, brain: &brain, outlined: None, overlay: None }]);
        for (plane, [a, b]) in [[0, 1], [0, 2], [1, 2]].into_iter().enumerate() {
            let half = [picture.field[a] as f64 / 4.0 - 1.0, picture.field[1] as f64 / 4.0 - 1.0];
            for k in 0..10_000 {
                let mm = [half[0] * (f64::from(k % 100) / 50.0 - 1.0), half[1] * (f64::from(k / 100) / 50.0 - 1.0)];
                // Black starts 2 mm and half a voxel's diagonal of 3.7 mm outside the ellipsoid.
                let beyond = (mm[0] / (RADII[a] + 4.0)).powi(2) + (mm[1] / (RADII[b] + 4.0)).powi(2) > 1.0;
                assert!(!beyond || picture.pixel(plane, mm) == [0; 3], "plane {plane} {mm:?}");
            }
        }
    }

    #[test]
    fn of_a_mask_that_is_too_large_only_the_outline_is_drawn() {
        let (image, brain) = head();
        let grown = |p: [f64; 3]| (0..3).map(|a| ((p[a] - CENTRE[a]) / (RADII[a] + 8.0)).powi(2)).sum::<f64>() <= 1.0;
        let too_large = (0..image.grid.len()).map(|i| u8::from(grown(image.grid.world_mm(i)))).collect();
        let too_large = Volume::new(image.grid, too_large);
        let picture =
            layout(&[Panel { title: "", volume: &image, brain: &brain, outlined: Some(&too_large), overlay: None }]);
        // The front of the axial plane has no margin that cuts the outline off.
        let edge = picture.edge_mm(0, [0.0, -1.0]);
        assert!(edge.is_none_or(|edge| edge > RADII[1] + 4.0), "{edge:?}: the brain is not outlined");
        let drawn = (0..10_000).map(|k| [f64::from(k % 100) - 50.0, f64::from(k / 100) - 50.0].map(|v| 1.3 * v));
        let outside = drawn.filter(|mm| (mm[0] / (RADII[0] + 4.0)).powi(2) + (mm[1] / (RADII[1] + 4.0)).powi(2) > 1.0);
        let within = outside.filter(|mm| mm[0].abs() < RADII[0] + 5.0 && mm[1].abs() < RADII[1] + 5.0);
        assert!(within.map(|mm| picture.pixel(0, mm)).all(|pixel| pixel == [0; 3] || pixel == OUTLINE));
    }

    #[test]
    fn an_overlay_tints_and_an_empty_mask_is_refused() {
        let (image, brain) = head();
        let everywhere = Volume::new(image.grid, vec![1.0; image.data.len()]);
        let panel = Panel { title: "", volume: &image, brain: &brain, outlined: None, overlay: Some(&everywhere) };
        assert_eq!(layout(&[panel]).pixel(0, [30.0, 0.0]), OVERLAY);
        let empty = Volume::zeros(image.grid);
        let refused = picture(&[Panel { brain: &empty, ..panel }], "").expect_err("no brain");
        assert_eq!(refused.kind(), "no_brain");
    }
}
