//! What the tests share: running the program, cohorts and tables made once, expected volumes, servers.

pub mod cluster;
pub mod cohorts;
pub mod contents;
pub mod data;
pub mod fault_store;
pub mod golden;
pub mod process;
pub mod program;
pub mod results;
pub mod server;
pub mod shared;

use std::path::Path;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
