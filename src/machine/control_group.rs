//! The control groups of this process: the limits that a container, a batch job or a service sets.
//!
//! ```text
//! /proc/self/cgroup     the path of its group in each hierarchy
//! /proc/self/mountinfo  where that hierarchy is mounted, and which of its groups is at the mount point
//!         │
//!         ▼
//! the folder of the group, of its parent, … up to the mount point: each may have a limit, and the tightest one counts
//! ```
//! In a container the group's folder usually is the mount point. Outside, as under systemd or Slurm, the mount point is the
//! root of all groups, which has no limit. Reads version 1 (a hierarchy per controller), version 2 (one hierarchy), and both
//! side by side. All paths are below `root`, which is `/` except in tests.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// A group's limit on memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// What its processes may hold at most.
    pub(super) limit: u64,
    /// What they hold and the kernel cannot drop. The group's own count of used memory includes the files in the page
    /// cache, which are dropped when memory is short: after a night of reading, it would leave hardly any free memory.
    pub(super) held: u64,
}

/// Names of a version's files.
struct Version {
    limit: &'static str,
    /// Rows of `memory.stat`, which include the groups below.
    held: [&'static str; 2],
}

const V1: Version = Version { limit: "memory.limit_in_bytes", held: ["total_rss", "total_shmem"] };
const V2: Version = Version { limit: "memory.max", held: ["anon", "shmem"] };

/// The limits of the process's own group and of those above it. Empty where there are none, or no control groups.
pub(super) fn memory(root: &Path) -> Vec<MemoryLimit> {
    let read = |name: &str| fs::read_to_string(root.join("proc/self").join(name)).unwrap_or_default();
    let (groups, mounts) = (read("cgroup"), read("mountinfo"));
    // A controller is in one hierarchy only; where version 1 has it, version 2 does not.
    let (version, folders) = match group(&groups, "memory") {
        Some(path) => (V1, folders(root, path, &mounts, Some("memory"))),
        None => (V2, group(&groups, "").map_or_else(Vec::new, |path| folders(root, path, &mounts, None))),
    };
    folders.iter().filter_map(|folder| limit(folder, &version)).collect()
}

/// The path of the group in the hierarchy that has this controller; in version 2 no controller is named.
fn group<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// The folder of the group at `path`, then those of the groups above it. `controller` is that of version 1.
fn folders(root: &Path, path: &str, mounts: &str, controller: Option<&str>) -> Vec<PathBuf> {
    let mounts: Vec<(&str, PathBuf)> =
        mounts.lines().filter_map(|line| mount(line, controller)).map(|(top, at)| (top, below(root, at))).collect();
    let own: Vec<(PathBuf, &PathBuf)> =
        mounts.iter().filter_map(|(top, at)| Some((at.join(inside(path, top)?), at))).collect();
    // Where the group's own folder cannot be seen, the one at the mount point is the nearest.
    let visible = own.iter().find(|(folder, _)| folder.is_dir()).or(own.first());
    match (visible, mounts.first()) {
        (Some((folder, at)), _) => {
            folder.ancestors().take_while(|folder| folder.starts_with(at)).map(Path::to_owned).collect()
        }
        (None, Some((_, at))) => vec![at.clone()],
        (None, None) => Vec::new(),
    }
}

/// The group at the mount point, and the mount point, of a line of `mountinfo` that mounts such a hierarchy. A line is
/// `36 35 98:0 /top /mount/point rw,noatime shared:1 - cgroup source rw,memory` (proc_pid_mountinfo(5)).
fn mount<'a>(line: &'a str, controller: Option<&str>) -> Option<(&'a str, &'a str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (top, at) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
    let fits = match controller {
        Some(controller) => name == "cgroup" && options.split(',').any(|option| option == controller),
        None => name == "cgroup2",
    };
    fits.then_some((top, at))
}

/// The path of a group below the group `top`. A group outside the process's namespace is shown as `/../…`: it has no folder.
fn inside<'a>(path: &'a str, top: &str) -> Option<&'a Path> {
    let relative = Path::new(path).strip_prefix(top).ok()?;
    relative.components().all(|part| matches!(part, Component::Normal(_))).then_some(relative)
}

fn below(root: &Path, absolute: &str) -> PathBuf {
    root.join(absolute.trim_start_matches('/'))
}

/// The limit of one group. A file that says `max`, and the root group, which has no file, set none.
fn limit(folder: &Path, version: &Version) -> Option<MemoryLimit> {
    let limit = fs::read_to_string(folder.join(version.limit)).ok()?.trim().parse().ok()?;
    let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let row = |line: &str| {
        let (name, bytes) = line.split_once(' ')?;
        version.held.contains(&name).then(|| bytes.trim().parse().unwrap_or(0))
    };
    Some(MemoryLimit { limit, held: statistics.lines().filter_map(row).sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine whose files have this content.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn limits(files: &[(&str, &str)]) -> Vec<(u64, u64)> {
        memory(machine(files).path()).iter().map(|group| (group.limit, group.held)).collect()
    }

    const UNIFIED: &str = "25 1 0:22 / /proc rw - proc proc rw\n\
                           31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                          32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                          35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_service_outside_a_container_has_the_limits_of_its_group_and_of_those_above() {
        let found = limits(&[
            ("proc/self/cgroup", "0::/system.slice/screen.service\n"),
            ("proc/self/mountinfo", UNIFIED),
            ("sys/fs/cgroup/memory.stat", "anon 9\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/system.slice/memory.stat", "anon 3221225472\nfile 1000000\nshmem 0\n"),
            ("sys/fs/cgroup/system.slice/screen.service/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/system.slice/screen.service/memory.stat", "anon 1000\nfile 2000000000\nshmem 24\n"),
        ]);
        assert_eq!(found, [(2 * GIB, 1024), (4 * GIB, 3 * GIB)]);
    }

    #[test]
    fn a_batch_job_has_the_limit_of_its_group_in_the_hierarchy_of_memory() {
        let groups = "9:name=systemd:/\n4:memory:/slurm/job_7/step_0\n2:cpu,cpuacct:/slurm\n0::/\n";
        let job = "sys/fs/cgroup/memory/slurm/job_7/memory";
        let found = limits(&[
            ("proc/self/cgroup", groups),
            ("proc/self/mountinfo", HYBRID),
            (&format!("{job}.limit_in_bytes"), "2147483648\n"),
            (&format!("{job}.stat"), "cache 900\nrss 1\ntotal_cache 900\ntotal_rss 4096\ntotal_shmem 4\n"),
            ("sys/fs/cgroup/memory/slurm/job_7/step_0/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(found, [(9223372036854771712, 0), (2 * GIB, 4100), (9223372036854771712, 0)]);
    }

    #[test]
    fn a_container_has_the_limit_at_the_mount_point() {
        let limit = ("sys/fs/cgroup/memory.max", "1073741824\n");
        let own =
            |cgroup, mountinfo| limits(&[("proc/self/cgroup", cgroup), ("proc/self/mountinfo", mountinfo), limit]);
        assert_eq!(own("0::/\n", UNIFIED), [(GIB, 0)], "with a namespace of its own");
        let host = UNIFIED.replace("0:28 /", "0:28 /docker/ab12");
        assert_eq!(own("0::/docker/ab12\n", &host), [(GIB, 0)], "with the names of the host");
        assert_eq!(own("0::/../other\n", UNIFIED), [(GIB, 0)], "a group outside the namespace");
        assert_eq!(own("0::/docker/ab12\n", UNIFIED), [(GIB, 0)], "a group that is not visible");
        let first = limits(&[
            ("proc/self/cgroup", "4:memory:/docker/ab12\n"),
            ("proc/self/mountinfo", &HYBRID.replace("0:32 /", "0:32 /docker/ab12")),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
        ]);
        assert_eq!(first, [(GIB, 0)], "version 1");
    }

    #[test]
    fn without_a_limit_or_without_groups_there_is_none() {
        assert_eq!(limits(&[]), []);
        let group = ("proc/self/cgroup", "0::/user.slice\n");
        assert_eq!(limits(&[group]), [], "nothing is mounted");
        let unlimited = ("sys/fs/cgroup/user.slice/memory.max", "max\n");
        assert_eq!(limits(&[group, ("proc/self/mountinfo", UNIFIED), unlimited]), []);
    }
}
