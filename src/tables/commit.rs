//! Commits, exactly once.
//!
//! A commit adds data files to one table's log and records, in the same atomic entry, the application transaction
//! (`<run_id>/<table>`, epoch). The library would add the same files again if asked twice, so the log is asked first:
//! load the newest log, stop if the epoch is there, else commit on top of exactly that log. A commit whose answer was
//! lost looks like an error; the next round finds its epoch and is content.
//!
//! Tables are committed one after the other and `scans` last. A process that dies in between leaves rows that no
//! view shows, because views join on `scans`.

use std::time::Duration;

use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, Add, Transaction};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaResult, DeltaTable};

use super::{Receipt, Table, Tables};
use crate::error::{Error, Result};

/// Rounds before giving up; the pauses between them sum up to about 15 s.
const ROUNDS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

impl Tables {
    /// Makes the files of whole rolls part of their tables, `scans` last. `epoch` rises from commit to commit of a
    /// run; the same epoch again commits only what is missing. `run_id` must be new for each process that commits.
    ///
    /// Gives the tables that this call committed to: none of them when all was there already.
    pub async fn commit(&mut self, run_id: &str, epoch: i64, receipts: &[Receipt]) -> Result<Vec<Table>> {
        let mut committed = Vec::new();
        for table in Table::SCREENED {
            let files: Vec<_> = receipts.iter().filter(|r| r.table == table).collect();
            if !files.is_empty() && self.append(table, run_id, epoch, &files).await? {
                committed.push(table);
            }
        }
        Ok(committed)
    }

    /// Adds files to one table unless that epoch is in its log; says whether this call did.
    pub(super) async fn append(&mut self, table: Table, run_id: &str, epoch: i64, files: &[&Receipt]) -> Result<bool> {
        let app_id = format!("{run_id}/{}", table.name());
        let actions: Vec<Action> = files.iter().map(|f| Action::Add(add(f))).collect();
        let delta = self.delta_mut(table);
        let mut tried = false;
        let mut round = 1;
        loop {
            let outcome = match last_epoch(delta, &app_id).await {
                // After a failed try, the epoch can only come from that try: its answer was lost, not its work.
                Ok(Some(done)) if done >= epoch => return Ok(tried),
                Ok(_) => {
                    tried = true;
                    commit_once(delta, &app_id, epoch, actions.clone()).await
                }
                Err(e) => Err(e),
            };
            let Err(error) = outcome else { return Ok(true) };
            if round == ROUNDS {
                return Err(Error::table(format!("cannot commit to table {}", table.name()), error));
            }
            tracing::warn!(table = table.name(), epoch, round, %error, "commit did not succeed, trying again");
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(round - 1)).await;
            round += 1;
        }
    }
}

/// The newest epoch in the newest log.
async fn last_epoch(delta: &mut DeltaTable, app_id: &str) -> DeltaResult<Option<i64>> {
    delta.update_state().await?;
    delta.snapshot()?.transaction_version(&delta.log_store(), app_id).await
}

async fn commit_once(delta: &mut DeltaTable, app_id: &str, epoch: i64, actions: Vec<Action>) -> DeltaResult<()> {
    let now = chrono::Utc::now().timestamp_millis();
    let transaction = Transaction::new_with_last_update(app_id, epoch, Some(now));
    let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
    CommitBuilder::from(CommitProperties::default().with_application_transaction(transaction))
        .with_actions(actions)
        .build(Some(delta.snapshot()?), delta.log_store(), operation)
        .await?;
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
