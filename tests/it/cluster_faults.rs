//! Processes of a cluster that are killed, frozen or cut off: nothing is lost, and nothing is doubled.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::support::cluster::{Cluster, DEAD_AFTER_S, MEMORY_MIB, committed, ended, in_a_namespace, shell_line};
use super::support::cohorts::synth;
use super::support::contents::{HEADS, assert_same, contents, heads, heads_screened_here};
use super::support::process::{PATIENCE, Process, wait_for};
use super::support::program::{command, rows};
use super::support::root;
use super::support::shared::path;

/// How many executors are killed, unless the variable `NEUROSIEVE_CLUSTER_KILLS` says otherwise.
const KILLS: usize = 2;
const SEED: u64 = 21;

/// How many scans there are beside the one that kills its process, unless `NEUROSIEVE_CLUSTER_SCANS` says otherwise.
const SCANS_BESIDE_THE_DEADLY: usize = 15;

/// Small chunks, each a commit of its own.
const SMALL: [&str; 4] = ["--chunk-scans", "2", "--set", "tables.commit_scans=1"];

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

/// The longest time without a commit to the scans and failures of tables, from `since` until now.
fn longest_pause(tables: &Path, since: SystemTime) -> Duration {
    let logs = ["scans", "failures"].map(|table| std::fs::read_dir(tables.join(table).join("_delta_log")).unwrap());
    let commits = logs.into_iter().flatten().map(|entry| entry.unwrap().metadata().unwrap().modified().unwrap());
    let mut times: Vec<SystemTime> = commits.filter(|&time| time > since).chain([since, SystemTime::now()]).collect();
    times.sort();
    times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap()).max().unwrap()
}

#[test]
fn one_of_two_executors_is_killed_at_random_moments() {
    let kills = variable("NEUROSIEVE_CLUSTER_KILLS", KILLS);
    let expected = heads_screened_here();
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::of(2, 2);
    let calm = Instant::now();
    let (code, said) = ended(cluster.run(heads(), path(&folder.path().join("calm")), &SMALL));
    assert_eq!(code, Some(3), "{said}");
    let longest = calm.elapsed();

    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for kill in 1..=kills {
        let tables = folder.path().join(format!("tables-{kill}"));
        let (moment, victim) = (rng.random_range(0.1..0.9) * longest.as_secs_f64(), rng.random_range(0..2));
        let when = format!("seed {SEED}, kill {kill}: executor {victim} after {moment:.2} s");
        println!("{when}");
        let mut driver = Process::spawn("driver", cluster.run(heads(), path(&tables), &SMALL));
        std::thread::sleep(Duration::from_secs_f64(moment));
        cluster.executors[victim].process.kill();
        let killed = SystemTime::now();
        let (code, said) = driver.ends();
        assert_eq!(code, Some(3), "{when}: {said}");
        let pause = longest_pause(&tables, killed);
        println!("    longest pause {:.1} s", pause.as_secs_f64());
        // With the default of 30 s until an executor counts as dead: 45 s.
        assert!(pause < Duration::from_secs(DEAD_AFTER_S + 15), "{when}: no commit for {pause:?}");
        assert_same(&contents(&tables), expected, &when);
        cluster.executors.remove(victim);
        if kill < kills {
            cluster.join(2);
        }
    }
}

#[test]
fn an_executor_that_is_frozen_longer_than_it_counts_as_alive_doubles_nothing() {
    let mut cluster = Cluster::of(2, 1);
    let folder = tempfile::tempdir().unwrap();
    let mut driver = Process::spawn("driver", cluster.run(heads(), path(folder.path()), &SMALL));
    let frozen = cluster.working(&[0, 1]);
    cluster.executors[frozen].process.signal("STOP");
    std::thread::sleep(Duration::from_secs(DEAD_AFTER_S + 4));
    cluster.executors[frozen].process.signal("CONT");
    let (code, said) = driver.ends();
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(folder.path()), heads_screened_here(), "an executor was frozen");

    // It finishes what it held, which nobody asks for any more, and works again.
    let id = cluster.executors[frozen].id.clone();
    wait_for("the executor that was frozen", || cluster.station(&id).filter(|station| station["in_flight"] == 0));
    cluster.executors[1 - frozen].process.kill();
    assert_same(&contents(folder.path()), heads_screened_here(), "it finished its chunk");
    let tables = folder.path().join("again");
    let (code, said) = ended(cluster.run(heads(), path(&tables), &["--limit", "2"]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(committed(path(&tables)), 2);
}

#[test]
fn the_scheduler_is_killed_and_started_again_and_the_same_driver_goes_on() {
    let mut cluster = Cluster::of(2, 1);
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let mut driver = Process::spawn("driver", cluster.run(heads(), tables, &SMALL));
    wait_for("the first commit", || (committed(tables) > 0).then_some(()));
    cluster.kill_scheduler();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(driver.ended(), None, "{}", driver.said());
    cluster.restart_scheduler();
    let (code, said) = driver.ends();
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(folder.path()), heads_screened_here(), "another scheduler");
    for executor in &mut cluster.executors {
        assert_eq!(executor.process.ended(), None, "{}", executor.process.said());
    }
    wait_for("both executors to join again", || (cluster.stations().len() == 2).then_some(()));
}

#[test]
fn the_driver_is_killed_and_started_again_and_the_chunks_of_the_dead_one_end() {
    let cluster = Cluster::of(1, 2);
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let mut driver = Process::spawn("driver", cluster.run(heads(), tables, &SMALL));
    wait_for("the first commit", || (committed(tables) > 0).then_some(()));
    driver.kill();
    let left = HEADS as u64 - committed(tables);
    assert!(left > 0, "it had ended");
    let (code, said) = ended(cluster.run(heads(), tables, &SMALL));
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(folder.path()), heads_screened_here(), "another driver");
    // Chunks of two scans take two seconds.
    let ended = Instant::now();
    wait_for("the executor to have nothing to do", || {
        cluster.stations().iter().all(|station| station["in_flight"] == 0).then_some(())
    });
    assert!(ended.elapsed() < Duration::from_secs(20), "{:?}", ended.elapsed());
}

/// The driver is frozen while the executor finishes its chunk and dies, so that the results are gone when it asks for them.
#[test]
fn an_executor_is_killed_between_the_success_of_its_chunk_and_the_driver_that_fetches_it() {
    let mut cluster = Cluster::of(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let all = HEADS.to_string();
    let mut driver = Process::spawn("driver", cluster.run(heads(), path(folder.path()), &["--chunk-scans", &all]));
    cluster.working(&[0]);
    driver.signal("STOP");
    let first = cluster.executors[0].id.clone();
    wait_for("the chunk to be done", || {
        let station = cluster.station(&first)?;
        let ended = station["done"].as_u64()? + station["failed"].as_u64()?;
        (ended == HEADS as u64 && station["in_flight"] == 0).then_some(())
    });
    // The executor reports the chunk at its next poll, ten times a second.
    std::thread::sleep(Duration::from_secs(2));
    cluster.executors[0].process.kill();
    let second = cluster.join(1);
    driver.signal("CONT");
    let (code, said) = driver.ends();
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(folder.path()), heads_screened_here(), "screened again");
    // It reports itself every two seconds.
    wait_for("the second executor to have screened all", || {
        let station = cluster.station(&cluster.executors[second].id)?;
        (station["done"].as_u64()? + station["failed"].as_u64()? == HEADS as u64).then_some(())
    });
}

/// A library that kills its process when it opens a certain scan. None, and a line, without Linux and a compiler of C.
fn deadly(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("deadly.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", path(&library)]).arg(root().join("tests/cluster/deadly.c"));
    if !cfg!(target_os = "linux") || !compiler.status().is_ok_and(|status| status.success()) {
        println!("skipped: no Linux, or no C compiler");
        return None;
    }
    Some(library)
}

#[test]
fn a_scan_that_kills_its_process_is_one_failure_and_costs_six_executors_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = deadly(folder.path()) else { return };
    let scans = variable("NEUROSIEVE_CLUSTER_SCANS", SCANS_BESIDE_THE_DEADLY) + 1;
    let (cohort, tables) = (folder.path().join("cohort"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", &scans.to_string(), "--lesions", "0", "--spacing", "4"]);
    let deadly = "synth004_T1w";
    let mut cluster = Cluster::scheduler(None);
    let executor = |cluster: &mut Cluster| {
        let mut command = cluster.executor(2);
        command.env("LD_PRELOAD", &library).env("DEADLY_SCAN", deadly);
        cluster.listens(command)
    };
    executor(&mut cluster);
    executor(&mut cluster);
    let mut driver = Process::spawn("driver", cluster.run(path(&cohort), path(&tables), &[]));
    let (started, mut lost) = (Instant::now(), 0);
    while driver.ended().is_none() {
        assert!(started.elapsed() < 2 * PATIENCE, "after {lost} executors: {}", driver.said());
        // What starts executors again is a service manager's work.
        for at in 0..cluster.executors.len() {
            if cluster.executors[at].process.ended().is_some() {
                lost += 1;
                assert!(lost <= 6, "{lost} executors were lost");
                executor(&mut cluster);
                cluster.executors.swap_remove(at);
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let (code, said) = driver.ends();
    assert_eq!(code, Some(3), "{said}");
    println!("{lost} executors were lost in {:?}", started.elapsed());
    assert!(lost >= 2, "the scan killed nothing");
    let failed = rows(path(&tables), "SELECT scan_id, kind, permanent, message FROM raw.failures");
    let [failure] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!((&failure["kind"], &failure["permanent"]), (&"crashed".into(), &true.into()), "{failure}");
    assert_eq!(failure["scan_id"], format!("cohort/sub-{deadly}"), "{failure}");
    let done = rows(path(&tables), "SELECT scan_id, count(*) AS n FROM raw.scans GROUP BY 1");
    assert!(done.len() == scans - 1 && done.iter().all(|scan| scan["n"] == 1), "{done:?}");

    // The failure is permanent: the next run takes no executor with it.
    let (code, said) = ended(cluster.run(path(&cohort), path(&tables), &[]));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("Nothing to do"), "{said}");
}

/// Two executors: the folder in which the first keeps its results is a mount of 4 KiB that is full.
#[test]
fn an_executor_whose_disk_is_full_ends_and_the_run_goes_on_with_the_other() {
    let mut cluster = Cluster::scheduler(None);
    let folder = tempfile::tempdir().unwrap();
    let (work, tables) = (folder.path().join("work"), folder.path().join("tables"));
    std::fs::create_dir(&work).unwrap();
    let mut full = command(&["executor", "--scheduler", &cluster.url, "--device", "cpu"]);
    full.args(["--slots", "1", "--memory-mib", &MEMORY_MIB.to_string(), "--work-dir", path(&work)]);
    let script = format!(
        "mount -t tmpfs -o size=4k none {work} && head -c 4096 /dev/zero > {work}/filling && exec {executor}",
        work = work.display(),
        executor = shell_line(&full)
    );
    let Some(full) = in_a_namespace(&script) else { return };
    cluster.join(1);
    let mut full = Process::spawn("executor on a full disk", full);
    // It may see before its first chunk that it cannot write.
    wait_for("the executor to begin", || {
        (full.said().contains("listening on") || full.ended().is_some()).then_some(())
    });
    let mut driver = Process::spawn("driver", cluster.run(heads(), path(&tables), &SMALL));
    let (code, said) = full.ends();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("No space left"), "{said}");
    let (code, said) = driver.ends();
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(&tables), heads_screened_here(), "an executor had a full disk");
}

/// The folder of the tables is a mount that holds the rows of some scans, and later of all.
#[test]
fn a_full_disk_of_the_tables_ends_the_run_with_the_reason_and_the_same_command_goes_on_once_there_is_space() {
    let mut cluster = Cluster::scheduler(None);
    let folder = tempfile::tempdir().unwrap();
    let (mount, copy) = (folder.path().join("mount"), folder.path().join("copy"));
    std::fs::create_dir(&mount).unwrap();
    let tables = mount.join("tables");
    let executor = shell_line(&cluster.executor(1));
    let driver = shell_line(&cluster.run(heads(), path(&tables), &SMALL));
    let script = format!(
        "mount -t tmpfs -o size=1m none {mount} || exit 9
         {executor} & {driver}; echo \"first run: $?\"
         mount -o remount,size=64m {mount}
         {driver}; echo \"second run: $?\"; kill -9 $!; cp -r {tables} {copy}",
        mount = mount.display(),
        tables = tables.display(),
        copy = copy.display(),
    );
    let Some(all) = in_a_namespace(&script) else { return };
    let (code, said) = Process::spawn("executor and drivers", all).ends_within(2 * PATIENCE);
    assert_eq!(code, Some(0), "{said}");
    let (before, after) = said.split_once("first run: 1").unwrap_or_else(|| panic!("{said}"));
    assert!(before.contains("a chunk failed on an executor: cannot write a data file"), "{said}");
    assert!(before.contains("The disk is full") && !before.contains("DataFusionError"), "{said}");
    assert!(after.contains("second run: 3"), "{said}");
    assert_same(&contents(&copy), heads_screened_here(), "the tables had a full disk");
}
