//! The slices of one or several scans that hold brain, as tokens, and their batches.
//!
//! The slices of a scan alone are batched in their order. If several scans share batches, the numbers of a slice must
//! not depend on the other slices of its batch; but a device may sum a matrix product in another order for another
//! shape. Batches then always have the same shapes: a batch holds [`Batching::slices`] slices with a similar number of
//! tokens, at least one of which is a filler. A filler has the largest number of tokens of its bucket, so that all
//! batches of a bucket are padded to the same length.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::cells::token_brain_fraction;
use crate::error::{Error, Result};
use crate::model::{CONTEXT, Networks};
use crate::preprocess::Prepared;
use crate::volume::Volume;

/// A token is judged and reported if at least this share of its cell is brain.
pub const MIN_TOKEN_BRAIN: f32 = 0.25;

/// Width of a bucket: slices that share a batch have the same number of tokens when it is rounded up to a multiple of
/// this.
const BUCKET: i64 = 96;

/// A prepared scan.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    /// Its id, which seeds random draws.
    pub scan_id: &'a str,
    /// Intensities in 0..1 on the model's grid.
    pub image: &'a Volume<f32>,
    /// Its brain, 0 or 1, on the same grid.
    pub brain: &'a Volume<u8>,
}

impl<'a> Scan<'a> {
    /// The scan that preprocessing gave.
    pub fn new(scan_id: &'a str, prepared: &'a Prepared) -> Self {
        Self { scan_id, image: &prepared.image, brain: &prepared.brain }
    }
}

/// How slices are batched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Slices per batch.
    pub slices: usize,
    /// Whether several scans may share a batch.
    pub shared: bool,
}

impl Batching {
    /// Batches of one scan alone.
    pub fn alone(slices: usize) -> Self {
        Self { slices: slices.max(1), shared: false }
    }
}

/// The part of [`Encoded`] that belongs to one scan.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub scan: Scan<'a>,
    /// Numbers of its slices on the model's grid, ascending.
    pub slices: Vec<usize>,
    /// Rows of its slices in the tensors.
    pub rows: Range<usize>,
}

/// Slices that hold brain: `R` rows, scan after scan, fillers last.
#[derive(Debug)]
pub(super) struct Encoded<'a> {
    /// The scans.
    pub parts: Vec<Part<'a>>,
    /// MNI heights, `[R]`, mm.
    pub z_mm: Tensor,
    /// Pixels `[R, 1, ny, nx]`.
    pub pixels: Tensor,
    /// Codes, `[R, rows, columns]`, i64.
    pub codes: Tensor,
    /// Codes of each slice and its neighbours, `[R, 3, rows, columns]`, i64.
    pub context: Tensor,
    /// Tokens that hold brain, `[R, rows, columns]`, bool.
    pub brain: Tensor,
    /// Tokens with enough brain to be judged, `[R, rows, columns]`, bool.
    pub inside: Tensor,
    /// Number of tokens that hold brain, by row; empty unless scans share batches.
    counts: Vec<i64>,
    /// Number of rows that are no fillers.
    real: usize,
    batching: Batching,
}

/// Runs the tokenizer over every slice that holds brain, and over the neighbours that the detector needs. Always in
/// f32, since rounding would change codes, on which all other networks depend.
///
/// # Errors
/// [`Error::Input`] where a scan has no brain.
pub(super) fn encode<'a>(networks: &Networks, scans: &[Scan<'a>], batching: Batching) -> Result<Encoded<'a>> {
    let device = networks.device;
    let (mut parts, mut values, mut heights) = (Vec::with_capacity(scans.len()), Vec::new(), Vec::new());
    // Indices into the encoded slices: of each row's own slice, and of the slices that the detector sees with it.
    let (mut own, mut around, mut fractions) = (Vec::new(), Vec::new(), Vec::new());
    let mut first_row = 0;
    let cell = networks.tokenizer.config().cell() as usize;
    let mut shape = [1i64; 2];
    for &scan in scans {
        let [nx, ny, nz] = scan.image.grid.shape;
        shape = [ny as i64, nx as i64];
        let plane = nx * ny;
        let holds_brain = |(_, mask): &(usize, &[u8])| mask.iter().any(|&v| v > 0);
        let slices: Vec<usize> =
            scan.brain.data.chunks(plane).enumerate().filter(holds_brain).map(|(z, _)| z).collect();
        if slices.is_empty() {
            return Err(Error::input("no_brain", "no slice of the model's grid holds brain"));
        }
        let neighbours = |z: usize| CONTEXT.map(|offset| (z as i64 + offset).clamp(0, nz as i64 - 1) as usize);
        let mut seen: Vec<usize> = slices.iter().flat_map(|&z| neighbours(z)).collect();
        seen.sort_unstable();
        seen.dedup();
        let before = heights.len();
        let place = |z: usize| (before + seen.partition_point(|&other| other < z)) as i64;
        own.extend(slices.iter().map(|&z| place(z)));
        around.extend(slices.iter().flat_map(|&z| neighbours(z)).map(place));
        fractions.extend(token_brain_fraction(scan.brain, &slices, [ny / cell, nx / cell]));
        values.extend(seen.iter().flat_map(|&z| &scan.image.data[z * plane..(z + 1) * plane]).copied());
        heights.extend(seen.iter().map(|&z| scan.image.grid.affine.apply([0., 0., z as f64])[2] as f32));
        let rows = first_row..first_row + slices.len();
        first_row = rows.end;
        parts.push(Part { scan, slices, rows });
    }
    let pixels = Tensor::from_slice(&values).view([heights.len() as i64, 1, shape[0], shape[1]]).to_device(device);
    let z_mm = Tensor::from_slice(&heights).to_device(device);
    let codes = tch::no_grad(|| encoded(networks, &pixels, &z_mm, batching));
    let [own, around] = [&own, &around].map(|rows| Tensor::from_slice(rows).to_device(device));
    let context = codes.index_select(0, &around).unflatten(0, [first_row as i64, CONTEXT.len() as i64]);
    let codes = codes.index_select(0, &own);
    let fraction = Tensor::from_slice(&fractions).view_as(&codes).to_device(device);
    let encoded = Encoded {
        z_mm: z_mm.index_select(0, &own),
        pixels: pixels.index_select(0, &own),
        brain: fraction.gt(0.),
        inside: fraction.ge(f64::from(MIN_TOKEN_BRAIN)),
        context,
        codes,
        parts,
        counts: Vec::new(),
        real: first_row,
        batching,
    };
    Ok(if batching.shared { encoded.with_fillers() } else { encoded })
}

/// Images `[n, 1, ny, nx]` and MNI heights `[n]` to codes `[n, rows, columns]`.
fn encoded(networks: &Networks, pixels: &Tensor, z_mm: &Tensor, batching: Batching) -> Tensor {
    let size = batching.slices as i64;
    let n = pixels.size()[0];
    let parts: Vec<Tensor> = (0..n)
        .step_by(batching.slices)
        .map(|first| {
            let here = size.min(n - first);
            let [pixels, z_mm] = [pixels, z_mm].map(|all| {
                let batch = all.narrow(0, first, here);
                if !batching.shared || here == size {
                    return batch;
                }
                let last = [&[size - here], &vec![-1; all.dim() - 1][..]].concat();
                Tensor::cat(&[&batch, &batch.narrow(0, here - 1, 1).expand(last, false)], 0)
            });
            networks.tokenizer.encode(&pixels, &z_mm).narrow(0, 0, here)
        })
        .collect();
    Tensor::cat(&parts, 0)
}

impl Encoded<'_> {
    /// Adds one filler row for each bucket. The networks' outputs for fillers are ignored.
    fn with_fillers(self) -> Self {
        let (rows, columns) = (self.codes.size()[1], self.codes.size()[2]);
        let all = rows * columns;
        let buckets = (all + BUCKET - 1) / BUCKET;
        let full = Tensor::from_slice(&(1..=buckets).map(|n| all.min(n * BUCKET)).collect::<Vec<i64>>());
        let tokens = Tensor::arange(all, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let brain = tokens.lt_tensor(&full.unsqueeze(1)).view([buckets, rows, columns]).to_device(self.codes.device());
        let zeros = |like: &Tensor| {
            let shape = [&[buckets], &like.size()[1..]].concat();
            Tensor::cat(&[like, &Tensor::zeros(shape, (like.kind(), like.device()))], 0)
        };
        let brain = Tensor::cat(&[&self.brain, &brain], 0);
        let counts = brain.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Int64).to_device(Device::Cpu);
        Self {
            z_mm: zeros(&self.z_mm),
            pixels: zeros(&self.pixels),
            codes: zeros(&self.codes),
            context: zeros(&self.context),
            inside: zeros(&self.inside),
            brain,
            counts: Vec::try_from(counts).expect("one number per row"),
            ..self
        }
    }

    /// Rows and columns of a slice.
    pub fn tokens(&self) -> [usize; 2] {
        [self.codes.size()[1] as usize, self.codes.size()[2] as usize]
    }

    /// Whether batches may hold slices of several scans.
    pub fn shares_batches(&self) -> bool {
        self.batching.shared
    }

    /// All rows that are not fillers.
    pub fn real(&self) -> Vec<i64> {
        (0..self.real as i64).collect()
    }

    /// These rows in batches `[n]`, with fillers if scans share batches.
    pub fn batches(&self, rows: &[i64]) -> Vec<Tensor> {
        let tensor = |rows: &[i64]| Tensor::from_slice(rows).to_device(self.codes.device());
        if !self.batching.shared {
            return rows.chunks(self.batching.slices).map(tensor).collect();
        }
        let mut alike: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for &row in rows {
            alike.entry((self.counts[row as usize].max(1) - 1) / BUCKET).or_default().push(row);
        }
        let full = |(bucket, rows): (i64, Vec<i64>)| {
            let filler = self.real as i64 + bucket;
            let size = self.batching.slices.max(2);
            let batch = |some: &[i64]| tensor(&[some, &vec![filler; size - some.len()]].concat());
            rows.chunks(size - 1).map(batch).collect::<Vec<_>>()
        };
        alike.into_iter().flat_map(full).collect()
    }

    /// Scan id and slice number of a row; `None` for a filler.
    pub fn slice(&self, row: i64) -> Option<(&str, usize)> {
        let row = row as usize;
        let part = self.parts.iter().find(|part| part.rows.contains(&row))?;
        Some((part.scan.scan_id, part.slices[row - part.rows.start]))
    }
}
