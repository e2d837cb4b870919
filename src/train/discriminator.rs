//! The tokenizer's adversary: a discriminator of real and reconstructed image patches.
//!
//! ```text
//! image [B, 1, H, W] ──► logits of patches [B, 1, H/4, W/4]
//! ```
//! Losses after VQ-GAN (Esser et al., arXiv 2012.09841): PatchGAN (Isola et al., arXiv 1611.07004) with the hinge loss
//! and a weight that balances it with the reconstruction (equation 7). VQ-GAN's perceptual loss needs a network
//! pretrained on photographs; feature matching (Wang et al., arXiv 1711.11585) replaces it: L1 between the
//! discriminator's own activations.

use tch::nn::{self, ConvConfig, Module, VarStore};
use tch::{Device, Kind, Tensor};

use super::adamw::{AdamW, AdamWConfig};

/// Channels after each convolution; all but the last halve the image. A logit sees a patch of 26 x 26 pixels.
const CHANNELS: [i64; 3] = [32, 64, 128];

/// Learning rate relative to the tokenizer's.
const PACE: f64 = 0.1;

/// Scores patches: positive for real, negative for reconstructed.
#[derive(Debug)]
struct Discriminator {
    layers: Vec<(nn::Conv2D, nn::GroupNorm)>,
    patches: nn::Conv2D,
}

impl Discriminator {
    fn new(p: nn::Path<'_>) -> Self {
        let last = CHANNELS.len() - 1;
        let layer = |i: usize| {
            let (p, from) = (&p / i as i64, if i == 0 { 1 } else { CHANNELS[i - 1] });
            let (kernel, stride) = if i == last { (3, 1) } else { (4, 2) };
            let config = ConvConfig { stride, padding: 1, ..ConvConfig::default() };
            let conv = nn::conv2d(&p / "conv", from, CHANNELS[i], kernel, config);
            (conv, nn::group_norm(&p / "norm", CHANNELS[i] / 8, CHANNELS[i], Default::default()))
        };
        let config = ConvConfig { padding: 1, ..ConvConfig::default() };
        Self {
            layers: (0..=last).map(layer).collect(),
            patches: nn::conv2d(&p / "patches", CHANNELS[last], 1, 3, config),
        }
    }

    /// Image `[B, 1, H, W]` in 0..1 to the activations of the layers, and to logits of patches `[B, 1, H/4, W/4]`.
    fn forward(&self, image: &Tensor) -> (Vec<Tensor>, Tensor) {
        let mut h = image * 2. - 1.;
        let mut activations = Vec::new();
        for (conv, norm) in &self.layers {
            h = norm.forward(&conv.forward(&h)).leaky_relu();
            activations.push(h.shallow_clone());
        }
        let logits = self.patches.forward(&h);
        (activations, logits)
    }
}

/// A discriminator and its optimizer.
pub(super) struct Adversary {
    store: VarStore,
    network: Discriminator,
    optimizer: AdamW,
}

impl Adversary {
    /// A discriminator with random weights from `seed`.
    pub(super) fn new(seed: i64, device: Device) -> Self {
        tch::manual_seed(seed);
        let store = VarStore::new(device);
        let network = Discriminator::new(store.root());
        let config = AdamWConfig { beta1: 0.5, beta2: 0.9, weight_decay: 0., clip: 1., ema: 0. };
        let optimizer = AdamW::new(&store, config);
        Self { store, network, optimizer }
    }

    /// The state that a checkpoint has to keep.
    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        self.optimizer.tensors().into_iter().map(|(name, tensor)| (format!("discriminator.{name}"), tensor)).collect()
    }

    /// One update on real and reconstructed images `[B, 1, H, W]`; `learning_rate` is the tokenizer's. Gives the hinge
    /// loss before the update.
    pub(super) fn learn(&mut self, real: &Tensor, fake: &Tensor, learning_rate: f64) -> Tensor {
        let logits = |image: &Tensor| self.network.forward(&image.detach()).1;
        let hinge = |logits: Tensor| (logits + 1.).relu().mean(Kind::Float) / 2.;
        let loss = hinge(-logits(real)) + hinge(logits(fake));
        self.optimizer.step(&loss, learning_rate * PACE);
        loss.detach()
    }

    /// Adversarial and feature matching loss of the reconstruction `fake`. Gradients reach the image alone.
    pub(super) fn judge(&mut self, real: &Tensor, fake: &Tensor) -> (Tensor, Tensor) {
        self.store.freeze();
        let (target, _) = self.network.forward(real);
        let (activations, logits) = self.network.forward(fake);
        self.store.unfreeze();
        let distances = target.iter().zip(&activations).map(|(target, own)| (target - own).abs().mean(Kind::Float));
        let feature = distances.sum::<Tensor>() / target.len() as f64;
        (-logits.mean(Kind::Float), feature)
    }
}

/// The weight of the `adversarial` loss under which its gradient at the reconstructed `image` has the same norm as that
/// of the `distance` from the real one. VQ-GAN compares gradients at the decoder's last layer; at the image they need
/// no second pass through the decoder.
pub(super) fn balance(distance: &Tensor, adversarial: &Tensor, image: &Tensor) -> Tensor {
    let gradient = |loss: &Tensor| Tensor::run_backward(&[loss], &[image], true, false)[0].norm();
    (gradient(distance) / (gradient(adversarial) + 1e-8)).clamp_max(1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Smooth images, and the same with a fine pattern.
    fn images() -> (Tensor, Tensor) {
        let coarse = Tensor::rand([4, 1, 6, 5], (Kind::Float, Device::Cpu));
        let smooth = coarse.upsample_bilinear2d([48, 40], false, None, None);
        let fine = Tensor::rand([4, 1, 48, 40], (Kind::Float, Device::Cpu)) * 0.2;
        (&smooth + fine, smooth)
    }

    #[test]
    fn both_losses_fall_from_a_reconstruction_to_the_real_image() {
        let mut adversary = Adversary::new(1, Device::Cpu);
        for _ in 0..40 {
            let (real, smooth) = images();
            let _ = adversary.learn(&real, &smooth, 2e-2);
        }
        let (real, smooth) = images();
        let mut at = |share: f64| {
            let (adversarial, feature) = adversary.judge(&real, &(&smooth + (&real - &smooth) * share));
            [adversarial, feature].map(|loss| f64::try_from(loss).unwrap())
        };
        let [start, middle, end] = [0., 0.5, 1.].map(&mut at);
        assert!(start[0] > middle[0] && middle[0] > end[0], "{start:?} {middle:?} {end:?}");
        assert!(start[1] > middle[1] && middle[1] > end[1] && end[1] == 0., "{start:?} {middle:?} {end:?}");
    }

    #[test]
    fn gradients_reach_the_image_and_not_the_discriminator_and_are_balanced() {
        let mut adversary = Adversary::new(2, Device::Cpu);
        let (real, smooth) = images();
        let image = smooth.set_requires_grad(true);
        let (adversarial, feature) = adversary.judge(&real, &image);
        let distance = (&image - &real).abs().mean(Kind::Float) + feature;
        let weight = balance(&distance, &adversarial, &image);
        let gradient = |loss: &Tensor| Tensor::run_backward(&[loss], &[&image], true, false)[0].norm();
        let (a, b) = (gradient(&distance), gradient(&(&adversarial * weight)));
        assert!(f64::try_from(&a).unwrap() > 0. && a.allclose(&b, 1e-3, 1e-8, false), "{a} {b}");
        (distance + adversarial).backward();
        assert!(image.grad().defined());
        for weight in adversary.store.trainable_variables() {
            assert!(weight.requires_grad() && !weight.grad().defined());
        }
    }
}
