//! Maintenance of the tables: compaction, deletion of files that no version refers to, and the history of commits.
//!
//! A run commits small files, so that little is lost when it is killed. [`Tables::optimize`] compacts them, tokens clustered
//! by scan and region; readers of older versions still find the old files. [`Tables::vacuum`] deletes files that no retained
//! version refers to, among them those that killed runs left uncommitted. Neither changes the result of a query. Refuses to
//! delete files of less than a day, which may belong to an active run.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use deltalake_core::delta_datafusion::create_session_state_with_spill_config;
use deltalake_core::kernel::Action;
use deltalake_core::operations::optimize::OptimizeType;
use deltalake_core::operations::vacuum::VacuumMode;
use deltalake_core::protocol::DeltaOperation;
use futures::TryStreamExt as _;
use object_store::ObjectStoreExt as _;

use super::datafile::properties;
use super::open::Tables;
use super::rewrite::Rewrite;
use super::schema::Table;
use crate::error::{Error, Result};

/// What [`Tables::optimize`] did to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Optimized {
    /// Small files that were replaced.
    pub removed: u64,
    /// Files that replace them.
    pub added: u64,
}

/// What [`Tables::vacuum`] did to a table. Paths are relative to the table's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vacuumed {
    /// Data files that were deleted, or with `dry_run` would be.
    pub deleted: Vec<String>,
    /// Files in the folder that no version refers to and that this program did not write. They stay.
    pub foreign: Vec<String>,
}

/// Refuses to keep the files of less than a day: an active run has uncommitted files in the store.
///
/// # Errors
/// [`Error::Config`] for a shorter time.
pub fn check_retention(keep: Duration) -> Result<()> {
    const SHORTEST: Duration = Duration::from_secs(24 * 3600);
    if keep >= SHORTEST {
        return Ok(());
    }
    Err(Error::Config(format!(
        "vacuum would keep files for {} hours only, and may delete those of an active run: keep at least a day",
        keep.as_secs() / 3600
    )))
}

/// Whether a path, relative to a table's folder, is one that this program or the Delta library gives to a data file.
pub(super) fn is_data_file(path: &str) -> bool {
    path.starts_with("part-") && path.ends_with(".parquet") && !path.contains('/')
}

/// A refused deletion as such: S3 answers it, as part of a list of deletions, without the status of a refused request.
fn refusal(error: object_store::Error) -> object_store::Error {
    match error {
        object_store::Error::Generic { source, .. } if source.to_string().contains("AccessDenied") => {
            object_store::Error::PermissionDenied { path: "a data file".to_owned(), source: "AccessDenied".into() }
        }
        other => other,
    }
}

/// One commit to a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// When it was made, UTC.
    pub at: Option<DateTime<Utc>>,
    /// What it did: `WRITE`, `OPTIMIZE`, `VACUUM END` and so on.
    pub operation: String,
    /// The program that made it.
    pub engine: String,
}

impl Tables {
    /// Compacts files smaller than `target_bytes`; tokens are clustered by scan and region. Sorting takes up to
    /// `memory_bytes`, then spills to temporary files. Runs may commit meanwhile.
    ///
    /// # Errors
    /// [`Error::Config`] for a table with features that this program cannot write; [`Error::Table`] where the table cannot be
    /// read or written; it is then unchanged.
    pub async fn optimize(&mut self, table: Table, target_bytes: NonZeroU64, memory_bytes: u64) -> Result<Optimized> {
        let how = || match table {
            Table::Tokens => OptimizeType::ZOrder(["scan_id", "region"].map(str::to_owned).into()),
            _ => OptimizeType::Compact,
        };
        // The rows of the small files follow one another, so the large file is not sorted as a whole.
        let properties = properties(table, false)?;
        let target_size = i64::try_from(target_bytes.get()).unwrap_or(i64::MAX);
        let operation = DeltaOperation::Optimize { predicate: None, target_size };
        let what = Rewrite { table, attempted: "optimize", operation, removed_rows: 0 };
        let done = self.rewrite(&what, |copy, commit| {
            let session = create_session_state_with_spill_config(Some(memory_bytes as usize), None);
            let optimize =
                copy.optimize().with_type(how()).with_target_size(target_bytes).with_commit_properties(commit);
            let optimize = optimize.with_session_state(Arc::new(session));
            optimize.with_writer_properties(properties.clone()).into_future()
        });
        let actions = done.await?.unwrap_or_default();
        let count = |is: fn(&Action) -> bool| actions.iter().filter(|action| is(action)).count() as u64;
        Ok(Optimized {
            removed: count(|action| matches!(action, Action::Remove(_))),
            added: count(|action| matches!(action, Action::Add(_))),
        })
    }

    /// Deletes data files that no version of the last `keep` refers to. `keep` must be longer than any run and any query. With
    /// `dry_run` no file is deleted. Files without a name of this program's data files are never deleted.
    ///
    /// # Errors
    /// [`Error::Config`] for a `keep` of less than a day; [`Error::Table`] where the table cannot be read;
    /// [`Error::Storage`] where a file cannot be deleted.
    pub async fn vacuum(&mut self, table: Table, keep: Duration, dry_run: bool) -> Result<Vacuumed> {
        check_retention(keep)?;
        let failed = |e| Error::table(format!("cannot vacuum table {}", table.name()), e);
        let keep = chrono::Duration::from_std(keep)
            .map_err(|_| Error::Config(format!("{} days are too long to keep files", keep.as_secs() / 86400)))?;
        let delta = self.delta_mut(table);
        delta.update_state().await.map_err(failed)?;
        // The library only finds the files: it would delete whatever lies in the table's folder.
        let vacuum = delta.clone().vacuum().with_retention_period(keep).with_enforce_retention_duration(false);
        let (_, metrics) = vacuum.with_mode(VacuumMode::Full).with_dry_run(true).await.map_err(failed)?;
        let (deleted, foreign): (Vec<_>, Vec<_>) =
            metrics.files_deleted.into_iter().partition(|path| is_data_file(path));
        if !dry_run {
            for path in &deleted {
                let path = self.location().path_of(&format!("{}/{path}", table.name()))?;
                match self.location().store.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => {
                        return Err(self.location().explain_write("delete an old data file at", refusal(error)));
                    }
                }
            }
        }
        Ok(Vacuumed { deleted, foreign })
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
