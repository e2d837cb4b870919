//! The networks of MIM-OOD (arXiv 2307.14701) and the bundle that holds them.
//!
//! | network | input | output |
//! |---|---|---|
//! | [`Tokenizer`] | image `[B, 1, H, W]` | codes `[B, h, w]`, and back |
//! | [`Detector`] | codes of 3 slices `[B, 3, h, w]` | logits: is a pixel anomalous? `[B, H, W]` |
//! | [`Inpainter`] | codes `[B, h, w]`, M of them masked | logits of healthy codes `[M, codes]` |
//! | [`Prior`] | codes `[B, h, w]` | likelihood of each given those before it `[B, h, w]` |
//!
//! H runs along y (back to front) and W along x (left to right); h and w count tokens. Intensities are in 0..1. The
//! prior is the autoregressive baseline that the other networks are compared with; a model may lack it.
//!
//! # Glossary
//! - *Bundle*: a trained model as one folder: weights, architecture, the preprocessing it was trained with, thresholds,
//!   healthy map, metrics and model card ([`Bundle`]).
//! - *Healthy map*: mean and spread of anomaly score and intensity in healthy scans, at each place in MNI space
//!   ([`HealthyMap`]). Scores are measured relative to it.
//! - *Token*: one cell of a slice, 4 x 4 pixels in the built-in bundle. *Code*: the value of a token, an index into the
//!   tokenizer's codebook.
//! - *Inside*: the tokens of a slice that hold brain. The transformers see these alone.

mod bundle;
mod codebook;
mod config;
mod description;
mod detector;
pub mod device;
mod healthy;
mod inpainter;
mod layers;
mod mkl;
mod network;
mod packing;
mod predictor;
mod preset;
mod prior;
mod sizes;
mod tokenizer;
mod transformer;
pub mod twin;
mod vocabulary;
mod weights;

pub use bundle::{Bundle, files as bundle_files, write as write_bundle};
pub use codebook::{Codebook, Vectors};
pub use config::ModelConfig;
pub use description::{BundleInfo, Calibration, DataSource, Training};
pub use detector::{CONTEXT, Detector};
pub use healthy::{HealthyMap, HealthyMapBuilder};
pub use inpainter::{Decoding, Inpainter, Masked};
pub use network::{Network, Stores};
pub use preset::Preset;
pub use prior::{Prior, Resampling, TokenSlices};
pub use sizes::{Networks, Sizes};
pub use tokenizer::{Tokenizer, TokenizerConfig};
pub use transformer::TransformerConfig;
pub use vocabulary::Vocabulary;
