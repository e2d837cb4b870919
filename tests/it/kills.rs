//! What is left of a run that is killed, again and again, at any moment: the same tables as of one that was not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::screen::{ok, rows};

/// Times that runs are killed, unless the variable `NEUROSIEVE_KILLS` says otherwise.
const KILLS: usize = 10;

/// Screens without networks, every scan a commit of its own.
fn run(cohort: &str, tables: &str) -> Command {
    let mut run = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
    run.args(["run", "pipelines/demo.toml", "--cohort", cohort, "--tables", tables, "--device", "cpu"]);
    run.args(["--set", "score.method=threshold", "--set", "tables.commit_scans=1"]);
    run.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::null()).stderr(Stdio::null());
    run
}

/// All that tables say of scans, times and ids of runs left out.
fn said(tables: &str) -> Vec<Vec<Value>> {
    [
        "SELECT scan_id, content_id, anomaly_score, n_tokens, n_findings, brain_volume_ml FROM raw.scans ORDER BY 1",
        "SELECT scan_id, stage, kind, permanent FROM raw.failures ORDER BY 1",
        "SELECT scan_id, count(*) AS n, sum(code) AS codes, max(p_anomalous) AS p FROM tokens GROUP BY 1 ORDER BY 1",
        "SELECT scan_id, finding, volume_ml, region FROM findings ORDER BY 1, 2",
        "SELECT scan_id, mask, brain, score FROM masks ORDER BY 1",
    ]
    .map(|sql| rows(tables, sql))
    .into()
}

#[test]
fn killed_again_and_again_the_tables_are_those_of_an_undisturbed_run() {
    let kills = std::env::var("NEUROSIEVE_KILLS").map_or(KILLS, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let cohort = path("study");
    ok(&["synth", &cohort, "--subjects", "10", "--lesions", "2", "--corrupt", "2", "--spacing", "4"]);
    let started = Instant::now();
    assert_eq!(run(&cohort, &path("calm")).status().unwrap().code(), Some(3));
    // Any moment of a whole run: where a machine is fast, half of one ends before its first commit.
    let longest = started.elapsed();
    let calm = said(&path("calm"));
    assert_eq!(calm[0].len() + calm[1].len(), 10);

    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut killed, mut rounds) = (0, 0);
    while killed < kills {
        rounds += 1;
        let tables = path(&format!("tables-{rounds}"));
        let ended = loop {
            let mut process = run(&cohort, &tables).spawn().unwrap();
            std::thread::sleep(Duration::from_secs_f64(rng.random_range(0. ..longest.as_secs_f64())));
            let Some(status) = process.try_wait().unwrap().or_else(|| {
                process.kill().unwrap();
                process.wait().unwrap();
                None
            }) else {
                killed += 1;
                if killed < kills {
                    continue;
                }
                break run(&cohort, &tables).status().unwrap();
            };
            break status;
        };
        assert!([Some(0), Some(3)].contains(&ended.code()), "after {killed} kills: {ended}");
        assert!(said(&tables) == calm, "after {killed} kills the tables differ");
        std::fs::remove_dir_all(Path::new(&tables)).unwrap();
    }
    println!("{killed} kills in {rounds} rounds");
}

/// A disk of one MiB, in a mount of its own, that is made larger afterwards.
#[test]
fn a_full_disk_is_told_and_with_room_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cohort, disk) = (path("study"), path("disk"));
    ok(&["synth", &cohort, "--subjects", "8", "--lesions", "0", "--spacing", "4"]);
    std::fs::create_dir(&disk).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m none {disk} || exit 77
         screen() {{ {program} run pipelines/demo.toml --cohort {cohort} --tables {disk}/tables --device cpu \
             --set score.method=threshold --set tables.commit_scans=1; echo exit $?; }}
         screen; mount -o remount,size=64m {disk}; screen
         {program} sql --tables {disk}/tables --format json -c 'SELECT count(*) AS n, count(DISTINCT scan_id) AS ids FROM raw.scans'",
        program = env!("CARGO_BIN_EXE_neurosieve"),
    );
    let mut shell = Command::new("unshare");
    shell.args(["--map-root-user", "--mount", "sh", "-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = match shell.output() {
        Ok(output) if output.stdout.starts_with(b"exit") || output.status.success() => output,
        refused => return println!("skipped: this system lets nobody mount in a namespace of their own: {refused:?}"),
    };
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("exit 1\n") && failed.contains("No space left"), "{said}{failed}");
    assert!(failed.contains("the same command takes up the rest"), "{failed}");
    assert!(said.contains("exit 0\n") && said.contains(r#"{"n":8,"ids":8}"#), "{said}{failed}");
}
