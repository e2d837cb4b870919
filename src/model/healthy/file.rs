//! A healthy map as a safetensors file.

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors};

use super::{HealthyMap, Intensities, Places};
use crate::error::{Error, Result};
use crate::model::weights::{Half, serialize};

impl HealthyMap {
    /// The bytes of a safetensors file in f16 with `score.mean`, `score.sd`, `intensity.mean`, `intensity.sd` and
    /// `intensity.residual_sd`, `[z, y, x]` each, and `intensity.components`, `[components, z, y, x]`.
    ///
    /// # Errors
    /// [`Error::Bug`] where the tensors do not form a safetensors file.
    pub(in crate::model) fn to_bytes(&self) -> Result<Vec<u8>> {
        let shape: Vec<usize> = self.score.shape.iter().rev().copied().collect();
        let half = |shape: &[usize], values: &[f32]| Half {
            shape: shape.to_vec(),
            data: values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        };
        let (score, intensity) = (&self.score, &self.intensity);
        let stack = [vec![intensity.components.len()], shape.clone()].concat();
        let tensors = [
            ("score.mean", half(&shape, &score.mean)),
            ("score.sd", half(&shape, &score.sd)),
            ("intensity.mean", half(&shape, &intensity.mean)),
            ("intensity.sd", half(&shape, &intensity.sd)),
            ("intensity.residual_sd", half(&shape, &intensity.residual_sd)),
            ("intensity.components", half(&stack, &intensity.components.concat())),
        ];
        serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)))
    }

    /// Reads the bytes that [`HealthyMap::to_bytes`] gave.
    ///
    /// # Errors
    /// [`Error::Model`] where a tensor is missing or of another shape, or has a value that is not finite or no deviation.
    pub(in crate::model) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let misfit = |e: &dyn std::fmt::Display| Error::Model(format!("healthy.safetensors cannot be read: {e}"));
        let file = SafeTensors::deserialize(bytes).map_err(|e| misfit(&e))?;
        let read = |name: &str, axes: usize| -> Result<(Vec<usize>, Vec<f32>)> {
            let view = file.tensor(name).map_err(|e| misfit(&e))?;
            if view.dtype() != Dtype::F16 || view.shape().len() != axes {
                return Err(misfit(&format!(
                    "`{name}` is {:?} {:?}, expected F16 with {axes} axes",
                    view.dtype(),
                    view.shape()
                )));
            }
            let half = view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
            let values: Vec<f32> = half.collect();
            // An infinite deviation stands for a place of which nothing is known.
            let accepted = |&value: &f32| match name {
                "intensity.sd" => value > 0.,
                "intensity.residual_sd" => value.is_finite() && value > 0.,
                "score.sd" => value.is_finite() && value >= 0.,
                _ => value.is_finite(),
            };
            if let Some(value) = values.iter().find(|value| !accepted(value)) {
                return Err(misfit(&format!("`{name}` has the value {value}, which no healthy scans give")));
            }
            Ok((view.shape().to_vec(), values))
        };
        let (shape, mean) = read("score.mean", 3)?;
        let plane = |name: &str| match read(name, 3)? {
            (same, values) if same == shape => Ok(values),
            _ => Err(misfit(&format!("`{name}` and `score.mean` differ in shape"))),
        };
        let (stack, components) = read("intensity.components", 4)?;
        if stack[1..] != shape {
            return Err(misfit(&"`intensity.components` and `score.mean` differ in shape"));
        }
        let blocks: usize = shape.iter().product();
        let shape = [shape[2], shape[1], shape[0]];
        Ok(Self {
            score: Places { shape, mean, sd: plane("score.sd")? },
            intensity: Intensities {
                shape,
                mean: plane("intensity.mean")?,
                sd: plane("intensity.sd")?,
                components: components.chunks(blocks.max(1)).map(<[f32]>::to_vec).collect(),
                residual_sd: plane("intensity.residual_sd")?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::HealthyMapBuilder;
    use super::*;
    use crate::volume::{Affine, Grid, Volume};

    #[test]
    fn a_map_with_a_number_that_no_scans_give_is_refused_with_its_name() {
        let shape = [6, 5, 4];
        let grid = Grid { shape, affine: Affine::identity() };
        let mut builder = HealthyMapBuilder::new(shape);
        let brain = Volume::new(grid, vec![1u8; 120]);
        for scan in 0..10 {
            let values = Volume::new(grid, (0..120).map(|i| ((i * 7 + scan * 31) % 10) as f32 / 10.).collect());
            builder.add_score(&values, &brain);
            builder.add_intensity(&values, &brain);
        }
        let map = builder.finish().unwrap();
        HealthyMap::from_bytes(&map.to_bytes().unwrap()).unwrap();
        let refused = |change: &dyn Fn(&mut HealthyMap)| {
            let mut map = map.clone();
            change(&mut map);
            HealthyMap::from_bytes(&map.to_bytes().unwrap()).unwrap_err().to_string()
        };
        for value in [f32::NAN, f32::INFINITY, -1.] {
            assert!(refused(&|map| map.score.sd[3] = value).contains("`score.sd`"), "{value}");
            assert!(
                refused(&|map| map.intensity.residual_sd[3] = value).contains("`intensity.residual_sd`"),
                "{value}"
            );
        }
        assert!(refused(&|map| map.score.mean[3] = f32::NAN).contains("`score.mean`"));
        assert!(refused(&|map| map.intensity.sd[3] = f32::NAN).contains("`intensity.sd`"));
    }
}
