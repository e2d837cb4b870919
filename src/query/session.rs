//! A DataFusion session with the tables under `raw` and the views under their public names.

use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionContext;

use super::engine::Engine;
use super::views::views;
use crate::error::Result;
use crate::tables::{Tables, session_config};

/// A session for analysts: the tables as of their last refresh, and the views. It cannot write to the tables.
///
/// # Errors
/// [`Error::Table`](crate::Error::Table) where a table cannot be read; [`Error::Query`](crate::Error::Query) where the
/// engine refuses a view.
pub async fn session(tables: &Tables) -> Result<SessionContext> {
    with_views(tables.raw_session().await?, tables).await
}

/// A [`session`] whose statements run within the limits of an engine.
///
/// # Errors
/// As [`session`].
pub async fn session_within(tables: &Tables, engine: Arc<Engine>) -> Result<SessionContext> {
    let runtime = engine.within_memory(RuntimeEnvBuilder::new()).build_arc()?;
    let context = SessionContext::new_with_config_rt(session_config().with_extension(engine), runtime);
    tables.register_raw_in(&context).await?;
    with_views(context, tables).await
}

/// Adds the views to a session that has the tables under `raw`.
///
/// # Errors
/// [`Error::Query`](crate::Error::Query) where the engine refuses a view.
pub async fn with_views(context: SessionContext, tables: &Tables) -> Result<SessionContext> {
    for view in views().into_iter().filter(|view| view.needs.is_none_or(|table| tables.present().any(|t| t == table))) {
        context.sql(&format!("CREATE VIEW {} AS {}", view.name, view.sql)).await?;
    }
    Ok(context)
}
