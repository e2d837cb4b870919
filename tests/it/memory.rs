//! Contract 5: memory stays within the budget. `s3.rs` has the same of large volumes before a slow store.

use std::path::Path;
use std::process::Command;

use super::support::cohorts::synth;
use super::support::program::{printed, screen, screening, text, with_peak_memory};
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
