//! Nights of `neurosieve schedule`: no night is lost, each leaves a row in `runs`, and monitors and webhooks get its outcome.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use chrono::{Local, TimeDelta, Timelike as _, Utc};
use neurosieve::store::{Location, open};
use neurosieve::tables::{Lease, RunRow};
use object_store::{ObjectStoreExt as _, memory::InMemory, path::Path as Key};
use serde_json::{Value, json};

use super::s3::{BUCKET, moto, store};
use super::schedule::Scheduled;
use super::support::cohorts::synth;
use super::support::program::{WITHOUT_NETWORKS, ok, printed, rows, screen, screening, text};
use super::support::results::{open as open_tables, run_row};
use super::support::shared::{path, study};

const ONE_SCAN: [&str; 6] = ["--subjects", "1", "--lesions", "0", "--spacing", "4"];

/// The lease of the schedules of the cohort in this folder.
async fn lease(tables: &str, cohort: &Path) -> Lease {
    let root = open(path(cohort)).unwrap().root_id();
    Lease::take(&open(tables).unwrap(), &root).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_waits_while_another_one_screens_its_cohort_and_loses_no_night() {
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let held = lease(tables, study()).await;
    let waiting = "another schedule is screening this cohort";
    let mut stopped = Scheduled::start(path(study()), tables, &["--now"]);
    stopped.prints(waiting);
    let signalled = Instant::now();
    assert_eq!(stopped.stop(), Some(0));
    assert!(signalled.elapsed() < Duration::from_secs(4), "SIGTERM ends the waiting at once");

    let mut schedule = Scheduled::start(path(study()), tables, &["--now"]);
    schedule.prints(waiting);
    held.give_back().await;
    schedule.prints("3 scans done");
    assert_eq!(schedule.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_of_two_cohorts_on_the_same_tables_run_at_the_same_minute() {
    let folder = tempfile::tempdir().unwrap();
    let (other, tables) = (folder.path().join("other"), folder.path().join("tables"));
    synth(path(&other), &ONE_SCAN);
    std::fs::create_dir(&tables).unwrap();
    let held = lease(path(&tables), study()).await;
    let mut schedule = Scheduled::start(path(&other), path(&tables), &["--now"]);
    schedule.prints("1 scans done");
    assert_eq!(schedule.stop(), Some(0));
    held.give_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_in_a_bucket_that_was_killed_runs_its_night_when_its_lease_expires() {
    let Some(server) = moto() else { return };
    let folder = tempfile::tempdir().unwrap();
    synth(path(folder.path()), &ONE_SCAN);
    let scan = "sub-synth001/anat/sub-synth001_T1w.nii.gz";
    let bytes = std::fs::read(folder.path().join(scan)).unwrap();
    store(&server).put(&Key::from(format!("cohort/{scan}")), bytes.into()).await.unwrap();
    let url = url::Url::parse(&format!("s3://{BUCKET}/cohort")).unwrap();
    let root = Location::new(Arc::new(InMemory::new()), "cohort".into(), url).root_id();
    let claim = json!({"holder": "killed", "until": Utc::now() + TimeDelta::seconds(15)}).to_string();
    store(&server).put(&Key::from(format!("tables/_schedule-{root}.lock")), claim.into()).await.unwrap();

    let mut command = server.command(&["schedule", "pipelines/nightly.toml", "--cohort", "s3://study/cohort", "--now"]);
    command.args(["--tables", "s3://study/tables", "--set", "run.device=cpu", "--set", "schedule.run=\"0 0 1 1 *\""]);
    command.args(WITHOUT_NETWORKS);
    let mut schedule = Scheduled::spawn(command);
    schedule.prints("another schedule is screening this cohort");
    schedule.prints("1 scans done");
    assert_eq!(schedule.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_night_that_was_missed_is_made_up_for_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &ONE_SCAN);
    let root = open(path(&cohort)).unwrap().root_id();
    let days_ago = |days: i64| (Utc::now() - TimeDelta::days(days)).timestamp_micros();
    let row = |run_id: &str, status: &str, days| RunRow {
        started_at: days_ago(days),
        finished_at: Some(days_ago(days)),
        status: status.into(),
        cohort_root: Some(root.clone()),
        ..run_row(run_id, None, 0)
    };
    let mut written = open_tables(&tables).await;
    written.end_run(&row("of-last-week", "finished", 7)).await.unwrap();
    // It was killed, or stopped when the machine went down: its night is not done.
    written.end_run(&row("of-today", "stopped", 0)).await.unwrap();
    drop(written);

    // Due every day at an hour that was three hours ago. What is next may be upkeep.
    let hour = (Local::now() - TimeDelta::hours(3)).hour();
    let daily = format!("schedule.run=\"0 {hour} * * *\"");
    let mut careless =
        Scheduled::start(path(&cohort), path(&tables), &["--set", &daily, "--set", "schedule.catch_up=false"]);
    careless.prints("next ");
    assert_eq!(careless.stop(), Some(0));
    let mut schedule = Scheduled::start(path(&cohort), path(&tables), &["--set", &daily]);
    schedule.prints("no run has ended since");
    schedule.prints("1 scans done");
    schedule.prints("next ");
    assert_eq!(schedule.stop(), Some(0));
    let mut again = Scheduled::start(path(&cohort), path(&tables), &["--set", &daily]);
    again.prints("next ");
    assert!(again.unread.iter().all(|line| !line.contains("no run has ended since")), "{:#?}", again.unread);
    assert_eq!(again.stop(), Some(0));
}

#[test]
fn every_night_is_a_row_in_runs_with_who_where_and_why_it_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &ONE_SCAN);
    let (cohort, tables) = (path(&cohort), path(&tables));
    let labels = ["--set", "run.host_label=scanner room 2", "--set", "run.operator=Night team"];
    let mut run = screening(cohort, tables, &[&WITHOUT_NETWORKS[..], &labels].concat());
    let output = run.env("NEUROSIEVE_IMAGE", "neurosieve@sha256:77").output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let nothing =
        screen(cohort, tables, &[&WITHOUT_NETWORKS[..], &["--set", "cohort.select.subjects=[\"nobody\"]"]].concat());
    assert_eq!(nothing.status.code(), Some(2), "{}", printed(&nothing));
    let bundle = folder.path().join("absent bundle");
    let absent = screen(cohort, tables, &["--set", &format!("model.bundle={}", bundle.display())]);
    assert!(!absent.status.success());

    let sql = "SELECT status, host, operator, image, message, recipe_id <> '' AS began FROM runs ORDER BY started_at";
    let runs = rows(tables, sql);
    let [done, nothing, absent] = &runs[..] else { panic!("{runs:?}") };
    assert_eq!(
        *done,
        json!({"status": "finished", "host": "scanner room 2", "operator": "Night team",
        "image": "neurosieve@sha256:77", "message": null, "began": true})
    );
    let message = nothing["message"].as_str().unwrap();
    assert!(message.starts_with("nothing_selected: ") && nothing["status"] == "failed", "{nothing}");
    assert!(absent["status"] == "failed" && absent["began"] == false, "{absent}");
    let said = serde_json::to_string(&runs).unwrap();
    assert!(!said.contains("absent bundle") && !said.contains(path(folder.path())), "{said}");
    // They decide nothing about which results are current.
    assert_eq!(rows(tables, "SELECT count(*) AS n FROM scans")[0]["n"], 1);
    assert_eq!(rows(tables, "SELECT count(*) AS n FROM recipes")[0]["n"], 1);
}

/// The status and the text of an answer.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// Asks until the answer has this status.
fn wait_for(address: &str, path: &str, status: u16) -> String {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let (found, answer) = get(address, path);
        if found == status {
            return answer;
        }
        assert!(Instant::now() < until, "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_monitor_sees_an_empty_cohort_and_the_last_success() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    std::fs::create_dir(&cohort).unwrap();
    let more = ["--metrics", "127.0.0.1:0", "--set", "schedule.run=\"* * * * * *\""];
    let mut schedule = Scheduled::start(path(&cohort), path(&tables), &more);
    let line = schedule.prints("metrics at");
    let address = line.split_once("http://").unwrap().1.trim_end_matches("/metrics").to_owned();
    assert!(wait_for(&address, "/healthz", 503).contains("the last run found no scan to select"));
    let metrics = get(&address, "/metrics").1;
    for line in
        ["neurosieve_cohort_empty 1", "neurosieve_all_failed 0", "neurosieve_last_run_outcome{outcome=\"failed\"} 1"]
    {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(!metrics.contains("neurosieve_last_success_timestamp_seconds "), "{metrics}");
    assert_eq!(get(&address, "/livez").0, 200);

    synth(path(&cohort), &ONE_SCAN);
    wait_for(&address, "/healthz", 200);
    let metrics = get(&address, "/metrics").1;
    assert!(metrics.contains("neurosieve_cohort_empty 0"), "{metrics}");
    let success = metrics.lines().find_map(|line| line.strip_prefix("neurosieve_last_success_timestamp_seconds "));
    let age = Utc::now().timestamp() as f64 - success.unwrap().parse::<f64>().unwrap();
    assert!((0. ..120.).contains(&age), "{metrics}");
    assert!([Some(0), Some(4)].contains(&schedule.stop()));
}

/// A webhook that answers with these statuses, one after the other, then with 204; gives its address, and what it was sent.
fn webhook(statuses: &'static [u16]) -> (String, mpsc::Receiver<(u16, Value)>) {
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let address = server.server_addr().to_ip().unwrap().to_string();
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        let mut statuses = statuses.iter().copied();
        while let Ok(mut request) = server.recv() {
            let mut body = String::new();
            request.as_reader().read_to_string(&mut body).unwrap();
            let status = statuses.next().unwrap_or(204);
            let _ = request.respond(tiny_http::Response::empty(status));
            if sender.send((status, serde_json::from_str(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (address, received)
}

#[test]
fn the_report_of_every_night_is_posted_until_the_server_takes_it_and_its_address_stays_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    std::fs::create_dir(&cohort).unwrap();
    let (address, posts) = webhook(&[500, 503]);
    let post = || posts.recv_timeout(Duration::from_secs(90)).unwrap();
    // A night without scans; the server takes the report at the third attempt.
    let hook = format!("schedule.notify=\"http://user:canary@{address}/canary?token=canary\"");
    let mut command = Scheduled::command(path(&cohort), path(&tables), &["--now", "--set", &hook]);
    command.env("NO_PROXY", "127.0.0.1").env("NEUROSIEVE_LOG", "trace");
    let mut first = Scheduled::spawn(command);
    first.prints("nothing is selected");
    for status in [500, 503, 204] {
        let (given, report) = post();
        assert_eq!(
            (given, &report["outcome"], &report["error"]["kind"]),
            (status, &"failed".into(), &"nothing_selected".into())
        );
        assert!(!report.to_string().contains(path(folder.path())), "{report}");
    }
    let said = first.ends();
    assert!(!said.contains("canary"), "{said}");

    synth(path(&cohort), &ONE_SCAN);
    let mut command = Scheduled::command(path(&cohort), path(&tables), &["--now"]);
    command.env("NO_PROXY", "127.0.0.1").env("NEUROSIEVE_NOTIFY", format!("http://{address}/canary"));
    let mut second = Scheduled::spawn(command);
    second.prints("1 scans done");
    let (_, report) = post();
    assert_eq!(
        (&report["outcome"], &report["done"], &report["run"]["status"]),
        (&"done".into(), &1.into(), &"finished".into())
    );
    assert_eq!(second.stop(), Some(0));
    let config = ok(&["sql", "--tables", path(&tables), "-c", "SELECT config FROM raw.runs"]);
    assert!(!config.contains("canary"), "{config}");
}

#[test]
fn an_address_that_cannot_be_notified_is_refused_before_the_first_night() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables");
    let more = ["--set", "schedule.notify=\"ftp://monitor.example/canary\""];
    let output = Scheduled::command(path(study()), path(&tables), &more).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("schedule.notify") && !said.contains("canary"), "{said}");
}
