//! Training of a bundle on a healthy cohort.
//!
//! ```text
//! healthy cohort ─► scans.rs: preprocess, keep in the work folder ─► dataset.rs: slices, augmented
//!   1. tokenizer.rs   L1 + gradient loss of the reconstruction
//!   2. inpainter.rs   masked image modelling on healthy tokens
//!   3. detector.rs    tokens of slices with synthetic anomalies, and of swapped blocks
//!   4. prior.rs       next tokens of healthy slices; only with a [train.prior] section
//!   5. calibrate.rs   healthy map, and thresholds fixed on healthy `val` scans
//! ─► bundle.rs: bundle folder with model card and learning curves
//! ```
//! With `train.networks_of`, the networks are those of another bundle. The networks in `train.further` are then trained
//! further, and the calibration is repeated.
//!
//! Every stage writes a checkpoint to the work folder and continues from it, so a finished stage is not trained again.
//! The batch of a step depends on the seed, the stage and the step alone, so a continued training draws the same
//! batches as an undisturbed one.

mod adamw;
mod anomaly;
mod augment;
mod bundle;
mod calibrate;
mod card;
mod codebook;
mod config;
mod context;
mod curve;
mod dataset;
mod detector;
mod discriminator;
mod inpainter;
mod load;
mod prior;
mod scans;
mod slice;
mod start;
mod tokenizer;
mod tokens;
mod updates;
mod work;

pub use config::{AnomalyConfig, NetworkTraining, TokenizerTraining, TrainConfig, TrainPipeline};
pub use load::load;

use tch::nn::VarStore;

use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::model::{Network, Networks, device};
use crate::terminal::errln;
use bundle::Trained;
use context::{Context, Figures};

/// The order of training: all networks need the tokenizer's codes, and the detector learns from codes that the
/// inpainter draws.
const ORDER: [Network; 4] = [Network::Tokenizer, Network::Inpainter, Network::Detector, Network::Prior];

/// A stage: trains one network, whose weights the store holds, and gives its held-out figures.
type Stage = fn(&Context<'_>, &Networks, &VarStore) -> Result<Figures>;

/// The stage that trains a network.
fn stage(network: Network) -> Stage {
    match network {
        Network::Tokenizer => tokenizer::train,
        Network::Inpainter => inpainter::train,
        Network::Detector => detector::train,
        Network::Prior => prior::train,
    }
}

/// Trains the networks and writes the bundle, or stops after the network that `train.until` names. Prints progress to
/// standard error.
///
/// # Errors
/// [`Error::Config`] where settings contradict each other or the cohort has no `train` or no `val` scan,
/// [`Error::Model`] where the bundle of `train.networks_of` or a checkpoint does not fit, [`Error::Device`] where
/// libtorch fails; storage errors.
pub async fn train(pipeline: &TrainPipeline) -> Result<()> {
    pipeline.validate()?;
    let config = &pipeline.train;
    let device = device::resolve(config.device)?;
    check(config)?;
    let base = config.networks_of.as_deref().map(|name| start::open_bundle(pipeline, name)).transpose()?;
    work::create(config)?;
    let context = Context::load(pipeline, device).await?;
    let (n_train, n_val) = (context.train.len(), context.val.len());
    errln!("{n_train} slices to train on, {n_val} held out; {device:?}, {:?}", context.kind);

    let (networks, stores) = match &base {
        Some(bundle) => bundle.build(device)?,
        None => start::random(config, device),
    };
    let mut figures = Figures::new();
    for network in ORDER {
        let wanted = base.is_none() || config.further.contains(&network);
        if let Some(store) = stores.get(network).filter(|_| wanted) {
            if base.is_none() {
                start::resemble_codebook(config, &networks, network);
            }
            figures.extend(stage(network)(&context, &networks, store)?);
        }
        if base.is_none() && config.until == Some(network) {
            return Ok(());
        }
    }
    let stages = match base {
        Some(_) => ORDER.into_iter().filter(|network| config.further.contains(network)).collect(),
        None => stores.iter().map(|(network, _)| network).collect(),
    };
    bundle::write(&context, Trained { networks: &networks, stores: &stores, stages, figures, base: base.as_ref() })
}

/// Checks settings that have no meaning together.
fn check(config: &TrainConfig) -> Result<()> {
    if config.networks_of.is_none() && !config.further.is_empty() {
        return Err(Error::Config(
            "train.further needs train.networks_of: name the bundle whose networks are to be trained further".into(),
        ));
    }
    Ok(())
}
