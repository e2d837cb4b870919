//! Many machines: the plan of a run, in chunks, on an Apache DataFusion Ballista cluster.
//!
//! ```text
//! driver ─ chunk = one job, one partition ─► scheduler ◄─ polls ─ executors, one per GPU or machine
//!    ◄──────────── receipts of a finished chunk (Flight) ─────────────┘        the driver commits, as in a local run
//! ```
//! Ballista keeps the queue, the members and the retries. The driver stays the only process that commits.

pub mod board;
mod causes;
mod chunks;
pub mod client;
pub mod codec;
pub mod connect;
mod driver;
pub mod executor;
mod job;
mod link;
pub mod parquet;
pub mod registry;
pub mod scheduler;
pub mod serve;
pub mod sql;
mod tasks;
pub mod tls;
mod totals;
pub mod work;

pub use chunks::Cluster;
pub use client::{Client, JobId, JobState, Metrics, PartitionLocation};
pub use registry::StoreRegistry;
