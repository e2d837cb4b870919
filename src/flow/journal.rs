//! The journal of a run: which scans are in flight, for the case that the process dies.
//!
//! ```text
//! a scan begins ─► _in_flight/<run id>.json names it ─► it is screened ─► the run ends: the journal is deleted
//!                                                             │ the process dies: the journal stays
//!                                                             ▼
//!                         the next run screens the scans that it names last, each in a process of its own (apart.rs)
//! ```
//! Scans are named by a digest, so that a journal that stays says nothing about a subject. Scans that begin while the object is
//! written share the next write. A journal whose scans are all settled is deleted by the next run, and one that is older than
//! upkeep keeps files by upkeep.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::cohort::ScanEntry;
use crate::error::{Error, Result};
use crate::hex::hexadecimal;
use crate::store::{self, Location, with_retries};

/// The folder of the journals, beside the tables.
const FOLDER: &str = "_in_flight";

/// A larger object is no journal.
const LARGEST: u64 = 1 << 20;

/// The journal of this run.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    /// Dropped with this, the writer stops.
    writer: tokio::sync::Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Shared {
    location: Location,
    uri: String,
    content: Content,
    scans: Mutex<InFlight>,
    changed: Notify,
    /// The last change that is written.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct InFlight {
    keys: BTreeSet<String>,
    changes: u64,
}

/// The content of the object.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Content {
    cohort_root: String,
    recipe_id: String,
    scans: BTreeSet<String>,
}

impl Content {
    fn of(cohort_root: &str, recipe_id: &str) -> Self {
        Self { cohort_root: cohort_root.to_owned(), recipe_id: recipe_id.to_owned(), scans: BTreeSet::new() }
    }
}

/// A scan in flight; dropping it takes the scan out of the journal.
#[derive(Debug)]
pub(super) struct Entered {
    shared: Arc<Shared>,
    key: String,
}

impl Journal {
    /// The journal of a run, beside the tables at `location`. It is written when the first scan begins. `cohort_root` identifies
    /// the cohort.
    pub(super) fn new(location: Location, run_id: &str, cohort_root: &str, recipe_id: &str) -> Self {
        let shared = Arc::new(Shared {
            location,
            uri: format!("{FOLDER}/{run_id}.json"),
            content: Content::of(cohort_root, recipe_id),
            scans: Mutex::default(),
            changed: Notify::new(),
            written: watch::Sender::new(0),
        });
        let mut writer = JoinSet::new();
        writer.spawn(Arc::clone(&shared).write_changes());
        Self { shared, writer: tokio::sync::Mutex::new(writer) }
    }

    /// Notes that a scan begins; completes when that is written. A journal that cannot be written stops no scan.
    pub(super) async fn enter(&self, entry: &ScanEntry) -> Entered {
        let key = key(entry);
        let change = {
            let mut scans = self.shared.scans();
            scans.keys.insert(key.clone());
            scans.changes += 1;
            scans.changes
        };
        self.shared.changed.notify_one();
        // Fails only without a sender, and `shared` is one.
        let _ = self.shared.written.subscribe().wait_for(|&written| written >= change).await;
        Entered { shared: Arc::clone(&self.shared), key }
    }

    /// The run ends in order: deletes the journal. No scan can enter it afterwards.
    pub(super) async fn close(&self) {
        // First, because a write that is under way would put the journal back.
        self.writer.lock().await.shutdown().await;
        if self.shared.scans().changes > 0 {
            delete(&self.shared.location, &self.shared.uri).await;
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shared.scans().keys.remove(&self.key);
    }
}

impl Shared {
    fn scans(&self) -> std::sync::MutexGuard<'_, InFlight> {
        self.scans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_changes(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            let (content, change) = {
                let scans = self.scans();
                (Content { scans: scans.keys.clone(), ..self.content.clone() }, scans.changes)
            };
            if let Err(error) = self.put(&content).await {
                warn!(kind = error.kind(), "the journal of scans in flight cannot be written: {error}");
            }
            self.written.send_replace(change);
        }
    }

    async fn put(&self, content: &Content) -> Result<()> {
        let path = self.location.path_of(&self.uri)?;
        let bytes = serde_json::to_vec(content).map_err(|e| Error::Bug(format!("the journal as JSON: {e}")))?;
        let put = async || {
            let put = self.location.store.put(&path, bytes.clone().into()).await;
            put.map(drop).map_err(|e| self.location.explain_write("write a journal under", e))
        };
        with_retries(put).await
    }
}

/// Deletes the journals of the tables at `location` that were last written before a time.
///
/// # Errors
/// [`Error::Storage`] where they cannot be listed or deleted.
pub async fn delete_journals(location: &Location, before: DateTime<Utc>) -> Result<()> {
    delete_older(location, FOLDER, before).await
}

/// Deletes the objects in a folder beside the tables that were last written before a time.
///
/// # Errors
/// [`Error::Storage`] where they cannot be listed or deleted.
pub(super) async fn delete_older(location: &Location, folder: &str, before: DateTime<Utc>) -> Result<()> {
    for object in objects(location, folder).await?.iter().filter(|object| object.last_modified < before) {
        match location.store.delete(&object.location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(location.explain_write(&format!("delete what a run left in {folder} at"), error)),
        }
    }
    Ok(())
}

async fn listed(location: &Location) -> Result<Vec<ObjectMeta>> {
    objects(location, FOLDER).await
}

async fn objects(location: &Location, folder: &str) -> Result<Vec<ObjectMeta>> {
    match location.store.list(Some(&location.path_of(folder)?)).try_collect().await {
        Ok(found) => Ok(found),
        Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(location.explain("list", error)),
    }
}

/// The journals of runs that are under way, and of those that died.
#[derive(Debug, Default)]
pub(super) struct Journals(Vec<(Path, BTreeSet<String>)>);

impl Journals {
    /// Reads the journals of runs on this cohort with this recipe.
    ///
    /// # Errors
    /// [`Error::Storage`] where they cannot be listed or read.
    pub(super) async fn of_others(location: &Location, cohort_root: &str, recipe_id: &str) -> Result<Self> {
        let found = listed(location).await?;
        let mut journals = Vec::new();
        for object in found.iter().filter(|object| object.size <= LARGEST) {
            let Some(uri) = location.relative(&object.location) else { continue };
            let bytes = match store::read(location, uri, None, |_| Ok(())).await {
                Ok(bytes) => bytes,
                // Its run has ended meanwhile.
                Err(Error::Storage { source: object_store::Error::NotFound { .. }, .. }) => continue,
                Err(error) => return Err(error),
            };
            match serde_json::from_slice::<Content>(&bytes) {
                Ok(content) if content.recipe_id == recipe_id && content.cohort_root == cohort_root => {
                    journals.push((object.location.clone(), content.scans))
                }
                _ => {}
            }
        }
        Ok(Self(journals))
    }

    /// Whether a journal names the scan.
    pub(super) fn name(&self, entry: &ScanEntry) -> bool {
        !self.0.is_empty() && self.0.iter().any(|(_, scans)| scans.contains(&key(entry)))
    }

    /// Deletes the journals that name only these scans, which are settled. One that names others stays: they may belong to
    /// another selection.
    pub(super) async fn delete_settled(&self, location: &Location, settled: impl Iterator<Item = &ScanEntry>) {
        if self.0.is_empty() {
            return;
        }
        let settled: BTreeSet<String> = settled.map(key).collect();
        for (path, _) in self.0.iter().filter(|(_, scans)| scans.is_subset(&settled)) {
            if let Some(uri) = location.relative(path) {
                delete(location, uri).await;
            }
        }
    }
}

/// Deletes a journal. One that cannot be deleted is deleted by a later run.
async fn delete(location: &Location, uri: &str) {
    if let Ok(path) = location.path_of(uri) {
        let _ = location.store.delete(&path).await;
    }
}

/// Names a scan and its content: the first 32 digits of a SHA-256.
fn key(entry: &ScanEntry) -> String {
    let digest = Sha256::digest(format!("{}\0{}", entry.scan_id, entry.content_id));
    hexadecimal(&digest[..16])
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use url::Url;

    use super::*;

    fn location() -> Location {
        Location::new(Arc::new(InMemory::new()), Path::from("tables"), Url::parse("memory:///tables").unwrap())
    }

    #[tokio::test]
    async fn a_dead_run_leaves_the_names_of_its_scans_in_flight_to_runs_on_the_same_cohort() {
        let (location, [done, flying, new]) = (location(), ["done", "flying", "new"].map(ScanEntry::sample));
        let journal = Journal::new(location.clone(), "run-1", "study-1", "recipe");
        drop(journal.enter(&done).await);
        let _in_flight = journal.enter(&flying).await;
        // The process dies: nothing is closed.
        let names = async |cohort: &str, recipe: &str| {
            let journals = Journals::of_others(&location, cohort, recipe).await.unwrap();
            [&done, &flying, &new].map(|entry| journals.name(entry))
        };
        assert_eq!(names("study-1", "recipe").await, [false, true, false]);
        assert_eq!(names("study-2", "recipe").await, [false; 3]);
        assert_eq!(names("study-1", "other").await, [false; 3]);

        // It stays until all that it names is settled, whatever else the next run selects.
        let journals = Journals::of_others(&location, "study-1", "recipe").await.unwrap();
        journals.delete_settled(&location, [&done, &new].into_iter()).await;
        assert_eq!(names("study-1", "recipe").await, [false, true, false]);
        journals.delete_settled(&location, [&flying, &new].into_iter()).await;
        assert_eq!(names("study-1", "recipe").await, [false; 3]);
    }

    #[tokio::test]
    async fn a_run_that_ends_in_order_leaves_no_journal_and_upkeep_deletes_old_ones() {
        let (location, scan) = (location(), ScanEntry::sample("a"));
        let journal = Journal::new(location.clone(), "run-1", "study", "recipe");
        drop(journal.enter(&scan).await);
        assert_eq!(listed(&location).await.unwrap().len(), 1);
        journal.close().await;
        assert!(listed(&location).await.unwrap().is_empty());

        let dead = Journal::new(location.clone(), "run-2", "study", "recipe");
        let _in_flight = dead.enter(&scan).await;
        delete_journals(&location, Utc::now() - chrono::TimeDelta::days(7)).await.unwrap();
        assert_eq!(listed(&location).await.unwrap().len(), 1);
        delete_journals(&location, Utc::now() + chrono::TimeDelta::seconds(1)).await.unwrap();
        assert!(listed(&location).await.unwrap().is_empty());
    }
}
