//! What the scans of an order are screened for, and with.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::order::Order;
use super::setup::Setup;
use super::station::Station;

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
