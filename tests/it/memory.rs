//! Contract 5: memory stays within the budget. `s3.rs` has the same of large volumes before a slow store.

use std::path::Path;
use std::process::Command;

use neurosieve::volume::{Affine, Grid, Volume, nifti};

use super::support::cohorts::{scan, synth};
use super::support::program::{WITHOUT_NETWORKS, printed, rows, screen, screening, text, with_peak_memory};
use super::support::shared::{path, study};

#[test]
fn a_run_on_scans_of_1_mm_stays_within_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", "6", "--lesions", "0", "--spacing", "1"]);
    let cores = std::thread::available_parallelism().unwrap().get();
    // Room for two such scans at a time, whatever the number of cores.
    let budget_mib = 384 + 96 * cores + 600;
    let budget = format!("run.memory_mib={budget_mib}");
    let more = ["--set", "run.scans_in_flight=6", "--set", &budget];
    let (status, peak_mib) = with_peak_memory(screening(path(&cohort), path(&tables), &more));
    assert!(status.success());
    println!("peak {peak_mib} MiB of {budget_mib}");
    assert!(peak_mib > 100 && peak_mib as f64 <= 1.15 * budget_mib as f64, "{peak_mib} MiB, budget {budget_mib} MiB");
}

#[test]
fn too_little_memory_is_refused_before_tables_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables").display().to_string();
    let run = screen(path(study()), &tables, &["--set", "run.memory_mib=100"]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("run.memory_mib") && !Path::new(&tables).exists());
}

/// The program in a service's group of 2 GiB, half of which is taken, and with a quota of one core. It sees fixture files in
/// the places where the kernel shows its groups.
#[cfg(target_os = "linux")]
#[test]
fn a_process_outside_a_container_sees_the_limits_of_its_own_control_group() {
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("groups/system.slice/screen.service");
    std::fs::create_dir_all(&service).unwrap();
    for (path, content) in [
        (service.join("memory.max"), "2147483648\n"),
        (service.join("memory.stat"), "anon 1073741824\nfile 900000000\nshmem 0\n"),
        (service.join("cpu.max"), "100000 100000\n"),
        (service.join("cgroup.controllers"), "cpu memory\n"),
        (folder.path().join("cgroup"), "0::/system.slice/screen.service\n"),
        (folder.path().join("mountinfo"), "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
    ] {
        std::fs::write(path, content).unwrap();
    }
    let bind = "mount --bind groups /sys/fs/cgroup && mount --bind cgroup /proc/$$/cgroup && \
                mount --bind mountinfo /proc/$$/mountinfo";
    let inside = |command: &str| {
        let script = format!("{bind} && {command}");
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).current_dir(folder.path());
        unshare.output()
    };
    if !inside("true").is_ok_and(|output| output.status.success()) {
        println!("skipped: this system allows no namespaces with other mounts");
        return;
    }
    let output = inside(&format!("exec {} doctor --device cpu", env!("CARGO_BIN_EXE_neurosieve"))).unwrap();
    let found = printed(&output);
    assert!(found.contains("1.0 GiB of 2.0 GiB available"), "{found}");
    assert!(found.contains("1 cores for this process"), "{found}");
}

/// A header that promises more voxels than the run has memory for, in a small file.
#[test]
fn a_scan_that_does_not_fit_into_memory_is_one_failure_and_the_others_are_screened() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", "3", "--lesions", "0", "--spacing", "4"]);
    let grid = Grid { shape: [400; 3], affine: Affine::translation([0.; 3]) };
    let huge = Volume::new(grid, (0..400 * 400 * 400).map(|i| i16::from(i % 97 == 0)).collect());
    std::fs::write(cohort.join(scan(2)), nifti::encode(&huge, "")).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let budget_mib = 384 + 96 * cores + 300;
    let run = |budget_mib: usize| {
        let budget = format!("run.memory_mib={budget_mib}");
        with_peak_memory(screening(
            path(&cohort),
            path(&tables),
            &[&WITHOUT_NETWORKS[..], &["--set", &budget]].concat(),
        ))
    };
    let (status, peak_mib) = run(budget_mib);
    println!("peak {peak_mib} MiB of {budget_mib}");
    assert_eq!(status.code(), Some(3));
    assert!(peak_mib as f64 <= 1.15 * budget_mib as f64, "{peak_mib} MiB, budget {budget_mib} MiB");
    assert_eq!(rows(path(&tables), "SELECT 1 FROM scans").len(), 2);
    let failed = &rows(path(&tables), "SELECT kind, message, needs_bytes FROM failures")[0];
    assert_eq!(failed["kind"], "too_large_for_memory", "{failed}");
    assert!(failed["message"].as_str().unwrap().contains("run.memory_mib"), "{failed}");
    let needs_mib = failed["needs_bytes"].as_u64().unwrap() >> 20;
    assert!(needs_mib > 488, "twice the voxels in f32: {failed}");
    // With as much memory it is tried: its content is no brain.
    assert_eq!(run(budget_mib).0.code(), Some(3));
    let (status, _) = run(384 + 96 * cores + 2 * needs_mib as usize);
    assert_eq!(status.code(), Some(3));
    assert_ne!(rows(path(&tables), "SELECT kind FROM failures")[0]["kind"], "too_large_for_memory");
}
