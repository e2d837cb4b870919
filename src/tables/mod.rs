//! The result tables: their columns, the data files, the commits, and what is already done.
//!
//! One Delta table per folder `<root>/<table>`. Rows become visible by a commit to the table's log, a conditional
//! write that the object store arbitrates; no lock service is needed. Nothing is ever updated in place: a newer row
//! for the same scan is a new row, and the views of [`crate::query`] show the newest.
//!
//! ```text
//! rows ─► DataFile ─► store ─► Receipt ─► Tables::commit ─► log      tokens, masks, findings, failures; then scans
//! ```
//! Refuses: to open a place that holds no tables (unless asked to create them), and to commit the same work twice.

mod columns;
mod commit;
mod datafile;
mod done;
mod evaluation;
mod evolve;
mod lease;
mod maintenance;
mod others;
mod receipt;
mod run;
mod schema;

use std::collections::HashMap;
use std::sync::Arc;

use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::logstore::{StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::{DeltaTable, DeltaTableError, TableProperty};
use futures::future::{try_join, try_join_all};
use object_store::prefix::PrefixStore;
use object_store::{Error as Store, ObjectStoreExt as _, PutMode};
use url::Url;

pub use self::commit::Committed;
pub use self::datafile::DataFile;
pub use self::done::Done;
pub use self::evaluation::EvaluationRow;
pub use self::lease::Lease;
pub use self::maintenance::{Commit, Optimized};
use self::others::Others;
pub use self::receipt::Receipt;
pub use self::run::RunRow;
pub use self::schema::{Column, Kind, Table, scan_rows, screen_row, screen_schema};

use crate::error::{Error, Result};
use crate::store::{self, Location};

/// How long the log remembers which commits of a run were made. Longer than any run; shorter than forever, as each
/// run adds an entry to every checkpoint.
const TRANSACTION_RETENTION: &str = "interval 30 days";

/// Commits from one checkpoint of a log to the next. The library goes through all commits since the last one at every
/// commit.
const CHECKPOINT_INTERVAL: &str = "10";

/// The tables of one place, as of the last [`open`](Tables::open), [`refresh`](Tables::refresh) or commit.
#[derive(Debug)]
pub struct Tables {
    location: Location,
    /// In the order of [`Table::EVERY`], which is the order of declaration; the last is there once something was evaluated.
    delta: Vec<DeltaTable>,
    /// What other runs have added to `scans` since the tables were opened.
    others: Others,
    /// The last epoch that was committed here, by application (`<run_id>/<table>`).
    epochs: HashMap<String, i64>,
}

impl Tables {
    /// Opens tables that exist.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_at(store::open(url)?).await
    }

    /// Opens the tables, making those that do not exist.
    pub async fn open_or_create(url: &str) -> Result<Self> {
        Self::open_or_create_at(store::open_or_create(url)?).await
    }

    /// As [`open`](Tables::open), in a store that is already built.
    pub async fn open_at(location: Location) -> Result<Self> {
        let all = try_join_all(Table::ALL.map(async |table| {
            let found = load(&location, table).await?;
            found.ok_or_else(|| missing(&location, table))
        }));
        let (mut delta, evaluations) = try_join(all, load(&location, Table::Evaluations)).await?;
        delta.extend(evaluations);
        Ok(Self::new(location, delta))
    }

    /// As [`open_or_create`](Tables::open_or_create), in a store that is already built.
    ///
    /// # Errors
    /// [`Error::Storage`] also where the store has no conditional writes: two commits at once could be one.
    pub async fn open_or_create_at(location: Location) -> Result<Self> {
        if location.url.scheme() != "file" {
            refuse_without_conditional_writes(&location).await?;
        }
        let evolved = async |table| match load(&location, table).await? {
            Some(found) => evolve::evolved(&location, table, found).await.map(Some),
            None => Ok(None),
        };
        let all = try_join_all(Table::ALL.map(async |table| match evolved(table).await? {
            Some(found) => Ok(found),
            None => create(&location, table).await,
        }));
        let (mut delta, evaluations) = try_join(all, evolved(Table::Evaluations)).await?;
        delta.extend(evaluations);
        Ok(Self::new(location, delta))
    }

    fn new(location: Location, delta: Vec<DeltaTable>) -> Self {
        let seen = delta[Table::Scans as usize].version().unwrap_or_default();
        let others = Others::since(seen, location.clone());
        Self { location, delta, others, epochs: HashMap::new() }
    }

    /// Loads what others have committed since.
    pub async fn refresh(&mut self) -> Result<()> {
        let updating = Table::EVERY.into_iter().zip(&mut self.delta).map(async |(table, delta)| {
            delta.update_state().await.map_err(|e| Error::table(format!("cannot read table {}", table.name()), e))
        });
        try_join_all(updating).await.map(drop)
    }

    /// Where the tables are.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The tables that are there.
    pub fn present(&self) -> impl Iterator<Item = Table> + use<> {
        Table::EVERY.into_iter().take(self.delta.len())
    }

    /// One table as the Delta library has it, for maintenance.
    ///
    /// # Panics
    /// Where the table is not among those that are [`present`](Tables::present).
    pub fn delta(&self, table: Table) -> &DeltaTable {
        &self.delta[table as usize]
    }

    /// Makes the table of evaluations where there is none yet.
    async fn with_evaluations(&mut self) -> Result<()> {
        if self.present().all(|table| table != Table::Evaluations) {
            self.delta.push(create(&self.location, Table::Evaluations).await?);
        }
        Ok(())
    }

    fn delta_mut(&mut self, table: Table) -> &mut DeltaTable {
        &mut self.delta[table as usize]
    }
}

/// A table over our own store, not loaded. The Delta library takes a table's URL apart into store and path, so the
/// URL that it gets has the path inside the store, which for some Azure addresses is not the one that users write.
fn handle(location: &Location, table: Table) -> Result<DeltaTable> {
    let path = location.path_of(table.name())?;
    let url = table_url(&location.url, path.as_ref())?;
    let prefixed = Arc::new(PrefixStore::new(Arc::clone(&location.store), path));
    let store = Arc::clone(&location.store);
    Ok(DeltaTable::new(default_logstore(prefixed, store, &url, &StorageConfig::default())))
}

fn table_url(base: &Url, path: &str) -> Result<Url> {
    let mut url = base.clone();
    let unusable = |()| Error::Config(format!("{base} cannot hold tables: give a folder or a bucket"));
    url.path_segments_mut().map_err(unusable)?.clear().extend(path.split('/')).push("");
    Ok(url)
}

async fn load(location: &Location, table: Table) -> Result<Option<DeltaTable>> {
    let unreadable = |e| Error::table(format!("cannot read table {} at {location}", table.name()), e);
    let mut delta = handle(location, table)?;
    if !delta.verify_deltatable_existence().await.map_err(unreadable)? {
        return Ok(None);
    }
    delta.load().await.map_err(unreadable)?;
    Ok(Some(delta))
}

/// Writes an object that must not be there yet, twice. A store that lets the second pass cannot arbitrate between two
/// commits.
async fn refuse_without_conditional_writes(location: &Location) -> Result<()> {
    let path = location.path_of(&format!("_conditional_write_{}", uuid::Uuid::now_v7()))?;
    let create = || location.store.put_opts(&path, "probe".into(), PutMode::Create.into());
    let unsupported = |source: object_store::Error| {
        Error::storage(
            format!(
                "{location} has no conditional writes (`If-None-Match: *`), without which two runs could overwrite each \
                 other's commits; put the tables into another store, or on a disk"
            ),
            source,
        )
    };
    let outcome = match create().await {
        Err(error @ (Store::NotImplemented { .. } | Store::NotSupported { .. })) => return Err(unsupported(error)),
        // Nobody else has the name: the answer to a first try was lost, and the client's next one was refused.
        Err(refused @ (Store::AlreadyExists { .. } | Store::Precondition { .. })) => Err(refused),
        Err(error) => return Err(location.explain("write to", error)),
        Ok(_) => create().await,
    };
    // Whatever came of it, what is left behind harms nobody.
    let _ = location.store.delete(&path).await;
    match outcome {
        Err(Store::AlreadyExists { .. } | Store::Precondition { .. }) => Ok(()),
        Err(error) => Err(location.explain("write to", error)),
        Ok(_) => Err(unsupported(Store::NotSupported { source: "the second write passed".into() })),
    }
}

async fn create(location: &Location, table: Table) -> Result<DeltaTable> {
    let created = CreateBuilder::new()
        .with_log_store(handle(location, table)?.log_store())
        .with_table_name(table.name())
        .with_comment(table.doc())
        .with_columns(table.delta_fields()?)
        .with_configuration_property(TableProperty::SetTransactionRetentionDuration, Some(TRANSACTION_RETENTION))
        .with_configuration_property(TableProperty::CheckpointInterval, Some(CHECKPOINT_INTERVAL))
        // With retries, whoever comes second would commit a second set of metadata over the first.
        .with_commit_properties(CommitProperties::default().with_max_retries(0))
        .await;
    match created {
        Ok(delta) => Ok(delta),
        // Another process may have made it in the meantime, which is as good.
        Err(error) => load(location, table).await?.ok_or_else(|| uncreated(location, table, error)),
    }
}

fn uncreated(location: &Location, table: Table, error: DeltaTableError) -> Error {
    Error::table(format!("cannot create table {} at {location}; check that you may write there", table.name()), error)
}

fn missing(location: &Location, table: Table) -> Error {
    Error::Config(format!(
        "there is no table {} at {location}: check the address, or screen a cohort into it first",
        table.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_url_decodes_to_its_path_in_the_store() {
        let base = Url::parse("https://account.blob.core.windows.net/container/out").unwrap();
        let path = object_store::path::Path::parse("out/100% done/scans").unwrap();
        let url = table_url(&base, path.as_ref()).unwrap();
        assert_eq!(url.as_str(), "https://account.blob.core.windows.net/out/100%25%20done/scans/");
        assert_eq!(object_store::path::Path::from_url_path(url.path()).unwrap(), path);
    }
}
