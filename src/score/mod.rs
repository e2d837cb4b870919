//! From a preprocessed brain to tokens, an anomaly map, a mask and findings.
//!
//! ```text
//! image ─► encode ─► codes ─► detector ─► p_anomalous per token
//!                      │                      │ above the token threshold
//!                      ▼                      ▼
//!                    inpainter: new codes for those tokens, in a few steps ─► decode ─► restoration
//! p_anomalous, |image - restoration| ─► score per voxel ─► mask at the healthy threshold ─► findings
//! ```
//! This is [`Method::Mim`]. The other methods are there for comparison; from the score on they take the same steps.
//! [`infer`] runs on the device, [`assess`] on a core afterwards. Numbers depend on the scan, the recipe and the type
//! of device alone: a batch that scans share has a shape that does not depend on them, and draws are seeded by the
//! scan's id and the slice.

mod cells;
mod config;
mod findings;
mod finite;
mod infer;
mod map;
pub(crate) mod memory;
mod recipe;
mod settings;
mod slices;
mod worker;

pub use cells::token_brain_fraction;
pub use config::{Evidence, Method, Pooling, Precision, ScoreConfig, Tail};
pub use findings::{Finding, components, connected};
pub use infer::{Inference, detect, infer, reconstruct, surprise};
pub use map::{Assessment, assess, scan_score, score_map, smoothed_intensity};
pub use recipe::{VERSION, recipe_id};
pub use settings::{Settings, batch_slices};
pub use slices::{Batching, MIN_TOKEN_BRAIN, Scan};
pub use worker::Worker;
