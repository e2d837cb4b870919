//! Maintenance of the tables: fewer and larger files, no files that nothing refers to, and who did what when.
//!
//! A run commits small files, so that little is lost when it is killed. [`Tables::optimize`] puts them together, tokens
//! clustered by scan and region; readers of older versions still find the files they know. [`Tables::vacuum`] deletes what no
//! version that is kept refers to, and what killed runs left without a commit. Neither changes what a query answers.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use deltalake_core::delta_datafusion::create_session_state_with_spill_config;
use deltalake_core::operations::optimize::OptimizeType;
use deltalake_core::operations::vacuum::VacuumMode;
use futures::TryStreamExt as _;

use super::datafile::properties;
use super::{Table, Tables};
use crate::error::{Error, Result};

/// What [`Tables::optimize`] did to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Optimized {
    /// Files that were put together.
    pub removed: u64,
    /// Files that they became.
    pub added: u64,
}

/// One commit to a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// When, UTC.
    pub at: Option<DateTime<Utc>>,
    /// What: `WRITE`, `OPTIMIZE`, `VACUUM END` and so on.
    pub operation: String,
    /// The program that made it.
    pub engine: String,
}

impl Tables {
    /// Puts files together that are smaller than `target_bytes`; tokens lie together by scan and region afterwards.
    /// Sorting takes `memory_bytes` and goes by way of temporary files beyond. Runs that commit meanwhile are not disturbed.
    ///
    /// # Errors
    /// [`Error::Table`] where the table cannot be read or written; it is as before then.
    pub async fn optimize(&mut self, table: Table, target_bytes: NonZeroU64, memory_bytes: u64) -> Result<Optimized> {
        let failed = |e| Error::table(format!("cannot optimize table {}", table.name()), e);
        let delta = self.delta_mut(table);
        delta.update_state().await.map_err(failed)?;
        let how = match table {
            Table::Tokens => OptimizeType::ZOrder(["scan_id", "region"].map(str::to_owned).into()),
            _ => OptimizeType::Compact,
        };
        let (done, metrics) = delta
            .clone()
            .optimize()
            .with_type(how)
            .with_target_size(target_bytes)
            .with_session_state(Arc::new(create_session_state_with_spill_config(Some(memory_bytes as usize), None)))
            // The files' rows follow each other, which is no order of the whole.
            .with_writer_properties(properties(table, false)?)
            .await
            .map_err(failed)?;
        *delta = done;
        Ok(Optimized { removed: metrics.num_files_removed, added: metrics.num_files_added })
    }

    /// Deletes files that no version of the last `keep` refers to; gives their names. `keep` must be longer than any run
    /// and any query takes. With `dry_run` they are only named.
    ///
    /// # Errors
    /// [`Error::Config`] for a `keep` of less than a day, [`Error::Table`] where the store refuses.
    pub async fn vacuum(&mut self, table: Table, keep: Duration, dry_run: bool) -> Result<Vec<String>> {
        /// A run that is at work has files in the store that are not committed yet.
        const LEAST: Duration = Duration::from_secs(24 * 3600);
        if keep < LEAST {
            return Err(Error::Config(
                "files of runs that are still at work must not be deleted: keep those of a day at least".into(),
            ));
        }
        let failed = |e| Error::table(format!("cannot vacuum table {}", table.name()), e);
        let keep =
            chrono::Duration::from_std(keep).map_err(|_| Error::Config("the time to keep is too long".into()))?;
        let delta = self.delta_mut(table);
        delta.update_state().await.map_err(failed)?;
        let vacuum = delta.clone().vacuum().with_retention_period(keep).with_enforce_retention_duration(false);
        let (done, metrics) = vacuum.with_mode(VacuumMode::Full).with_dry_run(dry_run).await.map_err(failed)?;
        *delta = done;
        delta.update_state().await.map_err(failed)?;
        Ok(metrics.files_deleted)
    }

    /// The newest `limit` commits of a table, newest first.
    ///
    /// # Errors
    /// [`Error::Table`] where the log cannot be read.
    pub async fn history(&self, table: Table, limit: usize) -> Result<Vec<Commit>> {
        let failed = |e| Error::table(format!("cannot read the log of table {}", table.name()), e);
        let infos: Vec<_> = self.delta(table).history(Some(limit)).try_collect().await.map_err(failed)?;
        let commit = |info: deltalake_core::kernel::CommitInfo| Commit {
            at: info.timestamp.and_then(DateTime::from_timestamp_millis),
            operation: info.operation.unwrap_or_default(),
            engine: info.engine_info.unwrap_or_default(),
        };
        Ok(infos.into_iter().map(commit).collect())
    }
}
