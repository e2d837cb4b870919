//! The machine that this process runs on: cores, vector units, memory, disk space.
//!
//! Takes nothing; gives figures of now, each within the limits that a control group (a container, a batch job) sets for
//! this process.

mod control_group;

use std::path::Path;

use sysinfo::{Disks, System};

/// Processor cores that this process may use: those that it may run on, within the processor quota of its control groups
/// (`cpu.max`, `cpu.cfs_quota_us`), both of which the standard library reads.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The instruction sets of this processor that decide how fast libtorch computes: vectors of 8 or 16 numbers, bfloat16.
pub fn vector_units() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let units = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let units = [("", false); 0];
    units.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

/// Bytes that can still be written below `folder`, an absolute path; `None` where no known disk holds it.
pub fn free_disk(folder: &Path) -> Option<u64> {
    let disks = Disks::new_with_refreshed_list();
    let holding = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    holding.max_by_key(|disk| disk.mount_point().components().count()).map(sysinfo::Disk::available_space)
}

/// Limits the memory that this process may take. An allocation beyond it fails; otherwise the system would kill the process, or
/// all that share its control group. Does nothing where the system has no such limit.
#[cfg(unix)]
#[allow(unsafe_code, reason = "the limits of a process have no safe interface in the standard library")]
pub fn limit_memory(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes as libc::rlim_t, rlim_max: bytes as libc::rlim_t };
    // SAFETY: the pointer is valid during the call. If it fails, the process goes on without the limit.
    unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) };
}

/// Ends this process without running what libraries have registered for its end: libtorch's would destroy what its threads are
/// still computing with.
#[cfg(unix)]
#[allow(unsafe_code, reason = "the standard library only ends a process together with those handlers")]
pub fn end_at_once(code: u8) -> ! {
    // SAFETY: _exit takes any number, and nothing of this process runs after it.
    unsafe { libc::_exit(libc::c_int::from(code)) }
}

/// Returns the free pages of the heap to the system. Without it, glibc keeps the pages of the largest scans for as long as the
/// process lives. Does nothing with other C libraries.
#[cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    allow(unsafe_code, reason = "glibc's heap has no safe interface")
)]
pub fn return_free_memory() {
    // SAFETY: malloc_trim may be called at any time; it locks one heap after the other.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What processes may hold at most.
    pub total: u64,
    /// What they may still take.
    pub free: u64,
}

impl Memory {
    /// The machine's, whatever the limit of a control group.
    pub fn of_machine() -> Self {
        Self::of(&measured())
    }

    /// What this process may use: the machine's, within the limits of its control group and of the groups above.
    pub fn of_process() -> Self {
        Self::of_machine().within_groups(Path::new("/"))
    }

    fn of(system: &System) -> Self {
        Self { total: system.total_memory(), free: system.available_memory() }
    }

    /// Within the control groups that the files below `root` describe.
    fn within_groups(self, root: &Path) -> Self {
        let within = |memory: Self, group: control_group::MemoryLimit| Self {
            total: memory.total.min(group.limit),
            free: memory.free.min(group.limit.saturating_sub(group.held)),
        };
        control_group::memory(root).into_iter().fold(self, within)
    }
}

/// The system, with the current state of its memory.
fn measured() -> System {
    let mut system = System::new();
    system.refresh_memory();
    system
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts_for_the_total_and_for_what_is_free() {
        let machine = Memory { total: 64 << 30, free: 40 << 30 };
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, content: String| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        assert_eq!(machine.within_groups(root.path()), machine, "no groups");
        write("proc/self/cgroup", "0::/slice/service\n".into());
        write("proc/self/mountinfo", "31 23 0:28 / /groups rw - cgroup2 cgroup2 rw\n".into());
        let group = |name: &str, limit: u64, held: u64| {
            write(&format!("groups/{name}/memory.max"), format!("{limit}\n"));
            write(&format!("groups/{name}/memory.stat"), format!("anon {held}\n"));
        };
        group("slice/service", 2 << 30, 1 << 30);
        assert_eq!(machine.within_groups(root.path()), Memory { total: 2 << 30, free: 1 << 30 });
        // Its neighbours have taken nearly all of what the slice may hold.
        group("slice", 8 << 30, (8 << 30) - 5);
        assert_eq!(machine.within_groups(root.path()), Memory { total: 2 << 30, free: 5 });
        group("slice", 8 << 30, 9 << 30);
        assert_eq!(machine.within_groups(root.path()).free, 0);
        group("slice/service", 128 << 30, 0);
        group("slice", u64::MAX, 0);
        assert_eq!(machine.within_groups(root.path()), machine, "a limit above what the machine has");
    }
}
