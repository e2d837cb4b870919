//! The model card that goes with a bundle (after Mitchell et al., arXiv 1810.03993).

use std::fmt::Write;

use super::calibrate;
use super::config::{Network, TrainConfig};
use crate::model::{Bundle, BundleInfo, Codebook};

/// Markdown: what the model is, what it was trained on, how well it does, where it must not be used.
pub(super) fn model_card(info: &BundleInfo, config: &TrainConfig) -> String {
    let mut text = String::new();
    let data: Vec<String> =
        info.training.data.iter().map(|d| format!("| {} | {} | {} |", d.name, d.licence, d.source)).collect();
    let metrics: Vec<String> = info.metrics.iter().map(|(name, value)| format!("| {name} | {value:.4} |")).collect();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "# Model card: {name} {version}

Research software. Not a medical device: no output may be used for diagnosis or treatment.

## What it is
The networks of masked-image-modelling anomaly screening (the idea of MIM-OOD, arXiv 2307.14701, with settings of our
own) for {modality} brain MRI at 2 mm: a tokenizer (VQ-GAN generator with {codebook}, {codes} codes),
a detector of anomalous tokens and an inpainter of masked tokens. Input: a brain stripped, placed in MNI space and
scaled by the preprocessing named in `bundle.toml`. Output: a probability per token and a healthy restoration.

## Intended use
Ranking scans of large research cohorts for a human to look at, and statistics of anomaly scores over cohorts.

## Training data
{n_train} healthy scans were fitted on, {n_val} other subjects held out for choosing and for the thresholds. The split is
by subject.

| data | licence | source |
|---|---|---|
{data}

Anomalies were synthetic: shapes with textures of their own put into healthy slices, and swapped tokens. {outlines}

## Figures on the held-out healthy scans
| figure | value |
|---|---|
{metrics}

`tokenizer_val_l1` is of the 0-1 intensity range over the slices of the model's grid that hold brain. Detector figures
are on synthetic anomalies and say little about real lesions. Thresholds: token {token:.4}, mask {mask:.4}
({quantile:.1} % of healthy brain voxels lie below).

## Limits
- Trained on few scans of few scanners; another scanner or sequence gives more false positives.
- Small or faint lesions are missed; what healthy ageing changes may be called anomalous.
- Other contrasts than {modality}, children, and brains after surgery were not seen in training.

## How it was made
{program}, seed {seed}; {t} tokenizer, {i} inpainter and {d} detector updates of {tb}, {ib} and {db} slices, and {f} of
the tokenizer's decoder alone.
`neurosieve train` with the pipeline file trains one of its kind.
",
        outlines = if config.shapes.is_empty() {
            "No lesion of\na patient was used."
        } else {
            "Some\nhave the outline of a real lesion; no image of a lesion was used."
        },
        name = info.name,
        version = info.version,
        modality = info.modality,
        codebook = match info.tokenizer.codebook {
            Codebook::Fsq(_) => "finite scalar quantization",
            Codebook::Vq(_) => "vector quantization",
        },
        codes = info.tokenizer.codes(),
        n_train = info.training.train_scans,
        n_val = info.training.val_scans,
        data = data.join("\n"),
        metrics = metrics.join("\n"),
        token = info.calibration.token_threshold,
        mask = info.calibration.mask_threshold,
        quantile = 100. * info.calibration.healthy_quantile,
        program = info.training.program,
        seed = info.training.seed,
        t = config.tokenizer.steps,
        f = config.tokenizer.decoder_steps,
        d = config.detector.steps,
        i = config.inpainter.steps,
        tb = config.tokenizer.batch,
        db = config.detector.batch,
        ib = config.inpainter.batch,
    );
    text
}

/// The card of a bundle whose networks are another one's.
pub(super) fn adapted_card(info: &BundleInfo, networks: &Bundle, config: &TrainConfig) -> String {
    let trained = |network: &Network| {
        let (steps, batch) = match (network, &config.prior) {
            (Network::Inpainter, _) => (config.inpainter.steps, config.inpainter.batch),
            (Network::Prior, Some(prior)) => (prior.steps, prior.batch),
            _ => (config.detector.steps, config.detector.batch),
        };
        format!("The {} was trained on, with {steps} updates of {batch} slices of these scans.\n", network.name())
    };
    let trained: String = config.further.iter().map(trained).collect();
    format!(
        "# Model card: {name} {version}

Research software. Not a medical device: no output may be used for diagnosis or treatment.

The networks are those of {label}: its model card says what they are, what they were trained on and where they must not be
used. {trained}What healthy scans look like by place was learnt anew from {n_train} healthy scans, and the thresholds (token {token:.4},
mask {mask:.4}; {quantile:.1} % of healthy brain voxels lie below) were fixed on {n_val} other ones, of which half have less
than {median:.2} ml called anomalous. They hold for scans like these.

{program} made it, with `train.networks_of`.
",
        name = info.name,
        version = info.version,
        label = networks.label(),
        n_train = info.training.train_scans,
        n_val = info.training.val_scans,
        token = info.calibration.token_threshold,
        mask = info.calibration.mask_threshold,
        quantile = 100. * info.calibration.healthy_quantile,
        median = info.metrics.get(calibrate::MEDIAN_ML).copied().unwrap_or(f64::NAN),
        program = info.training.program,
    )
}
