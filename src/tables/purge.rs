//! Deleting the past of a table: everything that its newest version does not need.
//!
//! ```text
//! _delta_log   0 … V-1, older checkpoints   deleted        V, checkpoint of V   stay
//! data files   of no row of version V       deleted        of version V         stay
//! ```
//! An entry of the log holds the smallest and largest value of each column of the files that it adds, so it can name a person
//! whose rows are gone; a data file holds the rows themselves until it is deleted. After a purge, neither is there, and no
//! earlier version can be read.
//!
//! Takes a table; gives what was deleted. The caller must know that no run is active. Files that no entry of the log names are
//! deleted where they were written before the work began; younger ones are those of a run that has begun meanwhile. Files of
//! other programs stay.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use deltalake_core::checkpoints::create_checkpoint;
use deltalake_core::kernel::Version;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error as Store, ObjectStoreExt as _};
use serde_json::Value;

use super::maintenance::is_data_file;
use super::open::Tables;
use super::schema::Table;
use crate::error::{Error, Result};

const LOG: &str = "_delta_log/";

/// What a purge deleted, or would delete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Files of the log.
    pub log_files: usize,
    /// Data files.
    pub data_files: usize,
}

/// The files of a table that its newest version does not need.
struct Past {
    log: Vec<Path>,
    data: Vec<Path>,
    /// Files of writes that a crash cut off, which the store does not list.
    cut_off: Vec<PathBuf>,
    /// Whether a checkpoint holds the newest version.
    has_checkpoint: bool,
}

impl Past {
    fn counts(&self) -> Purged {
        let in_log = |path: &&PathBuf| path.parent().is_some_and(|folder| folder.ends_with("_delta_log"));
        let cut_off_log = self.cut_off.iter().filter(in_log).count();
        Purged {
            log_files: self.log.len() + cut_off_log,
            data_files: self.data.len() + self.cut_off.len() - cut_off_log,
        }
    }
}

/// The tables as they were when the work began that a purge completes.
pub(super) struct Before {
    began: DateTime<Utc>,
    /// By table, its version and that version's data files.
    versions: BTreeMap<Table, (Version, HashSet<String>)>,
}

impl Tables {
    /// Notes the versions of all tables.
    ///
    /// # Errors
    /// [`Error::Table`] where a table cannot be read.
    pub(super) fn before_work(&self) -> Result<Before> {
        let versions = self.present().map(|table| {
            let version = self.delta(table).version().unwrap_or_default();
            Ok((table, (version, self.data_files(table)?)))
        });
        Ok(Before { began: Utc::now(), versions: versions.collect::<Result<_>>()? })
    }

    fn data_files(&self, table: Table) -> Result<HashSet<String>> {
        let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
        let snapshot = self.delta(table).snapshot().map_err(unreadable)?;
        Ok(snapshot.log_data().iter().map(|file| file.path().into_owned()).collect())
    }

    /// The data files that the table had at the beginning of the work, or that entries of the log have added since.
    async fn named_since(&self, before: &Before, table: Table) -> Result<HashSet<String>> {
        let Some((first, files)) = before.versions.get(&table) else { return Ok(HashSet::new()) };
        let mut named = files.clone();
        let delta = self.delta(table);
        for version in first + 1..=delta.version().unwrap_or_default() {
            let entry = delta.log_store().read_commit_entry(version).await;
            let entry = entry.map_err(|e| Error::table(format!("cannot read the log of table {}", table.name()), e))?;
            for action in serde_json::Deserializer::from_slice(&entry.unwrap_or_default()).into_iter::<Value>() {
                let action = action.map_err(|e| Error::Bug(format!("an entry of a log is not JSON: {e}")))?;
                named.extend(action["add"]["path"].as_str().map(str::to_owned));
            }
        }
        Ok(named)
    }

    /// Counts what [`purge`](Tables::purge) would delete now.
    ///
    /// # Errors
    /// As [`purge`](Tables::purge).
    pub(super) async fn past_of(&self, table: Table) -> Result<Purged> {
        Ok(self.past(table, None).await?.counts())
    }

    /// Deletes everything that the newest version of a table does not need.
    ///
    /// # Errors
    /// [`Error::Table`] where the table cannot be read or its checkpoint not written, and [`Error::Storage`] and
    /// [`Error::Io`] where a file cannot be deleted. The table itself is whole at any time, and a repeated call continues.
    pub(super) async fn purge(&mut self, table: Table, before: &Before) -> Result<Purged> {
        let name = table.name();
        let failed = |e| Error::table(format!("cannot delete earlier versions of table {name}"), e);
        self.delta_mut(table).update_state().await.map_err(failed)?;
        let named = self.named_since(before, table).await?;
        let mut past = self.past(table, Some((before.began, &named))).await?;
        if !past.log.is_empty() && !past.has_checkpoint {
            create_checkpoint(self.delta(table), None).await.map_err(failed)?;
            past = self.past(table, Some((before.began, &named))).await?;
            if !past.has_checkpoint {
                return Err(Error::Bug(format!("table {name} has no checkpoint; its log was not shortened")));
            }
        }
        let location = self.location().clone();
        for path in past.log.iter().chain(&past.data) {
            match location.store.delete(path).await {
                Ok(()) | Err(Store::NotFound { .. }) => {}
                Err(error) => return Err(location.explain_write("delete an old file of the tables at", error)),
            }
        }
        for path in &past.cut_off {
            std::fs::remove_file(path)
                .map_err(|e| Error::io(format!("cannot delete an unfinished file of table {name}"), e))?;
        }
        // The loaded state refers to files of the log that are gone.
        let delta = self.delta_mut(table);
        delta.state = None;
        delta.update_state().await.map_err(failed)?;
        Ok(past.counts())
    }

    /// With `since`, a data file that was written after that time counts only if it is one of those that are named.
    async fn past(&self, table: Table, since: Option<(DateTime<Utc>, &HashSet<String>)>) -> Result<Past> {
        let is_ours = |name: &str, written: DateTime<Utc>| {
            since.is_none_or(|(began, named)| written < began || named.contains(name))
        };
        let delta = self.delta(table);
        let version = delta.version().unwrap_or_default();
        let active = self.data_files(table)?;
        let location = self.location();
        let root = location.path_of(table.name())?;
        let mut past = Past { log: Vec::new(), data: Vec::new(), cut_off: self.cut_off(table), has_checkpoint: false };
        let mut listed = location.store.list(Some(&root));
        while let Some(object) = listed.try_next().await.map_err(|e| location.explain("list", e))? {
            let Some(parts) = object.location.prefix_match(&root) else { continue };
            let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            match name.strip_prefix(LOG) {
                Some(entry) if is_past_entry(entry, version) => past.log.push(object.location),
                Some(entry) => past.has_checkpoint |= entry.starts_with(&format!("{version:020}.checkpoint")),
                None if is_data_file(&name) && !active.contains(&name) && is_ours(&name, object.last_modified) => {
                    past.data.push(object.location);
                }
                None => {}
            }
        }
        Ok(past)
    }

    /// Files of a local folder that a crash left while they were written: a name of ours, `#` and a number.
    fn cut_off(&self, table: Table) -> Vec<PathBuf> {
        let Ok(folder) = self.location().url.to_file_path() else { return Vec::new() };
        let folder = folder.join(table.name());
        let is_cut_off = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('#'));
            name.is_some_and(|(name, number)| {
                let is_ours = is_data_file(name) || version_of(name).is_some() || name.starts_with('_');
                is_ours && !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
            })
        };
        let files =
            [folder.clone(), folder.join(LOG)].into_iter().filter_map(|folder| folder.read_dir().ok()).flatten();
        files.filter_map(|entry| Some(entry.ok()?.path())).filter(is_cut_off).collect()
    }
}

/// The version of an entry of the log: of a commit, a checkpoint, a checksum or a compacted log.
fn version_of(name: &str) -> Option<Version> {
    let (version, kind) = name.split_at_checked(20)?;
    kind.starts_with('.').then(|| version.parse().ok())?
}

/// Whether a file in the log is not needed by a version: an entry of an earlier one, or a commit that was never made.
fn is_past_entry(name: &str, version: Version) -> bool {
    name.starts_with("_commit_") || version_of(name).is_some_and(|earlier| earlier < version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_before_a_version_are_its_past() {
        let past = |name| is_past_entry(name, 12);
        for name in [
            "00000000000000000011.json",
            "00000000000000000010.checkpoint.parquet",
            "00000000000000000003.crc",
            "00000000000000000001.00000000000000000012.compacted.json",
            "_commit_0193.json.tmp",
        ] {
            assert!(past(name), "{name}");
        }
        for name in
            ["00000000000000000012.json", "00000000000000000012.checkpoint.parquet", "_last_checkpoint", "notes"]
        {
            assert!(!past(name), "{name}");
        }
    }
}
