//! What the executors of a cluster report of themselves to its scheduler, for drivers and for `neurosieve cluster status`.

use serde::{Deserialize, Serialize};
use tonic::codegen::{Service as _, http};
use tonic::transport::Channel;

use crate::error::{Error, Result};

/// Where the scheduler takes and gives reports.
pub const PATH: &str = "/stations";

/// The most that an answer may hold, bytes: tens of thousands of reports.
const MOST_BYTES: usize = 16 << 20;

/// One executor, as it reported itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StationReport {
    /// Its id among the executors.
    pub executor_id: String,
    /// What it computes on: `cpu`, `cuda:0`.
    pub device: String,
    /// Tasks that it runs at the same time.
    pub slots: usize,
    /// The version of its program.
    pub version: String,
    /// Scans that it has finished since its start.
    pub done: u64,
    /// Scans that failed there.
    pub failed: u64,
    /// Scans that it works on now.
    pub in_flight: u64,
    /// Its rate since its start.
    pub scans_per_minute: f64,
    /// Why it cannot work any more.
    pub unfit: Option<String>,
}

/// The reports that the scheduler at the other end of a channel holds.
///
/// # Errors
/// [`Error::Cluster`] where it does not answer, or is not a scheduler of this program.
pub async fn fetch(channel: &Channel) -> Result<Vec<StationReport>> {
    let failed = |what: &str| Error::Cluster(format!("cannot read the scheduler's list of executors: {what}"));
    let request = http::Request::get(PATH).body(tonic::body::Body::empty()).map_err(|e| failed(&e.to_string()))?;
    let mut channel = channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(|e| failed(&e.to_string()))?;
    let response = channel.call(request).await.map_err(|e| failed(&e.to_string()))?;
    let status = response.status();
    if !status.is_success() {
        return Err(failed(&format!("it answered {status}; start it with `neurosieve scheduler` of this version")));
    }
    let body = axum::body::Body::new(response.into_body());
    let bytes = axum::body::to_bytes(body, MOST_BYTES).await.map_err(|e| failed(&e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| failed(&e.to_string()))
}
