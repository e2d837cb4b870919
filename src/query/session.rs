//! A DataFusion session with the tables under `raw` and the views under their public names.

use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionContext;

use super::engine::Engine;
use super::functions::register_functions;
use super::views::views;
use crate::error::Result;
use crate::tables::{CATALOG, PUBLIC_SCHEMA, Tables, register_live, session_config};

/// A session for analysts: the tables as of their last refresh, and the views. It cannot write to the tables.
///
/// # Errors
/// [`Error::Table`](crate::Error::Table) where a table cannot be read; [`Error::Query`](crate::Error::Query) where the
/// engine refuses a view.
pub async fn session(tables: &Tables) -> Result<SessionContext> {
    let context = tables.raw_session().await?;
    register_functions(&context);
    add_views(&context, tables).await?;
    Ok(context)
}

/// A [`session`] whose statements run within the limits of an engine.
///
/// # Errors
/// As [`session`].
pub async fn session_within(tables: &Tables, engine: Arc<Engine>) -> Result<SessionContext> {
    let runtime = engine.within_memory(RuntimeEnvBuilder::new()).build_arc()?;
    let context = SessionContext::new_with_config_rt(session_config().with_extension(engine), runtime);
    register_functions(&context);
    reload(&context, tables).await?;
    Ok(context)
}

/// Gives a [`session_within`] the tables as of their last refresh. Views and settings of its user stay.
///
/// # Errors
/// As [`session`].
pub async fn reload(context: &SessionContext, tables: &Tables) -> Result<()> {
    register_live(context, tables.providers(context).await?).await?;
    add_views(context, tables).await
}

/// Adds the views that are missing to a session that has the tables under `raw`.
///
/// # Errors
/// [`Error::Query`](crate::Error::Query) where the engine refuses a view.
pub async fn add_views(context: &SessionContext, tables: &Tables) -> Result<()> {
    for view in views().into_iter().filter(|view| view.needs.is_none_or(|table| tables.present().any(|t| t == table))) {
        // The session's default schema may be another by now.
        let name = TableReference::full(CATALOG, PUBLIC_SCHEMA, view.name);
        if !context.table_exist(name)? {
            context.sql(&format!("CREATE VIEW {PUBLIC_SCHEMA}.{} AS {}", view.name, view.sql)).await?;
        }
    }
    Ok(())
}
