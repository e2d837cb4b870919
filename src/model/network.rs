//! Which networks a bundle holds, by name, and the stores of their weights.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Device;
use tch::nn::VarStore;

use crate::error::{Error, Result};

/// A network of a bundle. As text it is its name in lower case, which is also the name of its weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Image to codes and back.
    Tokenizer,
    /// Codes to the probability that a pixel is anomalous.
    Detector,
    /// Codes around a gap to the codes that a healthy slice would have there.
    Inpainter,
    /// Codes to their likelihood given the codes before them; the one network that a bundle may lack.
    Prior,
}

impl Network {
    /// All networks, in the order in which a bundle is built and written.
    pub const ALL: [Self; 4] = [Self::Tokenizer, Self::Detector, Self::Inpainter, Self::Prior];

    /// The name in pipeline files, file names and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Detector => "detector",
            Self::Inpainter => "inpainter",
            Self::Prior => "prior",
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|network| network.name() == text).ok_or_else(|| {
            Error::Config(format!(
                "unknown network '{text}'; the networks are tokenizer, detector, inpainter and prior"
            ))
        })
    }
}

/// The weights of a model's networks, one store per network.
#[derive(Debug)]
pub struct Stores {
    pub(super) tokenizer: VarStore,
    pub(super) detector: VarStore,
    pub(super) inpainter: VarStore,
    pub(super) prior: Option<VarStore>,
}

impl Stores {
    /// Empty stores on `device`.
    pub(super) fn new(device: Device, with_prior: bool) -> Self {
        let store = || VarStore::new(device);
        Self { tokenizer: store(), detector: store(), inpainter: store(), prior: with_prior.then(store) }
    }

    /// The weights of a network; `None` where the model lacks it.
    pub fn get(&self, network: Network) -> Option<&VarStore> {
        match network {
            Network::Tokenizer => Some(&self.tokenizer),
            Network::Detector => Some(&self.detector),
            Network::Inpainter => Some(&self.inpainter),
            Network::Prior => self.prior.as_ref(),
        }
    }

    /// All stores, in the order of [`Network::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Network, &VarStore)> {
        Network::ALL.into_iter().filter_map(|network| Some((network, self.get(network)?)))
    }

    /// All stores to be changed, in the order of [`Network::ALL`].
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Network, &mut VarStore)> {
        let Self { tokenizer, detector, inpainter, prior } = self;
        [(Network::Tokenizer, tokenizer), (Network::Detector, detector), (Network::Inpainter, inpainter)]
            .into_iter()
            .chain(prior.as_mut().map(|store| (Network::Prior, store)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_reads_as_it_is_written() {
        for network in Network::ALL {
            assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
            assert_eq!(serde_json::to_string(&network).unwrap(), format!("\"{network}\""));
        }
        let message = "Tokenizer".parse::<Network>().unwrap_err().to_string();
        assert!(message.contains("'Tokenizer'") && message.contains("tokenizer, detector"), "{message}");
    }

    #[test]
    fn both_iterations_keep_the_order_of_a_bundle() {
        for with_prior in [false, true] {
            let mut stores = Stores::new(Device::Cpu, with_prior);
            let expected = &Network::ALL[..if with_prior { 4 } else { 3 }];
            assert_eq!(stores.iter().map(|(network, _)| network).collect::<Vec<_>>(), expected);
            assert_eq!(stores.iter_mut().map(|(network, _)| network).collect::<Vec<_>>(), expected);
        }
    }
}
