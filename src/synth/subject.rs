//! One synthetic subject.
//!
//! Takes the template, a seed and the subject's number; gives a T1-weighted head with its truth masks on a scanner's
//! grid: the template deformed to an anatomy of its own, with lesions if requested, as a scanner would image it.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::field::{Field, Region, normal, normal_pair};
use super::head::{self, Matter, Tissues, Variation};
use super::lesion::{self, Lesions};
use super::template::HeadTemplate;
use crate::volume::{Affine, Grid, Volume};

/// The scanner's field of view in mm around the middle of its bore: a head with a large part of its neck.
const FIELD_OF_VIEW: Region = Region { low: [-96.0, -128.0, -124.0], high: [96.0, 128.0, 100.0] };

/// Centre of the template's brain in MNI mm.
const TEMPLATE_CENTRE: [f32; 3] = [0.0, -18.0, 8.0];

/// Centre of the brain in the field of view, in mm, before each subject's own shift.
const BRAIN_CENTRE: [f32; 3] = [0.0, -4.0, 10.0];

/// Orientations of the stored voxel axes, as scanners and converters produce them.
const ORIENTATIONS: [&str; 4] = ["RAS", "LAS", "LPS", "PSR"];

/// Independent random streams of one subject, so that a subject has the same head with and without lesions.
#[derive(Clone, Copy)]
enum Stream {
    Anatomy,
    Lesions,
    Noise,
}

impl Stream {
    const COUNT: u64 = 3;

    fn of(self, seed: u64, number: usize) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number as u64 * Self::COUNT + self as u64);
        rng
    }
}

/// A synthetic T1-weighted head and its truth masks, all on one grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// The scan.
    pub image: Volume<i16>,
    /// 1 in the brain and the fluid of its sulci and ventricles.
    pub brain: Volume<u8>,
    /// 1 in lesions.
    pub lesions: Volume<u8>,
    /// Number of lesions; they may touch.
    pub n_lesions: usize,
    /// Volume of all lesions in ml.
    pub lesion_volume_ml: f64,
}

impl Subject {
    /// Subject `number` of the sequence that belongs to `seed`, on voxels of `spacing_mm`.
    ///
    /// The same arguments give the same voxels. A subject has the same head and noise with and without lesions, and the
    /// same head at another spacing.
    pub fn draw(template: &HeadTemplate, seed: u64, number: usize, spacing_mm: f64, with_lesions: bool) -> Self {
        let mut rng = Stream::Anatomy.of(seed, number);
        let anatomy = Anatomy::draw(&mut rng);
        let grid = grid(ORIENTATIONS[rng.random_range(0..ORIENTATIONS.len())], spacing_mm);
        let scanner = Scanner::draw(&mut rng);

        let matter = anatomy.render(template, grid);
        let brain = Volume::new(grid, matter.iter().map(|m| u8::from(m.brain)).collect());
        let mut image = Volume::new(grid, matter.iter().map(|m| m.intensity).collect());
        let lesions = if with_lesions {
            let parenchyma: Vec<bool> = matter.iter().map(|m| m.parenchyma).collect();
            let depth = |p| -template.distance(anatomy.to_template(p)).brain;
            lesion::add(&mut image, &parenchyma, depth, FIELD_OF_VIEW, &mut Stream::Lesions.of(seed, number))
        } else {
            Lesions::none(&image)
        };
        let image = scanner.acquire(image, &mut Stream::Noise.of(seed, number));
        let lesion_volume_ml = lesions.volume_ml();
        Self { image, brain, lesions: lesions.mask, n_lesions: lesions.count, lesion_volume_ml }
    }
}

/// The field of view in voxels of `spacing_mm` with this orientation.
fn grid(orientation: &str, spacing_mm: f64) -> Grid {
    let (low, high) = (FIELD_OF_VIEW.low.map(f64::from), FIELD_OF_VIEW.high.map(f64::from));
    let (mut shape, mut rows) = ([0; 3], [[0.0; 4]; 3]);
    for (axis, code) in orientation.chars().enumerate() {
        let (world, grows) = match code {
            'R' => (0, 1.0),
            'L' => (0, -1.0),
            'A' => (1, 1.0),
            'P' => (1, -1.0),
            'S' => (2, 1.0),
            _ => (2, -1.0),
        };
        shape[axis] = ((high[world] - low[world]) / spacing_mm).round().max(1.0) as usize;
        rows[world][axis] = grows * spacing_mm;
        let first = if grows > 0.0 { low[world] } else { high[world] };
        rows[world][3] = first + 0.5 * grows * spacing_mm;
    }
    Grid { shape, affine: Affine(rows) }
}

/// The differences between one subject and the template.
struct Anatomy {
    tissues: Tissues,
    /// Scanner mm to MNI mm.
    affine: Affine,
    /// Displacement in mm that varies the shape of head and lobes.
    coarse: Field<3>,
    /// Displacement in mm that varies single gyri.
    fine: Field<3>,
    thickness: Field<3>,
    tissue: Field<2>,
    grain: Field<1>,
}

impl Anatomy {
    fn draw(rng: &mut impl Rng) -> Self {
        let size = rng.random_range(0.865..0.955);
        let scale: [f64; 3] = std::array::from_fn(|_| size * f64::from(1.0 + 0.02 * normal(rng)));
        let turn: [f64; 3] = std::array::from_fn(|_| (4.0 * f64::from(normal(rng))).clamp(-10.0, 10.0).to_radians());
        let shift: [f64; 3] = std::array::from_fn(|a| f64::from(BRAIN_CENTRE[a]) + rng.random_range(-5.0..5.0));
        let region = FIELD_OF_VIEW;
        Self {
            tissues: Tissues::draw(rng),
            affine: Affine::translation(shift.map(|v| -v))
                .then(&Affine::rotation(turn))
                .then(&Affine::from_rows(std::array::from_fn(|r| {
                    std::array::from_fn(|c| if r == c { 1.0 / scale[r] } else { 0.0 })
                })))
                .then(&Affine::translation(TEMPLATE_CENTRE.map(f64::from))),
            coarse: Field::random(rng, region, 45.0, 3.0),
            fine: Field::random(rng, region, 17.0, 1.4),
            thickness: Field::random(rng, region, 24.0, 1.0),
            tissue: Field::random(rng, region, 7.0, 1.0),
            grain: Field::random(rng, region, 3.0, 1.0),
        }
    }

    /// Scanner mm to MNI mm, with the deformation.
    fn to_template(&self, p: [f32; 3]) -> [f32; 3] {
        let q = self.affine.apply(p.map(f64::from));
        let (coarse, fine) = (self.coarse.at(p), self.fine.at(p));
        std::array::from_fn(|a| q[a] as f32 + coarse[a] + fine[a])
    }

    /// Intensity and tissue of every voxel of `grid`.
    fn render(&self, template: &HeadTemplate, grid: Grid) -> Vec<Matter> {
        let soft_mm = head::soft_border_mm(&grid);
        let voxels = (0..grid.len()).into_par_iter().with_min_len(grid.shape[0]);
        voxels
            .map(|i| {
                let p = grid.world_mm(i).map(|v| v as f32);
                let variation = || Variation {
                    thickness: self.thickness.at(p),
                    tissue: self.tissue.at(p),
                    grain: self.grain.at(p)[0],
                };
                head::matter(template, &self.tissues, self.to_template(p), variation, soft_mm)
            })
            .collect()
    }
}

/// One scanner's effects on the image.
struct Scanner {
    /// Stored value of white matter.
    white: f32,
    /// Standard deviation of the noise in each of the two channels, relative to white matter.
    noise: f32,
    /// Weight of each neighbour along an axis in the point spread function.
    spread: f32,
    /// Natural logarithm of the coil's sensitivity: the random part.
    bias: Field<1>,
    /// The same: the loss from the middle of the head to 100 mm away, as in strong fields.
    shading: f32,
}

impl Scanner {
    fn draw(rng: &mut impl Rng) -> Self {
        let sd = rng.random_range(0.07..0.16);
        Self {
            white: rng.random_range(400.0..900.0),
            noise: rng.random_range(0.012..0.025),
            spread: rng.random_range(0.03..0.09),
            bias: Field::random(rng, FIELD_OF_VIEW, 80.0, sd),
            shading: rng.random_range(0.1..0.45),
        }
    }

    /// Applies point spread, bias field and Rician noise, in this order.
    fn acquire(&self, mut image: Volume, rng: &mut impl Rng) -> Volume<i16> {
        (0..3).for_each(|axis| blur(&mut image, axis, self.spread));
        let grid = image.grid;
        let biased: Vec<f32> = (image.data.into_par_iter().enumerate().with_min_len(grid.shape[0]))
            .map(|(i, value)| {
                if value == 0.0 {
                    return 0.0;
                }
                let p = grid.world_mm(i).map(|v| v as f32);
                let away = (0..3).map(|a| ((p[a] - BRAIN_CENTRE[a]) / 100.0).powi(2)).sum::<f32>();
                value * (self.bias.at(p)[0] - self.shading * away).exp()
            })
            .collect();
        let noisy = biased.into_iter().map(|value| {
            let [real, imaginary] = normal_pair(rng).map(|v| self.noise * v);
            // The brightest fat is far below the limit of i16.
            (self.white * (value + real).hypot(imaginary)).round() as i16
        });
        Volume::new(grid, noisy.collect())
    }
}

/// Gives each voxel `weight` of either neighbour along `axis`; voxels at the border keep their value.
fn blur(image: &mut Volume, axis: usize, weight: f32) {
    let [nx, ny, _] = image.grid.shape;
    let (step, n) = ([1, nx, nx * ny][axis], image.grid.shape[axis]);
    let source = std::mem::take(&mut image.data);
    let blurred = source.par_iter().enumerate().with_min_len(nx).map(|(i, &value)| {
        let along = i / step % n;
        if along == 0 || along + 1 == n {
            return value;
        }
        value + weight * (source[i - step] - 2.0 * value + source[i + step])
    });
    image.data = blurred.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_of_all_orientations_cover_the_same_field_of_view() {
        for orientation in ORIENTATIONS {
            let grid = grid(orientation, 2.0);
            assert_eq!(grid.orientation(), orientation);
            assert_eq!(grid.to_ras().shape, [96, 128, 112]);
            assert_eq!(grid.to_ras().affine.apply([0.0; 3]), [-95.0, -127.0, -123.0]);
        }
    }

    #[test]
    fn noise_is_rician() {
        // Rice: without signal, the mean magnitude is sqrt(pi / 2) times the noise's standard deviation.
        let grid = grid("RAS", 4.0);
        let mut scanner = Scanner::draw(&mut ChaCha8Rng::seed_from_u64(2));
        (scanner.noise, scanner.white) = (0.1, 1000.0);
        let image = scanner.acquire(Volume::zeros(grid), &mut ChaCha8Rng::seed_from_u64(3));
        let mean = image.data.iter().map(|&v| f64::from(v)).sum::<f64>() / grid.len() as f64;
        assert!((mean - 100.0 * (std::f64::consts::PI / 2.0).sqrt()).abs() < 0.5, "{mean}");
    }
}
