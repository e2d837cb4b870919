//! A DataFusion session that reads the tables.

use std::sync::Arc;

use datafusion::catalog::MemorySchemaProvider;
use datafusion::prelude::{SessionConfig, SessionContext};
use deltalake_core::delta_datafusion::DeltaScanNext;

use super::open::Tables;
use crate::error::{Error, Result};

const CATALOG: &str = "neurosieve";
const PUBLIC_SCHEMA: &str = "public";

/// The schema that holds every committed row.
pub const RAW_SCHEMA: &str = "raw";

impl Tables {
    /// A session with the tables under [`RAW_SCHEMA`], as of the last refresh: every committed row, history included. It
    /// cannot write to the tables.
    ///
    /// # Errors
    /// [`Error::Table`] where a table cannot be read; [`Error::Query`] where the engine refuses one.
    pub async fn raw_session(&self) -> Result<SessionContext> {
        let config = SessionConfig::new()
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, PUBLIC_SCHEMA)
            // Some clients of the SQL servers do not know Arrow's view types.
            .set_bool("datafusion.execution.parquet.schema_force_view_types", false);
        let context = SessionContext::new_with_config(config);
        let catalog = context.catalog(CATALOG).ok_or_else(|| Error::Bug("the session has no catalog".into()))?;
        catalog.register_schema(RAW_SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
        let state = Arc::new(context.state());
        for table in self.present() {
            let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
            let delta = self.delta(table);
            delta.update_datafusion_session(state.as_ref()).map_err(unreadable)?;
            let snapshot = delta.snapshot().map_err(unreadable)?.snapshot().clone();
            // Without the log store, the provider can read but not insert.
            let provider = DeltaScanNext::builder().with_session(Arc::clone(&state)).with_eager_snapshot(snapshot);
            let provider = provider.build().await?;
            context.register_table(format!("{RAW_SCHEMA}.{}", table.name()), Arc::new(provider))?;
        }
        Ok(context)
    }
}
