//! Measurements of the program: accuracy on held-out scans, and speed.
//!
//! [`preprocess`] takes a cohort with reference masks and gives a [`preprocess::PreprocessReport`]: the figures of
//! preprocessing, each with its target. [`methods`] takes a cohort with lesion masks and a healthy cohort, and gives a
//! [`methods::MethodReport`]: a comparison of methods that find anomalies. [`device`] measures the speed of a bundle's
//! networks on a device.

mod config;
pub mod device;
pub mod methods;
pub mod preprocess;
mod read;

pub use config::{EvalConfig, EvalPipeline, EvalRunConfig, EvalTablesConfig, MethodConfig};
