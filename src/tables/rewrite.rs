//! Rewriting committed data files: operations of the Delta library that replace files, committed by our own rules.
//!
//! Left to itself, the library commits a rewrite on top of whatever others have committed meanwhile. Of two rewrites of the
//! same files at the same time, both would be committed, and every row would be there twice. So an operation runs on a copy
//! of the table whose log holds the commit back; it is then committed only on top of a version in which every file that it
//! replaces is still part of the table. Otherwise it is planned anew.
//!
//! Takes a table and an operation; commits the operation's actions, and gives them. Refuses a rewrite that loses or doubles
//! rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::prelude::{Expr, col, lit};
use deltalake_core::kernel::transaction::{CommitProperties, TransactionError};
use deltalake_core::kernel::{Action, Version};
use deltalake_core::logstore::{CommitOrBytes, LogStore, LogStoreConfig, LogStoreRef};
use deltalake_core::protocol::DeltaOperation;
use deltalake_core::{DeltaResult, DeltaTable, DeltaTableError};
use object_store::ObjectStore;
use uuid::Uuid;

use super::datafile::properties;
use super::open::Tables;
use super::protocol::refuse_unwritable;
use super::schema::Table;
use super::session::RAW_SCHEMA;
use crate::error::{Error, Result};

/// Plans of a rewrite, each of which another process may make useless by rewriting the same files first.
const MAX_PLANS: u32 = 5;

/// A rewrite of a table's data files.
pub(super) struct Rewrite {
    pub(super) table: Table,
    /// What is attempted, for messages: `optimize`.
    pub(super) attempted: &'static str,
    /// The name of the commit in the log.
    pub(super) operation: DeltaOperation,
    /// How many rows it removes.
    pub(super) removed_rows: usize,
}

impl Tables {
    /// Plans and commits a rewrite; gives its actions, or nothing where there is nothing to do. `run` starts the library's
    /// operation, which must take the given commit properties. It runs again where another rewrite was faster.
    ///
    /// # Errors
    /// [`Error::Config`] for a table with features that this program cannot write, and where other processes keep rewriting
    /// the same files; [`Error::Table`] where the table cannot be read or written; it is then unchanged.
    pub(super) async fn rewrite<T, F: Future<Output = DeltaResult<T>>>(
        &mut self,
        what: &Rewrite,
        run: impl Fn(DeltaTable, CommitProperties) -> F,
    ) -> Result<Option<Vec<Action>>> {
        let name = what.table.name();
        let failed = |e| Error::table(format!("cannot {} table {name}", what.attempted), e);
        for _ in 0..MAX_PLANS {
            let delta = self.delta_mut(what.table);
            delta.update_state().await.map_err(failed)?;
            refuse_unwritable(what.table, delta)?;
            let Some(actions) = plan(delta, &run).await.map_err(failed)? else { return Ok(None) };
            if self.commit_rewrite(what, &actions).await? {
                return Ok(Some(actions));
            }
            tracing::info!(table = name, "another process rewrote the same files; planning again");
        }
        Err(Error::Config(format!(
            "other processes rewrote files of table {name} {MAX_PLANS} times before this one could: try again when they have \
             ended"
        )))
    }

    /// Deletes the rows that meet a condition, of which there are `rows`.
    ///
    /// # Errors
    /// As [`rewrite`](Tables::rewrite); [`Error::Bug`] where another number of rows meets the condition.
    pub(super) async fn delete_where(&mut self, table: Table, which: &Expr, rows: usize) -> Result<()> {
        // The condition stays out of the log, because it can name a person.
        let operation = DeltaOperation::Delete { predicate: None };
        let what = Rewrite { table, attempted: "delete rows of", operation, removed_rows: rows };
        let properties = properties(table, false)?;
        let deleted = self.rewrite(&what, |copy, commit| {
            let delete = copy.delete().with_predicate(which.clone()).with_commit_properties(commit);
            delete.with_writer_properties(properties.clone()).into_future()
        });
        deleted.await.map(drop)
    }

    /// Deletes the rows that meet a condition; gives their number.
    pub(super) async fn delete_counted(&mut self, table: Table, which: &Expr) -> Result<usize> {
        let rows = self.count_where(table, which).await?;
        if rows > 0 {
            self.delete_where(table, which, rows).await?;
        }
        Ok(rows)
    }

    /// How many rows meet a condition, as of the last refresh.
    pub(super) async fn count_where(&self, table: Table, which: &Expr) -> Result<usize> {
        let context = self.raw_session().await?;
        let rows = context.table(format!("{RAW_SCHEMA}.{}", table.name())).await?.filter(which.clone())?;
        Ok(rows.count().await?)
    }
}

/// The rows of these scans of a run.
pub(super) fn of_scans(run_id: &str, scans: &[String]) -> Expr {
    col("run_id").eq(lit(run_id)).and(col("scan_id").in_list(scans.iter().map(|id| lit(id.as_str())).collect(), false))
}

/// A log that reads as usual and writes nothing: it keeps the entry, and reports that its version is already taken.
struct HeldBack {
    log: LogStoreRef,
    entry: Mutex<Option<Bytes>>,
}

#[async_trait]
impl LogStore for HeldBack {
    fn name(&self) -> String {
        self.log.name()
    }

    async fn read_commit_entry(&self, version: Version) -> DeltaResult<Option<Bytes>> {
        self.log.read_commit_entry(version).await
    }

    async fn write_commit_entry(
        &self,
        version: Version,
        entry: CommitOrBytes,
        _operation: Uuid,
    ) -> Result<(), TransactionError> {
        if let CommitOrBytes::LogBytes(bytes) = entry {
            *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        }
        Err(TransactionError::VersionAlreadyExists(version))
    }

    async fn abort_commit_entry(
        &self,
        version: Version,
        entry: CommitOrBytes,
        operation: Uuid,
    ) -> Result<(), TransactionError> {
        self.log.abort_commit_entry(version, entry, operation).await
    }

    async fn get_latest_version(&self, start: Version) -> DeltaResult<Version> {
        self.log.get_latest_version(start).await
    }

    fn object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.log.object_store(operation)
    }

    fn root_object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.log.root_object_store(operation)
    }

    fn config(&self) -> &LogStoreConfig {
        self.log.config()
    }
}

/// Runs an operation on a copy of the table and holds its commit back; gives its actions, or nothing where it has nothing to
/// do. The data files that it wrote are in the store.
///
/// # Errors
/// The operation's own.
async fn plan<T, F: Future<Output = DeltaResult<T>>>(
    table: &DeltaTable,
    run: impl Fn(DeltaTable, CommitProperties) -> F,
) -> DeltaResult<Option<Vec<Action>>> {
    let log = Arc::new(HeldBack { log: table.log_store(), entry: Mutex::new(None) });
    let mut copy = DeltaTable::new(Arc::clone(&log) as LogStoreRef);
    copy.state.clone_from(&table.state);
    let outcome = run(copy, CommitProperties::default().with_max_retries(0)).await;
    let Some(entry) = log.entry.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return outcome.map(|_| None);
    };
    let actions = serde_json::Deserializer::from_slice(&entry).into_iter::<Action>();
    let actions = actions.filter(|action| !matches!(action, Ok(Action::CommitInfo(_))));
    actions
        .collect::<Result<_, _>>()
        .map(Some)
        .map_err(|e| DeltaTableError::generic(format!("a held back commit: {e}")))
}

/// Whether a rewrite can be committed on top of the version that is loaded: every file that it replaces must be part of it.
///
/// # Errors
/// [`Error::Bug`] for a rewrite that keeps another number of rows than it should: `removed_rows` fewer than there were.
/// [`Error::Table`] where the table cannot be read.
pub(super) fn fits(table: &DeltaTable, actions: &[Action], removed_rows: usize) -> Result<bool> {
    let unreadable = |e| Error::table("cannot read the files of a table", e);
    let snapshot = table.snapshot().map_err(unreadable)?;
    let active: HashMap<String, Option<usize>> =
        snapshot.log_data().iter().map(|file| (file.path().into_owned(), file.num_records())).collect();
    let (mut before, mut after) = (Some(0), Some(0));
    for action in actions {
        match action {
            Action::Remove(file) => {
                let Some(rows) = active.get(&file.path) else { return Ok(false) };
                before = before.zip(*rows).map(|(sum, rows)| sum + rows);
            }
            Action::Add(file) => {
                let rows = file.get_stats().ok().flatten().and_then(|stats| usize::try_from(stats.num_records).ok());
                after = after.zip(rows).map(|(sum, rows)| sum + rows);
            }
            _ => {}
        }
    }
    match (before, after) {
        (Some(before), Some(after)) if before != after + removed_rows => Err(Error::Bug(format!(
            "a rewrite would make {after} rows of {before}, where {removed_rows} should go; nothing was committed"
        ))),
        // Every writer of these tables counts its rows; a file without a count is of another program.
        (None, _) | (_, None) => Err(Error::Config(
            "a data file has no row count in the log, so a rewrite could not be checked: it was written by another program"
                .into(),
        )),
        _ => Ok(true),
    }
}
