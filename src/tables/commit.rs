//! Commits, exactly once.
//!
//! A commit adds data files to one table's log and records, in the same atomic entry, the application transaction
//! (`<run_id>/<table>`, epoch). The library would add the same files again if asked twice, so the log is asked first:
//! load the newest log, stop if the epoch is there, else commit on top of exactly that log. A commit whose answer was
//! lost looks like an error; the next round finds its epoch and is content.
//!
//! What another run has committed first is left out ([`super::others`]).
//!
//! Tables are committed at the same time, and `scans` when all others are. A process that dies in between leaves rows that
//! no view shows, because views join on `scans`.

use std::collections::HashMap;
use std::time::Duration;

use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties, TransactionError};
use deltalake_core::kernel::{Action, Add, Transaction};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaResult, DeltaTable, DeltaTableError};
use futures::future::join_all;

use super::others::Others;
use super::{Receipt, Table, Tables};
use crate::error::{Error, Result};

/// Rounds before giving up; the pauses between them sum up to about 15 s.
const ROUNDS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How often another commit may come first, and the longest pause after it.
const MEETINGS: u32 = 1000;
const SHORT_PAUSE: Duration = Duration::from_millis(100);

/// What a commit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Tables that it added files to.
    pub tables: Vec<Table>,
    /// Scans that were left out: another run had committed them first.
    pub superseded: usize,
}

impl Tables {
    /// Makes the files of whole rolls part of their tables, `scans` last. `epoch` rises from commit to commit of a
    /// run; the same epoch again commits only what is missing. `run_id` must be new for each process that commits.
    ///
    /// Scans that another run has committed since these tables were opened are left out. Its commit between the look at
    /// the log and ours of `scans` leaves rows of ours in the other tables that no view shows.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Storage`] where the store does not do as asked, time and again.
    pub async fn commit(&mut self, run_id: &str, epoch: i64, receipts: &[Receipt]) -> Result<Committed> {
        let mut receipts = receipts.to_vec();
        let mut committed = Committed::default();
        let mut compared = 0;
        // It spares the other tables rows that nobody would see; where the log cannot be read now, `scans` alone will tell.
        if self.delta_mut(Table::Scans).update_state().await.is_ok() {
            let own = app_id(run_id, Table::Scans);
            self.others.look(&self.delta[Table::Scans as usize], &own).await?;
            committed.superseded += self.others.leave_out(&mut receipts, &mut compared).await?;
        }
        let of = |table| receipts.iter().filter(move |r| r.table == table).cloned().collect::<Vec<_>>();
        // Nobody sees their rows before `scans` has its own, so they need no order among each other.
        let before = Table::EVERY
            .into_iter()
            .zip(&mut self.delta)
            .filter(|(table, _)| Table::SCREENED.contains(table) && *table != Table::Scans);
        let appending = before.map(|(table, delta)| {
            let (entry, mut files) = (Entry::new(table, run_id, epoch, &self.epochs), of(table));
            async move { append(delta, &entry, &mut files, None).await.map(|(did, _)| did.then_some(table)) }
        });
        // All of them to their end, also where one fails.
        for did in join_all(appending).await {
            committed.tables.extend(did?);
        }
        let entry = Entry::new(Table::Scans, run_id, epoch, &self.epochs);
        let others = Some((&mut self.others, &mut compared));
        let (did, superseded) =
            append(&mut self.delta[Table::Scans as usize], &entry, &mut of(Table::Scans), others).await?;
        committed.superseded += superseded;
        committed.tables.extend(did.then_some(Table::Scans));
        let app_ids = committed.tables.iter().map(|&table| (app_id(run_id, table), epoch));
        self.epochs.extend(app_ids);
        Ok(committed)
    }

    /// Adds a file to a table that stands for itself, unless that epoch is in its log.
    pub(super) async fn append(&mut self, run_id: &str, epoch: i64, file: Receipt) -> Result<()> {
        let table = file.table;
        let entry = Entry::new(table, run_id, epoch, &self.epochs);
        if append(self.delta_mut(table), &entry, &mut vec![file], None).await?.0 {
            self.epochs.insert(entry.app_id, epoch);
        }
        Ok(())
    }
}

/// What a commit is in the log of a table.
struct Entry {
    table: Table,
    app_id: String,
    epoch: i64,
    /// The epoch before was committed here, so this one is not there: nobody else commits for this run. The log says so too,
    /// but only by being read from its last checkpoint on.
    is_new: bool,
}

impl Entry {
    /// `epochs`: the last that were committed here, by application.
    fn new(table: Table, run_id: &str, epoch: i64, epochs: &HashMap<String, i64>) -> Self {
        let app_id = app_id(run_id, table);
        let is_new = epochs.get(&app_id).is_some_and(|&last| last < epoch);
        Self { table, app_id, epoch, is_new }
    }
}

fn app_id(run_id: &str, table: Table) -> String {
    format!("{run_id}/{}", table.name())
}

/// Adds files to one table unless that entry is in its log; says whether this call did, and how many scans it left out
/// because others had committed them. `others`: of `scans`, with `compared` as in [`Others::leave_out`].
async fn append(
    delta: &mut DeltaTable,
    entry: &Entry,
    files: &mut Vec<Receipt>,
    mut others: Option<(&mut Others, &mut usize)>,
) -> Result<(bool, usize)> {
    let (mut tried, mut superseded) = (false, 0);
    let (mut round, mut met) = (1, 0);
    loop {
        if files.is_empty() {
            return Ok((false, superseded));
        }
        let ask = tried || !entry.is_new;
        let outcome = match last_epoch(delta, &entry.app_id, ask).await {
            // After a failed try, the epoch can only come from that try: its answer was lost, not its work.
            Ok(Some(done)) if done >= entry.epoch => return Ok((tried, superseded)),
            Ok(_) => {
                if let Some((others, compared)) = &mut others {
                    others.look(delta, &entry.app_id).await?;
                    superseded += others.leave_out(files, compared).await?;
                    if files.is_empty() {
                        continue;
                    }
                }
                tried = true;
                commit_once(delta, entry, files.iter().map(|file| Action::Add(add(file))).collect()).await
            }
            Err(e) => Err(e),
        };
        let Err(error) = outcome else { return Ok((true, superseded)) };
        if came_second(&error) && met < MEETINGS {
            met += 1;
            tokio::time::sleep(SHORT_PAUSE.mul_f64(rand::random::<f64>())).await;
            continue;
        }
        let table = entry.table.name();
        if round == ROUNDS {
            return Err(Error::table(format!("cannot commit to table {table}"), error));
        }
        tracing::warn!(table, epoch = entry.epoch, round, %error, "commit did not succeed, trying again");
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(round - 1)).await;
        round += 1;
    }
}

/// Whether another commit took the version.
fn came_second(error: &DeltaTableError) -> bool {
    matches!(
        error,
        DeltaTableError::VersionAlreadyExists(_)
            | DeltaTableError::Transaction { source: TransactionError::MaxCommitAttempts(_) }
    )
}

/// The newest epoch in the newest log, which is loaded in any case; none where the log is not to be asked.
async fn last_epoch(delta: &mut DeltaTable, app_id: &str, ask: bool) -> DeltaResult<Option<i64>> {
    delta.update_state().await?;
    if !ask {
        return Ok(None);
    }
    delta.snapshot()?.transaction_version(&delta.log_store(), app_id).await
}

async fn commit_once(delta: &mut DeltaTable, entry: &Entry, actions: Vec<Action>) -> DeltaResult<()> {
    let now = chrono::Utc::now().timestamp_millis();
    let transaction = Transaction::new_with_last_update(&entry.app_id, entry.epoch, Some(now));
    let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
    // Entries of the log that are past their time are looked for once in a run, not at each commit.
    let properties = CommitProperties::default()
        .with_application_transaction(transaction)
        .with_cleanup_expired_logs((entry.epoch > 0).then_some(false));
    // On top of the version that others' results were read up to, or not at all. Rows of other tables may come in any order.
    let properties = if entry.table == Table::Scans { properties.with_max_retries(0) } else { properties };
    let commit = CommitBuilder::from(properties).with_actions(actions).build(
        Some(delta.snapshot()?),
        delta.log_store(),
        operation,
    );
    let done = commit.await?;
    if !done.metrics.new_checkpoint_created {
        delta.state = Some(done.snapshot);
        return Ok(());
    }
    // What is loaded is a batch of one row for each commit since, all of which the library goes through again at every
    // further commit; the checkpoint has them in one.
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
