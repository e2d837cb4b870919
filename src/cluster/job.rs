//! One chunk as one job: submitted, watched, fetched and checked.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;
use tracing::debug;

use super::client::{Client, JobId, JobState, Metrics, PartitionLocation};
use super::totals::Jobs;
use crate::cohort::{ScanEntry, manifest};
use crate::error::{Error, Result};
use crate::flow::{Order, Reason, Refusal, RollPolicy, ScreenExec, StopSwitch, Target, WriteExec};
use crate::tables::Receipt;

/// The first and the longest pause between two questions for a job.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Scans that are given out together.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) scans: Vec<ScanEntry>,
    /// How often it was given out in vain.
    pub(super) tries: u32,
    /// Whether executors were lost while they screened these scans.
    pub(super) is_suspect: bool,
}

impl Chunk {
    pub(super) fn new(scans: Vec<ScanEntry>) -> Self {
        Self { scans, tries: 0, is_suspect: false }
    }
}

/// The number of scans in the next chunk, of those that are left: many small chunks at the end keep all slots busy.
pub(super) fn chunk_size(left: usize, slots: usize) -> usize {
    (left / (4 * slots.max(1))).clamp(8, 256)
}

/// The results of a chunk.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) receipts: Vec<RecordBatch>,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) metrics: Metrics,
    pub(super) elapsed: Duration,
}

/// How a job ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// All its scans have rows.
    Accepted(Rows),
    /// An executor refused it.
    Refused(Refusal),
    /// It gave nothing; the chunk may be given out again.
    Failed(Error),
    /// The run ended before.
    Cancelled,
}

/// What a job needs besides its chunk.
pub(super) struct Job {
    pub(super) client: Client,
    pub(super) order: Arc<Order>,
    pub(super) policy: RollPolicy,
    pub(super) stop: Arc<StopSwitch>,
    pub(super) jobs: Jobs,
}

impl Job {
    /// Has the chunk screened.
    pub(super) async fn run(self, chunk: Chunk) -> (Chunk, Ended) {
        let ended = tokio::select! {
            ended = self.screened(&chunk) => ended.unwrap_or_else(Ended::Failed),
            () = self.stop.abandoned() => Ended::Cancelled,
        };
        (chunk, ended)
    }

    async fn screened(&self, chunk: &Chunk) -> Result<Ended> {
        let started = Instant::now();
        let plan = self.plan(&chunk.scans)?;
        let name = format!("{} {} scans", self.order.run_id, chunk.scans.len());
        let Some(job) = self.submitted(plan, &name).await? else { return Ok(Ended::Cancelled) };
        debug!(job = %job, scans = chunk.scans.len(), "submitted a chunk");
        self.jobs().insert(job.clone());
        let ended = self.watched(&job).await?;
        self.jobs().remove(&job);
        let partitions = match ended {
            JobState::Done(partitions) => partitions,
            JobState::Failed(text) => {
                return Ok(match Refusal::find(&text) {
                    Some(refusal) if refusal.reason != Reason::Failed => Ended::Refused(refusal),
                    refusal => Ended::Failed(failed(refusal.map_or(text, |refusal| refusal.message).as_str())),
                });
            }
            JobState::Unknown => {
                return Err(Error::Cluster("the scheduler has forgotten a chunk: it was started again".into()));
            }
            JobState::Queued | JobState::Running => return Ok(Ended::Cancelled),
        };
        let mut rows = self.fetched(&partitions, chunk.scans.len()).await?;
        // Times are for the report alone.
        rows.metrics = self.client.metrics(&job).await.unwrap_or_default();
        let client = self.client.clone();
        // Nothing waits for it: a scheduler that does not answer keeps the job for some minutes.
        tokio::spawn(async move { client.forget(&job).await });
        rows.elapsed = started.elapsed();
        Ok(Ended::Accepted(rows))
    }

    fn jobs(&self) -> MutexGuard<'_, HashSet<JobId>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan(&self, scans: &[ScanEntry]) -> Result<Arc<dyn ExecutionPlan>> {
        let partition = vec![manifest::to_batch(scans)?];
        let leaf = MemorySourceConfig::try_new_exec(&[partition], manifest::schema(), None)?;
        let screen = Arc::new(ScreenExec::new(leaf, Arc::clone(&self.order)));
        let target = Target::OfOrder(Arc::clone(&self.order));
        Ok(Arc::new(WriteExec::try_new(screen, target, self.policy)?))
    }

    /// Submits the plan; waits for a scheduler that does not answer as long as the run waits for a store. None where the run is
    /// to stop.
    async fn submitted(&self, plan: Arc<dyn ExecutionPlan>, name: &str) -> Result<Option<JobId>> {
        let mut patience = Patience::new(self.order.longest_outage);
        loop {
            if self.stop.is_pressed() {
                return Ok(None);
            }
            match self.client.submit(Arc::clone(&plan), name).await {
                Ok(job) => return Ok(Some(job)),
                Err(error @ Error::Cluster(_)) => patience.wait(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the end of a job. One that is still queued when the run is to stop is cancelled.
    async fn watched(&self, job: &JobId) -> Result<JobState> {
        let mut patience = Patience::new(self.order.longest_outage);
        let mut pause = FIRST_PAUSE;
        loop {
            match self.client.poll(job).await {
                Ok(JobState::Queued) if self.stop.is_pressed() => {
                    // If that fails, the job is executed in vain.
                    let _ = self.client.cancel(job).await;
                    return Ok(JobState::Queued);
                }
                Ok(JobState::Queued | JobState::Running) => patience = Patience::new(self.order.longest_outage),
                Ok(ended) => return Ok(ended),
                Err(error) => patience.wait(error).await?,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 5 / 4).min(LONGEST_PAUSE);
        }
    }

    /// Fetches receipts, which must count `scans`.
    async fn fetched(&self, partitions: &[PartitionLocation], scans: usize) -> Result<Rows> {
        counted(self.client.fetch(partitions).await?, scans)
    }
}

/// Refuses receipts that do not count exactly `scans`: some would be lost or doubled.
fn counted(receipts: Vec<RecordBatch>, scans: usize) -> Result<Rows> {
    let (mut done, mut failed) = (0, 0);
    let mut rolls = BTreeSet::new();
    for receipt in receipts.iter().map(Receipt::from_batch).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        if rolls.insert(receipt.batch_id) {
            done += receipt.n_scans as u64;
            failed += receipt.n_failed as u64;
        }
    }
    if done + failed != scans as u64 {
        let found = done + failed;
        return Err(Error::Bug(format!("the receipts of a chunk of {scans} scans count {found}")));
    }
    Ok(Rows { receipts, done, failed, ..Rows::default() })
}

/// Waiting for a scheduler that does not answer.
struct Patience {
    until: Instant,
}

impl Patience {
    fn new(longest: Duration) -> Self {
        Self { until: Instant::now() + longest }
    }

    /// Waits a moment; gives the error back where it was waited for long enough.
    async fn wait(&mut self, error: Error) -> Result<()> {
        if Instant::now() >= self.until {
            return Err(error);
        }
        debug!("{}; trying again", error.text());
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}

/// The error of a job that no executor refused.
fn failed(text: &str) -> Error {
    Error::Cluster(format!("a chunk failed on an executor: {}", without_addresses(text)))
}

/// The start of a text from another machine, without its paths and addresses: they are not for this machine's log.
fn without_addresses(text: &str) -> String {
    let is_address = |word: &str| {
        word.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '/').starts_with('/') || word.contains("://")
    };
    let words = text.split_whitespace().take(100).map(|word| if is_address(word) { "…" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Table;

    #[test]
    fn receipts_that_do_not_count_their_chunk_are_a_defect() {
        let roll = |batch_id: &str, n_scans, n_failed| {
            let receipt = |table| Receipt {
                batch_id: batch_id.into(),
                table,
                path: "part.parquet".into(),
                size_bytes: 1,
                num_rows: 1,
                stats: "{}".into(),
                n_scans,
                n_failed,
            };
            Receipt::to_batch(&[receipt(Table::Tokens), receipt(Table::Scans)]).unwrap()
        };
        let rows = counted(vec![roll("a", 5, 1), roll("b", 2, 0)], 8).unwrap();
        assert_eq!((rows.done, rows.failed, rows.receipts.len()), (7, 1, 2));
        for (receipts, scans) in [(vec![roll("a", 5, 1)], 8), (vec![roll("a", 5, 1), roll("b", 5, 1)], 6), (vec![], 1)]
        {
            let refused = counted(receipts, scans).unwrap_err();
            assert!(
                matches!(refused, Error::Bug(_)) && refused.to_string().contains(&format!("{scans} scans")),
                "{refused}"
            );
        }
    }

    #[test]
    fn the_text_of_another_machine_is_shown_without_its_paths() {
        let text = "Job x failed: cannot open \"/tmp/.x/data\" (https://u:p@host/b): No space left on device";
        let shown = failed(text).to_string();
        assert!(shown.ends_with("Job x failed: cannot open … … No space left on device"), "{shown}");
    }

    #[test]
    fn chunks_are_large_at_first_and_small_at_the_end() {
        assert_eq!(chunk_size(1_000_000, 16), 256);
        assert_eq!((chunk_size(1000, 4), chunk_size(500, 4), chunk_size(100, 4)), (62, 31, 8));
        assert_eq!((chunk_size(3, 4), chunk_size(64, 0)), (8, 16));
    }
}
