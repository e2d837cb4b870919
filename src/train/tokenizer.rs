//! Training of the tokenizer: reconstruct slices, edges included.
//!
//! The noise that another scanner would add is not asked for: codes spent on it would be missing elsewhere. A learned
//! codebook moves by running averages ([`Averages`]); a discriminator joins where its losses have a weight
//! ([`Adversary`]).

use rayon::prelude::*;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::codebook::Averages;
use super::data::{Seen, Slices};
use super::discriminator::{Adversary, balance};
use super::{Context, data, draw_rng, learning_rate, updates, updates_beside};
use crate::error::Result;
use crate::model::Tokenizer;

/// Weight of the gradient loss beside L1: keeps sulci sharp.
const GRADIENT_WEIGHT: f64 = 0.5;

/// Weight of the commitment loss of a learned codebook (arXiv 1711.00937, section 3.2).
const COMMITMENT_WEIGHT: f64 = 0.25;

/// What the names of the decoder's weights begin with.
const DECODER: [&str; 4] = ["from_code", "decoder_height", "up", "smooth"];

/// The discriminator's weights begin with the seed after those of the networks of a bundle.
const ADVERSARY_SEED: i64 = 4;

/// Trains, then measures on held-out slices.
pub(super) fn train(
    context: &Context<'_>,
    store: &VarStore,
    tokenizer: &Tokenizer,
) -> Result<Vec<(&'static str, f64)>> {
    let config = &context.pipeline.train;
    let stage = &config.tokenizer;
    let draw = |step| draw(context, "tokenizer", step);
    let mut averages = tokenizer.vectors().map(Averages::new);
    let mut adversary = (stage.adversarial > 0. || stage.feature > 0.)
        .then(|| Adversary::new(config.seed as i64 * 8 + ADVERSARY_SEED, context.device));
    let beside = averages.iter().flat_map(Averages::tensors).chain(adversary.iter().flat_map(Adversary::tensors));
    let (beside, schedule) = (beside.collect(), (stage.steps, stage.learning_rate));
    updates_beside(context, "tokenizer", store, schedule, beside, draw, |step, batch| {
        let Batch { image, target, z_mm } = stack(context, batch);
        let (reconstruction, codes, latent) = tokenizer.forward(&image, &z_mm);
        let reconstruction = reconstruction.to_kind(Kind::Float);
        let l1 = (&reconstruction - &target).abs().mean(Kind::Float);
        let mut loss = &l1 + gradient_l1(&reconstruction, &target) * GRADIENT_WEIGHT;
        let mut figures = vec![("l1", l1)];
        if let Some(adversary) = adversary.as_mut().filter(|_| step >= stage.adversary_from) {
            let pace = learning_rate(step, stage.steps, stage.learning_rate);
            figures.push(("discriminator", adversary.learn(&target, &reconstruction, pace)));
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
            averages.update(&latent, &codes, &mut draw_rng(config.seed, "codebook", step, 0));
            loss = &commitment * COMMITMENT_WEIGHT + loss;
            figures.push(("commitment", commitment));
        }
        (loss, figures)
    })?;
    if stage.decoder_steps > 0 {
        finish_decoder(context, store, tokenizer)?;
    }
    Ok(measure(context, tokenizer))
}

/// Trains the decoder on, with the encoder and so all codes as they are; what is asked of it now is the distance alone.
fn finish_decoder(context: &Context<'_>, store: &VarStore, tokenizer: &Tokenizer) -> Result<()> {
    let stage = &context.pipeline.train.tokenizer;
    for (name, weight) in store.variables() {
        let decodes = DECODER.iter().any(|part| name.starts_with(part));
        let _ = weight.set_requires_grad(decodes);
    }
    let schedule = (stage.decoder_steps, stage.learning_rate / 2.);
    updates(
        context,
        "decoder",
        store,
        schedule,
        |step| draw(context, "decoder", step),
        |_, batch| {
            let Batch { image, target, z_mm } = stack(context, batch);
            let (reconstruction, _, _) = tokenizer.forward(&image, &z_mm);
            let l1 = (reconstruction.to_kind(Kind::Float) - target).abs().mean(Kind::Float);
            (l1.shallow_clone(), vec![("l1", l1)])
        },
    )
}

/// A batch: slices as they are seen, in the kind the networks compute in, and without noise, `[B, 1, H, W]`; heights `[B]`.
struct Batch {
    image: Tensor,
    target: Tensor,
    z_mm: Tensor,
}

fn draw(context: &Context<'_>, stage: &str, step: i64) -> Vec<Seen> {
    let config = &context.pipeline.train;
    let one = |item| context.train.draw_seen(&[0], &mut draw_rng(config.seed, stage, step, item)).remove(0);
    (0..config.tokenizer.batch).into_par_iter().map(one).collect()
}

fn stack(context: &Context<'_>, slices: Vec<Seen>) -> Batch {
    let (clean, seen): (Vec<_>, Vec<_>) = slices.into_iter().map(|slice| (slice.clean, slice.seen)).unzip();
    let width = context.train.shape[0];
    let (image, z_mm) = data::stack(&seen, width, context.device);
    let (target, _) = data::stack(&clean, width, context.device);
    Batch { image: image.to_kind(context.kind), target, z_mm }
}

/// L1 distance of the horizontal and vertical differences.
fn gradient_l1(a: &Tensor, b: &Tensor) -> Tensor {
    let along = |x: &Tensor, dim: i64| {
        let n = x.size()[dim as usize];
        x.narrow(dim, 1, n - 1) - x.narrow(dim, 0, n - 1)
    };
    [2i64, 3].iter().map(|&dim| (along(a, dim) - along(b, dim)).abs().mean(Kind::Float)).sum::<Tensor>()
}

/// Of held-out slices as they are: L1 over the slice, L1 inside the brain, share of the codes in use.
fn measure(context: &Context<'_>, tokenizer: &Tokenizer) -> Vec<(&'static str, f64)> {
    let Reconstruction { slice, brain, in_use } = reconstruct(context, tokenizer, &context.val);
    eprintln!(
        "tokenizer: held-out L1 {slice:.4} over the slice, {brain:.4} inside the brain, {:.1} % of the codes in use",
        100. * in_use
    );
    vec![("tokenizer_val_l1", slice), ("tokenizer_val_l1_in_brain", brain), ("tokenizer_codes_in_use", in_use)]
}

/// The same of slices of another site.
pub(super) fn measure_elsewhere(
    context: &Context<'_>,
    tokenizer: &Tokenizer,
    slices: &Slices,
) -> Vec<(&'static str, f64)> {
    let Reconstruction { slice, brain, .. } = reconstruct(context, tokenizer, slices);
    eprintln!("tokenizer: L1 {slice:.4} over the slice, {brain:.4} inside the brain on the other site");
    vec![("tokenizer_other_site_l1", slice), ("tokenizer_other_site_l1_in_brain", brain)]
}

/// How slices come back from their tokens.
struct Reconstruction {
    /// L1 over the slice.
    slice: f64,
    /// L1 inside the brain.
    brain: f64,
    /// Share of the codes that occur.
    in_use: f64,
}

fn reconstruct(context: &Context<'_>, tokenizer: &Tokenizer, from: &Slices) -> Reconstruction {
    let width = from.shape[0];
    let (mut error, mut pixels) = ([0., 0.], [0., 0.]);
    let mut used = vec![false; tokenizer.config().codes() as usize];
    tch::no_grad(|| {
        for numbers in data::spread(from, 480).chunks(24) {
            let slices: Vec<_> = numbers.iter().map(|&n| from.get(n)).collect();
            let (image, z_mm) = data::stack(&slices, width, context.device);
            let codes = tokenizer.encode(&image, &z_mm);
            let distance = (tokenizer.decode(&codes, &z_mm, Kind::Float) - &image).abs();
            let brain: Vec<f32> = slices.iter().flat_map(|s| s.brain.iter().map(|&b| f32::from(u8::from(b)))).collect();
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
    use crate::model::{Codebook, TokenizerConfig, Vectors};
    use crate::preprocess;
    use crate::train::data::Brain;
    use crate::train::{TrainConfig, TrainPipeline};
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

    /// A training with everything that has a state of its own: learned vectors and a discriminator.
    fn trained(work: &Path) -> (Weights, Vec<(&'static str, f64)>) {
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
            outlines: Vec::new(),
        };
        let store = VarStore::new(Device::Cpu);
        tch::manual_seed(7);
        let tokenizer = Tokenizer::new(store.root(), &pipeline.train.tokenizer.network);
        let figures = train(&context, &store, &tokenizer).unwrap();
        (weights(&store), figures)
    }

    #[test]
    fn a_training_taken_up_from_any_of_its_checkpoints_ends_with_the_same_weights() {
        // Sums of several threads depend on their number.
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
        assert_eq!(weights, expected, "taken up after step {step}");
        assert_eq!(same, figures);
        assert!(expected.iter().any(|(name, _)| name == "codebook.vectors"));
    }
}
