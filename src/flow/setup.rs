//! A setup: what a station has for one order.
//!
//! The process that gives an order makes its own setup. A process that carries out the order of another one opens stores with its
//! own credentials and finds the bundle by its digest. Where it cannot, it refuses: before a scan is read, and with a reason that
//! says whether another process could do the work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, watch};

use super::apart::{self, Apart};
use super::bundles;
use super::journal::Journal;
use super::mark;
use super::order::Order;
use super::outage::Outages;
use super::refusal::{Reason, Refusal};
use super::roll::RunLimits;
use super::station::Station;
use super::stop::StopSwitch;
use crate::error::{Error, Result};
use crate::score::{Settings, Worker, recipe_id};
use crate::store::{self, Location, with_patience};

/// Stores, networks and helpers for one order, at one station.
#[derive(Debug)]
pub struct Setup {
    /// The opened cohort.
    pub cohort: Location,
    /// The place of the tables, to which data files are written.
    pub tables: Location,
    /// The order's score settings, completed by the bundle.
    pub settings: Settings,
    /// The device threads with the bundle's networks.
    pub worker: Worker,
    /// Whether the cohort's store answers.
    pub outages: Outages,
    /// Where scans in flight are noted.
    pub journal: Option<Journal>,
    /// How a scan is screened in a process of its own; none where that is not possible.
    pub apart: Option<Apart>,
    /// Ends the work on the order early.
    pub stop: Arc<StopSwitch>,
}

impl Setup {
    /// Prepares this process for an order that another one gave.
    ///
    /// # Errors
    /// [`Refusal`]s as query errors; errors of a store that is down for longer than the order waits.
    pub(super) async fn for_order(station: &Station, order: &Order) -> datafusion::error::Result<Self> {
        match Self::try_for_order(station, order).await {
            Ok(setup) => Ok(setup),
            Err(Unable::Refused(refusal)) => {
                if refusal.reason == Reason::Unfit {
                    station.declare_unfit(&refusal.message);
                }
                Err(refusal.into())
            }
            Err(Unable::Failed(error)) => Err(error.into()),
        }
    }

    async fn try_for_order(station: &Station, order: &Order) -> Result<Self, Unable> {
        let unfit = |message: String| Unable::Refused(Refusal::new(Reason::Unfit, message));
        let version = env!("CARGO_PKG_VERSION");
        if order.version != version {
            let ordered = &order.version;
            return Err(unfit(format!(
                "this executor is neurosieve {version}, and the run asks for {ordered}: start the same version everywhere"
            )));
        }
        let open = |what: &str, opened: Result<Location>| {
            opened.map_err(|error| unfit(format!("this executor cannot open the {what}: {}", error.text())))
        };
        let cohort = open("cohort", store::open(&order.cohort))?;
        let tables = open("tables", store::open_new(&order.tables))?;
        let seen = with_patience(order.longest_outage, || mark::is_seen(&tables, &order.run_id)).await;
        if !seen.map_err(|error| unable("read the place of the tables", error))? {
            return Err(Unable::Refused(Refusal::new(
                Reason::Run,
                format!(
                    "an executor does not see at {tables} what the run has written there: cohort and tables of a cluster must lie in \
                     a store that all its machines share, such as s3://, or in a folder that all of them mount at the same path"
                ),
            )));
        }
        let bundle = bundles::find(order, &tables, station.bundles.as_deref()).await;
        let (bundle, name) = bundle.map_err(|error| unable("get the bundle", error))?;
        let recipe = recipe_id(&order.preprocess, &order.score, &bundle);
        if recipe != order.recipe_id {
            return Err(unfit(format!(
                "this executor would screen with the recipe {recipe}, and the run asks for {}: start the same program everywhere",
                order.recipe_id
            )));
        }
        let bundle = Arc::new(bundle);
        let settings = Settings::new(&order.score, &bundle).map_err(Unable::Failed)?;
        let worker = station.networks(order, bundle, settings.clone()).await;
        let worker =
            worker.map_err(|error| unfit(format!("this executor cannot load the networks: {}", error.text())))?;
        let apart = apart::program().map(|program| Apart {
            program,
            bundle: name,
            device: station.choice,
            memory_mib: station.budget.total_mib(),
            // The driver decides what comes last.
            others: watch::Sender::new(0),
            turn: Mutex::default(),
        });
        let outages = Outages::new(cohort.clone(), order.samples.clone(), order.longest_outage);
        Ok(Self { cohort, tables, settings, worker, outages, journal: None, apart, stop: Arc::default() })
    }

    /// Waits for a permit to begin a scan; none once the work is to stop.
    pub(super) async fn admit(&self, station: &Station) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&station.permits).acquire_owned().await.ok()?;
        (!self.stop.is_pressed()).then_some(permit)
    }

    /// Whether a failure, which is not that of a scan, has ended the work.
    pub(super) fn has_failed(&self) -> bool {
        self.stop.is_pressed()
    }

    /// What a writer of this order's files heeds.
    pub(super) fn limits(&self, longest_outage: Duration) -> RunLimits {
        RunLimits { stop: Arc::clone(&self.stop), longest_outage }
    }
}

/// Why there is no setup.
enum Unable {
    Refused(Refusal),
    /// A failure that may pass.
    Failed(Error),
}

/// Tells a process that may not do something, or lacks something, from a store that is down.
fn unable(what: &str, error: Error) -> Unable {
    match error.kind() {
        "storage" | "table" => Unable::Failed(error),
        _ => {
            let message = format!("this executor cannot {what}: {}", error.text());
            Unable::Refused(Refusal::new(Reason::Unfit, message))
        }
    }
}
