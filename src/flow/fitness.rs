//! Whether and how a station carries out an order of another process.
//!
//! It opens the stores with its own credentials and finds the bundle by its digest. Where it cannot, it refuses: before a scan is
//! read, and with a reason that says whether another process could do the work.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use datafusion::error::DataFusionError;

use super::apart::Apart;
use super::bundles;
use super::mark;
use super::order::Order;
use super::outage::Outages;
use super::refusal::{Reason, Refusal};
use super::setup::Setup;
use super::station::Station;
use crate::error::{Domain, Error, Result};
use crate::score::{Settings, recipe_id};
use crate::store::{self, Location, with_patience};

/// How long refused credentials are tried again. After that the process counts as not permitted, and the store as working.
const REFUSED: Duration = Duration::from_secs(15);

/// What the station has for an order; made where the order is new, or where a failure has ended it here before.
///
/// # Errors
/// [`Refusal`]s as query errors; errors of a store that is down for longer than the order waits.
pub(super) async fn setup(station: &Station, order: &Order) -> Result<Arc<Setup>, DataFusionError> {
    let mut setups = station.setups.lock().await;
    // The setup of an order that this process gave lasts as long as the run, also while it stops.
    if let Some(setup) = setups.find(&order.run_id).filter(|setup| !station.serves_others() || !setup.has_failed()) {
        return Ok(Arc::clone(setup));
    }
    match prepared(station, order).await {
        Ok(setup) => {
            let setup = Arc::new(setup);
            setups.keep(&order.run_id, Arc::clone(&setup));
            Ok(setup)
        }
        Err(Unable::Refused(refusal)) => {
            if refusal.reason == Reason::Unfit {
                station.declare_unfit(&refusal.message);
            }
            Err(refusal.into())
        }
        Err(Unable::Failed(error)) => Err(once(error)),
    }
}

/// An error that an engine does not retry by itself, because it was waited for long enough: the driver decides.
fn once(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// A failure that ended the work on an order, for the engine of a cluster: a broken device is this process's own.
pub(super) fn failed(station: &Station, error: Error) -> DataFusionError {
    if error.domain() != Domain::Device {
        return once(error);
    }
    station.declare_unfit(&error.text());
    Refusal::new(Reason::Unfit, error.text()).into()
}

/// The error of scans that were not screened because the work on their order failed meanwhile.
pub(super) fn failed_meanwhile() -> DataFusionError {
    once(Error::Cluster("another chunk of this run failed on the same executor, and with it this one".into()))
}

async fn prepared(station: &Station, order: &Order) -> Result<Setup, Unable> {
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
    let look = || mark::is_seen(&tables, &order.run_id);
    let seen = match with_patience(REFUSED.min(order.longest_outage), look).await {
        Err(error) if error.kind() != "permission" => with_patience(order.longest_outage, look).await,
        seen => seen,
    };
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
    let worker = worker.map_err(|error| unfit(format!("this executor cannot load the networks: {}", error.text())))?;
    // The driver decides what comes last, so no scan waits for others here.
    let apart = Apart::new(name, station.choice, station.budget.total_mib(), 0);
    let outages = Outages::new(cohort.clone(), order.samples.clone(), order.longest_outage);
    Ok(Setup {
        cohort,
        tables,
        settings,
        worker,
        outages,
        journal: None,
        apart,
        broken_sidecar: AtomicBool::default(),
        stop: Arc::default(),
    })
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::model::Bundle;

    /// A station, and an order that it could carry out, below a folder.
    async fn workplace(folder: &std::path::Path) -> (Arc<Station>, Order) {
        let place = |name: &str| {
            let place = folder.join(name);
            std::fs::create_dir_all(&place).unwrap();
            place
        };
        let (cohort, tables) = (place("cohort"), place("tables"));
        let station = Station::open("cpu".parse().unwrap(), 2000, 1, place("bundles")).unwrap();
        let bundle = Bundle::built_in().unwrap();
        let mut order = Order::sample();
        order.score = crate::score::ScoreConfig::default();
        let order = Order {
            recipe_id: recipe_id(&order.preprocess, &order.score, &bundle),
            bundle_digest: bundle.digest,
            cohort: cohort.display().to_string(),
            tables: tables.display().to_string(),
            longest_outage: Duration::ZERO,
            version: env!("CARGO_PKG_VERSION").into(),
            ..order
        };
        mark::set(&store::open_new(&order.tables).unwrap(), &order.run_id).await.unwrap();
        (station, order)
    }

    async fn refused(station: &Station, order: &Order) -> Refusal {
        let error = setup(station, order).await.unwrap_err();
        Refusal::find(&error.to_string()).unwrap_or_else(|| panic!("{error}"))
    }

    #[tokio::test]
    async fn a_process_that_would_give_other_numbers_is_unfit() {
        let folder = tempfile::tempdir().unwrap();
        for (what, word) in
            [("version", "the same version"), ("recipe", "the same program"), ("bundle", "beside the tables")]
        {
            let (station, fit) = workplace(folder.path()).await;
            let order = match what {
                "version" => Order { version: "0.0.0".into(), ..fit },
                "recipe" => Order { recipe_id: "0".repeat(16), ..fit },
                _ => Order { bundle_digest: "0".repeat(64), ..fit },
            };
            let refusal = refused(&station, &order).await;
            assert!(refusal.reason == Reason::Unfit && refusal.message.contains(word), "{what}: {refusal:?}");
            assert_eq!(station.unfit().now_or_never(), Some(refusal.message));
        }
    }

    #[tokio::test]
    async fn a_run_whose_mark_is_not_seen_is_refused_and_the_process_stays_fit_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let (station, order) = workplace(folder.path()).await;
        let elsewhere = Order { run_id: "01890a5d-ac96-774b-bcce-b302099a8058".into(), ..order.clone() };
        let refusal = refused(&station, &elsewhere).await;
        assert!(refusal.reason == Reason::Run && refusal.message.contains("share"), "{refusal:?}");
        assert_eq!(station.unfit().now_or_never(), None);
        let first = setup(&station, &order).await.unwrap();
        assert!(Arc::ptr_eq(&first, &setup(&station, &order).await.unwrap()), "it is made once");
        // After a failure it is made anew.
        first.stop.fail(Error::Bug("a store that stays down".into()));
        assert!(!Arc::ptr_eq(&first, &setup(&station, &order).await.unwrap()));
    }
}
