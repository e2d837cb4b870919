//! The journey of one scan: the only place that hears which stage a scan enters.
//!
//! ```text
//!                         ┌─► operator metrics   time per stage and counts, for EXPLAIN ANALYZE
//!  journey.enter(stage) ──┼─► Progress           scans and seconds per stage, for progress line, report and monitor
//!                         ├─► times()            milliseconds per stage in the scan's row
//!                         └─► stage()            the stage that a failure names
//! ```
//! Entering a stage ends the one before. A journey is shared with work that runs on other threads, and work that a timeout
//! left behind still reports to it: the scan counts at the stage of that work until the work ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, Time};

use super::progress::Progress;
use super::stage::Stage;

/// One scan's passage through the stages.
#[derive(Debug)]
pub(super) struct Journey {
    progress: Arc<Progress>,
    metrics: ScreenMetrics,
    position: Mutex<Position>,
}

#[derive(Debug)]
struct Position {
    stage: Stage,
    /// When the work of this stage began.
    since: Instant,
    /// What the stages took that the scan has left.
    spent: [Duration; Stage::ALL.len()],
}

/// Timers and counters of one partition of `ScreenExec`, shown by EXPLAIN ANALYZE.
#[derive(Debug, Clone)]
pub(super) struct ScreenMetrics {
    /// In the order of [`Stage::ALL`].
    timers: [Option<Time>; Stage::ALL.len()],
    bytes_fetched: Count,
    done: Count,
    failed: Count,
    output_rows: Count,
}

impl ScreenMetrics {
    pub(super) fn new(set: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let timer = |name| MetricBuilder::new(set).subset_time(name, partition);
        let counter = |name: &'static str| MetricBuilder::new(set).counter(name, partition);
        Self {
            timers: Stage::ALL.map(|stage| stage.metric().map(timer)),
            bytes_fetched: counter("bytes_fetched"),
            done: counter("scans_done"),
            failed: counter("scans_failed"),
            output_rows: MetricBuilder::new(set).output_rows(partition),
        }
    }
}

/// Milliseconds that a scan spent in each recorded stage, without waiting.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StageTimes {
    pub(super) fetch_ms: f32,
    pub(super) decode_ms: f32,
    pub(super) preprocess_ms: f32,
    pub(super) score_ms: f32,
}

impl Journey {
    /// Begins at [`Stage::Memory`].
    pub(super) fn begin(progress: Arc<Progress>, metrics: ScreenMetrics) -> Self {
        let stage = Stage::Memory;
        progress.arrive(stage);
        let position = Position { stage, since: Instant::now(), spent: [Duration::ZERO; Stage::ALL.len()] };
        Self { progress, metrics, position: Mutex::new(position) }
    }

    /// Ends the current stage and enters `next`.
    pub(super) fn enter(&self, next: Stage) {
        let mut position = self.position();
        let spent = position.since.elapsed();
        self.pass(&mut position, next, spent);
    }

    /// As [`Journey::enter`], where the current stage took `spent` of the scan's own time: a device that computes on
    /// several scans at once divides its time among them.
    pub(super) fn enter_after(&self, spent: Duration, next: Stage) {
        self.pass(&mut self.position(), next, spent);
    }

    /// Restarts the clock of the current stage. The scan waited for a core until now, and waiting is not counted as work.
    pub(super) fn begin_work(&self) {
        self.position().since = Instant::now();
    }

    fn pass(&self, position: &mut Position, next: Stage, spent: Duration) {
        let left = std::mem::replace(&mut position.stage, next);
        position.since = Instant::now();
        position.spent[left as usize] += spent;
        if let Some(timer) = &self.metrics.timers[left as usize] {
            timer.add_duration(spent);
        }
        self.progress.pass(left, next, spent);
    }

    /// The stage that the scan has reached.
    pub(super) fn stage(&self) -> Stage {
        self.position().stage
    }

    /// What a stage took that the scan has left.
    pub(super) fn spent(&self, stage: Stage) -> Duration {
        self.position().spent[stage as usize]
    }

    /// Times for the scan's row, with the current stage up to now.
    pub(super) fn times(&self) -> StageTimes {
        let position = self.position();
        let mut spent = position.spent;
        spent[position.stage as usize] += position.since.elapsed();
        let ms = |stages: &[Stage]| {
            let sum: Duration = stages.iter().map(|&stage| spent[stage as usize]).sum();
            sum.as_secs_f32() * 1e3
        };
        StageTimes {
            fetch_ms: ms(&[Stage::Fetch]),
            decode_ms: ms(&[Stage::Decode]),
            preprocess_ms: ms(&[Stage::Preprocess]),
            score_ms: ms(&[Stage::Device, Stage::Assess]),
        }
    }

    /// Counts bytes that were read from the store.
    pub(super) fn count_fetched(&self, bytes: usize) {
        self.metrics.bytes_fetched.add(bytes);
    }

    /// Counts the scan as done.
    pub(super) fn count_done(&self) {
        self.metrics.done.add(1);
        self.metrics.output_rows.add(1);
        self.progress.count_done();
    }

    /// Counts the scan as failed.
    pub(super) fn count_failed(&self) {
        self.metrics.failed.add(1);
        self.metrics.output_rows.add(1);
        self.progress.count_failed();
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        self.progress.depart(self.stage());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journeys<const N: usize>() -> (ExecutionPlanMetricsSet, Arc<Progress>, [Journey; N]) {
        let (set, progress) = (ExecutionPlanMetricsSet::new(), Arc::new(Progress::new(6, 2, 2)));
        let journeys = [(); N].map(|()| Journey::begin(Arc::clone(&progress), ScreenMetrics::new(&set, 0)));
        (set, progress, journeys)
    }

    #[test]
    fn a_scan_is_at_one_stage_at_a_time_and_waits_for_its_commit_at_last() {
        let (_, progress, [first, second]) = journeys();
        first.enter_after(Duration::from_millis(20), Stage::Fetch);
        let now = progress.snapshot();
        assert_eq!((now.at(Stage::Memory).scans, now.at(Stage::Fetch).scans, now.in_flight()), (1, 1, 2));
        assert_eq!((now.at(Stage::Memory).passed, now.at(Stage::Memory).seconds), (1, 0.02));
        first.count_done();
        drop(first);
        second.count_failed();
        drop(second);
        let now = progress.snapshot();
        assert_eq!((now.done, now.failed, now.in_flight(), now.at(Stage::Commit).scans), (1, 1, 0, 2));
        progress.commit(2, Duration::from_secs(1));
        let now = progress.snapshot();
        assert_eq!((now.at(Stage::Commit).scans, now.at(Stage::Commit).passed), (0, 2));
        assert!(now.at(Stage::Commit).busy.is_some_and(|share| share > 0.) && now.at(Stage::Queue).busy.is_none());
    }

    #[test]
    fn metrics_progress_and_row_have_the_same_times() {
        let (set, progress, [journey]) = journeys();
        let [wait, fetch, device] = [5, 40, 300].map(Duration::from_millis);
        journey.enter_after(wait, Stage::Fetch);
        journey.enter_after(fetch, Stage::Memory);
        // The second wait adds to the first.
        journey.enter_after(wait, Stage::Decode);
        for (stage, spent) in [(Stage::Preprocess, wait), (Stage::Queue, wait), (Stage::Device, wait)] {
            journey.enter_after(spent, stage);
        }
        journey.enter_after(device, Stage::Assess);
        assert_eq!(
            (journey.stage(), journey.spent(Stage::Memory), journey.spent(Stage::Fetch)),
            (Stage::Assess, 2 * wait, fetch)
        );
        journey.enter_after(wait, Stage::Commit);

        let metrics = set.clone_inner();
        let nanoseconds = |name| metrics.sum_by_name(name).unwrap().as_usize();
        assert_eq!(nanoseconds("memory_wait_time"), 10_000_000);
        assert_eq!((nanoseconds("fetch_time"), nanoseconds("device_time")), (40_000_000, 300_000_000));
        let now = progress.snapshot();
        assert_eq!((now.at(Stage::Memory).seconds, now.at(Stage::Memory).passed), (0.01, 2));
        assert_eq!((now.at(Stage::Fetch).seconds, now.at(Stage::Device).seconds), (0.04, 0.3));
        let times = journey.times();
        assert_eq!((times.fetch_ms.round(), times.decode_ms.round(), times.score_ms.round()), (40., 5., 305.));
    }

    #[test]
    fn waiting_for_a_core_is_no_work() {
        let (_, progress, [journey]) = journeys();
        journey.enter(Stage::Decode);
        let waited = Duration::from_secs(60);
        journey.position().since -= waited;
        journey.begin_work();
        journey.enter(Stage::Preprocess);
        assert!(journey.spent(Stage::Decode) < waited, "{:?}", journey.spent(Stage::Decode));
        assert_eq!(progress.snapshot().at(Stage::Preprocess).scans, 1);
    }
}
