//! Opening the tables of one place.

use std::collections::HashMap;

use deltalake_core::DeltaTable;
use futures::future::{try_join, try_join_all};

use super::concurrent::ConcurrentRuns;
use super::delta::{create, load, refuse_without_conditional_writes};
use super::evolve::add_missing_columns;
use super::schema::Table;
use crate::error::{Error, Result};
use crate::store::{self, Location};

/// The tables of one place, as of the last [`open`](Tables::open), [`refresh`](Tables::refresh) or commit.
#[derive(Debug)]
pub struct Tables {
    location: Location,
    /// In the order of [`Table::ALL`], which is the order of declaration. `evaluations`, the last, may be missing.
    pub(super) delta: Vec<DeltaTable>,
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

    /// Opens the tables, creating those that do not exist and adding columns of this version.
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
        let required = try_join_all(Table::REQUIRED.map(async |table| {
            let found = load(&location, table).await?;
            found.ok_or_else(|| missing(&location, table))
        }));
        let (mut delta, evaluations) = try_join(required, load(&location, Table::Evaluations)).await?;
        delta.extend(evaluations);
        Ok(Self::new(location, delta))
    }

    /// [`open_or_create`](Tables::open_or_create) in a store that is already built.
    ///
    /// # Errors
    /// [`Error::Storage`] where the place cannot be written to, and where the store has no conditional writes, without
    /// which one of two concurrent commits could be lost; [`Error::Config`] for tables with columns that this version
    /// cannot fill; [`Error::Table`] where a table cannot be read or created.
    pub async fn open_or_create_at(location: Location) -> Result<Self> {
        if location.url.scheme() != "file" {
            refuse_without_conditional_writes(&location).await?;
        }
        let evolved = async |table| match load(&location, table).await? {
            Some(found) => add_missing_columns(&location, table, found).await.map(Some),
            None => Ok(None),
        };
        let required = try_join_all(Table::REQUIRED.map(async |table| match evolved(table).await? {
            Some(found) => Ok(found),
            None => create(&location, table).await,
        }));
        let (mut delta, evaluations) = try_join(required, evolved(Table::Evaluations)).await?;
        delta.extend(evaluations);
        Ok(Self::new(location, delta))
    }

    fn new(location: Location, delta: Vec<DeltaTable>) -> Self {
        let version = delta[Table::Scans as usize].version().unwrap_or_default();
        let concurrent = ConcurrentRuns::since(version, location.clone());
        Self { location, delta, concurrent, epochs: HashMap::new() }
    }

    /// Loads the commits of others since the last load.
    ///
    /// # Errors
    /// [`Error::Table`] where a log cannot be read.
    pub async fn refresh(&mut self) -> Result<()> {
        let updating = Table::ALL.into_iter().zip(&mut self.delta).map(async |(table, delta)| {
            delta.update_state().await.map_err(|e| Error::table(format!("cannot read table {}", table.name()), e))
        });
        try_join_all(updating).await.map(drop)
    }

    /// Where the tables are.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The tables that exist here.
    pub fn present(&self) -> impl Iterator<Item = Table> + use<> {
        Table::ALL.into_iter().take(self.delta.len())
    }

    /// One table as the Delta library has it.
    ///
    /// # Panics
    /// Where the table is not among those that are [`present`](Tables::present).
    pub fn delta(&self, table: Table) -> &DeltaTable {
        &self.delta[table as usize]
    }

    /// [`delta`](Tables::delta), to be changed.
    pub(super) fn delta_mut(&mut self, table: Table) -> &mut DeltaTable {
        &mut self.delta[table as usize]
    }

    /// Creates the table of evaluations where it does not exist.
    pub(super) async fn create_evaluations(&mut self) -> Result<()> {
        if self.present().all(|table| table != Table::Evaluations) {
            self.delta.push(create(&self.location, Table::Evaluations).await?);
        }
        Ok(())
    }
}

fn missing(location: &Location, table: Table) -> Error {
    Error::Config(format!(
        "there is no table {} at {location}: check the address, or screen a cohort into it first",
        table.name()
    ))
}
