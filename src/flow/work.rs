//! What the scans of an order are screened for, and with.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::order::Order;
use super::setup::Setup;
use super::station::Station;
use crate::error::{Error, Result};

/// An order, the station that carries it out, and what the station has for it.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) order: Arc<Order>,
    pub(super) station: Arc<Station>,
    pub(super) setup: Arc<Setup>,
}

impl Work {
    /// Waits for a permit to begin a scan; none once the work is to stop.
    pub(super) async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.station.permits).acquire_owned().await.ok()?;
        (!self.setup.stop.is_pressed()).then_some(permit)
    }
}

/// Does a part of a scan's work in the time that earlier parts left. Work that runs on rayon or on the device is not
/// interrupted; its result is dropped.
pub(super) async fn in_time<T>(
    limit: Option<Duration>,
    spent: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    let result = tokio::time::timeout(limit.saturating_sub(spent), work).await;
    result.unwrap_or_else(|_| Err(Error::TimedOut { seconds: limit.as_secs() }))
}
