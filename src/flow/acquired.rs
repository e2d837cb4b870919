//! Reads a scan's acquisition metadata while its voxels are read.
//!
//! Takes a scan; gives the metadata in its sidecars and tables. A file that cannot be read or parsed gives none, and the scan is
//! screened all the same. While the store is down it is waited for, as for the scan itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{debug, warn};

use super::outage::{MOST_OUTAGES, Verdict};
use super::work::{Work, in_time};
use crate::cohort::{self, Acquisition, ScanEntry};

/// Reads a scan's acquisition metadata; `None` where the run ends.
pub(super) async fn read(work: &Work, entry: &ScanEntry) -> Option<Acquisition> {
    let setup = &work.setup;
    for _ in 0..MOST_OUTAGES {
        let outages = setup.outages.ended().await;
        let reading = cohort::read_acquisition(&setup.cohort, entry);
        let error = match in_time(work.order.scan_timeout, Duration::ZERO, reading).await {
            Ok(found) => {
                warn_of_broken(work, &found);
                return Some(found);
            }
            Err(error) => error,
        };
        let judged = tokio::select! {
            judged = setup.outages.judge(entry, error, outages) => judged,
            () = setup.stop.pressed() => return None,
        };
        match judged {
            Verdict::Over => {}
            Verdict::OfScan(error) => {
                warn!(kind = error.kind(), "a sidecar, scans.tsv or sessions.tsv cannot be read; its columns are null");
                break;
            }
            Verdict::Down(error) => {
                setup.stop.fail(error);
                return None;
            }
        }
    }
    Some(Acquisition::default())
}

/// Warns once: one sidecar can be that of all scans.
fn warn_of_broken(work: &Work, found: &Acquisition) {
    if found.n_broken == 0 {
        return;
    }
    match work.setup.broken_sidecar.swap(true, Ordering::Relaxed) {
        false => warn!(
            "a file that describes the scan (JSON sidecar, scans.tsv or sessions.tsv) cannot be parsed; its columns are null. \
             Further ones are logged as debug"
        ),
        true => debug!("a file that describes the scan cannot be parsed"),
    }
}
