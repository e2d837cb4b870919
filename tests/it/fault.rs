//! Runs on a store that fails, answers late or short, or reports an error for a request that it executed: [`FaultStore`] does so by script.

use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use neurosieve::flow::{Pipeline, Run, RunOutcome, RunReport};
use neurosieve::query;
use neurosieve::store::Location;
use neurosieve::synth::{CohortSpec, write};
use neurosieve::tables::{Lease, Tables};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::support::cohorts::scan;
use super::support::fault_store::{Fault, FaultStore, Op};

fn location(store: &Arc<FaultStore>, name: &str) -> Location {
    let url = url::Url::parse(&format!("memory:///{name}")).unwrap();
    Location::new(Arc::clone(store) as Arc<dyn ObjectStore>, Path::from(name), url)
}

/// Puts a small cohort, one scan of it damaged, into a store.
async fn fill(store: &FaultStore) {
    let folder = tempfile::tempdir().unwrap();
    let spec = CohortSpec { subjects: 5, lesions: 0, corrupt: 1, spacing_mm: 4., ..CohortSpec::default() };
    write(&spec, folder.path(), false).unwrap();
    for n in 1..=5 {
        let uri = scan(n);
        let bytes = std::fs::read(folder.path().join(&uri)).unwrap();
        store.inner.put(&Path::from(format!("study/{uri}")), bytes.into()).await.unwrap();
    }
}

/// Screens without networks, every scan a commit of its own.
async fn screen(store: &Arc<FaultStore>) -> neurosieve::error::Result<RunReport> {
    screen_within(store, 3600).await
}

/// As [`screen`], with a limit on the seconds that a scan may take.
async fn screen_within(store: &Arc<FaultStore>, timeout_s: u64) -> neurosieve::error::Result<RunReport> {
    prepare(store, timeout_s).await?.execute(std::future::pending()).await
}

async fn prepare(store: &Arc<FaultStore>, timeout_s: u64) -> neurosieve::error::Result<Run> {
    let text = "[score]\nmethod = \"threshold\"\n[tables]\ncommit_scans = 1\n[run]\ndevice = \"cpu\"\n";
    let mut pipeline: Pipeline = toml::from_str(text).unwrap();
    pipeline.run.scan_timeout_s = timeout_s;
    Run::prepare_at(pipeline, location(store, "study"), location(store, "tables")).await
}

/// The contents of the tables, except times and ids of runs.
async fn contents(store: &Arc<FaultStore>) -> Vec<String> {
    let context = query::session(&Tables::open_at(location(store, "tables")).await.unwrap()).await.unwrap();
    let mut contents = Vec::new();
    for sql in [
        "SELECT scan_id, content_id, anomaly_score, n_tokens, n_findings FROM raw.scans ORDER BY 1",
        "SELECT scan_id, count(*), sum(code), sum(p_anomalous) FROM raw.tokens GROUP BY 1 ORDER BY 1",
        "SELECT scan_id, stage, kind, permanent FROM raw.failures ORDER BY 1",
        "SELECT scan_id, mask, score FROM raw.masks ORDER BY 1",
    ] {
        let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
        contents.push(arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string());
    }
    contents
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_one_request_in_ten_changes_no_result() {
    let calm = FaultStore::new(|_, _| None);
    fill(&calm).await;
    assert_eq!(screen(&calm).await.unwrap().outcome, RunOutcome::DoneWithFailures);
    let undisturbed = contents(&calm).await;
    assert_eq!(calm.fired(), 0);

    // One read of a scan in ten, and one write of a table: far more than a real store fails.
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let stormy = FaultStore::new(move |op, path| {
        let fault = match (op, path.as_ref().starts_with("study/")) {
            (Op::Get, true) => [Fault::Busy, Fault::HalfTheBody][rng.random_range(0..2)],
            (Op::Put, false) => [Fault::Busy, Fault::DoneButFails][rng.random_range(0..2)],
            _ => return None,
        };
        rng.random_bool(0.1).then_some(fault)
    });
    fill(&stormy).await;
    let report = screen(&stormy).await.unwrap();
    assert_eq!((report.outcome, report.done, report.failed), (RunOutcome::DoneWithFailures, 4, 1));
    assert!(stormy.fired() > 0, "no request failed");
    assert_eq!(contents(&stormy).await, undisturbed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_cannot_be_read_is_a_failure_and_the_next_run_screens_it() {
    let broken = Arc::new(Mutex::new(true));
    let script = Arc::clone(&broken);
    let store = FaultStore::new(move |op, path| {
        let bad = *script.lock().unwrap() && op == Op::Get && path.as_ref().contains("sub-synth002");
        bad.then_some(Fault::HalfTheBody)
    });
    fill(&store).await;
    let report = screen(&store).await.unwrap();
    assert_eq!((report.done, report.failed), (3, 2));
    assert!(contents(&store).await[2].contains("fetch"), "{:?}", contents(&store).await[2]);
    *broken.lock().unwrap() = false;
    let report = screen(&store).await.unwrap();
    assert_eq!((report.outcome, report.done, report.quarantined), (RunOutcome::DoneWithFailures, 1, 1));
    let idle = screen(&store).await.unwrap();
    assert_eq!((idle.outcome, idle.pending, idle.quarantined), (RunOutcome::DoneWithFailures, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_arrives_too_slowly_fails_and_delays_no_other() {
    let slow = Arc::new(Mutex::new(true));
    let script = Arc::clone(&slow);
    let store = FaultStore::new(move |op, path| {
        (*script.lock().unwrap() && op == Op::Get && path.as_ref().contains("sub-synth002")).then_some(Fault::Slow)
    });
    fill(&store).await;
    // Its body takes 32 s; the others take a second or two, more on a busy machine.
    let report = screen_within(&store, 15).await.unwrap();
    let failures = contents(&store).await[2].clone();
    assert!(failures.contains("timed_out") && failures.contains("fetch"), "{failures}");
    assert_eq!(report.done + report.failed, 5);
    *slow.lock().unwrap() = false;
    let report = screen(&store).await.unwrap();
    assert_eq!((report.failed, report.quarantined), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_at_once_begins_no_scan_and_leaves_all_to_the_next() {
    let store = FaultStore::new(|_, _| None);
    fill(&store).await;
    let report = prepare(&store, 3600).await.unwrap().execute(std::future::ready(())).await.unwrap();
    assert_eq!((report.outcome, report.pending, report.done, report.failed), (RunOutcome::Stopped, 5, 0, 0));
    assert_eq!(report.run.unwrap().status, "stopped");
    let report = screen(&store).await.unwrap();
    assert_eq!((report.outcome, report.done, report.failed), (RunOutcome::DoneWithFailures, 4, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_whose_answer_is_lost_is_held_and_does_not_lock_its_holder_out() {
    let mut lost = 2;
    let store = FaultStore::new(move |op, path| {
        let fires = op == Op::Put && path.as_ref().contains("_schedule-") && lost > 0;
        lost -= usize::from(fires);
        fires.then_some(Fault::DoneButFails)
    });
    let location = location(&store, "tables");
    let lease = Lease::take(&location, "0123").await.unwrap().expect("nobody else has it");
    assert_eq!(store.fired(), 1);
    assert!(Lease::take(&location, "0123").await.unwrap().is_none(), "it is held");
    assert!(Lease::take(&location, "4567").await.unwrap().is_some(), "another cohort's is free");
    lease.give_back().await;
    assert!(Lease::take(&location, "0123").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditional_writes_is_refused_for_tables() {
    let store = FaultStore::new(|op, _| (op == Op::Put).then_some(Fault::NoCondition));
    let error = Tables::open_or_create_at(location(&store, "tables")).await.unwrap_err().to_string();
    assert!(error.contains("conditional writes"), "{error}");
    let left: Vec<_> = store.inner.list(None).collect().await;
    assert!(left.is_empty(), "{left:?}");
}
