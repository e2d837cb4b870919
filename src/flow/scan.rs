//! One scan's way from its manifest entry to its rows: fetch, decode, preprocess, score, assess.
//!
//! A volume lives inside one scan's future from the fetch to the rows; only rows leave it. An error or a panic at any stage
//! becomes the scan's row in `failures`, unless the fault is the store's or the device's: then the run ends with an error, and
//! its scans stay pending. [`Journey`] hears of every stage; this file holds the steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use tokio::sync::oneshot;
use tracing::{Instrument, debug, error_span, warn};
use url::Url;

use super::acquired;
use super::apart::Apart;
use super::budget::{self, Grant};
use super::journey::{Journey, ScreenMetrics};
use super::outage::{MOST_OUTAGES, Verdict};
use super::rows::{self, Failed, Finished};
use super::stage::Stage;
use super::work::{Work, in_time};
use crate::cohort::{self, Acquisition, ScanBytes, ScanEntry};
use crate::error::{Error, Result};
use crate::hex::hexadecimal;
use crate::model::device;
use crate::preprocess::{self, Prepared};
use crate::score::{self, Inference};

/// Screens one scan and gives its row of `screen_schema`; `None` where the run stops before the scan is started or has ended.
///
/// # Errors
/// [`Error::Bug`] where the row cannot be made. A failure of the scan itself is a row.
pub(super) async fn screen(work: Work, metrics: ScreenMetrics, entry: ScanEntry) -> Result<Option<RecordBatch>> {
    let setup = Arc::clone(&work.setup);
    let apart = setup.apart.as_ref();
    let _turn = match apart.filter(|_| entry.apart) {
        Some(apart) => tokio::select! {
            turn = apart.turn() => Some(turn),
            () = setup.stop.pressed() => return Ok(None),
        },
        None => None,
    };
    let _other = apart.filter(|_| !entry.apart).map(Counted);
    let Some(_permit) = work.admit().await else { return Ok(None) };
    let _in_flight = match &setup.journal {
        Some(journal) => tokio::select! {
            entered = journal.enter(&entry) => Some(entered),
            () = setup.stop.pressed() => return Ok(None),
        },
        None => None,
    };
    let journey = Journey::begin(Arc::clone(&work.station.progress), metrics);
    let scan = Scan { work, entry, journey, sha256: Mutex::default(), acquisition: OnceLock::new() };
    let scan = Arc::new(scan);
    // At the level of errors, so that it is there wherever a line about the scan is logged.
    let span = error_span!("scan", scan_id = %scan.entry.scan_id);
    let results = tokio::select! {
        biased;
        results = scan.results().instrument(span.clone()) => results,
        () = setup.stop.abandoned() => return Ok(None),
    };
    if let Err(error) = scan.refuse_broken_device(&results).await {
        setup.stop.fail(error);
        return Ok(None);
    }
    match results {
        Err(Ended::Run) => Ok(None),
        Err(Ended::Scan(error, stage)) => {
            let stage = stage.unwrap_or(scan.journey.stage());
            span.in_scope(|| scan.end_with_failure(&error, stage)).map(Some)
        }
        Ok(rows) => {
            scan.journey.count_done();
            span.in_scope(|| debug!("done"));
            Ok(Some(rows))
        }
    }
}

/// A scan that is screened as usual; dropping it says that it has ended.
struct Counted<'a>(&'a Apart);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.other_ended();
    }
}

/// Why a scan has no results.
#[derive(Debug)]
enum Ended {
    /// It failed, at this stage or at the one that it has reached.
    Scan(Error, Option<Stage>),
    /// The run ends, for a reason that is not the scan's.
    Run,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Scan(error, None)
    }
}

/// A scan in flight. Steps on other threads hold it as well.
struct Scan {
    work: Work,
    entry: ScanEntry,
    journey: Journey,
    /// SHA-256 of the bytes that were decoded last.
    sha256: Mutex<Option<String>>,
    /// What the files say that describe the scan.
    acquisition: OnceLock<Acquisition>,
}

/// A preprocessed scan; its bytes are dropped.
struct PreparedScan {
    prepared: Arc<Prepared>,
    /// Kind of number that the file held, for the tables.
    datatype: String,
}

impl Scan {
    /// Reads and screens the scan. A content that is found unusable is read once more: a bit that was flipped on the way must
    /// not quarantine a good scan.
    async fn results(self: &Arc<Self>) -> Result<RecordBatch, Ended> {
        if let Some(apart) = self.work.setup.apart.as_ref().filter(|_| self.entry.apart) {
            // All memory for scans: the scan may need more than it seems to.
            let _all = self.work.station.budget.take(u64::MAX).await?;
            self.journey.enter(Stage::Decode);
            for _ in 0..MOST_OUTAGES {
                let outages = self.work.setup.outages.ended().await;
                let screening = apart.screen(&self.work.order, &self.entry);
                match in_time(self.work.order.scan_timeout, Duration::ZERO, screening).await {
                    // A signal to the whole group of processes, as systemd sends it to stop a run, also ends this process.
                    Err(Error::Crashed(_)) if self.is_stopped_soon().await => return Err(Ended::Run),
                    Err(error) if error.is_of_store() => self.judge(error, outages).await?,
                    outcome => return Ok(outcome?),
                }
            }
            return Err(self.unreadable().into());
        }
        let ((grant, bytes), ()) = tokio::try_join!(self.fetch(), self.read_acquisition())?;
        let unusable = match self.results_of(grant, bytes).await {
            Err(error @ Error::Input { .. }) => error,
            outcome => return Ok(outcome?),
        };
        let stage = self.journey.stage();
        let (grant, bytes) = self.fetch().await?;
        let (bytes, second) = digested(bytes).await?;
        if self.sha256() == Some(second) {
            return Err(Ended::Scan(unusable, Some(stage)));
        }
        warn!(kind = unusable.kind(), "the bytes differ from reading to reading; going on with the second reading");
        match self.results_of(grant, bytes).await {
            Err(Error::Input { .. }) => {
                let source = object_store::Error::Generic { store: "body", source: "differs".into() };
                let context = format!("{} has other bytes at every reading, none of them usable", self.entry.uri);
                Err(Error::storage(context, source).into())
            }
            outcome => Ok(outcome?),
        }
    }

    /// The steps after the fetch. `grant` is the memory that the scan may take until then.
    async fn results_of(self: &Arc<Self>, grant: Grant, bytes: ScanBytes) -> Result<RecordBatch> {
        // Not within the timeout: a scan that waits for others' memory is not stuck.
        let grant = self.wait_for_memory(grant, &bytes).await?;
        let remaining_steps = async {
            let (scan, grant) = self.decode_and_preprocess(bytes, grant).await?;
            let _grant = self.work.station.budget.settle(grant, budget::SCORED).await?;
            let inference = self.score(&scan.prepared).await?;
            self.assess(scan, inference).await
        };
        in_time(self.work.order.scan_timeout, self.journey.spent(Stage::Fetch), remaining_steps).await
    }

    /// Reads the scan, and again after an outage of the store.
    async fn fetch(&self) -> Result<(Grant, ScanBytes), Ended> {
        let limit = self.work.order.max_scan_bytes;
        if self.journey.stage() != Stage::Memory {
            self.journey.enter(Stage::Memory);
        }
        self.work.station.budget.refuse(budget::least_for_fetching(&self.entry))?;
        let grant = self.work.station.budget.take(budget::before_fetching(&self.entry, limit)).await?;
        self.journey.enter(Stage::Fetch);
        for _ in 0..MOST_OUTAGES {
            let outages = self.work.setup.outages.ended().await;
            let reading = cohort::read(&self.work.setup.cohort, &self.entry, limit);
            match in_time(self.work.order.scan_timeout, Duration::ZERO, reading).await {
                Ok(bytes) => {
                    self.journey.count_fetched(bytes.n_bytes());
                    return Ok((grant, bytes));
                }
                Err(error) => self.judge(error, outages).await?,
            }
        }
        Err(self.unreadable().into())
    }

    /// Reads how the scan was acquired.
    async fn read_acquisition(&self) -> Result<(), Ended> {
        let found = acquired::read(&self.work, &self.entry).await.ok_or(Ended::Run)?;
        // It is read once per scan.
        let _ = self.acquisition.set(found);
        Ok(())
    }

    /// Decides whose fault a failed reading is; completes where the scan is to be read again. `outages` is the number of outages
    /// before the reading.
    async fn judge(&self, error: Error, outages: u64) -> Result<(), Ended> {
        let judged = tokio::select! {
            judged = self.work.setup.outages.judge(&self.entry, error, outages) => judged,
            // An outage is not waited for by a run that is to end.
            () = self.work.setup.stop.pressed() => return Err(Ended::Run),
        };
        match judged {
            Verdict::OfScan(error) => Err(error.into()),
            Verdict::Over => Ok(()),
            Verdict::Down(error) => {
                self.work.setup.stop.fail(error);
                Err(Ended::Run)
            }
        }
    }

    /// The error of a scan that cannot be read although its store seems to answer.
    fn unreadable(&self) -> Error {
        let source = object_store::Error::Generic { store: "outages", source: "again and again".into() };
        Error::storage(
            format!("cannot read {}, also after {MOST_OUTAGES} outages of the store", self.entry.uri),
            source,
        )
    }

    /// Whether the run is asked to stop now or within a second.
    async fn is_stopped_soon(&self) -> bool {
        tokio::time::timeout(Duration::from_secs(1), self.work.setup.stop.pressed()).await.is_ok()
    }

    /// Waits for the share that the fetched header asks for, which is refused where there is not as much.
    async fn wait_for_memory(&self, grant: Grant, bytes: &ScanBytes) -> Result<Grant> {
        self.journey.enter(Stage::Memory);
        let share = budget::before_scoring(bytes.n_bytes(), bytes.decoded_bytes(), self.work.order.max_scan_bytes);
        self.work.station.budget.refuse(share)?;
        self.work.station.budget.settle(grant, share).await
    }

    fn sha256(&self) -> Option<String> {
        self.sha256.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells an error of the device from one that a scan caused.
    async fn refuse_broken_device(&self, results: &Result<RecordBatch, Ended>) -> Result<()> {
        let Err(Ended::Scan(Error::Device { smaller: false, .. }, _)) = results else { return Ok(()) };
        let on = self.work.station.on;
        let check = tokio::task::spawn_blocking(move || device::check(on)).await;
        check.map_err(|e| Error::Bug(format!("the check of the device ended: {e}")))?
    }

    /// Decodes and preprocesses in one go, so that decoded volumes do not pile up. The work holds the grant itself: it takes
    /// memory until it ends, even where the scan has timed out before.
    async fn decode_and_preprocess(self: &Arc<Self>, bytes: ScanBytes, grant: Grant) -> Result<(PreparedScan, Grant)> {
        self.journey.enter(Stage::Decode);
        let scan = Arc::clone(self);
        on_rayon(move || {
            scan.journey.begin_work();
            *scan.sha256.lock().unwrap_or_else(PoisonError::into_inner) = Some(hexadecimal(&bytes.sha256()));
            let decoded = bytes.decode(scan.work.order.max_scan_bytes)?;
            drop(bytes);
            scan.journey.enter(Stage::Preprocess);
            let prepared = preprocess::prepare(&decoded.volume, &scan.work.order.preprocess)?;
            scan.journey.enter(Stage::Queue);
            Ok((PreparedScan { prepared: Arc::new(prepared), datatype: decoded.datatype }, grant))
        })
        .await
    }

    /// Has the networks score the scan.
    async fn score(&self, prepared: &Arc<Prepared>) -> Result<Inference> {
        let (taken, taken_up) = oneshot::channel();
        let scored = self.work.setup.worker.score(&self.entry.scan_id, Arc::clone(prepared), taken);
        let follow = async {
            // An error means that no thread took the scan up; then `scored` says why.
            if taken_up.await.is_ok() {
                self.journey.enter(Stage::Device);
            }
        };
        let (scored, ()) = tokio::join!(scored, follow);
        let (inference, on_device) = scored?;
        self.journey.enter_after(on_device, Stage::Assess);
        Ok(inference)
    }

    /// Makes maps, findings and rows.
    async fn assess(self: &Arc<Self>, prepared_scan: PreparedScan, inference: Inference) -> Result<RecordBatch> {
        let scan = Arc::clone(self);
        on_rayon(move || {
            scan.journey.begin_work();
            let PreparedScan { prepared, datatype } = prepared_scan;
            let settings = &scan.work.setup.settings;
            let assessment = score::assess(&inference, &prepared.image, &prepared.brain, settings)?;
            let acquisition = scan.acquisition.get().cloned().unwrap_or_default();
            let finished = Finished {
                prepared: &prepared,
                acquisition: &acquisition,
                datatype: &datatype,
                inference: &inference,
                assessment: &assessment,
                settings,
                device: &scan.work.station.device,
                times: scan.journey.times(),
                sha256: &scan.sha256().unwrap_or_default(),
            };
            let rows = rows::finished(&scan.work.order, &scan.entry, &finished)?;
            scan.journey.enter(Stage::Commit);
            Ok(rows)
        })
        .await
    }

    /// Counts the failure of the scan; gives its row.
    fn end_with_failure(&self, error: &Error, stage: Stage) -> Result<RecordBatch> {
        self.journey.count_failed();
        self.give_up_after_too_many_failures();
        let (stage, kind) = (stage.recorded(), error.kind());
        let message = without_folder(&error.to_string(), &self.work.order.cohort);
        warn!(stage, kind, "failed: {message}");
        let sha256 = self.sha256();
        let failed = Failed { stage, error, message, sha256: sha256.as_deref(), permanent: false };
        rows::failed(&self.work.order, &self.entry, failed)
    }

    fn give_up_after_too_many_failures(&self) {
        let now = self.work.station.progress.snapshot();
        if self.work.order.max_failures.is_some_and(|limit| limit.is_passed(now.done, now.failed)) {
            self.work.setup.stop.give_up();
        }
    }
}

/// The bytes, and their SHA-256 in hexadecimal digits.
async fn digested(bytes: ScanBytes) -> Result<(ScanBytes, String)> {
    on_rayon(move || {
        let digest = hexadecimal(&bytes.sha256());
        Ok((bytes, digest))
    })
    .await
}

/// A message without the folder of a local cohort: neither logs nor tables may say where a host keeps its files.
fn without_folder(message: &str, cohort: &str) -> String {
    let folder = Url::parse(cohort).ok().and_then(|url| url.to_file_path().ok());
    match folder {
        Some(folder) if folder.parent().is_some() => {
            let folder = folder.display().to_string();
            message.replace(&format!("{}/", folder.trim_end_matches('/')), "")
        }
        _ => message.to_owned(),
    }
}

/// Runs `work` on rayon, so that no tokio worker blocks; a panic becomes an error.
async fn on_rayon<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (reply, answer) = oneshot::channel();
    rayon::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
            Err(Error::Bug(format!("a step panicked: {}", text.unwrap_or_default())))
        });
        let _ = reply.send(result);
    });
    answer.await.map_err(|_| Error::Bug("a step ended without an answer".into()))?
}

#[cfg(test)]
mod tests {
    use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;

    use super::super::progress::Progress;
    use super::*;

    #[tokio::test]
    async fn a_scan_has_the_time_that_earlier_work_left() {
        let limit = Some(Duration::from_secs(60));
        let quick = in_time(limit, Duration::from_secs(59), async { Ok(7) }).await;
        assert_eq!(quick.map_err(|error| error.to_string()), Ok(7));
        let nothing_left = Duration::from_secs(60);
        let late = in_time(limit, nothing_left, std::future::pending::<Result<()>>()).await;
        assert!(matches!(late, Err(Error::TimedOut { seconds: 60 })), "{late:?}");
        assert!(in_time(None, nothing_left, async { Ok(()) }).await.is_ok(), "no limit");
    }

    #[tokio::test]
    async fn a_timeout_names_the_stage_that_work_on_another_thread_has_reached() {
        let (set, progress) = (ExecutionPlanMetricsSet::new(), Arc::new(Progress::new(1, 1, 1)));
        let journey = Arc::new(Journey::begin(Arc::clone(&progress), ScreenMetrics::new(&set, 0)));
        journey.enter(Stage::Decode);
        let (reach, reached) = oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let travelling = Arc::clone(&journey);
        let work = on_rayon(move || {
            travelling.enter(Stage::Preprocess);
            let _ = reach.send(());
            // Ends with the test.
            let _ = released.recv();
            Ok(())
        });
        tokio::pin!(work);
        assert!(futures::poll!(work.as_mut()).is_pending());
        reached.await.unwrap();
        let late = in_time(Some(Duration::ZERO), Duration::ZERO, work).await;
        assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
        assert_eq!(journey.stage().recorded(), "preprocess");
        drop(journey);
        assert_eq!(progress.snapshot().at(Stage::Preprocess).scans, 1, "the work that was left behind still counts");
        drop(release);
    }

    #[tokio::test]
    async fn a_step_that_panics_is_an_error_of_its_scan() {
        let failed = on_rayon(|| -> Result<()> { panic!("index {} of nothing", 7) }).await.unwrap_err();
        assert!(failed.to_string().contains("index 7 of nothing"), "{failed}");
        assert_eq!(on_rayon(|| Ok(7)).await.unwrap(), 7, "the pool still works");
    }

    #[test]
    fn a_message_does_not_say_in_which_folder_a_cohort_lies() {
        let said = "Object at location /data/my study/sub-1.nii not found";
        assert_eq!(without_folder(said, "file:///data/my%20study/"), "Object at location sub-1.nii not found");
        assert_eq!(without_folder(said, "file:///data/my%20study"), "Object at location sub-1.nii not found");
        assert_eq!(without_folder(said, "file:///"), said);
        assert_eq!(without_folder(said, "s3://bucket/study"), said);
    }
}
