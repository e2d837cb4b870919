//! Whose fault a failure is: the scan's, the store's or the network's. The real program against a bucket whose server fails,
//! hangs or damages what it sends.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use object_store::path::Path as Key;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::s3::{RUN, TABLES, ask, moto, put, slow, store};
use super::support::cohorts::{scan, scan_id};
use super::support::golden::gunzip;
use super::support::program::printed;
use super::support::server::Server;

/// A bucket with a cohort of `scans` small heads. `folder` holds the same cohort.
async fn bucket(scans: usize, folder: &Path) -> Option<Server> {
    let server = moto()?;
    let local = folder.join("cohort");
    let made = ["synth", local.to_str().unwrap(), "--subjects", &scans.to_string(), "--lesions", "0", "--spacing", "4"];
    assert!(server.program(&made).status.success());
    put(&server, &local, "dataset_description.json", "dataset_description.json").await;
    for n in 1..=scans {
        put(&server, &local, &scan(n), &scan(n)).await;
    }
    Some(server)
}

fn run(server: &Server, settings: &[&str]) -> Output {
    let sets = settings.iter().flat_map(|setting| ["--set", setting]);
    server.command(&RUN).args(sets).output().unwrap()
}

fn failures(server: &Server) -> Vec<Value> {
    server.rows(TABLES, "SELECT * FROM raw.failures ORDER BY scan_id")
}

fn count(server: &Server, table: &str) -> usize {
    server.rows(TABLES, &format!("SELECT 1 FROM raw.{table}")).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_every_read_ends_the_run_with_an_error_and_no_failure_rows() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(4, folder.path()).await else { return };
    ask(&mut server, "fail 100000 403 GET /cohort/.*_T1w.nii.gz$");
    let refused = run(&server, &["run.outage_s=3"]);
    let said = printed(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("permission denied (HTTP 403, ExpiredToken)"), "{said}");
    assert!(said.contains("all scans wait, trying again in"), "the wait is said: {said}");
    assert!(!said.contains("CANARY"), "{said}");
    assert_eq!((failures(&server).len(), count(&server, "scans")), (0, 0));
    assert_eq!(server.rows(TABLES, "SELECT status FROM runs")[0]["status"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_a_store_that_comes_back_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(4, folder.path()).await else { return };
    // Credentials that are renewed after some requests; requests with status 403 are not repeated by the client.
    ask(&mut server, "fail 12 403 GET /cohort/.*_T1w.nii.gz$");
    let done = run(&server, &["run.outage_s=120"]);
    assert!(done.status.success(), "{}", printed(&done));
    assert_eq!((failures(&server).len(), count(&server, "scans")), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_scan_that_is_refused_is_a_failure_and_no_reply_of_the_server_is_stored_or_logged() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(4, folder.path()).await else { return };
    ask(&mut server, "fail 100000 403 GET /cohort/.*synth002_T1w.nii.gz$");
    let log = server.command(&RUN).env("NEUROSIEVE_LOG", "debug").output().unwrap();
    assert_eq!(log.status.code(), Some(3), "{}", printed(&log));
    let failed = failures(&server);
    let [failure] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!((&failure["kind"], &failure["permanent"]), (&"permission".into(), &false.into()), "{failure}");
    assert_eq!(failure["scan_id"], scan_id("cohort", 2));
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("HTTP 403, ExpiredToken"), "{message}");
    for place in [printed(&log), failure.to_string()] {
        for secret in ["CANARY", "sekret-of-tests"] {
            assert!(!place.contains(secret), "{secret}: {place}");
        }
    }
    assert_eq!(count(&server, "scans"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_on_the_way_quarantines_no_scan_and_changes_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(2, folder.path()).await else { return };
    // The second scan is a plain .nii, in which no checksum would show the flip.
    let bytes = gunzip(&std::fs::read(folder.path().join("cohort").join(scan(2))).unwrap());
    let plain = scan(2).replace(".nii.gz", ".nii");
    store(&server).put(&Key::from(format!("cohort/{plain}")), bytes.clone().into()).await.unwrap();
    store(&server).delete(&Key::from(format!("cohort/{}", scan(2)))).await.unwrap();
    ask(&mut server, "flip 1 GET /cohort/.*synth001_T1w.nii.gz$");
    ask(&mut server, "flip 1 GET /cohort/.*synth002_T1w.nii$");
    let done = run(&server, &[]);
    assert!(done.status.success(), "{}", printed(&done));
    let sums = server.rows(TABLES, "SELECT content_sha256 FROM scans ORDER BY scan_id");
    let compressed = std::fs::read(folder.path().join("cohort").join(scan(1))).unwrap();
    for (row, bytes) in sums.iter().zip([compressed, bytes]) {
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(row["content_sha256"], digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_damaged_in_the_store_is_quarantined_after_a_second_reading() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = bucket(2, folder.path()).await else { return };
    let mut damaged = std::fs::read(folder.path().join("cohort").join(scan(2))).unwrap();
    damaged.truncate(damaged.len() / 2);
    store(&server).put(&Key::from(format!("cohort/{}", scan(2))), damaged.clone().into()).await.unwrap();
    assert_eq!(run(&server, &[]).status.code(), Some(3));
    let failed = failures(&server);
    let digest: String = Sha256::digest(&damaged).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((&failed[0]["permanent"], &failed[0]["content_sha256"]), (&true.into(), &digest.into()), "{failed:?}");
}

/// Starts a run of which the last scan never arrives, and waits until another one can only be waiting for its commit.
async fn hanging(server: &mut Server, scans: usize, settings: &[&str]) -> Child {
    slow(server, 600., "GET", &format!("/cohort/.*synth00{scans}_T1w.nii.gz$"));
    let sets = settings.iter().flat_map(|setting| ["--set", setting]);
    let mut command = server.command(&RUN);
    // Without this, every scan would be committed at once.
    command.args(["--set", "tables.commit_scans=100", "--set", "tables.commit_seconds=3600"]).args(sets);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The others take a second or two, more on a busy machine.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(child.try_wait().unwrap(), None, "the run ended by itself");
    child
}

fn terminate(child: &Child) {
    let sent = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

fn said(child: &mut Child) -> String {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_commits_what_is_finished_at_once_and_gives_the_rest_a_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(4, folder.path()).await else { return };
    let mut child = hanging(&mut server, 4, &["run.stop_s=20"]).await;
    assert_eq!(count(&server, "scans"), 0);
    let stopped = Instant::now();
    terminate(&child);
    while count(&server, "scans") < 3 {
        assert!(stopped.elapsed() < Duration::from_secs(15), "what is finished is not committed");
        assert_eq!(child.try_wait().unwrap(), None, "the run ended before its deadline");
    }
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(4), "{}", said(&mut child));
    assert!(stopped.elapsed() < Duration::from_secs(40), "{:?}", stopped.elapsed());
    assert_eq!((count(&server, "scans"), failures(&server).len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_run_that_hangs_and_its_silence_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(2, folder.path()).await else { return };
    let mut child = hanging(&mut server, 2, &["run.stop_s=600"]).await;
    // With the time before: more than the 20 s after which a slow store is named.
    tokio::time::sleep(Duration::from_secs(5)).await;
    terminate(&child);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(child.try_wait().unwrap(), None, "the first signal waits for the scan in flight");
    let second = Instant::now();
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert!(second.elapsed() < Duration::from_secs(5));
    let said = said(&mut child);
    assert!(said.contains("the store is slow, or does not answer") && said.contains("sub-synth002"), "{said}");
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let all = std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let more = all.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let words = more.chain([listed]).collect::<Vec<_>>().join(" ");
    words.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The scan that is in flight when a run is killed is screened by a process of its own in the next run. That process is killed
/// as well, as the system does for want of memory.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_during_which_two_processes_die_is_one_failure_and_ends_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(3, folder.path()).await else { return };
    let mut first = hanging(&mut server, 3, &[]).await;
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(count(&server, "scans"), 0);

    let mut second = server.command(&RUN).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    let apart = loop {
        assert!(begun.elapsed() < Duration::from_secs(120), "no scan is screened by a process of its own");
        assert_eq!(second.try_wait().unwrap(), None, "{}", said(&mut second));
        // The journal may name other scans, too. Of the processes of their own, the one that hangs is that of the third.
        if let Some(&child) = children(second.id()).first() {
            tokio::time::sleep(Duration::from_secs(10)).await;
            if children(second.id()).first() == Some(&child) {
                break child;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(std::process::Command::new("kill").args(["-9", &apart.to_string()]).status().unwrap().success());
    let status = second.wait().unwrap();
    assert_eq!(status.code(), Some(3), "{}", said(&mut second));
    let failed = failures(&server);
    assert_eq!((failed.len(), &failed[0]["kind"], &failed[0]["permanent"]), (1, &"crashed".into(), &false.into()));
    assert_eq!(failed[0]["scan_id"], scan_id("cohort", 3), "{failed:?}");
    assert!(failed[0]["message"].as_str().unwrap().contains("want of memory"), "{failed:?}");

    // The next run tries it again, and gets its rows from the process of its own. Nothing stays in the journal.
    ask(&mut server, "calm");
    let third = run(&server, &[]);
    assert!(third.status.success(), "{}", printed(&third));
    assert_eq!((count(&server, "scans"), count(&server, "masks")), (3, 3));
    assert!(run(&server, &[]).status.success());
    let journals = store(&server).list_with_delimiter(Some(&Key::from("tables/_in_flight"))).await.unwrap();
    assert!(journals.objects.is_empty(), "{:?}", journals.objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_before_its_first_scan_says_so_and_reports_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = bucket(1, folder.path()).await else { return };
    slow(&mut server, 600., "GET", "^/study/?$");
    let report = folder.path().join("report.json");
    let mut command = server.command(&RUN);
    let mut child = command.arg("--report").arg(&report).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // More than the 20 s after which a slow store is named.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let stopped = Instant::now();
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert!(stopped.elapsed() < Duration::from_secs(10));
    let said = said(&mut child);
    assert!(said.contains("still listing the cohort after 20 s"), "{said}");
    let written: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert_eq!(written["outcome"], "stopped", "{written}");
}
