//! A cohort and its tables in a bucket: the real program against an independent S3 server (moto).

use std::io::{BufRead as _, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use neurosieve::volume::{Grid, Volume, nifti};
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, ObjectStoreExt, path::Path as Key};

use super::cohort_entries::put_key;
use super::support::cohorts::{scan, scan_id};
use super::support::program::{printed, python, quick_run, text, with_peak_memory};
use super::support::server::{Server, script};

pub const BUCKET: &str = "study";

pub const TABLES: &str = "s3://study/tables";
pub const RUN: [&str; 11] = quick_run("s3://study/cohort", TABLES);

/// moto with one bucket; none without the Python of the tests.
pub fn moto() -> Option<Server> {
    let mut command = Command::new(python()?);
    command.arg(script("s3_server.py")).arg(BUCKET);
    Some(Server::start(command, |address| {
        vec![
            ("AWS_ENDPOINT_URL", address.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "sekret-of-tests".to_owned()),
        ]
    }))
}

/// Runs the program, which the server kills by SIGKILL at its first request that matches: `before` or `after` doing it, in
/// both cases before the answer.
fn killed_at(server: &mut Server, arguments: &[&str], moment: &str, method: &str, pattern: &str) {
    let mut program = server.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    writeln!(server.process.stdin.as_mut().unwrap(), "kill {} {moment} {method} {pattern}", program.id()).unwrap();
    let status = program.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{moment} {method} {pattern}: the program ended by itself, {status}");
    let mut line = String::new();
    server.printed.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "killed");
}

/// From now on requests that match take this many seconds longer.
pub fn slow(server: &mut Server, seconds: f64, method: &str, pattern: &str) {
    ask(server, &format!("slow {seconds} {method} {pattern}"));
}

/// A line to the server, which `s3_server.py` explains.
pub fn ask(server: &mut Server, line: &str) {
    writeln!(server.process.stdin.as_mut().unwrap(), "{line}").unwrap();
}

pub async fn put(server: &Server, folder: &Path, from: &str, to: &str) {
    let bytes = std::fs::read(folder.join(from)).unwrap();
    store(server).put(&Key::from(format!("cohort/{to}")), bytes.into()).await.unwrap();
}

pub fn store(server: &Server) -> impl ObjectStore {
    AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_region("us-east-1")
        .with_endpoint(&server.address)
        .with_allow_http(true)
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_in_a_bucket_is_resumed_and_changed_scans_are_screened_again() {
    let Some(server) = moto() else { return };
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("cohort").display().to_string();
    let made = server.program(&["synth", &local, "--subjects", "6", "--lesions", "0", "--corrupt", "1"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let store = store(&server);
    let put = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        let (server, folder) = (&server, folder.path().join("cohort"));
        async move { put(server, &folder, &from, &to).await }
    };
    put("dataset_description.json", "dataset_description.json").await;
    for n in 1..=6 {
        put(&scan(n), &scan(n)).await;
    }

    // Killed once something is committed; run again, it screens the rest.
    let mut killed = server.command(&RUN).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    let log = Key::from("tables/scans/_delta_log/00000000000000000001.json");
    while store.head(&log).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(120), "nothing was committed");
        assert_eq!(killed.try_wait().unwrap(), None, "the run ended before it could be killed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let rest = server.program(&RUN);
    // The damaged scan may have been a failure before the kill already.
    assert!([Some(0), Some(3)].contains(&rest.status.code()), "{}", printed(&rest));
    let ended =
        server.rows(TABLES, "SELECT scan_id FROM raw.scans UNION ALL SELECT scan_id FROM raw.failures ORDER BY 1");
    let ids: Vec<&str> = ended.iter().map(|row| row["scan_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6].map(|n| scan_id("cohort", n)), "none lost, none doubled");

    // Nothing new; then one scan has other content, and the damaged one comes whole.
    assert!(text(&server.program(&RUN).stdout).contains("Nothing to do"));
    put(&scan(2), &scan(1)).await;
    put(&scan(3), &scan(6)).await;
    let more = server.program(&RUN);
    assert!(more.status.success() && text(&more.stdout).contains("2 scans done, 0 failed"), "{}", text(&more.stdout));
    assert_eq!(server.rows(TABLES, "SELECT 1 FROM scans").len(), 6);
    assert_eq!(
        server.rows(TABLES, "SELECT 1 FROM raw.scans WHERE scan_id = 'cohort/sub-synth001_T1w'").len(),
        2,
        "history"
    );
    assert_eq!(server.rows(TABLES, "SELECT 1 FROM failures").len(), 0, "the damaged scan has a result now");

    // Errors and tables hold no secret.
    let missing = server.program(&["cohort", "s3://no-such-bucket/cohort"]);
    let said = text(&missing.stderr);
    assert!(!missing.status.success() && said.contains("check the spelling of the bucket"), "{said}");
    assert!(!said.contains("sekret"), "{said}");
    let leftovers = server.rows(TABLES, "SELECT config FROM runs");
    assert!(!leftovers.is_empty() && !leftovers.iter().any(|row| row.to_string().contains("sekret")));
}

/// Killed at each point between a scan's arrival and the answer to its last commit, and run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_killed_at_any_point_loses_and_doubles_nothing() {
    let Some(mut server) = moto() else { return };
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("cohort");
    let spacing = ["--spacing", "4", "--lesions", "0", "--corrupt", "1"];
    let made = server.program(&[&["synth", local.to_str().unwrap(), "--subjects", "4"], &spacing[..]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    put(&server, &local, "dataset_description.json", "dataset_description.json").await;
    for n in 1..=4 {
        put(&server, &local, &scan(n), &scan(n)).await;
    }
    let first_commit = |table: &str| format!("/tables/{table}/_delta_log/0+1.json$");
    for (moment, method, pattern) in [
        ("after", "GET", "/cohort/.*_T1w.nii.gz$".to_owned()), // fetched, nothing written
        ("before", "PUT", "/tables/tokens/part-".to_owned()),  // screened, nothing written
        ("after", "PUT", "/tables/scans/part-".to_owned()),    // a data file is there, no commit
        ("before", "PUT", first_commit("tokens")),
        ("after", "PUT", first_commit("tokens")), // between the commits of two tables
        ("after", "PUT", first_commit("masks")),
        ("before", "PUT", first_commit("scans")),
        ("after", "PUT", first_commit("scans")), // committed, and the program never learns
        ("after", "PUT", first_commit("failures")),
        ("after", "PUT", "/tables/runs/_delta_log/0+2.json$".to_owned()), // the run's last word
    ] {
        killed_at(&mut server, &RUN, moment, method, &pattern);
        let rest = server.program(&RUN);
        assert!([Some(0), Some(3)].contains(&rest.status.code()), "{}", printed(&rest));
        assert!(text(&server.program(&RUN).stdout).contains("Nothing to do"), "{pattern}");
        let ended =
            server.rows(TABLES, "SELECT scan_id FROM raw.scans UNION ALL SELECT scan_id FROM raw.failures ORDER BY 1");
        let ids: Vec<&str> = ended.iter().map(|row| row["scan_id"].as_str().unwrap()).collect();
        assert_eq!(ids, [1, 2, 3, 4].map(|n| scan_id("cohort", n)), "{moment} {method} {pattern}");
        let whole = server.rows(
            TABLES,
            "SELECT s.scan_id, s.n_tokens, (SELECT count(*) FROM tokens t WHERE t.scan_id = s.scan_id) AS tokens, \
             (SELECT count(*) FROM masks m WHERE m.scan_id = s.scan_id) AS masks FROM scans s",
        );
        assert!(whole.len() == 3 && whole.iter().all(|s| s["n_tokens"] == s["tokens"] && s["masks"] == 1), "{whole:?}");
        // The next point begins with nothing.
        let store = store(&server);
        let tables: Vec<_> =
            store.list(Some(&Key::from("tables"))).map(|found| found.unwrap().location).collect().await;
        for object in tables {
            store.delete(&object).await.unwrap();
        }
    }
}

/// Contract 5, on volumes of 256 x 256 x 256 voxels that arrive fast and decompress to eight times their size, while the
/// tables' store is slow.
#[tokio::test(flavor = "multi_thread")]
async fn large_scans_before_a_slow_store_stay_within_the_memory_budget() {
    const SCANS: usize = 6;
    let Some(mut server) = moto() else { return };
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("cohort");
    let made = ["synth", local.to_str().unwrap(), "--subjects", "1", "--lesions", "0", "--spacing", "1"];
    assert!(server.program(&made).status.success());
    let head = nifti::decode(&std::fs::read(local.join(scan(1))).unwrap(), 1 << 30).unwrap().volume;
    let [nx, ny, nz] = head.grid.shape;
    let mut large = Volume::zeros(Grid { shape: [256; 3], affine: head.grid.affine });
    for (row, voxels) in head.data.chunks(nx).enumerate().filter(|(row, _)| row / ny < nz.min(256)) {
        let start = 256 * (row % ny + 256 * (row / ny));
        large.data[start..start + nx].copy_from_slice(voxels);
    }
    let large = Volume::new(large.grid, large.data.iter().map(|&v: &f32| (v / 8.) as i16).collect());
    let object = nifti::encode(&large, "");
    assert!(8 * object.len() < 4 * 256 * 256 * 256, "{} bytes are no surprise", object.len());
    put(&server, &local, "dataset_description.json", "dataset_description.json").await;
    for n in 1..=SCANS {
        store(&server).put(&Key::from(format!("cohort/{}", scan(n))), object.clone().into()).await.unwrap();
    }
    slow(&mut server, 1., "PUT", "/tables/.*/(part|_delta_log)");

    let cores = std::thread::available_parallelism().unwrap().get();
    // Room for two such scans at a time, whatever the number of cores.
    let budget_mib = 384 + 96 * cores + 700;
    let budget = format!("run.memory_mib={budget_mib}");
    let mut command = server.command(&RUN);
    command.args(["--set", "run.scans_in_flight=6", "--set", &budget]);
    let (status, peak_mib) = with_peak_memory(command);
    println!("peak {peak_mib} MiB of {budget_mib}");
    assert!(status.success());
    assert!(peak_mib > 100 && peak_mib as f64 <= 1.15 * budget_mib as f64, "{peak_mib} MiB, budget {budget_mib} MiB");
    assert_eq!(server.rows(TABLES, "SELECT 1 FROM raw.scans").len(), SCANS);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_with_empty_parts_or_dots_are_named_and_stop_no_listing_of_a_bucket() {
    let Some(server) = moto() else { return };
    let store = store(&server);
    for n in 1..=3 {
        store.put(&Key::from(format!("cohort/sub-0{n}/anat/sub-0{n}_T1w.nii.gz")), "x".into()).await.unwrap();
    }
    for key in ["sub-02//anat/sub-02_T1w.nii.gz", "old/../x.txt", "logs/./y.txt"] {
        put_key(&server.address, &format!("study/cohort/{key}"));
    }
    let listed = |options: &[&str]| {
        let output = server.program(&[&["cohort", "s3://study/cohort", "--json"], options].concat());
        assert!(output.status.success(), "{}", printed(&output));
        let listing: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let names = |of: &str, key: &str| {
            listing[of].as_array().unwrap().iter().map(|e| e[key].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        (names("selected", "scan_id"), names("skipped", "uri"), names("skipped", "reason"))
    };
    let (selected, skipped, reasons) = listed(&[]);
    assert_eq!(selected, ["cohort/sub-01_T1w", "cohort/sub-02_T1w", "cohort/sub-03_T1w"]);
    assert_eq!(skipped, ["logs/./y.txt", "old/../x.txt", "sub-02//anat/sub-02_T1w.nii.gz"]);
    assert_eq!(reasons, ["name", "name", "name"]);
    let (selected, _, reasons) = listed(&["--exclude", "sub-02/**", "--exclude", "*.txt"]);
    assert_eq!((selected.len(), reasons), (2, vec!["excluded".to_owned(); 4]));
    let one = server.program(&["inspect", "s3://study/cohort/sub-01/anat/sub-01_T1w.nii.gz"]);
    assert!(text(&one.stderr).contains("a text, not an image"), "{}", printed(&one));
}
