//! How good the program is, in figures: held-out scans against bars that the project sets itself.
//!
//! [`preprocess`] takes a cohort with reference masks and gives a [`preprocess::Report`]: every bar of preprocessing
//! with what was reached. [`methods`] takes a cohort with lesion masks and a healthy one and gives a [`methods::Report`]:
//! methods of finding anomalies side by side. [`device`] tells what a device does with a bundle.

mod config;
pub mod device;
pub mod methods;
pub mod preprocess;

pub use config::{EvalConfig, EvalPipeline, EvalRunConfig, EvalTablesConfig, MethodConfig};
