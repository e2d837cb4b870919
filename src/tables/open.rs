//! Opening the tables of one place.

use std::collections::{BTreeMap, HashMap};

use deltalake_core::DeltaTable;

use super::concurrent::ConcurrentRuns;
use super::delta::{all_of, create, load, refuse_without_conditional_writes, unreadable};
use super::evolve::prepare_for_writing;
use super::schema::Table;
use crate::error::{Error, Result};
use crate::store::{self, Location};

/// The tables of one place, as of the last [`open`](Tables::open), [`refresh`](Tables::refresh) or commit.
#[derive(Debug)]
pub struct Tables {
    location: Location,
    /// The tables that exist: at least those of [`Table::REQUIRED`].
    pub(super) delta: BTreeMap<Table, DeltaTable>,
    /// What other runs have added to `scans` since the tables were opened.
    pub(super) concurrent: ConcurrentRuns,
    /// The last epoch that was committed by this process, by application (`<run_id>/<table>`).
    pub(super) epochs: HashMap<String, i64>,
}

impl Tables {
    /// Opens tables that exist.
    ///
    /// # Errors
    /// Those of [`store::open`]; [`Error::Config`] where a table is missing, [`Error::Table`] where one cannot be read.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_at(store::open(url)?).await
    }

    /// [`open`](Tables::open), or `None` where no run has created the tables yet.
    ///
    /// # Errors
    /// As [`open`](Tables::open).
    pub async fn open_if_created(url: &str) -> Result<Option<Self>> {
        let location = store::open_new(url)?;
        // The first table that a run creates.
        match load(&location, Table::Scans).await? {
            None => Ok(None),
            Some(_) => Self::open_at(location).await.map(Some),
        }
    }

    /// Opens the tables for a run: creates those that do not exist, adds columns of this version, and refuses tables that this
    /// version cannot write to.
    ///
    /// # Errors
    /// Those of [`store::open_or_create`] and of [`open_or_create_at`](Tables::open_or_create_at).
    pub async fn open_or_create(url: &str) -> Result<Self> {
        Self::open_or_create_at(store::open_or_create(url)?).await
    }

    /// [`open`](Tables::open) in a store that is already built.
    ///
    /// # Errors
    /// [`Error::Config`] where a table is missing, [`Error::Table`] where one cannot be read.
    pub async fn open_at(location: Location) -> Result<Self> {
        let at = &location;
        let delta = load_all(|table| async move {
            match load(at, table).await? {
                None if Table::REQUIRED.contains(&table) => Err(missing(at, table)),
                found => Ok(found),
            }
        });
        let delta = delta.await?;
        Ok(Self::new(location, delta))
    }

    /// [`open_or_create`](Tables::open_or_create) in a store that is already built.
    ///
    /// # Errors
    /// [`Error::Storage`] where the place cannot be written to, and where the store has no conditional writes, without
    /// which one of two concurrent commits could be lost; [`Error::Config`] for tables with columns that this version
    /// cannot fill, or with features of Delta that it cannot write; [`Error::Table`] where a table cannot be read or created.
    pub async fn open_or_create_at(location: Location) -> Result<Self> {
        if location.url.scheme() != "file" {
            refuse_without_conditional_writes(&location).await?;
        }
        let at = &location;
        let delta = load_all(|table| async move {
            match load(at, table).await? {
                Some(found) => prepare_for_writing(at, table, found).await.map(Some),
                None if !table.is_created_by_runs() => Ok(None),
                None => create(at, table).await.map(Some),
            }
        });
        let delta = delta.await?;
        Ok(Self::new(location, delta))
    }

    fn new(location: Location, delta: BTreeMap<Table, DeltaTable>) -> Self {
        let version = delta[&Table::Scans].version().unwrap_or_default();
        let concurrent = ConcurrentRuns::since(version, location.clone());
        Self { location, delta, concurrent, epochs: HashMap::new() }
    }

    /// Loads the commits of others since the last load.
    ///
    /// # Errors
    /// [`Error::Table`] where a log cannot be read.
    pub async fn refresh(&mut self) -> Result<()> {
        let location = self.location.clone();
        let update = async |table: Table, delta: &mut DeltaTable| {
            delta.update_state().await.map_err(|e| unreadable(&location, table, e))
        };
        update(Table::Scans, self.delta_mut(Table::Scans)).await?;
        let others = self.delta.iter_mut().filter(|(table, _)| **table != Table::Scans);
        all_of(others.map(|(&table, delta)| update(table, delta))).await.map(drop)
    }

    /// Where the tables are.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The tables that exist here.
    pub fn present(&self) -> impl Iterator<Item = Table> + use<> {
        let present = Table::ALL.map(|table| self.delta.contains_key(&table));
        Table::ALL.into_iter().filter(move |&table| present[table as usize])
    }

    /// One table as the Delta library has it.
    ///
    /// # Panics
    /// Where the table is not among those that are [`present`](Tables::present).
    pub fn delta(&self, table: Table) -> &DeltaTable {
        &self.delta[&table]
    }

    /// [`delta`](Tables::delta), to be changed.
    #[allow(clippy::expect_used, reason = "the callers name tables that every place has, or have created the table")]
    pub(super) fn delta_mut(&mut self, table: Table) -> &mut DeltaTable {
        self.delta.get_mut(&table).expect("the table is present")
    }

    /// Creates a table where it does not exist.
    pub(super) async fn create_missing(&mut self, table: Table) -> Result<()> {
        if !self.delta.contains_key(&table) {
            self.delta.insert(table, create(&self.location, table).await?);
        }
        Ok(())
    }
}

/// The tables that `load` finds. `scans` is loaded before the others: because it is committed last, its rows then have their
/// rows in the others.
async fn load_all<F: Future<Output = Result<Option<DeltaTable>>>>(
    load: impl Fn(Table) -> F,
) -> Result<BTreeMap<Table, DeltaTable>> {
    let mut all = BTreeMap::new();
    all.extend(load(Table::Scans).await?.map(|delta| (Table::Scans, delta)));
    let others = Table::ALL.into_iter().filter(|&table| table != Table::Scans);
    let loaded = all_of(others.clone().map(load)).await?;
    all.extend(others.zip(loaded).filter_map(|(table, delta)| Some((table, delta?))));
    Ok(all)
}

fn missing(location: &Location, table: Table) -> Error {
    Error::Config(format!(
        "there is no table {} at {location}: check the address, or screen a cohort into it first",
        table.name()
    ))
}
