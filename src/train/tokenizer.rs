//! Training of the tokenizer: reconstruct slices, edges included.

use rayon::prelude::*;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::{Context, data, draw_rng, updates};
use crate::error::Result;
use crate::model::Tokenizer;

/// Weight of the gradient loss beside L1: keeps sulci sharp.
const GRADIENT_WEIGHT: f64 = 0.5;

/// Trains, then measures on held-out slices.
pub(super) fn train(
    context: &Context<'_>,
    store: &VarStore,
    tokenizer: &Tokenizer,
) -> Result<Vec<(&'static str, f64)>> {
    let config = &context.pipeline.train;
    let stage = &config.tokenizer;
    let width = context.train.shape[0];
    updates(context, "tokenizer", store, (stage.steps, stage.learning_rate), |step| {
        let slices: Vec<_> = (0..stage.batch)
            .into_par_iter()
            .flat_map_iter(|item| context.train.draw(&[0], &mut draw_rng(config.seed, "tokenizer", step, item)))
            .collect();
        let (image, _) = data::stack(&slices, width, context.device);
        let (reconstruction, _) = tokenizer.forward(&image.to_kind(context.kind));
        let reconstruction = reconstruction.to_kind(Kind::Float);
        let l1 = (&reconstruction - &image).abs().mean(Kind::Float);
        let edges = gradient_l1(&reconstruction, &image);
        (&l1 + edges * GRADIENT_WEIGHT, vec![("l1", l1)])
    })?;
    Ok(measure(context, tokenizer))
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
    let width = context.val.shape[0];
    let (mut error, mut pixels) = ([0., 0.], [0., 0.]);
    let mut used = vec![false; tokenizer.config().codes() as usize];
    tch::no_grad(|| {
        for numbers in data::spread(&context.val, 480).chunks(24) {
            let slices: Vec<_> = numbers.iter().map(|&n| context.val.get(n)).collect();
            let (image, _) = data::stack(&slices, width, context.device);
            let codes = tokenizer.encode(&image);
            let distance = (tokenizer.decode(&codes, Kind::Float) - &image).abs();
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
    let [slice, brain] = [error[0] / pixels[0], error[1] / pixels[1]];
    eprintln!(
        "tokenizer: held-out L1 {slice:.4} over the slice, {brain:.4} inside the brain, {:.1} % of the codes in use",
        100. * in_use
    );
    vec![("tokenizer_val_l1", slice), ("tokenizer_val_l1_in_brain", brain), ("tokenizer_codes_in_use", in_use)]
}
