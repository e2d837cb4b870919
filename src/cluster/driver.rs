//! The driver's loop: keeps chunks in flight, and decides what becomes of each.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::board::{StationReport, device_kinds};
use super::client::Client;
use super::job::{Chunk, Ended, Job, Rows, chunk_size};
use super::totals::Shared;
use crate::cohort::ScanEntry;
use crate::error::{Error, Result};
use crate::flow::{Assignment, FailureLimit, Order, Progress, Reason, Refusal, StopSwitch, write_crash};
use crate::store::Location;

/// How often the executors are counted.
const COUNT: Duration = Duration::from_secs(2);

/// How often it is said that there is no executor, or that the scheduler does not answer.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a run that is to stop waits for executors once the last one is gone.
const LAST_WAIT: Duration = Duration::from_secs(25);

/// How often the same chunk is given out.
const MOST_TRIES: u32 = 3;

/// Into how many chunks one is cut that executors were lost with.
const PARTS: usize = 8;

/// The driver of one run.
pub(super) struct Driver {
    client: Client,
    chunk_scans: Option<usize>,
    order: Arc<Order>,
    policy: crate::flow::RollPolicy,
    tables: Location,
    stop: Arc<StopSwitch>,
    progress: Arc<Progress>,
    max_failures: Option<FailureLimit>,
    /// Scans that belong to no chunk yet.
    scans: VecDeque<ScanEntry>,
    /// Chunks that are given out again.
    again: VecDeque<Chunk>,
    /// Chunks that executors were lost with. One is given out at a time.
    suspects: VecDeque<Chunk>,
    suspect_in_flight: bool,
    receipts: mpsc::Sender<RecordBatch>,
    shared: Shared,
    slots: usize,
    /// Since when there is no executor, and when that was said last.
    alone: Option<(Instant, Instant)>,
    /// When it was said last that the scheduler does not answer.
    silent: Option<Instant>,
    /// Whether a chunk failed since the last one that was accepted.
    in_vain: bool,
    /// Whether it was said that there are several kinds of devices.
    said_mixed: bool,
    /// Refusals of unfit executors since the last chunk that was accepted.
    unfit: usize,
}

impl Driver {
    pub(super) fn new(
        (client, chunk_scans): (Client, Option<usize>),
        assignment: Assignment,
        receipts: mpsc::Sender<RecordBatch>,
        shared: Shared,
    ) -> Self {
        let Assignment { order, mut scans, tables, policy, stop, progress, .. } = assignment;
        // Those that may end a process stay last. A large scan that begins last would have all others wait.
        scans.sort_by_key(|scan| (scan.apart, std::cmp::Reverse(scan.size_bytes)));
        let max_failures = order.max_failures;
        Self {
            client,
            chunk_scans,
            order: Arc::new(Order { max_failures: None, ..order }),
            policy,
            tables,
            stop,
            progress,
            max_failures,
            scans: scans.into(),
            again: VecDeque::new(),
            suspects: VecDeque::new(),
            suspect_in_flight: false,
            receipts,
            shared,
            slots: 0,
            alone: None,
            silent: None,
            in_vain: false,
            said_mixed: false,
            unfit: 0,
        }
    }

    /// Screens all scans, or as many as the run's switch allows. A failure of the run presses the switch.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.drive().await {
            self.stop.fail(error);
        }
    }

    async fn drive(&mut self) -> Result<()> {
        let mut in_flight: FuturesUnordered<BoxFuture<'static, (Chunk, Ended)>> = FuturesUnordered::new();
        let mut counting = tokio::time::interval(COUNT);
        loop {
            while in_flight.len() < 2 * self.slots && !self.stop.is_pressed() {
                let Some(chunk) = self.next_chunk() else { break };
                self.progress.give_out(chunk.scans.len() as u64);
                in_flight.push(Box::pin(self.job(chunk)));
            }
            let is_done = self.scans.is_empty() && self.again.is_empty() && self.suspects.is_empty();
            if in_flight.is_empty() && (is_done || self.stop.is_pressed()) {
                return Ok(());
            }
            tokio::select! {
                Some((chunk, ended)) = in_flight.next() => self.settle(chunk, ended).await?,
                _ = counting.tick() => self.count().await?,
                () = self.stop.pressed(), if in_flight.is_empty() => {}
            }
        }
    }

    fn job(&self, chunk: Chunk) -> impl Future<Output = (Chunk, Ended)> + Send + 'static {
        Job {
            client: self.client.clone(),
            order: Arc::clone(&self.order),
            policy: self.policy,
            stop: Arc::clone(&self.stop),
            jobs: Arc::clone(&self.shared.jobs),
        }
        .run(chunk)
    }

    fn next_chunk(&mut self) -> Option<Chunk> {
        if let Some(chunk) = self.again.pop_front() {
            return Some(chunk);
        }
        if !self.suspect_in_flight
            && let Some(chunk) = self.suspects.pop_front()
        {
            self.suspect_in_flight = true;
            return Some(chunk);
        }
        let first = self.scans.front()?.apart;
        let size = self.chunk_scans.unwrap_or_else(|| chunk_size(self.scans.len(), self.slots)).max(1);
        // What may end a process gets a chunk of its own kind.
        let same = self.scans.iter().take(size).take_while(|scan| scan.apart == first).count();
        Some(Chunk::new(self.scans.drain(..same).collect()))
    }

    /// Updates the number of slots and the devices from the scheduler's list of executors. Executors may join at any time.
    async fn count(&mut self) -> Result<()> {
        let stations = match self.client.stations().await {
            Ok(stations) => stations,
            Err(error) => {
                if self.silent.is_none_or(|since| since.elapsed() >= SILENCE) {
                    warn!("{}; trying again; chunks that it has forgotten are submitted again", error.text());
                    self.silent = Some(Instant::now());
                }
                return Ok(());
            }
        };
        if self.silent.take().is_some() {
            info!("the scheduler at {} answers again", self.client.address());
        }
        let fit = stations.iter().filter(|station| station.unfit.is_none());
        self.slots = fit.map(|station| station.slots).sum();
        {
            let mut devices = self.shared.devices.lock().unwrap_or_else(PoisonError::into_inner);
            devices.extend(device_kinds(&stations));
            if devices.len() > 1 && !std::mem::replace(&mut self.said_mixed, true) {
                warn!("executors compute on different kinds of devices, whose results differ in the last digits");
            }
        }
        if self.slots > 0 {
            self.alone = None;
            return Ok(());
        }
        self.without_executors(&stations)
    }

    /// Waits for executors to join; ends a run whose executors have all become unfit, and one that is to stop.
    fn without_executors(&mut self, stations: &[StationReport]) -> Result<()> {
        let unfit = stations.iter().find_map(|station| station.unfit.as_ref());
        // The list of a restarted scheduler is empty until executors report, so an empty list alone ends no run.
        if let Some(why) = unfit.filter(|_| self.unfit > 0 || self.in_vain) {
            return Err(no_one_left(why));
        }
        let (since, said) = self.alone.get_or_insert_with(|| (Instant::now(), Instant::now()));
        if self.stop.is_pressed() && since.elapsed() >= LAST_WAIT {
            warn!("no executor is left to finish the chunks in flight; the next run screens them");
            self.stop.abandon();
        } else if said.elapsed() >= SILENCE {
            *said = Instant::now();
            let address = self.client.address();
            warn!(
                "no executor has joined the scheduler at {address} for {} s; waiting. Start one: neurosieve executor --scheduler \
                 {address}",
                since.elapsed().as_secs()
            );
        }
        Ok(())
    }

    /// Decides what becomes of a chunk.
    async fn settle(&mut self, chunk: Chunk, ended: Ended) -> Result<()> {
        self.progress.take_back(chunk.scans.len() as u64);
        if !matches!(ended, Ended::Accepted(_)) {
            self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner).again += 1;
        }
        if chunk.is_suspect {
            self.suspect_in_flight = false;
        }
        match ended {
            Ended::Accepted(rows) => {
                (self.unfit, self.in_vain) = (0, false);
                self.accept(rows).await
            }
            Ended::Cancelled => Ok(()),
            Ended::Failed(error) if chunk.tries + 1 >= MOST_TRIES => Err(error),
            Ended::Failed(error) => {
                warn!(scans = chunk.scans.len(), "a chunk is screened again: {}", error.text());
                self.in_vain = true;
                self.give_again(Chunk { tries: chunk.tries + 1, ..chunk });
                Ok(())
            }
            Ended::Refused(Refusal { reason: Reason::Lost, .. }) => self.cut(chunk).await,
            Ended::Refused(Refusal { reason: Reason::Run, message }) if self.accepted() == 0 => {
                Err(Error::Cluster(message))
            }
            Ended::Refused(Refusal { message, .. }) => {
                warn!("an executor cannot work for this run: {message}");
                self.unfit += 1;
                // Executors that are started again and again must not refuse for ever.
                if self.unfit > 8 + 4 * self.slots {
                    return Err(no_one_left(&message));
                }
                self.give_again(chunk);
                self.count().await
            }
        }
    }

    fn accepted(&self) -> u64 {
        self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner).accepted
    }

    async fn accept(&mut self, rows: Rows) -> Result<()> {
        let Rows { receipts, done, failed, metrics, elapsed } = rows;
        self.progress.absorb(done, failed, |name| metrics.get(name).copied());
        {
            let mut totals = self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner);
            totals.accepted += 1;
            totals.elapsed += elapsed;
            for (name, value) in metrics {
                *totals.metrics.entry(name).or_default() += value;
            }
        }
        for batch in receipts {
            // The receiver is dropped where the run has ended.
            if self.receipts.send(batch).await.is_err() {
                return Ok(());
            }
        }
        let now = self.progress.snapshot();
        if self.max_failures.is_some_and(|limit| limit.is_passed(now.done, now.failed)) {
            self.stop.give_up();
        }
        Ok(())
    }

    /// Cuts a chunk with which executors were lost; a single scan has ended them, and becomes a failure.
    async fn cut(&mut self, chunk: Chunk) -> Result<()> {
        let mut scans = chunk.scans;
        if scans.len() == 1
            && let Some(scan) = scans.pop()
        {
            warn!(scan_id = %scan.scan_id, "executors died each time they screened this scan; it is quarantined");
            let receipts = vec![write_crash(&self.order, scan, &self.tables).await?];
            let rows = Rows { receipts, failed: 1, ..Rows::default() };
            return self.accept(rows).await;
        }
        warn!(scans = scans.len(), "executors were lost while they screened a chunk; it is cut into smaller ones");
        let size = scans.len().div_ceil(PARTS);
        let part = |part: &[ScanEntry]| Chunk { is_suspect: true, ..Chunk::new(part.to_vec()) };
        self.suspects.extend(scans.chunks(size).map(part));
        Ok(())
    }

    fn give_again(&mut self, chunk: Chunk) {
        let queue = if chunk.is_suspect { &mut self.suspects } else { &mut self.again };
        queue.push_back(chunk);
    }
}

fn no_one_left(why: &str) -> Error {
    Error::Cluster(format!("no executor can work for this run. The last one said: {why}"))
}
