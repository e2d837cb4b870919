//! A closed triangle mesh that grows from inside the brain to its border.
//!
//! Takes the head on the working grid; gives the mask of the mesh's inside. It is the deformable surface of BET (Smith,
//! "Fast robust automated brain extraction", Human Brain Mapping 17:143, 2002): a sphere whose vertices move a little in
//! every iteration, pulled to the mean of their neighbours (smoothness) and pushed along the normal according to the
//! intensities below the surface (data). Coordinates are millimetres along the axes of the working grid: voxel index
//! times spacing.

use std::collections::HashMap;

use super::config::SkullStripConfig;
use crate::volume::Volume;

/// A triangle mesh with the topology of a sphere.
pub(super) struct Mesh {
    pub(super) vertices: Vec<[f32; 3]>,
    triangles: Vec<[usize; 3]>,
    neighbours: Vec<Vec<usize>>,
}

/// What steers the surface: intensities of the head, named as in BET, and the scale of the threshold's gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steering {
    /// Robust minimum (2nd percentile).
    pub(super) t2: f32,
    /// Rough threshold between head and background.
    pub(super) t: f32,
    /// Median of the tissue inside the starting sphere.
    pub(super) tm: f32,
    /// Height of the starting sphere's centre, where the threshold has its nominal value.
    pub(super) middle_mm: f32,
    /// Radius of a ball with the volume of the upper head: the height over which the gradient applies.
    pub(super) radius_mm: f32,
}

fn add(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

fn sub(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

fn scale(a: [f32; 3], s: f32) -> [f32; 3] {
    a.map(|v| v * s)
}

fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn unit(a: [f32; 3]) -> [f32; 3] {
    scale(a, 1.0 / dot(a, a).sqrt().max(1e-12))
}

impl Mesh {
    /// An icosahedron subdivided `subdivisions` times: `10 * 4^n + 2` vertices.
    pub(super) fn sphere(centre: [f32; 3], radius: f32, subdivisions: usize) -> Self {
        let g = (1.0 + 5f32.sqrt()) / 2.0;
        let mut vertices: Vec<[f32; 3]> = Vec::new();
        for (a, b) in [(-1.0, g), (1.0, g), (-1.0, -g), (1.0, -g)] {
            vertices.push(unit([a, b, 0.0]));
        }
        for (a, b) in [(-1.0, g), (1.0, g), (-1.0, -g), (1.0, -g)] {
            vertices.push(unit([0.0, a, b]));
        }
        for (a, b) in [(-1.0, g), (1.0, g), (-1.0, -g), (1.0, -g)] {
            vertices.push(unit([b, 0.0, a]));
        }
        // A face is three vertices one edge length apart, in the order that makes its normal point outwards.
        let edge = (0..12).flat_map(|i| (0..i).map(move |j| (i, j)));
        let near = |a: [f32; 3], b: [f32; 3]| dot(a, b);
        let closest = edge.map(|(i, j)| near(vertices[i], vertices[j])).fold(f32::MIN, f32::max) - 1e-3;
        let mut triangles = Vec::new();
        for i in 0..12 {
            for j in i + 1..12 {
                for k in j + 1..12 {
                    let [a, b, c] = [vertices[i], vertices[j], vertices[k]];
                    if near(a, b) > closest && near(b, c) > closest && near(a, c) > closest {
                        let outward = dot(cross(sub(b, a), sub(c, a)), a) > 0.0;
                        triangles.push(if outward { [i, j, k] } else { [i, k, j] });
                    }
                }
            }
        }
        let mut sphere = Self { vertices, neighbours: Vec::new(), triangles };
        for _ in 0..subdivisions {
            sphere.subdivide();
            sphere.vertices.iter_mut().for_each(|v| *v = unit(*v));
        }
        sphere.vertices.iter_mut().for_each(|v| *v = add(centre, scale(*v, radius)));
        sphere
    }

    /// Splits every triangle into four at the midpoints of its edges.
    pub(super) fn subdivide(&mut self) {
        let mut middle = HashMap::new();
        let mut finer = Vec::with_capacity(self.triangles.len() * 4);
        for &[a, b, c] in &self.triangles {
            let mut mid = |i: usize, j: usize| {
                *middle.entry((i.min(j), i.max(j))).or_insert_with(|| {
                    self.vertices.push(scale(add(self.vertices[i], self.vertices[j]), 0.5));
                    self.vertices.len() - 1
                })
            };
            let (ab, bc, ca) = (mid(a, b), mid(b, c), mid(c, a));
            finer.extend([[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]]);
        }
        self.triangles = finer;
        self.neighbours = vec![Vec::with_capacity(6); self.vertices.len()];
        for &[a, b, c] in &self.triangles {
            // Every edge belongs to two triangles, once in each direction, so that each neighbour is added exactly once.
            self.neighbours[a].push(b);
            self.neighbours[b].push(c);
            self.neighbours[c].push(a);
        }
    }

    /// Unit normals of the vertices, outwards.
    fn normals(&self) -> Vec<[f32; 3]> {
        let mut normals = vec![[0.0; 3]; self.vertices.len()];
        for &[a, b, c] in &self.triangles {
            let [va, vb, vc] = [self.vertices[a], self.vertices[b], self.vertices[c]];
            let n = cross(sub(vb, va), sub(vc, va));
            for i in [a, b, c] {
                normals[i] = add(normals[i], n);
            }
        }
        normals.into_iter().map(unit).collect()
    }

    /// Mean length of the edges in mm.
    fn mean_edge(&self) -> f32 {
        let mut sum = 0.0;
        let mut n = 0;
        for (v, around) in self.vertices.iter().zip(&self.neighbours) {
            for &j in around {
                let d = sub(self.vertices[j], *v);
                sum += dot(d, d).sqrt();
                n += 1;
            }
        }
        sum / n as f32
    }

    /// Moves the surface `iterations` times. `head` is the image on the working grid.
    pub(super) fn evolve(&mut self, head: &Volume, steering: Steering, iterations: usize, cfg: &SkullStripConfig) {
        let spacing = head.grid.spacing()[0] as f32;
        let Steering { t2, t, tm, middle_mm, radius_mm } = steering;
        let (r_min, r_max) = (cfg.curvature_radius_min_mm, cfg.curvature_radius_max_mm);
        let e = (1.0 / r_min + 1.0 / r_max) / 2.0;
        let f = 6.0 / (1.0 / r_min - 1.0 / r_max);
        // The nearest voxel, by truncation after adding one half: `round` is a function call on the oldest x86-64
        // processors.
        let sample = |p: [f32; 3]| -> f32 {
            let at = p.map(|c| c + 0.5);
            let [x, y, z] = at.map(|c| (c as i32) as usize);
            let [nx, ny, nz] = head.grid.shape;
            let inside = at.iter().all(|&c| c >= 0.0) && x < nx && y < ny && z < nz;
            if inside { head.data[x + nx * (y + ny * z)] } else { t2 }
        };
        let per_mm = 1.0 / spacing;
        let steps_min = (cfg.search_min_mm / spacing) as usize;
        let steps_max = (cfg.search_max_mm / spacing) as usize;
        let mut edge = self.mean_edge();
        let mut next = self.vertices.clone();
        for iteration in 0..iterations {
            if iteration % 50 == 0 {
                edge = self.mean_edge();
            }
            let normals = self.normals();
            for (i, v) in self.vertices.iter().enumerate() {
                let n = normals[i];
                let around = &self.neighbours[i];
                let mean = around.iter().fold([0.0; 3], |s, &j| add(s, self.vertices[j]));
                let s = sub(scale(mean, 1.0 / around.len() as f32), *v);
                let along = dot(s, n);
                let s_n = scale(n, along);
                let s_t = sub(s, s_n);
                // The curvature decides how strongly the surface is smoothed.
                let curvature = 2.0 * along.abs() / (edge * edge);
                let f2 = (1.0 + (f * (curvature - e)).tanh()) / 2.0;
                let (mut i_min, mut i_max) = (tm, t);
                let here = scale(*v, per_mm);
                for step in 1..=steps_min.max(steps_max) {
                    let value = sample(sub(here, scale(n, step as f32)));
                    if step <= steps_min {
                        i_min = i_min.min(value);
                    }
                    if step <= steps_max {
                        i_max = i_max.max(value);
                    }
                }
                let i_min = i_min.max(t2);
                let i_max = i_max.min(tm);
                let height = ((v[2] - middle_mm) / radius_mm).clamp(-1.0, 1.0);
                let fraction = cfg.fractional_threshold - cfg.threshold_gradient * height;
                let t_local = (i_max - t2) * fraction + t2;
                let f3 = 2.0 * (i_min - t_local) / (i_max - t2).max(1e-6);
                let push = cfg.data_weight * f3 * edge;
                next[i] = add(*v, add(add(scale(s_t, 0.5), scale(s_n, f2)), scale(n, push)));
            }
            std::mem::swap(&mut self.vertices, &mut next);
        }
    }

    /// The voxels whose centres lie inside the mesh, by the winding number along x.
    pub(super) fn fill(&self, like: &Volume) -> Volume<u8> {
        let mut mask = Volume::<u8>::zeros(like.grid);
        let spacing = like.grid.spacing()[0];
        let [nx, ny, nz] = like.grid.shape;
        let at = |i: usize| self.vertices[i].map(|c| c as f64 / spacing);
        // The crossings of each row of voxels with the surface: x, and +1 on entering or -1 on leaving.
        let mut rows: Vec<Vec<(f64, i32)>> = vec![Vec::new(); ny * nz];
        for &[i, j, k] in &self.triangles {
            let corners = [at(i), at(j), at(k)];
            let range = |axis: usize, len: usize| {
                let values = corners.map(|c| c[axis]);
                let low = values.iter().copied().fold(f64::INFINITY, f64::min).ceil().max(0.0);
                let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max).floor();
                low as usize..(high + 1.0).clamp(0.0, len as f64) as usize
            };
            for z in range(2, nz) {
                for y in range(1, ny) {
                    // Each edge is evaluated from its lower vertex, so that the two triangles that share it agree
                    // exactly and every row crosses the closed surface an even number of times.
                    let area = |i: usize, j: usize| {
                        let (p, q) = (at(i.min(j)), at(i.max(j)));
                        let area = (q[1] - p[1]) * (z as f64 - p[2]) - (q[2] - p[2]) * (y as f64 - p[1]);
                        let area = if area == 0.0 { f64::MIN_POSITIVE } else { area };
                        if i < j { area } else { -area }
                    };
                    // The areas opposite each corner have the same sign where the row passes through the triangle.
                    let weights = [area(j, k), area(k, i), area(i, j)];
                    if weights.iter().all(|&w| w > 0.0) || weights.iter().all(|&w| w < 0.0) {
                        let sum: f64 = weights.iter().sum();
                        let x = (0..3).map(|c| weights[c] * corners[c][0]).sum::<f64>() / sum;
                        rows[y + ny * z].push((x, if sum > 0.0 { -1 } else { 1 }));
                    }
                }
            }
        }
        for (row, crossings) in rows.iter_mut().enumerate() {
            crossings.sort_by(|p, q| p.0.total_cmp(&q.0));
            let mut winding = 0;
            for pair in crossings.windows(2) {
                winding += pair[0].1;
                if winding > 0 {
                    let from = pair[0].0.ceil().clamp(0.0, nx as f64) as usize;
                    let to = (pair[1].0.floor() + 1.0).clamp(from as f64, nx as f64) as usize;
                    mask.data[nx * row + from..nx * row + to].fill(1);
                }
            }
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::mask::volume_ml;
    use crate::volume::{Affine, Grid};

    #[test]
    fn a_filled_sphere_has_the_volume_of_a_ball() {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]);
        let like = Volume::<f32>::zeros(Grid { shape: [60, 60, 60], affine });
        let mesh = Mesh::sphere([59.3, 60.1, 58.7], 40.0, 4);
        assert_eq!(mesh.vertices.len(), 2562);
        assert!(mesh.neighbours.iter().all(|n| n.len() == 5 || n.len() == 6));
        let ml = volume_ml(&mesh.fill(&like));
        let ball = 4.0 / 3.0 * std::f64::consts::PI * 4f64.powi(3);
        assert!((ml / ball - 1.0).abs() < 0.01, "{ml} ml against {ball} ml");
    }
}
