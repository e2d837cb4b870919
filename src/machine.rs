//! The machine that this process runs on: cores, vector units, memory, disk space.
//!
//! Takes nothing; gives figures of now, each within the limits that a control group (a container, a batch job) sets for
//! this process.

use std::path::Path;

use sysinfo::{Disks, System};

/// Processor cores that this process may use.
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

    /// What this process may use: the machine's, within the limit of its control group.
    pub fn of_process() -> Self {
        let system = measured();
        let machine = Self::of(&system);
        system.cgroup_limits().map_or(machine, |group| machine.within(group.total_memory, group.rss))
    }

    fn of(system: &System) -> Self {
        Self { total: system.total_memory(), free: system.available_memory() }
    }

    /// Within a group of processes that may hold `limit` bytes and hold `resident`. The group's own count of used memory
    /// includes the files in the page cache, which are dropped when memory is short: after a night of reading, it would
    /// report hardly any free memory.
    fn within(self, limit: u64, resident: u64) -> Self {
        Self { total: self.total.min(limit), free: self.free.min(limit.saturating_sub(resident)) }
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
    fn a_group_has_what_its_processes_do_not_hold() {
        let machine = Memory { total: 64 << 30, free: 40 << 30 };
        assert_eq!(machine.within(16 << 30, 2 << 30), Memory { total: 16 << 30, free: 14 << 30 });
        assert_eq!(machine.within(u64::MAX, 2 << 30), machine, "no limit");
        assert_eq!(machine.within(1 << 30, 2 << 30).free, 0);
    }
}
