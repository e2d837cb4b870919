//! Many machines: the plan of a run, in chunks, on an Apache DataFusion Ballista cluster.
//!
//! ```text
//! driver ─ chunk = one job, one partition ─► scheduler ◄─ polls ─ executors, one per GPU or machine
//!    ◄──────────── receipts of a finished chunk (Flight) ─────────────┘        the driver commits, as in a local run
//! ```
//! Ballista keeps the queue, the members and the retries. The driver stays the only process that commits.

pub mod board;
mod chunks;
pub mod client;
pub mod codec;
mod driver;
mod job;
pub mod tls;

pub use chunks::Cluster;
pub use client::{Client, JobId, JobState, Metrics, PartitionLocation};
