//! A run that is killed at random moments and started again leaves the tables of an undisturbed run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::support::cohorts::synth;
use super::support::program::{WITHOUT_NETWORKS, rows, screening, text};
use super::support::root;

/// How many runs are killed, unless the variable `NEUROSIEVE_KILLS` says otherwise.
const KILLS: usize = 10;

/// Screens without networks, every scan a commit of its own.
fn run(cohort: &str, tables: &str) -> Command {
    let mut run = screening(cohort, tables, &["--set", "tables.commit_scans=1"]);
    run.args(WITHOUT_NETWORKS).stdout(Stdio::null()).stderr(Stdio::null());
    run
}

/// The contents of the tables, except times and ids of runs.
fn contents(tables: &str) -> Vec<Vec<Value>> {
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
fn a_run_that_is_killed_again_and_again_leaves_the_tables_of_an_undisturbed_run() {
    let kills = std::env::var("NEUROSIEVE_KILLS").map_or(KILLS, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let cohort = path("study");
    synth(&cohort, &["--subjects", "10", "--lesions", "2", "--corrupt", "2", "--spacing", "4"]);
    let started = Instant::now();
    assert_eq!(run(&cohort, &path("calm")).status().unwrap().code(), Some(3));
    // Kills fall on any moment of a whole run: on a fast machine the first half ends before the first commit.
    let longest = started.elapsed();
    let calm = contents(&path("calm"));
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
        assert!(contents(&tables) == calm, "after {killed} kills the tables differ");
        std::fs::remove_dir_all(Path::new(&tables)).unwrap();
    }
    println!("{killed} kills in {rounds} rounds");
}

/// The disk is a mount of one MiB that is enlarged afterwards.
#[test]
fn a_full_disk_is_reported_and_the_same_command_finishes_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cohort, disk) = (path("study"), path("disk"));
    synth(&cohort, &["--subjects", "8", "--lesions", "0", "--spacing", "4"]);
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
    shell.args(["--map-root-user", "--mount", "sh", "-c", &script]).current_dir(root());
    let output = match shell.output() {
        Ok(output) if output.stdout.starts_with(b"exit") || output.status.success() => output,
        refused => return println!("skipped: this system does not allow mounts in a user namespace: {refused:?}"),
    };
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(printed.contains("exit 1\n") && errors.contains("No space left"), "{printed}{errors}");
    assert!(errors.contains("run the same command again"), "{errors}");
    assert!(printed.contains("exit 0\n") && printed.contains(r#"{"n":8,"ids":8}"#), "{printed}{errors}");
}
