//! The model card of a bundle (after Mitchell et al., arXiv 1810.03993).

use super::calibrate;
use super::config::TrainConfig;
use crate::model::{Bundle, BundleInfo, Calibration, Codebook, Network};

/// The card of a bundle that was trained from random weights, in Markdown: what the model is, what it was trained on,
/// its held-out figures and its limits.
pub(super) fn model_card(info: &BundleInfo, config: &TrainConfig) -> String {
    let BundleInfo { name, version, modality, training, .. } = info;
    let Calibration { token_threshold, mask_threshold, healthy_quantile, .. } = &info.calibration;
    let codebook = match info.tokenizer.codebook {
        Codebook::Fsq(_) => "finite scalar quantization",
        Codebook::Vq(_) => "vector quantization",
    };
    let codes = info.tokenizer.codes();
    let below = 100. * healthy_quantile;
    let data: Vec<String> =
        training.data.iter().map(|d| format!("| {} | {} | {} |", d.name, d.licence, d.source)).collect();
    let metrics: Vec<String> = info.metrics.iter().map(|(name, value)| format!("| {name} | {value:.4} |")).collect();
    let outlines = match config.shapes.is_empty() {
        true => "No lesion\nof a patient was used.",
        false => "Some\nhave the outline of a real lesion. No image of a lesion was used.",
    };
    format!(
        "# Model card: {name} {version}

Research software. Not a medical device: no output may be used for diagnosis or treatment.

## What it is
Networks that find anomalies in {modality} brain MRI at 2 mm by masked image modelling (the idea of MIM-OOD, arXiv 2307.14701,
with settings of our own): a tokenizer (VQ-GAN generator with {codebook}, {codes} codes), a detector of anomalous
tokens and an inpainter of masked tokens. The bundle also holds the healthy map (what healthy scans look like at each
place) and the thresholds. Input: a brain that was stripped, registered to MNI space and normalized with the settings in
`bundle.toml`. Output: a probability per token and a healthy restoration.

## Intended use
Ranking the scans of large research cohorts for human review, and statistics of anomaly scores over cohorts.

## Training data
The networks were trained on {n_train} healthy scans. {n_val} scans of other subjects were held out to choose settings and to fix
the thresholds. The split is by subject.

| data | licence | source |
|---|---|---|
{data}

Anomalies are synthetic: shapes with a texture of their own, put into healthy slices, and swapped tokens. {outlines}

## Figures on the held-out healthy scans
| figure | value |
|---|---|
{metrics}

`tokenizer_val_l1` is in units of the intensity range from 0 to 1, over the slices of the model's grid that hold brain.
Detector figures are on synthetic anomalies and say little about real lesions. Thresholds: token {token_threshold:.4}, mask
{mask_threshold:.4} ({below:.1} % of healthy brain voxels lie below).

## Limits
- The training data has few scans from few scanners. Another scanner or sequence gives more false positives.
- Small or faint lesions are missed. Changes of healthy ageing may be called anomalous.
- The training data has no contrast other than {modality}, no children, and no brains after surgery.

## How it was made
Program: {program}, seed {seed}. {updates}

`neurosieve train` with the pipeline file trains a bundle of the same kind, but not with the same weights.
",
        n_train = training.train_scans,
        n_val = training.val_scans,
        data = data.join("\n"),
        metrics = metrics.join("\n"),
        program = training.program,
        seed = training.seed,
        updates = updates(config),
    )
}

/// The numbers of updates of each network, in the wording of the card.
fn updates(config: &TrainConfig) -> String {
    format!(
        "Updates: tokenizer {} of {} slices each, and {} of its decoder alone;\ninpainter {} of {}; detector {} of {}.",
        config.tokenizer.steps,
        config.tokenizer.batch,
        config.tokenizer.decoder_steps,
        config.inpainter.steps,
        config.inpainter.batch,
        config.detector.steps,
        config.detector.batch,
    )
}

/// The card of a bundle with the networks of `base`; those in `trained` were trained further.
pub(super) fn adapted_card(info: &BundleInfo, base: &Bundle, trained: &[Network], config: &TrainConfig) -> String {
    let BundleInfo { name, version, training, .. } = info;
    let Calibration { token_threshold, mask_threshold, healthy_quantile, .. } = &info.calibration;
    let trained: String = trained.iter().map(|&network| further_updates(network, config)).collect();
    format!(
        "# Model card: {name} {version}

Research software. Not a medical device: no output may be used for diagnosis or treatment.

The networks are those of {label}: its model card describes them, their training data and their limits.
{trained}The healthy map was fitted to {n_train} healthy scans, and the thresholds (token {token_threshold:.4},
mask {mask_threshold:.4}; {below:.1} % of healthy brain voxels lie below) were fixed on {n_val} other scans. The median anomaly volume
of these is {median:.2} ml. Both are valid for scans like these.

Program: {program}, with `train.networks_of`.
",
        label = base.label(),
        n_train = training.train_scans,
        n_val = training.val_scans,
        below = 100. * healthy_quantile,
        median = info.metrics.get(calibrate::MEDIAN_ML).copied().unwrap_or(f64::NAN),
        program = training.program,
    )
}

/// One line on the further updates of a network.
fn further_updates(network: Network, config: &TrainConfig) -> String {
    let (steps, batch) = match (network, &config.prior) {
        (Network::Inpainter, _) => (config.inpainter.steps, config.inpainter.batch),
        (Network::Prior, Some(prior)) => (prior.steps, prior.batch),
        _ => (config.detector.steps, config.detector.batch),
    };
    format!("The {network} was trained further, with {steps} updates of {batch} slices of these scans.\n")
}
