//! A run on a cluster of real processes on this machine gives the rows of a local run, bit for bit.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::support::cluster::{Cluster, DEAD_AFTER_S, MEMORY_MIB, certificates, committed, ended};
use super::support::contents::{HEADS, WHOLE, assert_same, contents, heads, heads_screened_here};
use super::support::process::{Process, wait_for};
use super::support::program::{number, ok, peak_memory_mib, printed, program, rows, screen, text};
use super::support::root;
use super::support::shared::path;

#[test]
fn any_number_of_executors_slots_and_scans_of_a_chunk_gives_the_rows_of_a_local_run() {
    let expected = heads_screened_here();
    // The number of scans in a chunk; none: all in one.
    for (executors, slots, chunk) in
        [(1, 1, None), (1, 4, Some("1")), (2, 2, Some("16")), (3, 1, Some("1")), (3, 2, None)]
    {
        let cluster = Cluster::of(executors, slots);
        let stations = cluster.stations();
        assert_eq!(stations.len(), executors);
        assert!(stations.iter().all(|s| s["slots"] == slots && s["device"] == "cpu" && s["unfit"].is_null()));
        let folder = tempfile::tempdir().unwrap();
        let all = HEADS.to_string();
        let run = cluster.run(heads(), path(folder.path()), &["--chunk-scans", chunk.unwrap_or(&all)]);
        let (code, said) = ended(run);
        let when = format!("{executors} executors of {slots} slots, chunks of {chunk:?}");
        assert_eq!(code, Some(3), "{when}: {said}");
        assert_same(&contents(folder.path()), expected, &when);
        let tables = path(folder.path());
        let run = &rows(tables, "SELECT status, n_done, n_failed, device FROM runs")[0];
        assert_eq!((&run["n_done"], &run["n_failed"]), (&WHOLE.into(), &(HEADS - WHOLE).into()), "{when}: {run}");
        assert_eq!(run["status"], "finished");
        assert_eq!(run["device"], "cpu");
        assert!(!holds_something(&folder.path().join("_runs")), "{when}: the marker of the run is still there");
    }
}

/// Whether a folder exists and holds something.
fn holds_something(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn what_is_done_is_not_screened_again_and_a_query_on_the_cluster_gives_what_a_local_one_gives() {
    let cluster = Cluster::of(1, 2);
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let (code, said) = ended(cluster.run(heads(), tables, &["--limit", "4", "--explain"]));
    assert!([Some(0), Some(3)].contains(&code), "{said}");
    assert_eq!(committed(tables), 4);
    // What the operators measured came back from the executor.
    for metric in ["chunks=1", "again=0", "preprocess_time=", "bytes_fetched=", "files_written="] {
        assert!(said.contains(metric), "{metric} is not in {said}");
    }
    // What a local run finds done is what the cluster has done, and the other way round.
    let local = screen(heads(), tables, &["--set", "score.method=threshold"]);
    assert_eq!(local.status.code(), Some(3), "{}", printed(&local));
    assert_same(&contents(folder.path()), heads_screened_here(), "half on the cluster, half here");
    let (_, said) = ended(cluster.run(heads(), tables, &[]));
    assert!(said.contains("Nothing to do"), "{said}");

    for sql in [
        "SELECT scan_id, count(*) AS n, sum(code) AS codes, max(p_anomalous) AS p FROM tokens GROUP BY 1 ORDER BY 1",
        "SELECT kind, count(*) AS n FROM failures GROUP BY 1 ORDER BY 1",
        "SELECT s.scan_id, f.finding, f.region FROM scans s JOIN findings f USING (scan_id) ORDER BY 1, 2",
        "SELECT count(*) AS n FROM masks WHERE scan_id = 'no such scan'",
        "SELECT m.scan_id, mask_ml_native(m.brain, m.spacing_mm, s.registration_affine) AS ml FROM masks m
         JOIN scans s ON s.run_id = m.run_id AND s.scan_id = m.scan_id ORDER BY 1",
        "SELECT region_at(mni_x_mm, mni_y_mm, mni_z_mm) AS region, count(*) AS n FROM tokens GROUP BY 1 ORDER BY 1",
    ] {
        let asked = ok(&["sql", "--tables", tables, "--format", "json", "-c", sql, "--cluster", &cluster.url]);
        assert_eq!(serde_json::from_str::<Vec<Value>>(&asked).unwrap(), rows(tables, sql), "{sql}");
    }
}

/// A copy of the bundle of the repository whose masks begin at another threshold.
fn another_bundle(folder: &Path) -> String {
    std::fs::create_dir(folder).unwrap();
    for file in std::fs::read_dir(root().join("models/t1w-2mm")).unwrap().map(|file| file.unwrap().path()) {
        std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let description = folder.join("bundle.toml");
    let text = std::fs::read_to_string(&description).unwrap();
    let line = text.lines().find(|line| line.starts_with("mask_threshold = ")).unwrap();
    std::fs::write(&description, text.replace(line, "mask_threshold = 0.2")).unwrap();
    format!("model.bundle={:?}", path(folder))
}

#[test]
fn two_drivers_with_two_bundles_at_the_same_time_are_both_right_and_stay_within_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let another = another_bundle(&file("bundle"));
    // The first driver has the bundle of the repository, the second one another.
    let more = |n: usize| if n == 0 { vec!["--limit", "2"] } else { vec!["--limit", "2", "--set", &another] };
    let expected = [0, 1].map(|n| {
        let tables = file(&format!("here-{n}"));
        let run = screen(heads(), path(&tables), &more(n));
        assert!(run.status.success(), "{}", printed(&run));
        contents(&tables)
    });
    assert_ne!(expected[0][0].1, expected[1][0].1, "the bundles give the same rows");

    let cluster = Cluster::of(1, 2);
    let tables = [0, 1].map(|n| file(&format!("tables-{n}")));
    let mut drivers =
        [0, 1].map(|n| Process::spawn(&format!("driver {n}"), cluster.driver(heads(), path(&tables[n]), &more(n))));
    for (n, driver) in drivers.iter_mut().enumerate() {
        let (code, said) = driver.ends();
        assert_eq!(code, Some(0), "driver {n}: {said}");
        assert_same(&contents(&tables[n]), &expected[n], &format!("driver {n}"));
    }
    let peak_mib = peak_memory_mib(cluster.executors[0].process.id());
    println!("peak of the executor {peak_mib} MiB of {MEMORY_MIB}");
    assert!(peak_mib as f64 <= 1.15 * MEMORY_MIB as f64, "{peak_mib} MiB, budget {MEMORY_MIB} MiB");
}

#[test]
fn a_run_over_tls_gives_the_rows_of_a_local_run() {
    let folder = tempfile::tempdir().unwrap();
    let Some([tls]) = certificates(&folder.path().join("authority"), ["cluster"]) else { return };
    let mut cluster = Cluster::scheduler(Some(&tls));
    cluster.join(2);
    let tables = folder.path().join("tables");
    let (code, said) = ended(cluster.run(heads(), path(&tables), &["--chunk-scans", "7"]));
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(&tables), heads_screened_here(), "over TLS");
    let text = ["cluster", "status", "--cluster", &cluster.url, "--tls", path(&tls)];
    let status = ok(&text);
    assert!(status.contains("cpu") && status.contains(&cluster.executors[0].id), "{status}");
}

#[test]
fn ctrl_c_commits_what_is_in_flight_and_the_same_command_screens_the_rest() {
    let mut cluster = Cluster::of(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let run =
        |cluster: &Cluster| cluster.run(heads(), tables, &["--chunk-scans", "1", "--set", "tables.commit_scans=1"]);
    let mut driver = Process::spawn("driver", run(&cluster));
    wait_for("the first commit", || (committed(tables) > 0).then_some(()));
    driver.signal("INT");
    let (code, said) = driver.ends();
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("The same command screens them"), "{said}");
    let stopped = committed(tables);
    assert!((1..HEADS as u64).contains(&stopped), "{stopped}");

    // No chunk is left to the cluster: what the executor has done is in the tables, and it does nothing more.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let station = cluster.station(&cluster.executors[0].id).unwrap();
    let done = station["done"].as_u64().unwrap() + station["failed"].as_u64().unwrap();
    assert_eq!((station["in_flight"].as_u64(), done), (Some(0), stopped), "{station}");
    assert_eq!(rows(tables, "SELECT status FROM runs")[0]["status"], "stopped");

    let (code, said) = ended(run(&cluster));
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(folder.path()), heads_screened_here(), "stopped and run again");
    assert_eq!(cluster.scheduler.ended(), None);
}

#[test]
fn an_executor_that_is_asked_to_end_finishes_its_chunks_and_the_run_goes_on_with_the_other() {
    let mut cluster = Cluster::of(2, 1);
    let folder = tempfile::tempdir().unwrap();
    let mut driver = Process::spawn("driver", cluster.run(heads(), path(folder.path()), &["--chunk-scans", "2"]));
    let leaving = cluster.working(&[0, 1]);
    cluster.executors[leaving].process.signal("TERM");
    let (code, said) = driver.ends();
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(folder.path()), heads_screened_here(), "an executor ended in between");
    // It keeps the results for drivers for 30 s.
    let (code, said) = cluster.executors[leaving].process.ends();
    assert_eq!(code, Some(0), "{said}");
    let (id, left) = (cluster.executors[leaving].id.clone(), cluster.executors[1 - leaving].id.clone());
    wait_for("the list to be without it", || cluster.station(&id).is_none().then_some(()));
    assert!(cluster.station(&left).is_some());
}

#[test]
fn the_status_of_a_cluster_names_its_executors_and_those_that_are_silent_no_more() {
    let mut cluster = Cluster::of(2, 3);
    let status = ok(&["cluster", "status", "--cluster", &cluster.url]);
    for executor in &cluster.executors {
        assert!(status.contains(&executor.id), "{status}");
    }
    let versions: Vec<Value> = cluster.stations().into_iter().map(|mut station| station["version"].take()).collect();
    assert_eq!(versions, [env!("CARGO_PKG_VERSION"); 2]);
    cluster.executors[0].process.kill();
    wait_for("the killed one to be left out", || (cluster.stations().len() == 1).then_some(()));
    println!("left out after {DEAD_AFTER_S} s of silence");
    // A schedule has the same option.
    let help = text(&program(&["schedule", "--help"]).stdout);
    assert!(help.contains("--cluster") && help.contains("--tls"), "{help}");
    let mut schedule = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
    let folder = tempfile::tempdir().unwrap();
    schedule.args([
        "schedule",
        "pipelines/nightly.toml",
        "--cohort",
        heads(),
        "--tables",
        path(folder.path()),
        "--now",
    ]);
    schedule.args([
        "--cluster",
        &cluster.url,
        "--set",
        "schedule.run=\"0 0 1 1 *\"",
        "--set",
        "score.method=threshold",
    ]);
    schedule.args(["--set", "run.limit=2"]).current_dir(root());
    let mut schedule = Process::spawn("schedule", schedule);
    schedule.prints("2 scans done");
    schedule.signal("TERM");
    assert_eq!(schedule.ends().0, Some(0));
    assert_eq!(number(path(folder.path()), "SELECT count(*) AS n FROM raw.scans"), 2);
}
