//! The networks of MIM-OOD (arXiv 2307.14701) and the bundle that carries them.
//!
//! [`Tokenizer`] turns a slice into tokens and back, [`Detector`] says which tokens are anomalous,
//! [`Inpainter`] replaces those by what a healthy brain would hold. [`Prior`] is the autoregressive rival of the two. Tensors are `[B, C, H, W]`
//! with H along y (back to front) and W along x (left to right); intensities are in 0..1.

mod bundle;
mod codebook;
mod config;
mod detector;
pub mod device;
mod healthy;
mod inpainter;
mod layers;
mod mkl;
mod packing;
mod preset;
mod prior;
mod tokenizer;
mod transformer;
pub mod twin;
mod vocabulary;

pub use bundle::{
    Bundle, BundleInfo, Calibration, DataSource, NETWORKS, Networks, PRIOR, Training, write as write_bundle,
};
pub use codebook::{Codebook, Vectors};
pub use config::ModelConfig;
pub use detector::{CONTEXT, Detector};
pub use healthy::{HealthyMap, HealthyMapBuilder};
pub use inpainter::{Decoding, Inpainter, Masked};
pub use preset::{Preset, Sizes};
pub use prior::{Prior, Resampling};
pub use tokenizer::{Tokenizer, TokenizerConfig};
pub use transformer::TransformerConfig;
pub use vocabulary::Vocabulary;
