//! Commits, exactly once.
//!
//! A commit adds data files to one table's log and records, in the same atomic entry, the application transaction
//! (`<run_id>/<table>`, epoch). The library would add the same files twice if asked twice, so the log is read first: load
//! the newest log, stop if it has the epoch, else commit on top of exactly that log. A commit whose answer was lost looks
//! like an error; the next attempt finds its epoch in the log and succeeds.
//!
//! Takes receipts; gives the tables that files were added to. Scans that another run has committed first are excluded
//! (`concurrent.rs`). The tables are committed at the same time, and `scans` after all others. A process that dies in
//! between leaves rows that no view shows, because the views join on `scans`.

use std::collections::HashMap;
use std::time::Duration;

use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties, TransactionError};
use deltalake_core::kernel::{Action, Add, Transaction};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaResult, DeltaTable, DeltaTableError};
use futures::future::join_all;
use serde::Serialize;

use super::concurrent::ConcurrentRuns;
use super::datafile::DataFile;
use super::open::Tables;
use super::people::ParticipantRow;
use super::receipt::Receipt;
use super::rewrite::{Rewrite, fits};
use super::run::RunRow;
use super::schema::Table;
use crate::error::{Error, Result};
use crate::store::Location;

/// Attempts that may fail; the pauses between them add up to about 15 s.
const MAX_ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Attempts that may lose against another commit, which are not counted as failed, and the longest pause after one.
const MAX_CONFLICTS: u32 = 1000;
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);

/// What a commit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Tables that it added files to.
    pub tables: Vec<Table>,
    /// Scans that were excluded, because another run had committed them first.
    pub superseded: usize,
}

impl Tables {
    /// Adds the files of whole rolls to their tables, `scans` last.
    ///
    /// `epoch` rises from commit to commit of a run; a repeated commit with the same epoch adds only what is missing.
    /// `run_id` must be new for each process that commits.
    ///
    /// Scans that another run has committed since these tables were opened are excluded. Where its commit comes between
    /// the reading of the log and the commit of `scans`, rows of such scans stay in the other tables; no view shows them.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Storage`] where the store fails repeatedly.
    pub async fn commit(&mut self, run_id: &str, epoch: i64, receipts: &[Receipt]) -> Result<Committed> {
        let mut receipts = receipts.to_vec();
        let mut committed = Committed::default();
        let mut compared = 0;
        // Spares the other tables rows that no view would show. Where the log cannot be read now, the commit of `scans`
        // decides alone.
        if self.delta_mut(Table::Scans).update_state().await.is_ok() {
            let own = app_id(run_id, Table::Scans);
            self.concurrent.read_log(&self.delta[&Table::Scans], &own).await?;
            committed.superseded += self.concurrent.exclude_committed(&mut receipts, &mut compared).await?;
        }
        let of = |table| receipts.iter().filter(move |r| r.table == table).cloned().collect::<Vec<_>>();
        // No view shows their rows before `scans` is committed, so they need no order among each other.
        let before_scans =
            self.delta.iter_mut().filter(|(table, _)| Table::SCREENED.contains(table) && **table != Table::Scans);
        let appending = before_scans.map(|(&table, delta)| {
            let (entry, mut files) = (Entry::new(table, run_id, epoch, &self.epochs), Files::Fixed(of(table)));
            async move { append(delta, &entry, &mut files).await.map(|added| added.then_some(table)) }
        });
        // All of them run to their end, also where one fails.
        for added in join_all(appending).await {
            committed.tables.extend(added?);
        }
        let entry = Entry::new(Table::Scans, run_id, epoch, &self.epochs);
        let (concurrent, compared) = (&mut self.concurrent, &mut compared);
        let mut files = Files::OfScans { files: of(Table::Scans), concurrent, compared, superseded: 0 };
        let scans = self.delta.get_mut(&Table::Scans).ok_or_else(|| Error::Bug("no table scans".into()))?;
        let added = append(scans, &entry, &mut files).await?;
        committed.superseded += files.superseded();
        committed.tables.extend(added.then_some(Table::Scans));
        let epochs = committed.tables.iter().map(|&table| (app_id(run_id, table), epoch));
        self.epochs.extend(epochs);
        Ok(committed)
    }

    /// Writes and commits rows to a table that is committed by itself, unless its log has the epoch of `batch_id`.
    pub(super) async fn append_rows<T: Serialize>(
        &mut self,
        table: Table,
        rows: &[T],
        batch_id: &str,
        epoch: i64,
    ) -> Result<()> {
        let receipt = put_rows(self.location(), table, rows, batch_id).await?;
        let entry = Entry::new(table, batch_id, epoch, &self.epochs);
        if append(self.delta_mut(table), &entry, &mut Files::Fixed(vec![receipt])).await? {
            self.epochs.insert(entry.app_id, epoch);
        }
        Ok(())
    }

    /// Commits a rewrite; gives false where the table lacks a file that it replaces, because another rewrite was faster.
    pub(super) async fn commit_rewrite(&mut self, what: &Rewrite, actions: &[Action]) -> Result<bool> {
        let entry = Entry::new(what.table, &uuid::Uuid::now_v7().to_string(), 0, &self.epochs);
        append(self.delta_mut(what.table), &entry, &mut Files::Rewrite { what, actions }).await
    }

    /// Writes and commits rows of subjects, once per batch, and sets their number: the version of the table that they make.
    pub(super) async fn append_participants(&mut self, rows: &mut [ParticipantRow], batch_id: &str) -> Result<()> {
        let location = self.location().clone();
        let entry = Entry::new(Table::Participants, batch_id, 0, &self.epochs);
        let mut files = Files::OfParticipants { rows, location: &location, batch_id };
        append(self.delta_mut(Table::Participants), &entry, &mut files).await?;
        self.epochs.insert(entry.app_id, 0);
        Ok(())
    }

    /// Writes and commits the first row of a run, and sets its number in `row`: the version of `runs` that the row makes.
    pub(super) async fn append_first_row(&mut self, row: &mut RunRow) -> Result<()> {
        let (location, run_id) = (self.location().clone(), row.run_id.clone());
        let entry = Entry::new(Table::Runs, &run_id, 0, &self.epochs);
        append(self.delta_mut(Table::Runs), &entry, &mut Files::FirstOfRun { row, location: &location }).await?;
        self.epochs.insert(entry.app_id, 0);
        Ok(())
    }
}

/// Writes rows to a data file of their own, which is not committed yet.
async fn put_rows<T: Serialize>(location: &Location, table: Table, rows: &[T], batch_id: &str) -> Result<Receipt> {
    let batch = table.rows(rows)?;
    let encoded = tokio::task::spawn_blocking(move || DataFile::encode(table, &[batch])).await;
    let file = encoded.map_err(|e| Error::Bug(format!("encoding rows of {}: {e}", table.name())))??;
    Ok(Receipt {
        batch_id: batch_id.to_owned(),
        table,
        path: file.put(location, table).await?,
        size_bytes: file.bytes.len() as i64,
        num_rows: rows.len() as i64,
        stats: file.stats,
        n_scans: 0,
        n_failed: 0,
    })
}

/// The files of a commit. Some depend on the version of the table that the commit builds on.
enum Files<'a> {
    /// The same whatever the version.
    Fixed(Vec<Receipt>),
    /// Of `scans`: without the results that other runs have committed up to the version.
    OfScans {
        files: Vec<Receipt>,
        concurrent: &'a mut ConcurrentRuns,
        /// As in [`ConcurrentRuns::exclude_committed`].
        compared: &'a mut usize,
        /// Scans that were excluded.
        superseded: usize,
    },
    /// Of `runs`: the first row of a run, with the version after this one as its number.
    FirstOfRun { row: &'a mut RunRow, location: &'a Location },
    /// Of `participants`: rows of subjects, with the version after this one as their number.
    OfParticipants { rows: &'a mut [ParticipantRow], location: &'a Location, batch_id: &'a str },
    /// A rewrite of files that are part of the table; none where the version lacks one of them.
    Rewrite { what: &'a Rewrite, actions: &'a [Action] },
}

impl Files<'_> {
    /// What is committed on top of the version that is loaded.
    async fn on_top_of(&mut self, delta: &DeltaTable, app_id: &str) -> Result<Vec<Action>> {
        let added = |files: &[Receipt]| files.iter().map(|file| Action::Add(add(file))).collect();
        match self {
            Self::Fixed(files) => Ok(added(files)),
            Self::OfScans { files, concurrent, compared, superseded } => {
                concurrent.read_log(delta, app_id).await?;
                *superseded += concurrent.exclude_committed(files, compared).await?;
                Ok(added(files))
            }
            Self::FirstOfRun { row, location } => {
                let next = delta.version().unwrap_or_default() + 1;
                row.run_number = i64::try_from(next).ok();
                Ok(added(&[put_rows(location, Table::Runs, std::slice::from_ref(&**row), &row.run_id).await?]))
            }
            Self::OfParticipants { rows, location, batch_id } => {
                let next = i64::try_from(delta.version().unwrap_or_default() + 1).unwrap_or(i64::MAX);
                rows.iter_mut().for_each(|row| row.change_number = next);
                Ok(added(&[put_rows(location, Table::Participants, rows, batch_id).await?]))
            }
            Self::Rewrite { what, actions } => {
                Ok(if fits(delta, actions, what.removed_rows)? { actions.to_vec() } else { Vec::new() })
            }
        }
    }

    /// How the log names the commit.
    fn operation(&self) -> DeltaOperation {
        match self {
            Self::Rewrite { what, .. } => what.operation.clone(),
            _ => DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None },
        }
    }

    /// Whether the files are right for one version only.
    fn depend_on_version(&self) -> bool {
        !matches!(self, Self::Fixed(_))
    }

    fn superseded(&self) -> usize {
        match self {
            Self::OfScans { superseded, .. } => *superseded,
            _ => 0,
        }
    }
}

/// What identifies a commit in the log of a table.
struct Entry {
    table: Table,
    app_id: String,
    epoch: i64,
    /// This process committed the epoch before, so the log does not have this one: no other process commits for this run.
    /// The log would say the same, but only by being read from its last checkpoint on.
    is_new: bool,
}

impl Entry {
    /// `epochs`: the last that this process committed, by application.
    fn new(table: Table, run_id: &str, epoch: i64, epochs: &HashMap<String, i64>) -> Self {
        let app_id = app_id(run_id, table);
        let is_new = epochs.get(&app_id).is_some_and(|&last| last < epoch);
        Self { table, app_id, epoch, is_new }
    }
}

fn app_id(run_id: &str, table: Table) -> String {
    format!("{run_id}/{}", table.name())
}

/// Adds files to one table unless its log has that entry; gives whether this call added them.
async fn append(delta: &mut DeltaTable, entry: &Entry, files: &mut Files<'_>) -> Result<bool> {
    if matches!(files, Files::Fixed(files) | Files::OfScans { files, .. } if files.is_empty()) {
        return Ok(false);
    }
    let mut tried = false;
    let (mut attempt, mut conflicts) = (1, 0);
    loop {
        let ask = tried || !entry.is_new;
        let outcome = match last_epoch(delta, &entry.app_id, ask).await {
            // After a failed attempt, the epoch can only come from that attempt: its answer was lost, not its work.
            Ok(Some(epoch)) if epoch >= entry.epoch => return Ok(tried),
            Ok(_) => {
                let adding = files.on_top_of(delta, &entry.app_id).await?;
                if adding.is_empty() {
                    return Ok(false);
                }
                tried = true;
                commit_once(delta, entry, adding, files).await
            }
            Err(e) => Err(e),
        };
        let Err(error) = outcome else { return Ok(true) };
        if is_conflict(&error) && conflicts < MAX_CONFLICTS {
            conflicts += 1;
            tokio::time::sleep(CONFLICT_PAUSE.mul_f64(rand::random::<f64>())).await;
            continue;
        }
        let table = entry.table.name();
        if attempt == MAX_ATTEMPTS {
            return Err(Error::table(format!("cannot commit to table {table}"), error));
        }
        tracing::info!(table, epoch = entry.epoch, attempt, %error, "commit failed; trying again");
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(attempt - 1)).await;
        attempt += 1;
    }
}

/// Whether another commit took the version.
fn is_conflict(error: &DeltaTableError) -> bool {
    matches!(
        error,
        DeltaTableError::VersionAlreadyExists(_)
            | DeltaTableError::Transaction { source: TransactionError::MaxCommitAttempts(_) }
    )
}

/// Loads the newest log; if `ask` is set, gives the newest epoch of the application in it.
async fn last_epoch(delta: &mut DeltaTable, app_id: &str, ask: bool) -> DeltaResult<Option<i64>> {
    delta.update_state().await?;
    if !ask {
        return Ok(None);
    }
    delta.snapshot()?.transaction_version(&delta.log_store(), app_id).await
}

/// Commits on top of the version that is loaded. Where the files depend on it, another commit in between is a conflict.
async fn commit_once(
    delta: &mut DeltaTable,
    entry: &Entry,
    actions: Vec<Action>,
    files: &Files<'_>,
) -> DeltaResult<()> {
    let now = chrono::Utc::now().timestamp_millis();
    let transaction = Transaction::new_with_last_update(&entry.app_id, entry.epoch, Some(now));
    // The log is cleaned of expired entries once in a run, not at each commit.
    let properties = CommitProperties::default()
        .with_application_transaction(transaction)
        .with_cleanup_expired_logs((entry.epoch > 0).then_some(false));
    let properties = if files.depend_on_version() { properties.with_max_retries(0) } else { properties };
    let commit = CommitBuilder::from(properties).with_actions(actions).build(
        Some(delta.snapshot()?),
        delta.log_store(),
        files.operation(),
    );
    let finalized = commit.await?;
    if !finalized.metrics.new_checkpoint_created {
        delta.state = Some(finalized.snapshot);
        return Ok(());
    }
    // The loaded state has one batch of one row for each commit since the last checkpoint, and the library reads all of
    // them again at every further commit; the new checkpoint has them in one batch.
    delta.state = None;
    delta.update_state().await
}

fn add(file: &Receipt) -> Add {
    Add {
        path: file.path.clone(),
        size: file.size_bytes,
        modification_time: chrono::Utc::now().timestamp_millis(),
        data_change: true,
        stats: Some(file.stats.clone()),
        ..Add::default()
    }
}
