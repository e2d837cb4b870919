//! A station: what one process has to carry out orders.
//!
//! A station never leaves its process: the device, memory, opened stores, device threads and counters are its own. Where several
//! processes work on one run, each gets the same [`Order`] and brings its own station. It reaches the operators as an extension of
//! the session's configuration. What it needs for one order is a [`Setup`].

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryPool;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, watch};
use tracing::error;

use super::budget::Budget;
use super::order::Order;
use super::progress::Progress;
use super::setup::Setup;
use crate::error::{Error, Result};
use crate::machine::cores;
use crate::model::Bundle;
use crate::model::device::{self, DeviceChoice};
use crate::score::{Settings, Worker};

/// Recipes whose networks a station keeps, and orders whose setups it keeps.
const MOST_RECIPES: usize = 2;
const MOST_SETUPS: usize = 8;

/// What all orders share in one process.
#[derive(Debug)]
pub struct Station {
    /// The device that computes.
    pub on: tch::Device,
    /// Name of the device, for the tables: `cpu`, `cuda:0`.
    pub device: String,
    /// The device, as it was asked for.
    pub choice: DeviceChoice,
    /// Scans that are worked on at the same time, over all partitions.
    pub in_flight: usize,
    /// One permit per scan in flight.
    pub permits: Arc<Semaphore>,
    /// Memory for scans in flight.
    pub budget: Arc<Budget>,
    /// Counters for the progress line and a monitor.
    pub progress: Arc<Progress>,
    /// Where bundles of others are kept; none where this process gives the orders itself.
    pub(super) bundles: Option<PathBuf>,
    /// Executes scans, whichever runtime asks for them.
    pub(super) runtime: Handle,
    /// By run id.
    pub(super) setups: Mutex<Latest<Arc<Setup>, MOST_SETUPS>>,
    /// By recipe id.
    networks: Mutex<Latest<Worker, MOST_RECIPES>>,
    unfit: watch::Sender<Option<String>>,
}

impl Station {
    /// The station of a process that carries out the orders of others. `memory_mib` and `scans_in_flight` are those of
    /// [`RunConfig`](super::RunConfig), and so is the meaning of 0. `folder` keeps bundles; it must exist.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is not there, [`Error::Config`] where there is too little memory.
    pub fn open(choice: DeviceChoice, memory_mib: u64, scans_in_flight: usize, folder: PathBuf) -> Result<Arc<Self>> {
        let on = device::resolve(choice)?;
        // The networks of each recipe take their own memory.
        let budget = Budget::new(memory_mib, MOST_RECIPES * device_threads(on))?;
        let station = Self::new((on, choice), Arc::new(budget), in_flight(scans_in_flight), None);
        Ok(Arc::new(Self { bundles: Some(folder), ..station }))
    }

    /// A station that is given its setups. Without `progress` it counts from zero.
    pub(super) fn new(
        (on, choice): (tch::Device, DeviceChoice),
        budget: Arc<Budget>,
        in_flight: usize,
        progress: Option<Arc<Progress>>,
    ) -> Self {
        let count = || Arc::new(Progress::new(in_flight, cores(), device_threads(on)));
        Self {
            on,
            device: device_name(on),
            choice,
            in_flight,
            permits: Arc::new(Semaphore::new(in_flight)),
            budget,
            progress: progress.unwrap_or_else(count),
            bundles: None,
            runtime: Handle::current(),
            setups: Mutex::default(),
            networks: Mutex::default(),
            unfit: watch::Sender::default(),
        }
    }

    /// The station that executes this task.
    ///
    /// # Errors
    /// [`Error::Bug`] where the session has none.
    pub(super) fn of(context: &TaskContext) -> Result<Arc<Self>> {
        let station = context.session_config().get_extension::<Self>();
        station.ok_or_else(|| Error::Bug("scans cannot be screened by a session without a station".into()))
    }

    /// Whether this process carries out the orders of others.
    pub(super) fn serves_others(&self) -> bool {
        self.bundles.is_some()
    }

    /// The memory pool that scans and their rows share.
    pub fn pool(&self) -> Arc<dyn MemoryPool> {
        self.budget.pool()
    }

    /// Completes when this process cannot work any more; says why.
    pub async fn unfit(&self) -> String {
        let mut unfit = self.unfit.subscribe();
        // Fails only without a sender, and `self` is one.
        match unfit.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            _ => std::future::pending().await,
        }
    }

    /// Says that this process cannot work any more; the first reason counts.
    pub fn declare_unfit(&self, reason: &str) {
        self.unfit.send_if_modified(|now| {
            let is_first = now.is_none();
            if is_first {
                error!("this process can screen no more: {reason}");
                *now = Some(reason.to_owned());
            }
            is_first
        });
    }

    /// Gives this process its setup for an order.
    pub(super) async fn place(&self, order: &Order, setup: Arc<Setup>) {
        self.setups.lock().await.keep(&order.run_id, setup);
    }

    /// The device threads with the networks of a recipe.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub(super) async fn networks(&self, order: &Order, bundle: Arc<Bundle>, settings: Settings) -> Result<Worker> {
        let mut networks = self.networks.lock().await;
        if let Some(worker) = networks.find(&order.recipe_id) {
            return Ok(worker.clone());
        }
        let worker = Worker::start(bundle, self.on, settings, device_threads(self.on)).await?;
        networks.keep(&order.recipe_id, worker.clone());
        Ok(worker)
    }
}

/// The latest `MOST` values by their keys.
#[derive(Debug)]
pub(super) struct Latest<T, const MOST: usize>(Vec<(String, T)>);

impl<T, const MOST: usize> Default for Latest<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MOST: usize> Latest<T, MOST> {
    pub(super) fn find(&self, key: &str) -> Option<&T> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Keeps a value in place of an older one with its key, and of the oldest where there are too many.
    pub(super) fn keep(&mut self, key: &str, value: T) {
        self.0.retain(|(known, _)| known != key);
        self.0.push((key.to_owned(), value));
        self.0.drain(..self.0.len().saturating_sub(MOST));
    }
}

/// Scans worked on at the same time, where `given` is what a setting asks for.
pub(super) fn in_flight(given: usize) -> usize {
    match given {
        // Per core one scan in the networks and one in preprocessing, and two that are fetched meanwhile.
        0 => 2 * cores() + 2,
        given => given,
    }
}

/// Threads that own networks: one per core on the processor, one on a GPU.
pub(super) fn device_threads(device: tch::Device) -> usize {
    if device == tch::Device::Cpu { cores() } else { 1 }
}

/// The device as the tables name it: `cpu`, `cuda:0`.
pub(super) fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_values_are_kept() {
        let mut latest = Latest::<u32, 2>::default();
        for (key, value) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            latest.keep(key, value);
        }
        assert_eq!([latest.find("a"), latest.find("b"), latest.find("c")], [Some(&3), None, Some(&4)]);
    }
}
