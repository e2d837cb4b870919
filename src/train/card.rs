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
        true => "No lesion of\na patient was used.",
        false => "Some\nhave the outline of a real lesion; no image of a lesion was used.",
    };
    format!(
        "# Model card: {name} {version}

Research software. Not a medical device: no output may be used for diagnosis or treatment.

## What it is
The networks of masked-image-modelling anomaly screening (the idea of MIM-OOD, arXiv 2307.14701, with settings of our
own) for {modality} brain MRI at 2 mm: a tokenizer (VQ-GAN generator with {codebook}, {codes} codes),
a detector of anomalous tokens and an inpainter of masked tokens. Input: a skull-stripped brain in MNI space with the
preprocessing in `bundle.toml`. Output: a probability per token and a healthy restoration.

## Intended use
Ranking the scans of large research cohorts for review by a person, and statistics of anomaly scores over cohorts.

## Training data
{n_train} healthy scans were used for training, {n_val} scans of other subjects for model selection and for the thresholds.
The split is by subject.

| data | licence | source |
|---|---|---|
{data}

Anomalies were synthetic: shapes with textures of their own put into healthy slices, and swapped tokens. {outlines}

## Figures on the held-out healthy scans
| figure | value |
|---|---|
{metrics}

`tokenizer_val_l1` is the mean absolute error of the intensity (0 to 1) over the slices that hold brain. Detector figures
are for synthetic anomalies and say little about real lesions. Thresholds: token {token_threshold:.4}, mask {mask_threshold:.4}
({below:.1} % of healthy brain voxels lie below).

## Limits
- Trained on few scans of few scanners; another scanner or sequence gives more false positives.
- Small or faint lesions are missed; changes of healthy ageing may be called anomalous.
- Training data held no other contrast than {modality}, no children, and no brains after surgery.

## How it was made
By {program}, with seed {seed}: {updates}
`neurosieve train` with the pipeline file trains a bundle like it.
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

/// One sentence on the number of updates of each network.
fn updates(config: &TrainConfig) -> String {
    format!(
        "{} tokenizer, {} inpainter and {} detector updates of {}, {} and {} slices, and {} of\nthe tokenizer's decoder alone.",
        config.tokenizer.steps,
        config.inpainter.steps,
        config.detector.steps,
        config.tokenizer.batch,
        config.inpainter.batch,
        config.detector.batch,
        config.tokenizer.decoder_steps,
    )
}

/// The card of a bundle with the networks of `base`, of which those in `trained` were trained further.
pub(super) fn adapted_card(info: &BundleInfo, base: &Bundle, trained: &[Network], config: &TrainConfig) -> String {
    let BundleInfo { name, version, training, .. } = info;
    let Calibration { token_threshold, mask_threshold, healthy_quantile, .. } = &info.calibration;
    let trained: String = trained.iter().map(|&network| further_updates(network, config)).collect();
    format!(
        "# Model card: {name} {version}

Research software. Not a medical device: no output may be used for diagnosis or treatment.

The networks are those of {label}: its model card describes them, their training data and their limits.
{trained}The healthy map was fitted to {n_train} healthy scans, and the thresholds (token {token_threshold:.4},
mask {mask_threshold:.4}; {below:.1} % of healthy brain voxels lie below) were fixed on {n_val} others, half of which have an
anomaly volume below {median:.2} ml. Both hold for scans like these.

Made by {program} with `train.networks_of`.
",
        label = base.label(),
        n_train = training.train_scans,
        n_val = training.val_scans,
        below = 100. * healthy_quantile,
        median = info.metrics.get(calibrate::MEDIAN_ML).copied().unwrap_or(f64::NAN),
        program = training.program,
    )
}

/// One line on the updates of a network that was trained further.
fn further_updates(network: Network, config: &TrainConfig) -> String {
    let (steps, batch) = match (network, &config.prior) {
        (Network::Inpainter, _) => (config.inpainter.steps, config.inpainter.batch),
        (Network::Prior, Some(prior)) => (prior.steps, prior.batch),
        _ => (config.detector.steps, config.detector.batch),
    };
    format!("The {network} was trained further, with {steps} updates of {batch} slices of these scans.\n")
}
