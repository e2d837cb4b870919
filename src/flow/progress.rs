//! How far a run is and where its scans are: for the progress line, the closing report and a monitor.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::stage::Stage;

/// Counters shared by all partitions of a run.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    done: AtomicU64,
    failed: AtomicU64,
    committed: AtomicU64,
    /// Scans that other processes work on.
    given_out: AtomicU64,
    /// In the order of [`Stage::ALL`].
    stages: [StageCounters; Stage::ALL.len()],
}

#[derive(Debug)]
struct StageCounters {
    /// Number of scans that the stage can work on at once; none where scans wait.
    capacity: Option<usize>,
    scans: AtomicU64,
    passed: AtomicU64,
    busy_us: AtomicU64,
}

impl StageCounters {
    fn new(capacity: Option<usize>) -> Self {
        let [scans, passed, busy_us] = [(); 3].map(|()| AtomicU64::new(0));
        Self { capacity, scans, passed, busy_us }
    }
}

/// The counters of one stage at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StageSnapshot {
    /// The stage.
    #[serde(rename = "place")]
    pub stage: Stage,
    /// Scans at the stage.
    pub scans: u64,
    /// Scans that have passed it.
    pub passed: u64,
    /// Seconds of work, or of waiting where scans wait, summed over all scans. A core that takes up another scan's work
    /// in between counts for both.
    pub seconds: f64,
    /// Share of the stage's capacity (cores, device threads, fetches) that was in use since the start, 0 to 1; none where scans
    /// wait.
    pub busy: Option<f64>,
}

/// The stage that the others wait for: the one with the highest share of busy time; [`Stage::Memory`], where no share
/// reaches one half and scans spent more time there than at any other stage. None before the first scan has passed a stage.
pub fn bottleneck(stages: &[StageSnapshot]) -> Option<StageSnapshot> {
    let share = |stage: &StageSnapshot| stage.busy.unwrap_or(0.);
    if !stages.iter().any(|stage| stage.busy.is_some() && stage.stage != Stage::Commit) {
        return stages
            .iter()
            .filter(|stage| stage.seconds > 0.)
            .copied()
            .max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    }
    let busiest = stages.iter().filter(|stage| stage.seconds > 0.).max_by(|a, b| share(a).total_cmp(&share(b)))?;
    let longest = stages.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
    let memory_bound = share(busiest) < 0.5 && longest.stage == Stage::Memory;
    Some(if memory_bound { *longest } else { *busiest })
}

/// All counters at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Time since the run was prepared.
    pub elapsed: Duration,
    /// Scans that finished.
    pub done: u64,
    /// Scans that became a row in `failures`.
    pub failed: u64,
    /// Scans that were given to other processes and have not ended.
    pub given_out: u64,
    /// Every stage, in the order of a scan's way.
    pub stages: [StageSnapshot; Stage::ALL.len()],
}

impl Snapshot {
    /// Scans that have ended, done or failed.
    pub fn ended(&self) -> u64 {
        self.done + self.failed
    }

    /// Scans that are being worked on.
    pub fn in_flight(&self) -> u64 {
        let here = self.stages.iter().filter(|counts| counts.stage != Stage::Commit).map(|counts| counts.scans);
        here.sum::<u64>() + self.given_out
    }

    /// One stage.
    pub fn at(&self, stage: Stage) -> StageSnapshot {
        self.stages[stage as usize]
    }
}

impl Progress {
    /// Progress of a run with at most `in_flight` scans at once on `cores` cores and `device_threads` threads of the device.
    pub(super) fn new(in_flight: usize, cores: usize, device_threads: usize) -> Self {
        let [done, failed, committed, given_out] = [(); 4].map(|()| AtomicU64::new(0));
        let stages = Stage::ALL.map(|stage| {
            StageCounters::new(match stage {
                Stage::Memory | Stage::Queue => None,
                Stage::Fetch => Some(in_flight),
                Stage::Decode | Stage::Preprocess | Stage::Assess => Some(cores),
                Stage::Device => Some(device_threads),
                Stage::Commit => Some(1),
            })
        });
        Self { started: Instant::now(), done, failed, committed, given_out, stages }
    }

    /// Progress of a run whose scans are screened by other processes.
    pub fn elsewhere() -> Self {
        let mut progress = Self::new(0, 0, 0);
        for (stage, counters) in Stage::ALL.into_iter().zip(&mut progress.stages) {
            // The commits are this process's own.
            counters.capacity = counters.capacity.filter(|_| stage == Stage::Commit);
        }
        progress
    }

    /// Scans are given to other processes.
    pub fn give_out(&self, scans: u64) {
        self.given_out.fetch_add(scans, Relaxed);
    }

    /// Scans that were given to other processes have ended there, or are not worked on any more.
    pub fn take_back(&self, scans: u64) {
        self.given_out.fetch_sub(scans, Relaxed);
    }

    /// Counts scans that other processes have ended. `metric` gives the sum of an operator's metric in nanoseconds.
    pub fn absorb(&self, done: u64, failed: u64, metric: impl Fn(&str) -> Option<u64>) {
        for (stage, counters) in Stage::ALL.into_iter().zip(&self.stages) {
            if let Some(nanoseconds) = stage.metric().and_then(&metric) {
                counters.busy_us.fetch_add(nanoseconds / 1000, Relaxed);
                counters.passed.fetch_add(done + failed, Relaxed);
            }
        }
        self.done.fetch_add(done, Relaxed);
        self.failed.fetch_add(failed, Relaxed);
    }

    /// A scan begins its way at `stage`.
    pub(super) fn arrive(&self, stage: Stage) {
        self.stages[stage as usize].scans.fetch_add(1, Relaxed);
    }

    /// A scan that spent `spent` at the stage `left` enters `next`.
    pub(super) fn pass(&self, left: Stage, next: Stage, spent: Duration) {
        let counters = &self.stages[left as usize];
        counters.busy_us.fetch_add(spent.as_micros() as u64, Relaxed);
        counters.passed.fetch_add(1, Relaxed);
        self.depart(left);
        self.arrive(next);
    }

    /// A scan ends its way at `stage`.
    pub(super) fn depart(&self, stage: Stage) {
        self.stages[stage as usize].scans.fetch_sub(1, Relaxed);
    }

    /// Counts a scan that finished.
    pub(super) fn count_done(&self) {
        self.done.fetch_add(1, Relaxed);
    }

    /// Counts a scan that failed.
    pub(super) fn count_failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Counts ended scans that a commit of `spent` put into the tables.
    pub(super) fn commit(&self, scans: u64, spent: Duration) {
        self.committed.fetch_add(scans, Relaxed);
        self.stages[Stage::Commit as usize].busy_us.fetch_add(spent.as_micros() as u64, Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        // Read before `done` and `failed`, so that it never exceeds them: a committed scan has ended.
        let committed = self.committed.load(Relaxed);
        let (done, failed) = (self.done.load(Relaxed), self.failed.load(Relaxed));
        let (elapsed, given_out) = (self.started.elapsed(), self.given_out.load(Relaxed));
        let at = |stage: Stage| {
            let counters = &self.stages[stage as usize];
            let (scans, passed) = match stage {
                Stage::Commit => ((done + failed).saturating_sub(committed), committed),
                _ => (counters.scans.load(Relaxed), counters.passed.load(Relaxed)),
            };
            let seconds = counters.busy_us.load(Relaxed) as f64 / 1e6;
            let available = |capacity: usize| capacity as f64 * elapsed.as_secs_f64();
            let busy = counters.capacity.map(|capacity| (seconds / available(capacity)).min(1.));
            StageSnapshot { stage, scans, passed, seconds, busy }
        };
        Snapshot { elapsed, done, failed, given_out, stages: Stage::ALL.map(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(stage: Stage, seconds: f64, busy: Option<f64>) -> StageSnapshot {
        StageSnapshot { stage, scans: 0, passed: 0, seconds, busy }
    }

    #[test]
    fn the_bottleneck_is_the_busiest_stage_or_memory_where_none_is_busy() {
        let stages = |device, memory| {
            [
                counts(Stage::Memory, memory, None),
                counts(Stage::Fetch, 90., Some(0.1)),
                counts(Stage::Queue, 200., None),
                counts(Stage::Device, 20., Some(device)),
            ]
        };
        let at = |device, memory| bottleneck(&stages(device, memory)).map(|counts| counts.stage);
        assert_eq!(at(0.97, 500.), Some(Stage::Device));
        assert_eq!(at(0.3, 500.), Some(Stage::Memory));
        assert_eq!(at(0.3, 1.), Some(Stage::Device));
        assert_eq!(bottleneck(&[counts(Stage::Fetch, 0., Some(0.))]).map(|counts| counts.stage), None);
    }

    #[test]
    fn scans_that_others_ended_count_with_their_times() {
        let progress = Progress::elsewhere();
        let metric = |name: &str| (name == "device_time").then_some(3_000_000_000);
        progress.give_out(20);
        assert_eq!(progress.snapshot().in_flight(), 20);
        progress.take_back(20);
        progress.absorb(7, 1, metric);
        let now = progress.snapshot();
        assert_eq!((now.done, now.failed, now.in_flight(), now.at(Stage::Commit).scans), (7, 1, 0, 8));
        assert_eq!((now.at(Stage::Device).seconds, now.at(Stage::Device).passed), (3., 8));
        assert_eq!(bottleneck(&now.stages).map(|slowest| slowest.stage), Some(Stage::Device));
    }

    #[test]
    fn a_report_names_the_stage_as_place() {
        let json = serde_json::to_value(counts(Stage::Queue, 1.5, None)).unwrap();
        let expected = serde_json::json!({"place": "queue", "scans": 0, "passed": 0, "seconds": 1.5, "busy": null});
        assert_eq!(json, expected);
    }
}
