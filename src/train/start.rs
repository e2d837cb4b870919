//! The networks that a training starts from: random weights, or the networks of another bundle.

use tch::Device;

use super::config::{TrainConfig, TrainPipeline};
use crate::error::{Error, Result};
use crate::model::{Bundle, Network, Networks, Sizes, Stores};
use crate::preprocess;

/// Sizes of the networks, on the model's grid.
pub(super) fn sizes(config: &TrainConfig) -> Sizes {
    let [columns, rows, _] = preprocess::model_grid().shape;
    let cell = config.tokenizer.network.cell();
    Sizes {
        tokens: [rows as i64 / cell, columns as i64 / cell],
        tokenizer: config.tokenizer.network.clone(),
        detector: config.detector.network.clone(),
        inpainter: config.inpainter.network.clone(),
        prior: config.prior.as_ref().map(|stage| stage.network.clone()),
    }
}

/// Networks with random weights, which depend on `train.seed` and the sizes alone.
pub(super) fn random(config: &TrainConfig, device: Device) -> (Networks, Stores) {
    sizes(config).build(device, |network| tch::manual_seed(seed(config, network)))
}

/// Where the tokenizer has learned codebook vectors, draws new initial weights for a transformer under which codes with
/// similar vectors are similar. To be called when the tokenizer is trained.
pub(super) fn resemble_codebook(config: &TrainConfig, networks: &Networks, network: Network) {
    let Some(vectors) = networks.tokenizer.vectors() else { return };
    tch::manual_seed(seed(config, network));
    match (network, &networks.prior) {
        (Network::Detector, _) => networks.detector.resemble(vectors),
        (Network::Inpainter, _) => networks.inpainter.resemble(vectors),
        (Network::Prior, Some(prior)) => prior.resemble(vectors),
        (Network::Tokenizer, _) | (Network::Prior, None) => {}
    }
}

/// Seed of a network's initial weights. Each network has one, so that its weights do not depend on the others.
fn seed(config: &TrainConfig, network: Network) -> i64 {
    let offset = match network {
        Network::Tokenizer => 0,
        Network::Detector => 1,
        Network::Inpainter => 2,
        Network::Prior => 3,
    };
    config.seed as i64 * 8 + offset
}

/// Seed of the initial weights of the tokenizer's discriminator.
pub(super) fn discriminator_seed(config: &TrainConfig) -> i64 {
    config.seed as i64 * 8 + 4
}

/// Opens the bundle `name`, whose networks the training starts from.
///
/// # Errors
/// [`Error::Config`] where the pipeline's preprocessing is not the bundle's, or where `train.further` names a network
/// that cannot be trained further; [`Error::Model`] where the bundle does not load.
pub(super) fn open_bundle(pipeline: &TrainPipeline, name: &str) -> Result<Bundle> {
    let bundle = Bundle::open(name)?;
    if pipeline.preprocess != bundle.info.preprocess {
        return Err(Error::Config(format!(
            "[preprocess] differs from the preprocessing that the networks of bundle `{}` were trained with; leave \
             [preprocess] out",
            bundle.info.name
        )));
    }
    let config = &pipeline.train;
    if config.further.contains(&Network::Tokenizer) {
        return Err(Error::Config(
            "train.further: the detector and the inpainter depend on the tokenizer's codes, so it cannot be trained \
             further"
                .into(),
        ));
    }
    if config.further.contains(&Network::Prior) && (config.prior.is_none() || bundle.info.prior.is_none()) {
        return Err(Error::Config(format!(
            "train.further: to train the prior further, add a [train.prior] section and use a bundle with a prior; bundle \
             `{}` has {}",
            bundle.info.name,
            if bundle.info.prior.is_some() { "one" } else { "none" }
        )));
    }
    Ok(bundle)
}
