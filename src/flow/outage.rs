//! Whose fault a failed read is: the scan's, or the store's.
//!
//! ```text
//! a read fails ─► read a few bytes of other scans ─┬─ they can be read: the fault is the scan's, which becomes a row in `failures`
//!                                                  └─ they cannot: the store is down, or the credentials are refused. All scans
//!                                                     wait, until it answers again or run.outage_s has passed
//! ```
//! An outage makes no row: the scans stay pending, and the run ends with an error.

use std::time::{Duration, Instant};

use object_store::{GetOptions, GetRange};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::cohort::ScanEntry;
use crate::error::{Error, Result};
use crate::store::{Location, Pauses};

/// How many outages of the store a scan waits for.
pub(super) const MOST_OUTAGES: u32 = 8;

/// How many other scans are tried before the store is held to be down.
const PROBES: usize = 3;

/// How long the first byte of a scan may take.
const PROBE_TIME: Duration = Duration::from_secs(20);

/// What a failed read means.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The scan cannot be read, and others can.
    OfScan(Error),
    /// The store was down and has come back: read again.
    Over,
    /// The store is still down.
    Down(Error),
}

/// The error of a run whose cohort could not be read.
fn down(error: Error, waited: Duration) -> Error {
    let advice = |what: &str| {
        format!(
            "no scan of the cohort could be read for {} s, and no scan has failed: check the credentials (they may have expired) and \
             the store, then run the same command again; {what}",
            waited.as_secs()
        )
    };
    match error {
        Error::Storage { context, source } => Error::Storage { context: advice(&context), source },
        other => Error::storage(
            advice(&other.text()),
            object_store::Error::Generic { store: "outage", source: "no answer".into() },
        ),
    }
}

/// The watch over a cohort's store; all scans in flight share it.
#[derive(Debug)]
pub struct Outages {
    cohort: Location,
    /// Addresses of some scans of the cohort; reading one of them shows whether the store answers.
    samples: Vec<String>,
    longest: Duration,
    /// Number of outages that ended. Its lock is held while an outage is waited for.
    ended: Mutex<u64>,
}

impl Outages {
    /// Watches the store of `cohort`, with [`samples`](Outages::samples) to read. An outage is waited for up to `longest`.
    pub fn new(cohort: Location, samples: Vec<String>, longest: Duration) -> Self {
        Self { cohort, samples, longest, ended: Mutex::new(0) }
    }

    /// The addresses of scans that are worth reading, of those that are listed.
    pub fn samples(listed: &[ScanEntry]) -> Vec<String> {
        // From different places of the listing, since neighbours may share what is wrong, such as a folder's permissions. One
        // more than is tried, because the scan that failed may be among them.
        let step = (listed.len() / (PROBES + 1)).max(1);
        listed.iter().step_by(step).take(PROBES + 1).map(|entry| entry.address().to_owned()).collect()
    }

    /// The number of outages so far, to be given to [`Outages::judge`] for a read that begins now.
    pub(super) async fn ended(&self) -> u64 {
        *self.ended.lock().await
    }

    /// Decides what `error` means, which reading `entry` gave; `before` is [`Outages::ended`] at its beginning. Waits while
    /// the store is down.
    pub(super) async fn judge(&self, entry: &ScanEntry, error: Error, before: u64) -> Verdict {
        // A read that took too long may be that of a large scan, or of a store that hangs.
        if !error.is_of_store() && !matches!(error, Error::TimedOut { .. }) {
            return Verdict::OfScan(error);
        }
        let mut ended = self.ended.lock().await;
        if *ended != before {
            return Verdict::Over;
        }
        if self.another_is_read(entry).await || self.is_read(entry.address()).await.is_ok() {
            return Verdict::OfScan(error);
        }
        let (began, mut pauses) = (Instant::now(), Pauses::within(self.longest));
        while let Some(pause) = pauses.next() {
            warn!("no scan can be read: {}; all scans wait, trying again in {} s", error.text(), pause.as_secs());
            tokio::time::sleep(pause).await;
            if self.another_is_read(entry).await || self.is_read(entry.address()).await.is_ok() {
                info!(seconds = began.elapsed().as_secs(), "the store of the cohort answers again");
                *ended += 1;
                return Verdict::Over;
            }
        }
        Verdict::Down(down(error, began.elapsed()))
    }

    async fn another_is_read(&self, entry: &ScanEntry) -> bool {
        for other in self.samples.iter().filter(|other| *other != entry.address()).take(PROBES) {
            match self.is_read(other).await {
                Ok(()) => return true,
                // A scan that was replaced or removed: the store answers.
                Err(error) if !error.is_of_store() => return true,
                Err(_) => {}
            }
        }
        false
    }

    /// Reads the first byte of a scan.
    async fn is_read(&self, address: &str) -> Result<()> {
        let path = self.cohort.path_of(address)?;
        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        let reading = async { self.cohort.store.get_opts(&path, options).await?.bytes().await };
        let read = tokio::time::timeout(PROBE_TIME, reading).await;
        let hangs = |_| object_store::Error::Generic { store: "probe", source: "no answer".into() };
        read.map_err(hangs).flatten().map(drop).map_err(|e| Error::storage("cannot read the cohort", e))
    }
}
