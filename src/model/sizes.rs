//! The sizes of all networks together, and the networks built from them.

use tch::{Device, Kind};

use super::detector::Detector;
use super::inpainter::Inpainter;
use super::network::{Network, Stores};
use super::prior::Prior;
use super::tokenizer::{Tokenizer, TokenizerConfig};
use super::transformer::TransformerConfig;
use super::weights;

/// Sizes of all networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Tokens of a slice: rows (along y) and columns (along x).
    pub tokens: [i64; 2],
    /// Sizes of the tokenizer.
    pub tokenizer: TokenizerConfig,
    /// Sizes of the detector.
    pub detector: TransformerConfig,
    /// Sizes of the inpainter.
    pub inpainter: TransformerConfig,
    /// Sizes of the prior; `None` for a model without one.
    pub prior: Option<TransformerConfig>,
}

/// The networks of a model on one device.
#[derive(Debug)]
pub struct Networks {
    /// Image to tokens and back.
    pub tokenizer: Tokenizer,
    /// Which tokens are anomalous.
    pub detector: Detector,
    /// Which tokens a healthy slice would hold instead.
    pub inpainter: Inpainter,
    /// The autoregressive baseline, where the model has one.
    pub prior: Option<Prior>,
    /// The device that holds the weights.
    pub device: Device,
}

impl Sizes {
    /// Builds the networks on `device` with random weights in f32, in the order of [`Network::ALL`]. `before_each` runs
    /// before the weights of each network are drawn; training seeds the generator there.
    pub fn build(&self, device: Device, before_each: impl Fn(Network)) -> (Networks, Stores) {
        let stores = Stores::new(device, self.prior.is_some());
        let vocabulary = self.tokenizer.vocabulary();
        before_each(Network::Tokenizer);
        let tokenizer = Tokenizer::new(stores.tokenizer.root(), &self.tokenizer);
        before_each(Network::Detector);
        let cell = self.tokenizer.cell();
        let detector = Detector::new(stores.detector.root(), &self.detector, vocabulary.clone(), self.tokens, cell);
        before_each(Network::Inpainter);
        let inpainter = Inpainter::new(stores.inpainter.root(), &self.inpainter, vocabulary.clone(), self.tokens);
        let prior = self.prior.as_ref().zip(stores.prior.as_ref()).map(|(sizes, store)| {
            before_each(Network::Prior);
            Prior::new(store.root(), sizes, vocabulary, self.tokens)
        });
        (Networks { tokenizer, detector, inpainter, prior, device }, stores)
    }

    /// Networks with random weights in `kind`, ready for inference, to measure speed with. The same `seed` gives the
    /// same weights.
    pub fn networks(&self, device: Device, kind: Kind, seed: i64) -> Networks {
        tch::manual_seed(seed);
        let (networks, mut stores) = self.build(device, |_| {});
        stores.iter_mut().for_each(|(_, store)| weights::freeze(store, kind));
        networks
    }
}
