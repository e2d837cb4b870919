//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) with an exponential moving average of the weights.
//!
//! libtorch's optimizer cannot save its moments. Here weights, moments, average and step go into one safetensors file
//! ([`save`], [`load`]), so that a killed training continues from its checkpoint.

use std::collections::HashMap;
use std::path::Path;

use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::error::{Error, Result};

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy)]
pub(super) struct AdamWConfig {
    /// Decay of the mean of the gradients.
    pub(super) beta1: f64,
    /// Decay of the mean of their squares.
    pub(super) beta2: f64,
    /// Decay of weights with two or more axes, per step and unit of learning rate.
    pub(super) weight_decay: f64,
    /// Largest norm of all gradients together; larger ones are scaled down.
    pub(super) clip: f64,
    /// Decay of the weights' moving average.
    pub(super) ema: f64,
}

/// A variable and its state.
struct Slot {
    name: String,
    /// False for a variable that the training changes by other means than gradients. It is averaged and saved too.
    descends: bool,
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    average: Tensor,
}

/// The optimizer of one network.
pub(super) struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    /// Number of updates made, `[1]`, i64, on the processor.
    step: Tensor,
}

impl AdamW {
    /// An optimizer of the variables in `store`.
    pub(super) fn new(store: &VarStore, config: AdamWConfig) -> Self {
        let mut slots: Vec<Slot> = store
            .variables()
            .into_iter()
            .map(|(name, weight)| Slot {
                name,
                descends: weight.requires_grad(),
                mean: weight.zeros_like(),
                square: weight.zeros_like(),
                average: weight.detach().copy(),
                weight,
            })
            .collect();
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        Self { config, slots, step: Tensor::from_slice(&[0i64]) }
    }

    /// Number of updates made.
    pub(super) fn step_count(&self) -> i64 {
        self.step.int64_value(&[0])
    }

    /// Computes the gradients of `loss` and makes one update. A gradient that is not finite changes no weight.
    pub(super) fn step(&mut self, loss: &Tensor, learning_rate: f64) {
        let AdamWConfig { beta1, beta2, weight_decay, clip, ema } = self.config;
        loss.backward();
        self.step += 1;
        let step = self.step_count() as i32;
        tch::no_grad(|| {
            let norms: Vec<Tensor> =
                self.slots.iter().filter(|slot| slot.descends).map(|slot| slot.weight.grad().norm()).collect();
            let norm = f64::try_from(Tensor::stack(&norms, 0).norm()).unwrap_or(f64::NAN);
            let scale = if norm > clip { clip / norm } else { 1. };
            // One bad batch must not end a training.
            let usable = norm.is_finite();
            let ema = ema.min((1. + step as f64) / (10. + step as f64));
            for slot in &mut self.slots {
                if !slot.descends {
                    let _ = slot.average.lerp_(&slot.weight, 1. - ema);
                    continue;
                }
                let mut gradient = slot.weight.grad();
                if usable {
                    let g = &gradient * scale;
                    let _ = slot.mean.lerp_(&g, 1. - beta1);
                    let _ = slot.square.lerp_(&(&g * &g), 1. - beta2);
                    let root = (&slot.square / (1. - beta2.powi(step))).sqrt() + 1e-8;
                    if slot.weight.dim() > 1 {
                        let _ = slot.weight.g_mul_scalar_(1. - learning_rate * weight_decay);
                    }
                    slot.weight -= (&slot.mean / root) * (learning_rate / (1. - beta1.powi(step)));
                    let _ = slot.average.lerp_(&slot.weight, 1. - ema);
                }
                let _ = gradient.zero_();
            }
        });
    }

    /// Replaces the network's weights by their moving average, at the end of training.
    pub(super) fn use_average(&mut self) {
        tch::no_grad(|| {
            for slot in &mut self.slots {
                slot.weight.copy_(&slot.average);
            }
        });
    }

    /// The state by name; the tensors share memory with the optimizer.
    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = vec![("step".to_owned(), self.step.shallow_clone())];
        for slot in &self.slots {
            let parts =
                [("weight", &slot.weight), ("mean", &slot.mean), ("square", &slot.square), ("average", &slot.average)];
            tensors.extend(parts.map(|(part, tensor)| (format!("{part}.{}", slot.name), tensor.shallow_clone())));
        }
        tensors
    }
}

/// Writes a training's state to one file, atomically.
///
/// # Errors
/// [`Error::Device`] where libtorch cannot write the tensors, [`Error::Io`] where the file cannot be renamed.
pub(super) fn save(tensors: &[(String, Tensor)], path: &Path) -> Result<()> {
    let tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.detach().to_device(Device::Cpu).contiguous()))
        .collect();
    let partial = path.with_extension("partial");
    Tensor::write_safetensors(&tensors, &partial)?;
    std::fs::rename(&partial, path).map_err(|e| Error::io("cannot write the training checkpoint", e))
}

/// Fills `tensors` with the state that [`save`] wrote.
///
/// # Errors
/// [`Error::Model`] where the file lacks one of them, [`Error::Device`] where libtorch cannot read it or a shape
/// differs.
pub(super) fn load(tensors: &mut [(String, Tensor)], path: &Path) -> Result<()> {
    let saved: HashMap<String, Tensor> = Tensor::read_safetensors(path)?.into_iter().collect();
    for (name, tensor) in tensors {
        let saved = saved.get(name).ok_or_else(|| {
            Error::Model(format!(
                "the training checkpoint {} lacks `{name}`; delete it to start this stage again",
                path.display()
            ))
        })?;
        tch::no_grad(|| tensor.f_copy_(saved))?;
    }
    Ok(())
}
