//! The folders of an executor: results until they are fetched, what queries spill, and bundles.
//!
//! ```text
//! <work-dir>/bundles          kept for the next executor
//! <work-dir>/executor-<id>/   this process's, deleted at its end
//!     lock                    held while the process lives
//!     results, spill
//! ```
//! A process that is killed leaves its folder behind, and the next executor that is given the same work folder deletes it; one
//! without `--work-dir` deletes those that others without it left among the temporary files.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use crate::error::{Error, Result};

const PREFIX: &str = "executor-";
/// Precedes the same name among the temporary files of all programs.
const TEMPORARY: &str = "neurosieve-";
const LOCK: &str = "lock";

/// How old a folder without an owner must be: a younger one may not have got its lock yet.
const ABANDONED: Duration = Duration::from_secs(60);

/// The folders of one executor, which deletes its own when it is dropped.
#[derive(Debug)]
pub struct WorkFolder {
    bundles: PathBuf,
    own: PathBuf,
    /// What is deleted at the end: all of it where it is temporary.
    deleted: PathBuf,
    _lock: File,
}

impl WorkFolder {
    /// Makes the folders below `folder`, or below a temporary one, which is deleted at the end together with its bundles.
    ///
    /// # Errors
    /// [`Error::Io`] where a folder cannot be made.
    pub fn open(folder: Option<&Path>) -> Result<Self> {
        let name = format!("{PREFIX}{}", Uuid::now_v7().simple());
        let temporary = std::env::temp_dir().join(format!("{TEMPORARY}{name}"));
        let whole = folder.unwrap_or(&temporary);
        if folder.is_none() {
            delete_abandoned_temporary(&std::env::temp_dir());
        }
        let failed = |e| Error::io(format!("cannot make the work folder {}", whole.display()), e);
        delete_abandoned(whole);
        let (own, bundles) = (whole.join(name), whole.join("bundles"));
        for path in [&bundles, &own.join("results"), &own.join("spill")] {
            // What it holds comes from scans.
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        }
        let lock = File::create(own.join(LOCK)).and_then(|file| Ok(file.try_lock().map(|()| file)?)).map_err(failed)?;
        let deleted = if folder.is_some() { own.clone() } else { temporary.clone() };
        Ok(Self { bundles, own, deleted, _lock: lock })
    }

    /// The folder of bundles.
    pub fn bundles(&self) -> PathBuf {
        self.bundles.clone()
    }

    /// The folder of results.
    pub fn results(&self) -> PathBuf {
        self.own.join("results")
    }

    /// The folder of what queries spill.
    pub fn spill(&self) -> PathBuf {
        self.own.join("spill")
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // What is left is deleted by the next executor, or by who keeps the folder of temporary files.
        let _ = fs::remove_dir_all(&self.deleted);
    }
}

/// Deletes what killed executors have left behind; what cannot be deleted stays.
fn delete_abandoned(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_abandoned(&path).unwrap_or(false) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Deletes the temporary work folders of killed executors of this user, with their bundles.
fn delete_abandoned_temporary(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_prefix(TEMPORARY)).map(str::to_owned)
        else {
            continue;
        };
        let path = entry.path();
        // Not the target of a link, which could be anything.
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && name.starts_with(PREFIX)
            && is_abandoned(&path.join(name)).unwrap_or(false)
        {
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn is_abandoned(folder: &Path) -> io::Result<bool> {
    let lock = File::open(folder.join(LOCK))?;
    let age = lock.metadata()?.modified()?.elapsed().unwrap_or_default();
    Ok(age >= ABANDONED && lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn an_executor_deletes_its_own_folders_and_those_of_killed_ones_and_keeps_bundles() {
        let folder = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::now() - 2 * ABANDONED;
        let killed = folder.path().join("executor-killed");
        fs::create_dir(&killed).unwrap();
        File::create(killed.join(LOCK)).unwrap().set_modified(long_ago).unwrap();

        let living = WorkFolder::open(Some(folder.path())).unwrap();
        assert!(!killed.exists());
        File::open(living.own.join(LOCK)).unwrap().set_modified(long_ago).unwrap();
        let second = WorkFolder::open(Some(folder.path())).unwrap();
        assert!(living.results().is_dir() && living.spill().is_dir(), "the living one's folders are gone");
        drop(living);
        assert_eq!(second.bundles(), folder.path().join("bundles"));
        drop(second);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["bundles"]);
    }

    #[test]
    fn temporary_work_folders_of_killed_executors_are_deleted_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [temporary, elsewhere] = ["tmp", "elsewhere"].map(|name| folder.path().join(name));
        let [killed, living, linked] = ["killed", "living", "linked"].map(|name| format!("neurosieve-executor-{name}"));
        let locks = [temporary.join(&killed), temporary.join(&living), elsewhere.join(&linked)].map(|whole| {
            let own = whole.join(whole.file_name().unwrap().to_str().unwrap().strip_prefix(TEMPORARY).unwrap());
            fs::create_dir_all(&own).unwrap();
            let lock = File::create(own.join(LOCK)).unwrap();
            lock.set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
            lock
        });
        locks[1].try_lock().unwrap();
        std::os::unix::fs::symlink(elsewhere.join(&linked), temporary.join(&linked)).unwrap();
        delete_abandoned_temporary(&temporary);
        assert!(!temporary.join(&killed).exists());
        assert!(temporary.join(&living).exists() && elsewhere.join(&linked).exists());
    }

    #[test]
    fn a_temporary_work_folder_is_deleted_whole() {
        let work = WorkFolder::open(None).unwrap();
        let bundles = work.bundles();
        assert!(bundles.is_dir());
        drop(work);
        assert!(!bundles.exists() && !bundles.parent().unwrap().exists());
    }
}
