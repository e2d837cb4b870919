//! The end of a training: calibration, model card, bundle folder and learning curves.

use std::collections::BTreeMap;

use super::calibrate::{Calibrated, calibrate};
use super::card;
use super::context::{Context, Figures};
use super::{curve, start};
use crate::error::Result;
use crate::model::{self, Bundle, BundleInfo, Calibration, DataSource, Network, Networks, Sizes, Stores, Training};
use crate::terminal::errln;

/// Trained networks.
pub(super) struct Trained<'a> {
    pub(super) networks: &'a Networks,
    pub(super) stores: &'a Stores,
    /// The networks that were trained, in the order of their curves.
    pub(super) stages: Vec<Network>,
    /// Their held-out figures.
    pub(super) figures: Figures,
    /// The bundle whose networks the training started from.
    pub(super) base: Option<&'a Bundle>,
}

/// Fits the healthy map and the thresholds, and writes the bundle.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) where a file cannot be written, [`Error::Device`](crate::Error::Device) where
/// libtorch fails, [`Error::Input`](crate::Error::Input) where a scan has no brain.
pub(super) fn write(context: &Context<'_>, trained: Trained<'_>) -> Result<()> {
    let config = context.config();
    let Calibrated { calibration, healthy, figures } = calibrate(context, trained.networks)?;
    let figures = trained.figures.into_iter().chain(figures).map(|(name, value)| (name.to_owned(), value)).collect();
    let (info, card) = match trained.base {
        Some(base) => {
            let info = adapted(context, base, calibration, figures);
            let card = card::adapted_card(&info, base, &trained.stages, config);
            (info, card)
        }
        None => {
            let info = described(context, calibration, figures);
            let card = card::model_card(&info, config);
            (info, card)
        }
    };
    model::write_bundle(&config.out, info, trained.stores, healthy.as_ref(), &card)?;
    errln!("bundle written to {}; use it with `--set model.bundle={0}`", config.out.display());
    if trained.stages.is_empty() { Ok(()) } else { curve::write_parquet(config, &trained.stages) }
}

/// The description of a bundle whose networks were trained from random weights.
fn described(context: &Context<'_>, calibration: Calibration, metrics: BTreeMap<String, f64>) -> BundleInfo {
    let config = context.config();
    let Sizes { tokens, tokenizer, detector, inpainter, prior } = start::sizes(config);
    BundleInfo {
        format: 0,
        name: config.name.clone(),
        version: config.version.clone(),
        modality: context.pipeline.cohort.select.suffixes.join("+"),
        tokens,
        tokenizer,
        detector,
        inpainter,
        prior,
        preprocess: context.pipeline.preprocess.clone(),
        calibration,
        training: training(context, config.data.clone()),
        metrics,
        weights: BTreeMap::new(),
    }
}

/// The description of a bundle with the networks of `base`, some of them trained further.
fn adapted(
    context: &Context<'_>,
    base: &Bundle,
    calibration: Calibration,
    figures: BTreeMap<String, f64>,
) -> BundleInfo {
    let config = context.config();
    let mut metrics = base.info.metrics.clone();
    metrics.extend(figures);
    BundleInfo {
        name: config.name.clone(),
        version: config.version.clone(),
        calibration,
        training: training(context, [&base.info.training.data[..], &config.data].concat()),
        metrics,
        ..base.info.clone()
    }
}

/// The bundle's description of this training; `data`: the data sets of all networks.
fn training(context: &Context<'_>, data: Vec<DataSource>) -> Training {
    Training {
        train_scans: context.train.brains().len(),
        val_scans: context.val.brains().len(),
        program: format!("neurosieve {}", env!("CARGO_PKG_VERSION")),
        seed: context.config().seed,
        data,
    }
}
