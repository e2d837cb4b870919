//! AdamW with an exponential moving average of the weights.
//!
//! Written out, instead of libtorch's optimizer, because that one cannot save its moments: here
//! weights, moments, average and step go into one safetensors file ([`save`], [`load`]), so that a killed training
//! continues where it was. Loshchilov and Hutter, arXiv 1711.05101.

use std::collections::HashMap;
use std::path::Path;

use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::error::{Error, Result};

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy)]
pub(super) struct AdamWConfig {
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub(super) clip: f64,
    /// Decay of the weights' moving average.
    pub(super) ema: f64,
}

struct Slot {
    name: String,
    /// False for what the training moves by other means than gradients; it is averaged and kept all the same.
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
    /// Updates so far, `[1]`, i64, on the processor.
    step: Tensor,
}

impl AdamW {
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

    /// Steps taken so far.
    pub(super) fn step_count(&self) -> i64 {
        self.step.int64_value(&[0])
    }

    /// Gradients of `loss`, one update with this learning rate.
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
            // A batch whose gradient is not finite is skipped: one bad draw must not end a training.
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

    /// Puts the moving average into the network, at the end of training.
    pub(super) fn use_average(&mut self) {
        tch::no_grad(|| {
            for slot in &mut self.slots {
                slot.weight.copy_(&slot.average);
            }
        });
    }

    /// All state by name; the tensors are the optimizer's own.
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
pub(super) fn save(tensors: &[(String, Tensor)], path: &Path) -> Result<()> {
    let tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.detach().to_device(Device::Cpu).contiguous()))
        .collect();
    let partial = path.with_extension("partial");
    Tensor::write_safetensors(&tensors, &partial)?;
    std::fs::rename(&partial, path).map_err(|e| Error::io("cannot write the training checkpoint", e))
}

/// Fills `tensors` with the state written by [`save`].
pub(super) fn load(tensors: &mut [(String, Tensor)], path: &Path) -> Result<()> {
    let saved: HashMap<String, Tensor> = Tensor::read_safetensors(path)?.into_iter().collect();
    for (name, tensor) in tensors {
        let saved = saved.get(name).ok_or_else(|| {
            Error::Model(format!("the training checkpoint {} lacks `{name}`; delete it to start anew", path.display()))
        })?;
        tch::no_grad(|| tensor.f_copy_(saved))?;
    }
    Ok(())
}
