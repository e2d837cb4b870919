//! Listing a local folder.
//!
//! The store's own listing stops at the first name that it cannot address and does not report links to absent files, so
//! folders are walked here. Objects get the same metadata as from the store, which [`read`](super::read) compares.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::time::SystemTime;

use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use object_store::path::Path;
use walkdir::{DirEntry, WalkDir};

use super::entry::{Entry, Fault, Unusable};
use crate::error::{Error, Result};

/// Entries that are read on a thread for blocking work before they are passed on.
const CHUNK: usize = 1024;

/// Everything below `folder`, whose path in the store is `root`. Links are followed.
///
/// # Errors
/// The stream gives [`Error::Io`] where the folder itself cannot be read, or the disk fails.
pub(super) fn list(folder: &FilePath, root: &Path) -> BoxStream<'static, Result<Entry>> {
    let walk = Walk::new(folder, root.clone());
    let chunks = stream::try_unfold(Some(walk), |walk| async {
        let Some(mut walk) = walk else { return Ok(None) };
        let next = move || {
            let chunk: Vec<Result<Entry>> = walk.by_ref().take(CHUNK).collect();
            let walk = (chunk.len() == CHUNK).then_some(walk);
            (chunk, walk)
        };
        let read = tokio::task::spawn_blocking(next).await;
        read.map(Some).map_err(|e| Error::Bug(format!("listing a folder: {e}")))
    });
    chunks.map_ok(stream::iter).try_flatten().boxed()
}

/// A walk that names what it cannot enter.
struct Walk {
    folder: PathBuf,
    root: Path,
    entries: walkdir::IntoIter,
}

impl Walk {
    fn new(folder: &FilePath, root: Path) -> Self {
        // The walker gives the folder itself first, which is no entry of it.
        let entries = WalkDir::new(folder).follow_links(true).min_depth(1).into_iter();
        Self { folder: folder.to_owned(), root, entries }
    }

    /// An entry of the walk; `None` for a folder, and for what is gone.
    fn entry(&self, found: walkdir::Result<DirEntry>) -> Result<Option<Entry>> {
        let unusable = |path: &FilePath, fault| {
            let below = path.strip_prefix(&self.folder).unwrap_or(path);
            Ok(Some(Entry::Unusable(Unusable { name: below.as_os_str().as_bytes().to_owned(), fault })))
        };
        let with_meta = found.and_then(|found| found.metadata().map(|meta| (found, meta)));
        let (found, meta) = match with_meta {
            Ok(found) => found,
            Err(error) => {
                let path = error.path().unwrap_or(&self.folder).to_owned();
                return match fault(&error, path.is_symlink()) {
                    _ if error.depth() == 0 => Err(unreadable(&path, error.into())),
                    Outcome::Unusable(fault) => unusable(&path, fault),
                    Outcome::Gone => Ok(None),
                    Outcome::Failed => Err(unreadable(&path, error.into())),
                };
            }
        };
        if meta.is_dir() {
            return Ok(None);
        }
        if !meta.is_file() {
            return unusable(found.path(), Fault::NotAFile);
        }
        let below = found.path().strip_prefix(&self.folder).unwrap_or(found.path());
        let Some((uri, location)) = addressed(&self.root, below.as_os_str().as_bytes()) else {
            return unusable(found.path(), Fault::Name);
        };
        Ok((!is_upload(&uri)).then(|| Entry::Object { uri, meta: object_meta(&meta, location) }))
    }
}

impl Iterator for Walk {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let found = self.entries.next()?;
            if let Some(entry) = self.entry(found).transpose() {
                return Some(entry);
            }
        }
    }
}

/// What an error of one entry means for a listing.
enum Outcome {
    Unusable(Fault),
    /// It was deleted since its folder was read.
    Gone,
    /// The disk or the network failed: the listing would not be complete.
    Failed,
}

fn fault(error: &walkdir::Error, is_link: bool) -> Outcome {
    let Some(error) = error.io_error() else { return Outcome::Unusable(Fault::Loop) };
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory if is_link => Outcome::Unusable(Fault::Absent),
        ErrorKind::NotFound => Outcome::Gone,
        ErrorKind::PermissionDenied => Outcome::Unusable(Fault::Denied),
        // A long chain of links counts as a loop, too.
        _ if error.raw_os_error() == Some(libc::ELOOP) => Outcome::Unusable(Fault::Loop),
        // What the link holds is too long to be a path.
        _ if is_link && error.raw_os_error() == Some(libc::ENAMETOOLONG) => Outcome::Unusable(Fault::Absent),
        _ => Outcome::Failed,
    }
}

/// The path below the root as text and the path in the store; `None` where the store cannot address it.
fn addressed(root: &Path, name: &[u8]) -> Option<(String, Path)> {
    let uri = std::str::from_utf8(name).ok()?;
    let full = if root.is_root() { uri.to_owned() } else { format!("{root}/{uri}") };
    Path::parse(full).ok().map(|location| (uri.to_owned(), location))
}

/// Whether the name is that of an upload that has not ended: `name#1`. The store hides these, too.
fn is_upload(uri: &str) -> bool {
    let file = uri.rsplit('/').next().unwrap_or(uri);
    let number = file.split_once('#').map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The metadata that the store gives for this file.
pub(super) fn object_meta(meta: &Metadata, location: Path) -> ObjectMeta {
    let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let micros = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    ObjectMeta {
        location,
        last_modified: modified.into(),
        size: meta.len(),
        e_tag: Some(format!("{:x}-{micros:x}-{:x}", meta.ino(), meta.len())),
        version: None,
    }
}

fn unreadable(path: &FilePath, error: io::Error) -> Error {
    let hint = if error.kind() == ErrorKind::PermissionDenied {
        "give yourself permission to read it, or choose another folder"
    } else {
        "check that the disk is mounted and works, then try again"
    };
    Error::io(format!("cannot list {}; {hint}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::symlink;

    use object_store::ObjectStoreExt as _;

    use super::*;
    use crate::store::{Location, open, printable};

    async fn found(location: &Location) -> (BTreeMap<String, ObjectMeta>, BTreeMap<String, Fault>) {
        let (mut objects, mut unusable) = (BTreeMap::new(), BTreeMap::new());
        for entry in location.list().try_collect::<Vec<_>>().await.unwrap() {
            match entry {
                Entry::Object { uri, meta } => drop(objects.insert(uri, meta)),
                Entry::Unusable(entry) => drop(unusable.insert(printable(&entry.name), entry.fault)),
            }
        }
        (objects, unusable)
    }

    /// The store's own answer is the reference: reading compares ETags with it.
    #[tokio::test]
    async fn a_file_has_the_metadata_that_the_store_gives() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cohort #1 ü");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/100% [1].nii"), "voxels").unwrap();
        fs::write(folder.path().join("elsewhere.nii"), "more voxels").unwrap();
        symlink("../../elsewhere.nii", root.join("a/link.nii")).unwrap();
        let location = open(root.to_str().unwrap()).unwrap();
        let (objects, unusable) = found(&location).await;
        assert_eq!(objects.keys().map(String::as_str).collect::<Vec<_>>(), ["a/b/100% [1].nii", "a/link.nii"]);
        assert!(unusable.is_empty());
        for (uri, meta) in objects {
            assert_eq!(location.store.head(&location.path_of(&uri).unwrap()).await.unwrap(), meta);
        }
    }

    #[tokio::test]
    async fn links_in_a_circle_absent_files_and_odd_names_stop_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/good.nii"), "x").unwrap();
        for (target, link) in [
            ("..", "a/b/up"),
            (".", "a/here"),
            ("../..", "a/b/above_the_parent"),
            ("two", "one"),
            ("one", "two"),
            ("self", "self"),
            ("nowhere/x.nii", "absent.nii"),
            ("a/good.nii/x", "through_a_file.nii"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        fs::write(root.join("a/tab\t.nii"), "x").unwrap();
        fs::write(root.join(OsStr::from_bytes(b"M\xfcller.txt")), "x").unwrap();
        let location = open(root.to_str().unwrap()).unwrap();
        let (objects, unusable) = found(&location).await;
        assert_eq!(objects.into_keys().collect::<Vec<_>>(), ["a/good.nii"]);
        let faults: Vec<(&str, Fault)> = unusable.iter().map(|(name, fault)| (name.as_str(), *fault)).collect();
        assert_eq!(
            faults,
            [
                (r"M\xfcller.txt", Fault::Name),
                ("a/b/above_the_parent", Fault::Loop),
                ("a/b/up", Fault::Loop),
                ("a/here", Fault::Loop),
                (r"a/tab\t.nii", Fault::Name),
                ("absent.nii", Fault::Absent),
                ("one", Fault::Loop),
                ("self", Fault::Loop),
                ("through_a_file.nii", Fault::Absent),
                ("two", Fault::Loop),
            ]
        );
    }
}
