//! Integration tests, one binary: each module is a capability.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod azure;
mod cohort;
mod fault;
mod fault_store;
mod geometry;
mod gpu;
mod inspect;
mod kills;
mod pipelines;
mod preprocess;
mod s3;
mod screen;
mod server;
mod sql;
mod synth;
mod tables;
mod train;
mod volume;
mod webdav;
