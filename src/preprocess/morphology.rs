//! Binary morphology on masks.
//!
//! A mask is a [`Volume<u8>`] of 0 and 1. Neighbours are the six voxels that share a face, so that one step of erosion
//! or dilation moves the border by one voxel along the axes.

use std::ops::Range;

use petgraph::unionfind::UnionFind;
use rayon::prelude::*;

use crate::volume::Volume;

/// Dilates by `steps` voxels.
pub(super) fn dilate(mask: &Volume<u8>, steps: usize) -> Volume<u8> {
    let mut out = mask.clone();
    for _ in 0..steps {
        out = dilate_once(&out);
    }
    out
}

/// One step of dilation. Each row becomes its union with the four neighbouring rows and with itself shifted by one.
fn dilate_once(mask: &Volume<u8>) -> Volume<u8> {
    let [nx, ny, nz] = mask.grid.shape;
    let row = |y: usize, z: usize| &mask.data[nx * (y + ny * z)..nx * (y + ny * z + 1)];
    let mut out = mask.clone();
    out.data.par_chunks_mut(nx * ny).enumerate().for_each(|(z, slab)| {
        for (y, target) in slab.chunks_mut(nx).enumerate() {
            let mut unite = |source: &[u8]| target.iter_mut().zip(source).for_each(|(t, s)| *t |= s);
            let own = row(y, z);
            unite(&own[1..]);
            if y > 0 {
                unite(row(y - 1, z));
            }
            if y + 1 < ny {
                unite(row(y + 1, z));
            }
            if z > 0 {
                unite(row(y, z - 1));
            }
            if z + 1 < nz {
                unite(row(y, z + 1));
            }
            target[1..].iter_mut().zip(own).for_each(|(t, s)| *t |= s);
        }
    });
    out
}

/// Erodes by `steps` voxels. The border of the grid erodes nothing: what lies beyond it counts as inside.
pub(super) fn erode(mask: &Volume<u8>, steps: usize) -> Volume<u8> {
    let mut inverse = mask.clone();
    inverse.data.iter_mut().for_each(|v| *v ^= 1);
    let mut out = dilate(&inverse, steps);
    out.data.iter_mut().for_each(|v| *v ^= 1);
    out
}

/// Erosion then dilation: removes what is thinner than `2 * steps` voxels.
pub(super) fn open(mask: &Volume<u8>, steps: usize) -> Volume<u8> {
    dilate(&erode(mask, steps), steps)
}

/// Dilation then erosion: closes gaps thinner than `2 * steps` voxels.
pub(super) fn close(mask: &Volume<u8>, steps: usize) -> Volume<u8> {
    erode(&dilate(mask, steps), steps)
}

/// Keeps the largest face-connected component; empty stays empty.
pub(super) fn largest_component(mask: &Volume<u8>) -> Volume<u8> {
    let runs = Runs::of(mask, 1);
    let mut size = vec![0usize; runs.runs.len()];
    for (run, &piece) in runs.runs.iter().zip(&runs.piece) {
        size[piece] += run.len();
    }
    let most = size.iter().copied().max().unwrap_or(0);
    let best = size.iter().position(|&n| n == most);
    let mut out = Volume::zeros(mask.grid);
    for (run, _) in runs.runs.into_iter().zip(&runs.piece).filter(|&(_, &piece)| Some(piece) == best) {
        out.data[run].fill(1);
    }
    out
}

/// Fills background that is not face-connected to the border of the grid.
pub(super) fn fill_holes(mask: &Volume<u8>) -> Volume<u8> {
    let [nx, ny, nz] = mask.grid.shape;
    let runs = Runs::of(mask, 0);
    let mut open = vec![false; runs.runs.len()];
    for (run, &piece) in runs.runs.iter().zip(&runs.piece) {
        let (y, z) = (run.start / nx % ny, run.start / (nx * ny));
        let along_x = run.start % nx == 0 || run.end % nx == 0;
        open[piece] |= along_x || y == 0 || z == 0 || y + 1 == ny || z + 1 == nz;
    }
    let mut out = mask.clone();
    for (run, _) in runs.runs.into_iter().zip(&runs.piece).filter(|&(_, &piece)| !open[piece]) {
        out.data[run].fill(1);
    }
    out
}

/// The voxels of one value as runs along x.
struct Runs {
    /// Places in the data, in storage order.
    runs: Vec<Range<usize>>,
    /// The face-connected piece of each run.
    piece: Vec<usize>,
}

impl Runs {
    fn of(mask: &Volume<u8>, value: u8) -> Self {
        let [nx, ny, _] = mask.grid.shape;
        let mut runs: Vec<Range<usize>> = Vec::new();
        // The first run of every row, and the end of the last row's runs.
        let mut first = vec![0];
        for (row, voxels) in mask.data.chunks(nx).enumerate() {
            let mut x = 0;
            for same in voxels.chunk_by(|a, b| a == b) {
                if same[0] == value {
                    runs.push(row * nx + x..row * nx + x + same.len());
                }
                x += same.len();
            }
            first.push(runs.len());
        }
        let mut pieces = UnionFind::<usize>::new(runs.len());
        for row in 0..first.len() - 1 {
            let before = [(row % ny > 0).then(|| row - 1), row.checked_sub(ny)];
            for other in before.into_iter().flatten() {
                let shift = (row - other) * nx;
                let (mut i, mut j) = (first[row], first[other]);
                while i < first[row + 1] && j < first[other + 1] {
                    let (here, there) = (&runs[i], runs[j].start + shift..runs[j].end + shift);
                    if here.start < there.end && there.start < here.end {
                        pieces.union(i, j);
                    }
                    if here.end < there.end { i += 1 } else { j += 1 }
                }
            }
        }
        Self { piece: pieces.into_labeling(), runs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::mask::count;
    use crate::volume::{Affine, Grid};

    fn mask(shape: [usize; 3], inside: impl Fn([i32; 3]) -> bool) -> Volume<u8> {
        let mut m = Volume::zeros(Grid { shape, affine: Affine::identity() });
        for (i, v) in m.data.iter_mut().enumerate() {
            *v = u8::from(inside(m.grid.ijk(i).map(|c| c as i32)));
        }
        m
    }

    #[test]
    fn one_step_of_dilation_makes_a_voxel_an_octahedron_and_erosion_undoes_it() {
        let dot = mask([9, 9, 9], |p| p == [4, 4, 4]);
        // 1 + 6 + 18 lattice points lie within L1 distance 2 of the centre.
        assert_eq!(count(&dilate(&dot, 1)), 7);
        assert_eq!(count(&dilate(&dot, 2)), 25);
        assert_eq!(erode(&dilate(&dot, 2), 2), dot);
    }

    #[test]
    fn the_largest_component_wins_and_its_cavity_is_filled() {
        let shell = |p: [i32; 3]| p.iter().all(|&c| (1..=7).contains(&c)) && !p.iter().all(|&c| (3..=5).contains(&c));
        let m = mask([12, 12, 12], |p| shell(p) || p == [10, 10, 10]);
        let kept = fill_holes(&largest_component(&m));
        assert_eq!(kept, mask([12, 12, 12], |p| p.iter().all(|&c| (1..=7).contains(&c))));
    }

    #[test]
    fn opening_removes_a_thin_bridge() {
        let m = mask([20, 8, 8], |[x, y, z]| {
            let in_box = (1..=6).contains(&y) && (1..=6).contains(&z);
            in_box && !(8..12).contains(&x) || y == 3 && z == 3
        });
        assert!(count(&largest_component(&open(&m, 1))) < count(&m) / 2 + 10);
    }
}
