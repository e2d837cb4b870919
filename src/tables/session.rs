//! A DataFusion session that reads the tables.

use std::sync::Arc;

use arrow::array::{AsArray as _, RecordBatch};
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::empty::EmptyTable;
use datafusion::logical_expr::cast;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::prelude::{ident, lit};
use deltalake_core::delta_datafusion::DeltaScanNext;

use super::live::LiveTable;
use super::open::Tables;
use super::schema::Table;
use crate::error::{Error, Result};

/// The catalog of a session.
pub const CATALOG: &str = "neurosieve";

/// The schema of the views.
pub const PUBLIC_SCHEMA: &str = "public";

/// The schema that holds every committed row.
pub const RAW_SCHEMA: &str = "raw";

impl Tables {
    /// A session with the tables under [`RAW_SCHEMA`], as of the last refresh: every committed row, history included. It
    /// cannot write to the tables.
    ///
    /// # Errors
    /// [`Error::Table`] where a table cannot be read; [`Error::Query`] where the engine refuses one.
    pub async fn raw_session(&self) -> Result<SessionContext> {
        let context = SessionContext::new_with_config(session_config());
        let providers = self.providers(&context).await?;
        register_raw(&context, providers)?;
        Ok(context)
    }

    /// The tables as of the last refresh, for a session with [`session_config`]. They cannot be written to.
    ///
    /// # Errors
    /// As [`raw_session`](Tables::raw_session).
    pub async fn providers(&self, context: &SessionContext) -> Result<Vec<(Table, Arc<dyn TableProvider>)>> {
        let state = Arc::new(context.state());
        let mut providers = Vec::new();
        for table in self.present() {
            let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
            let delta = self.delta(table);
            delta.update_datafusion_session(state.as_ref()).map_err(unreadable)?;
            let snapshot = delta.snapshot().map_err(unreadable)?.snapshot().clone();
            // Without the log store, the provider can read but not insert.
            let provider = DeltaScanNext::builder().with_session(Arc::clone(&state)).with_eager_snapshot(snapshot);
            providers.push((table, with_all_columns(context, table, Arc::new(provider.build().await?))?));
        }
        Ok(providers)
    }
}

/// The settings of a session that reads the tables.
pub fn session_config() -> SessionConfig {
    SessionConfig::new()
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, PUBLIC_SCHEMA)
        // Some clients of the SQL servers do not know Arrow's view types.
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
}

fn register_raw(context: &SessionContext, providers: Vec<(Table, Arc<dyn TableProvider>)>) -> Result<()> {
    let catalog = context.catalog(CATALOG).ok_or_else(|| Error::Bug("the session has no catalog".into()))?;
    catalog.register_schema(RAW_SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
    // Tables that only older versions have written to lack them. The views need them.
    for needed in [Table::Reverts, Table::Participants] {
        if !providers.iter().any(|(table, _)| *table == needed) {
            let none = Arc::new(EmptyTable::new(needed.arrow_schema()));
            context.register_table(format!("{RAW_SCHEMA}.{}", needed.name()), none)?;
        }
    }
    for (table, provider) in providers {
        context.register_table(format!("{RAW_SCHEMA}.{}", table.name()), provider)?;
    }
    Ok(())
}

/// Registers tables under [`RAW_SCHEMA`] in a session with [`session_config`], and again with a later snapshot: what was planned or defined in the session reads it from then on.
///
/// # Errors
/// [`Error::Query`] where the engine refuses a table.
pub async fn register_live(context: &SessionContext, providers: Vec<(Table, Arc<dyn TableProvider>)>) -> Result<()> {
    let catalog = context.catalog(CATALOG).ok_or_else(|| Error::Bug("the session has no catalog".into()))?;
    let Some(raw) = catalog.schema(RAW_SCHEMA) else {
        let live = |provider| -> Arc<dyn TableProvider> { Arc::new(LiveTable::new(provider)) };
        let mut all: Vec<_> = providers.into_iter().map(|(table, provider)| (table, live(provider))).collect();
        if !all.iter().any(|(table, _)| *table == Table::Reverts) {
            all.push((Table::Reverts, live(Arc::new(EmptyTable::new(Table::Reverts.arrow_schema())))));
        }
        return register_raw(context, all);
    };
    for (table, provider) in providers {
        match raw.table(table.name()).await? {
            Some(known) => {
                if let Some(live) = known.downcast_ref::<LiveTable>() {
                    live.replace(provider);
                }
            }
            None => {
                raw.register_table(table.name().to_owned(), Arc::new(LiveTable::new(provider)))?;
            }
        }
    }
    Ok(())
}

/// The provider itself, or, for a table of an older version, a view of it with the missing columns as null.
fn with_all_columns(
    context: &SessionContext,
    table: Table,
    provider: Arc<dyn TableProvider>,
) -> Result<Arc<dyn TableProvider>> {
    let found = provider.schema();
    let schema = table.arrow_schema();
    let missing =
        schema.fields().iter().filter(|field| field.is_nullable() && found.field_with_name(field.name()).is_err());
    let missing: Vec<_> =
        missing.map(|field| cast(lit(ScalarValue::Null), field.data_type().clone()).alias(field.name())).collect();
    if missing.is_empty() {
        return Ok(provider);
    }
    let existing = found.fields().iter().map(|field| ident(field.name()));
    Ok(context.read_table(Arc::clone(&provider))?.select(existing.chain(missing).collect::<Vec<_>>())?.into_view())
}

/// A text column.
pub(super) fn texts(batch: &RecordBatch, column: usize) -> impl Iterator<Item = String> {
    let texts = batch.column(column).as_string::<i32>();
    texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect::<Vec<_>>().into_iter()
}
