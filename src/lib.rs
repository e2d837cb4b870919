//! neurosieve screens whole MRI cohorts for anomalies.
//!
//! It reads brain scans from object storage, preprocesses them on all cores, scores every token of
//! every scan by masked image modelling (the idea of MIM-OOD, arXiv 2307.14701) on
//! libtorch, and writes scores, masks and findings to Delta tables for queries with SQL.
//!
//! ```text
//!  object store  s3:// gs:// az:// file://        BIDS tree or any tree of NIfTI files
//!      │  cohort/       list, BIDS entities, selection: one manifest row per scan
//!      ▼
//!  flow/         ScreenExec: fetch ─► volume/ decode ─► preprocess/ ─► score/ (networks in model/)
//!      │         WriteExec: Parquet data files and receipts; the driver commits
//!      ▼
//!  tables/       scans · tokens · masks · findings · failures · runs
//!      ▼
//!  query/        SQL over documented views;  export/  masks in native space
//! ```
//!
//! The program in `main.rs` is a thin command line over this library:
//!
//! ```no_run
//! use neurosieve::flow::{Pipeline, Run};
//!
//! # async fn screen() -> neurosieve::Result<()> {
//! let mut pipeline = Pipeline::default();
//! pipeline.cohort.url = "s3://bucket/study".into();
//! pipeline.tables.url = "s3://bucket/results".into();
//! let run = Run::prepare(pipeline).await?;
//! // The run stops early when this future completes. `pending` never completes.
//! let report = run.execute(std::future::pending()).await?;
//! println!("{} scans done, {} failed", report.done, report.failed);
//! # Ok(())
//! # }
//! ```
//!
//! Research software. Not a medical device.

// What is printed goes through `terminal`, which survives a reader that closes the pipe.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod cluster;
pub mod cohort;
pub mod config;
pub mod error;
pub mod eval;
pub mod export;
pub mod flow;
mod hex;
pub mod machine;
pub mod model;
pub mod preprocess;
pub mod query;
pub mod report;
pub mod score;
pub mod store;
pub mod synth;
pub mod tables;
pub mod terminal;
pub mod train;
pub mod volume;

pub use error::{Error, Result};
