//! Training of the tokenizer: reconstruct slices, edges included.
//!
//! The target is the slice without the noise that augmentation adds, so that no code is spent on noise. A learned
//! codebook moves by running averages ([`Averages`]). A discriminator is trained too if its losses have a weight
//! ([`Adversary`]).

use rand_chacha::ChaCha8Rng;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::augment::Acquired;
use super::codebook::Averages;
use super::context::{Context, Figures};
use super::dataset::Slices;
use super::discriminator::{Adversary, balance};
use super::slice::stack;
use super::start;
use super::updates::{Loss, Updates, learning_rate};
use crate::error::Result;
use crate::model::{Network, Networks, Tokenizer};
use crate::terminal::errln;

/// Weight of the gradient loss relative to L1: keeps sulci sharp.
const GRADIENT_WEIGHT: f64 = 0.5;

/// Weight of the commitment loss of a learned codebook (arXiv 1711.00937, section 3.2).
const COMMITMENT_WEIGHT: f64 = 0.25;

/// First parts of the names of the decoder's weights.
const DECODER: [&str; 4] = ["from_code", "decoder_height", "up", "smooth"];

/// Trains, then measures on held-out slices, and on those of another site if there are any.
///
/// # Errors
/// As [`Updates::run`].
pub(super) fn train(context: &Context<'_>, networks: &Networks, store: &VarStore) -> Result<Figures> {
    let tokenizer = &networks.tokenizer;
    train_all(context, store, tokenizer)?;
    if context.config().tokenizer.decoder_steps > 0 {
        train_decoder(context, store, tokenizer)?;
    }
    let mut figures = measure(context, tokenizer);
    if let Some(slices) = &context.other_site {
        figures.extend(measure_other_site(context, tokenizer, slices));
    }
    Ok(figures)
}

/// Trains encoder, codebook and decoder.
fn train_all(context: &Context<'_>, store: &VarStore, tokenizer: &Tokenizer) -> Result<()> {
    let config = context.config();
    let stage = &config.tokenizer;
    let name = Network::Tokenizer.name();
    let mut averages = tokenizer.vectors().map(Averages::new);
    let mut adversary = (stage.adversarial > 0. || stage.feature > 0.)
        .then(|| Adversary::new(start::discriminator_seed(config), context.device));
    let also_saved = averages.iter().flat_map(Averages::tensors).chain(adversary.iter().flat_map(Adversary::tensors));
    let updates = Updates::new(context, name, store, stage.steps, stage.learning_rate).also_saving(also_saved);
    updates.run(draw_batch(context, name), |step, batch| {
        let Batch { image, target, z_mm } = Batch::new(context, batch);
        let (reconstruction, codes, latent) = tokenizer.forward(&image, &z_mm);
        let reconstruction = reconstruction.to_kind(Kind::Float);
        let l1 = (&reconstruction - &target).abs().mean(Kind::Float);
        let mut loss = &l1 + gradient_l1(&reconstruction, &target) * GRADIENT_WEIGHT;
        let mut figures = vec![("l1", l1)];
        if let Some(adversary) = adversary.as_mut().filter(|_| step >= stage.adversary_from) {
            let rate = learning_rate(step, stage.steps, stage.learning_rate);
            figures.push(("discriminator", adversary.learn(&target, &reconstruction, rate)));
            let (adversarial, feature) = adversary.judge(&target, &reconstruction);
            loss = &feature * stage.feature + loss;
            figures.push(("feature", feature));
            if stage.adversarial > 0. {
                let weight = balance(&loss, &adversarial, &reconstruction) * stage.adversarial;
                loss = adversarial * weight + loss;
            }
        }
        if let Some(averages) = &mut averages {
            let commitment = averages.commitment(&latent, &codes);
            averages.update(&latent, &codes, &mut context.rng("codebook", step, 0));
            loss = &commitment * COMMITMENT_WEIGHT + loss;
            figures.push(("commitment", commitment));
        }
        (loss, figures)
    })
}

/// Trains the decoder further by L1 alone. The encoder stays, so all codes do.
fn train_decoder(context: &Context<'_>, store: &VarStore, tokenizer: &Tokenizer) -> Result<()> {
    let stage = &context.config().tokenizer;
    for (name, weight) in store.variables() {
        let of_decoder = DECODER.iter().any(|part| name.starts_with(part));
        let _ = weight.set_requires_grad(of_decoder);
    }
    let updates = Updates::new(context, "decoder", store, stage.decoder_steps, stage.learning_rate / 2.);
    updates.run(draw_batch(context, "decoder"), |_, batch| -> Loss {
        let Batch { image, target, z_mm } = Batch::new(context, batch);
        let (reconstruction, _, _) = tokenizer.forward(&image, &z_mm);
        let l1 = (reconstruction.to_kind(Kind::Float) - target).abs().mean(Kind::Float);
        (l1.shallow_clone(), vec![("l1", l1)])
    })
}

/// A batch of slices.
struct Batch {
    /// Images with noise, `[B, 1, H, W]`, in the kind that networks compute in.
    image: Tensor,
    /// Images without noise, `[B, 1, H, W]`, f32.
    target: Tensor,
    /// MNI heights, `[B]`, mm.
    z_mm: Tensor,
}

impl Batch {
    fn new(context: &Context<'_>, slices: Vec<Acquired>) -> Self {
        let (clean, noisy): (Vec<_>, Vec<_>) = slices.into_iter().map(|slice| (slice.clean, slice.noisy)).unzip();
        let width = context.train.shape[0];
        let (image, z_mm) = stack(&noisy, width, context.device);
        let (target, _) = stack(&clean, width, context.device);
        Self { image: image.to_kind(context.kind), target, z_mm }
    }
}

/// The function that draws the batch of a step.
fn draw_batch<'a>(context: &'a Context<'_>, stage: &'a str) -> impl Fn(i64) -> Vec<Acquired> + Sync + 'a {
    let draw = move |rng: &mut ChaCha8Rng| context.train.draw_acquired(&[0], rng).remove(0);
    move |step| context.draw(stage, step, context.config().tokenizer.batch, draw)
}

/// L1 distance of the horizontal and vertical differences of two images `[B, 1, H, W]`.
fn gradient_l1(a: &Tensor, b: &Tensor) -> Tensor {
    let along = |x: &Tensor, dim: i64| {
        let n = x.size()[dim as usize];
        x.narrow(dim, 1, n - 1) - x.narrow(dim, 0, n - 1)
    };
    [2i64, 3].iter().map(|&dim| (along(a, dim) - along(b, dim)).abs().mean(Kind::Float)).sum::<Tensor>()
}

/// On held-out slices: L1 over the slice, L1 inside the brain, share of the codes in use.
fn measure(context: &Context<'_>, tokenizer: &Tokenizer) -> Figures {
    let Reconstruction { slice, brain, in_use } = reconstruct(context, tokenizer, &context.val);
    errln!(
        "tokenizer: held-out L1 {slice:.4} over the slice, {brain:.4} inside the brain, {:.1} % of the codes in use",
        100. * in_use
    );
    vec![("tokenizer_val_l1", slice), ("tokenizer_val_l1_in_brain", brain), ("tokenizer_codes_in_use", in_use)]
}

/// On slices of another site: L1 over the slice, L1 inside the brain.
fn measure_other_site(context: &Context<'_>, tokenizer: &Tokenizer, slices: &Slices) -> Figures {
    let Reconstruction { slice, brain, .. } = reconstruct(context, tokenizer, slices);
    errln!("tokenizer: L1 {slice:.4} over the slice, {brain:.4} inside the brain on the other site");
    vec![("tokenizer_other_site_l1", slice), ("tokenizer_other_site_l1_in_brain", brain)]
}

/// How close decoded slices are to the originals.
struct Reconstruction {
    /// L1 over the slice.
    slice: f64,
    /// L1 inside the brain.
    brain: f64,
    /// Share of all codes that occur.
    in_use: f64,
}

/// Encodes and decodes slices, spread over a set and not augmented.
fn reconstruct(context: &Context<'_>, tokenizer: &Tokenizer, from: &Slices) -> Reconstruction {
    /// Slices that are measured, and slices of a batch.
    const SLICES: usize = 480;
    const BATCH: usize = 24;
    let width = from.shape[0];
    let (mut error, mut pixels) = ([0., 0.], [0., 0.]);
    let mut used = vec![false; tokenizer.config().codes() as usize];
    tch::no_grad(|| {
        for numbers in from.spread(SLICES).chunks(BATCH) {
            let slices: Vec<_> = numbers.iter().map(|&n| from.get(n)).collect();
            let (image, z_mm) = stack(&slices, width, context.device);
            let codes = tokenizer.encode(&image, &z_mm);
            let distance = (tokenizer.decode(&codes, &z_mm, Kind::Float) - &image).abs();
            let brain: Vec<f32> = slices.iter().flat_map(|slice| slice.brain_pixels()).collect();
            let brain = Tensor::from_slice(&brain).view_as(&image).to_device(context.device);
            let sum = |t: &Tensor| f64::try_from(t.sum(Kind::Double)).unwrap_or(f64::NAN);
            for (at, within) in [brain.ones_like(), brain].iter().enumerate() {
                error[at] += sum(&(&distance * within));
                pixels[at] += sum(within);
            }
            for code in Vec::<i64>::try_from(codes.view(-1)).unwrap_or_default() {
                used[code as usize] = true;
            }
        }
    });
    let in_use = used.iter().filter(|&&u| u).count() as f64 / used.len() as f64;
    Reconstruction { slice: error[0] / pixels[0], brain: error[1] / pixels[1], in_use }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Codebook, Sizes, TokenizerConfig, TransformerConfig, Vectors};
    use crate::preprocess;
    use crate::train::config::{TrainConfig, TrainPipeline};
    use crate::train::dataset::Brain;
    use std::path::Path;
    use tch::Device;

    /// A ball with ripples.
    fn brain() -> Brain {
        let [nx, ny, nz] = preprocess::model_grid().shape;
        let voxels = (0..nx * ny * nz).map(|i| [i % nx, i / nx % ny, i / nx / ny].map(|v| v as f32));
        let middle = [nx, ny, nz].map(|n| n as f32 / 2.);
        let distance = |v: [f32; 3]| v.iter().zip(middle).map(|(v, m)| (v - m).powi(2)).sum::<f32>().sqrt();
        let (image, mask) = voxels
            .map(|v| if distance(v) < 36. { ((150. + 60. * distance(v).sin()) as u8, 1) } else { (0, 0) })
            .unzip();
        Brain { image, mask }
    }

    type Weights = Vec<(String, Tensor)>;

    fn weights(store: &VarStore) -> Weights {
        let mut weights: Vec<_> = store.variables().into_iter().collect();
        weights.sort_by(|a, b| a.0.cmp(&b.0));
        weights
    }

    /// A training with all parts that have a state: learned vectors and a discriminator.
    fn trained(work: &Path) -> (Weights, Figures) {
        let mut config =
            TrainConfig { work: work.into(), bf16: false, checkpoint_seconds: 0, ..TrainConfig::default() };
        let vq = Codebook::Vq(Vectors { codes: 40, width: 4 });
        config.tokenizer.network = TokenizerConfig { codebook: vq, channels: vec![8, 16], blocks: 1 };
        (config.tokenizer.steps, config.tokenizer.batch) = (14, 2);
        (config.tokenizer.adversarial, config.tokenizer.feature, config.tokenizer.adversary_from) = (0.5, 0.5, 2);
        let pipeline = TrainPipeline { train: config, ..TrainPipeline::default() };
        let context = Context {
            pipeline: &pipeline,
            device: Device::Cpu,
            kind: Kind::Float,
            train: Slices::new(vec![brain()]),
            val: Slices::new(vec![brain()]),
            other_site: None,
            outlines: Vec::new(),
        };
        let transformer = TransformerConfig { width: 8, heads: 1, layers: 1 };
        let sizes = Sizes {
            tokens: [24, 20],
            tokenizer: pipeline.train.tokenizer.network.clone(),
            detector: transformer.clone(),
            inpainter: transformer,
            prior: None,
        };
        let (networks, stores) = sizes.build(Device::Cpu, |_| tch::manual_seed(7));
        let store = stores.get(Network::Tokenizer).unwrap();
        let figures = train(&context, &networks, store).unwrap();
        (weights(store), figures)
    }

    #[test]
    fn a_training_that_continues_from_a_checkpoint_ends_with_the_same_weights() {
        // The sums of several threads depend on their number.
        tch::set_num_threads(1);
        let [whole, rest] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let name = "tokenizer.checkpoint.safetensors";
        let (from, to) = (whole.path().join(name), rest.path().join(name));
        let early = to.clone();
        let copier = std::thread::spawn(move || {
            while std::fs::copy(&from, &early).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let (expected, figures) = trained(whole.path());
        copier.join().unwrap();
        let kept = Tensor::read_safetensors(&to).unwrap();
        let step = kept.iter().find(|(name, _)| name == "step").unwrap().1.int64_value(&[0]);
        assert!((1..14).contains(&step), "copied after step {step}");

        let (weights, same) = trained(rest.path());
        assert_eq!(weights, expected, "continued after step {step}");
        assert_eq!(same, figures);
        assert!(expected.iter().any(|(name, _)| name == "codebook.vectors"));
    }
}
