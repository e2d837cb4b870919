//! Findings: the connected components of the anomaly mask.

use petgraph::unionfind::UnionFind;

use crate::volume::Volume;

/// One connected component (26 neighbours) of the mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Volume in millilitres.
    pub volume_ml: f64,
    /// Centroid, MNI millimetres.
    pub centroid_mm: [f64; 3],
    /// Lowest and highest voxel centre along each axis, MNI millimetres.
    pub bbox_mm: [[f64; 3]; 2],
    /// Highest score inside.
    pub max_score: f32,
    /// Mean score inside.
    pub mean_score: f32,
}

/// The connected components (26 neighbours) of a mask, each as ascending voxel numbers, in the order of their first
/// voxels.
pub fn connected(mask: &Volume<u8>) -> Vec<Vec<u32>> {
    let [nx, ny, nz] = mask.grid.shape;
    let voxels: Vec<u32> = (0..mask.data.len() as u32).filter(|&i| mask.data[i as usize] > 0).collect();
    let mut order = vec![u32::MAX; mask.data.len()];
    voxels.iter().enumerate().for_each(|(k, &i)| order[i as usize] = k as u32);
    let coordinates = |i: u32| coordinates(mask, i);
    let mut sets = UnionFind::<u32>::new(voxels.len());
    for (k, &i) in voxels.iter().enumerate() {
        let [x, y, z] = coordinates(i);
        // The 13 neighbours before this voxel in memory; the other 13 are joined when their turn comes.
        for (dx, dy, dz) in [
            (-1, 0, 0),
            (-1, -1, 0),
            (0, -1, 0),
            (1, -1, 0),
            (-1, -1, -1),
            (0, -1, -1),
            (1, -1, -1),
            (-1, 0, -1),
            (0, 0, -1),
            (1, 0, -1),
            (-1, 1, -1),
            (0, 1, -1),
            (1, 1, -1),
        ] {
            let near = |a: usize, d: isize, n: usize| a.checked_add_signed(d).filter(|&v| v < n);
            let (Some(x), Some(y), Some(z)) = (near(x, dx, nx), near(y, dy, ny), near(z, dz, nz)) else { continue };
            let other = order[x + nx * (y + ny * z)];
            if other != u32::MAX {
                sets.union(k as u32, other);
            }
        }
    }
    let labels = sets.into_labeling();
    let mut members: Vec<Vec<u32>> = vec![Vec::new(); voxels.len()];
    for (k, &label) in labels.iter().enumerate() {
        members[label as usize].push(voxels[k]);
    }
    members.retain(|m| !m.is_empty());
    members.sort_by_key(|m| m[0]);
    members
}

/// Coordinates of a voxel number on the grid.
fn coordinates(mask: &Volume<u8>, voxel: u32) -> [usize; 3] {
    let [nx, ny, _] = mask.grid.shape;
    let i = voxel as usize;
    [i % nx, i / nx % ny, i / (nx * ny)]
}

/// Drops components smaller than `min_ml` from a mask. Gives the remaining mask and its components, largest first.
pub fn components(mask: &Volume<u8>, score: &Volume<f32>, min_ml: f64) -> (Volume<u8>, Vec<Finding>) {
    let voxel_ml = mask.grid.voxel_ml();
    let mut members = connected(mask);
    members.retain(|m| m.len() as f64 * voxel_ml >= min_ml);
    // Components of equal size are in the order of their first voxels, so the order is deterministic.
    members.sort_by(|a, b| b.len().cmp(&a.len()).then(a[0].cmp(&b[0])));

    let mut kept = Volume { grid: mask.grid, data: vec![0u8; mask.data.len()] };
    let findings = members
        .iter()
        .map(|component| {
            let mut sum = [0f64; 3];
            let mut bbox = [[f64::INFINITY; 3], [f64::NEG_INFINITY; 3]];
            let (mut max, mut total) = (0f32, 0f64);
            for &i in component {
                kept.data[i as usize] = 1;
                let at = mask.grid.affine.apply(coordinates(mask, i).map(|v| v as f64));
                for axis in 0..3 {
                    sum[axis] += at[axis];
                    bbox[0][axis] = bbox[0][axis].min(at[axis]);
                    bbox[1][axis] = bbox[1][axis].max(at[axis]);
                }
                max = max.max(score.data[i as usize]);
                total += f64::from(score.data[i as usize]);
            }
            let n = component.len() as f64;
            Finding {
                volume_ml: n * voxel_ml,
                centroid_mm: sum.map(|s| s / n),
                bbox_mm: bbox,
                max_score: max,
                mean_score: (total / n) as f32,
            }
        })
        .collect();
    (kept, findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    #[test]
    fn components_touch_by_corners_and_small_ones_are_dropped() {
        let affine = Affine([[2., 0., 0., -10.], [0., 2., 0., 0.], [0., 0., 2., 4.]]);
        let grid = Grid { shape: [8, 8, 8], affine };
        let mut mask = Volume { grid, data: vec![0u8; 512] };
        let mut score = Volume { grid, data: vec![0f32; 512] };
        // Two voxels touching by a corner, one alone, three in a row.
        for (x, y, z, s) in
            [(1, 1, 1, 0.5), (2, 2, 2, 0.7), (7, 0, 0, 0.9), (0, 6, 6, 0.2), (1, 6, 6, 0.4), (2, 6, 6, 0.6)]
        {
            mask.data[x + 8 * (y + 8 * z)] = 1;
            score.data[x + 8 * (y + 8 * z)] = s;
        }
        let (kept, findings) = components(&mask, &score, 0.012); // 8 mm3 voxels: two are 0.016 ml
        assert_eq!(findings.len(), 2);
        assert_eq!(kept.data.iter().map(|&v| u32::from(v)).sum::<u32>(), 5);
        assert!((findings[0].volume_ml - 0.024).abs() < 1e-12);
        assert_eq!(findings[0].centroid_mm, [-8., 12., 16.]);
        assert_eq!(findings[0].bbox_mm, [[-10., 12., 16.], [-6., 12., 16.]]);
        assert_eq!(findings[0].max_score, 0.6);
        assert!((findings[1].mean_score - 0.6).abs() < 1e-6);
        assert_eq!(findings[1].centroid_mm, [-7., 3., 7.]);
    }
}
