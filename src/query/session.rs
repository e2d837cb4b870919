//! A DataFusion session with the tables under `raw` and the [`views`](super::views()) under their public names.

use std::sync::Arc;

use datafusion::catalog::MemorySchemaProvider;
use datafusion::prelude::{SessionConfig, SessionContext};
use deltalake_core::delta_datafusion::DeltaScanNext;

use super::views;
use crate::error::{Error, Result};
use crate::tables::Tables;

const CATALOG: &str = "neurosieve";
const PUBLIC_SCHEMA: &str = "public";

/// The schema that holds every committed row.
pub const RAW_SCHEMA: &str = "raw";

/// A session for analysts: the tables as `tables` has them now, and the views on top. Cannot write to the tables.
pub async fn session(tables: &Tables) -> Result<SessionContext> {
    let context = raw_session(tables).await?;
    for view in views().into_iter().filter(|view| view.needs.is_none_or(|table| tables.present().any(|t| t == table))) {
        context.sql(&format!("CREATE VIEW {} AS {}", view.name, view.sql)).await?;
    }
    Ok(context)
}

/// A session with the tables under `raw` alone.
pub async fn raw_session(tables: &Tables) -> Result<SessionContext> {
    let config = SessionConfig::new()
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, PUBLIC_SCHEMA)
        // Not every client of the SQL servers knows Arrow's view types.
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false);
    let context = SessionContext::new_with_config(config);
    let catalog = context.catalog(CATALOG).ok_or_else(|| Error::Bug("the session has no catalog".into()))?;
    catalog.register_schema(RAW_SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
    let state = Arc::new(context.state());
    for table in tables.present() {
        let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
        let delta = tables.delta(table);
        delta.update_datafusion_session(state.as_ref()).map_err(unreadable)?;
        let snapshot = delta.snapshot().map_err(unreadable)?.snapshot().clone();
        // Without the log store the provider can read but not insert.
        let provider = DeltaScanNext::builder().with_session(Arc::clone(&state)).with_eager_snapshot(snapshot);
        let provider = provider.build().await?;
        context.register_table(format!("{RAW_SCHEMA}.{}", table.name()), Arc::new(provider))?;
    }
    Ok(context)
}
