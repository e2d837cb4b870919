//! Plans of statements that name a place outside the tables, such as `COPY … TO 's3://bucket/rows.csv'`.

use datafusion::datasource::listing::ListingTableUrl;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;

use crate::error::Result;
use crate::store;

/// Plans a statement, and opens the object stores that `CREATE EXTERNAL TABLE` and `COPY` name, with the credentials of the
/// environment.
///
/// # Errors
/// The statement is not valid for the session, or an address is none that the program can open.
pub(super) async fn plan(context: &SessionContext, statement: Statement) -> Result<LogicalPlan> {
    let plan = context.state().statement_to_plan(statement).await?;
    match &plan {
        LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) => {
            table.locations.iter().try_for_each(|address| register(context, address))?;
        }
        LogicalPlan::Copy(copy) => register(context, &copy.output_url)?,
        _ => {}
    }
    Ok(plan)
}

fn register(context: &SessionContext, address: &str) -> Result<()> {
    let url = ListingTableUrl::parse(address)?;
    // A session has the local file system, and the store of the tables, from the start.
    if context.runtime_env().object_store(&url).is_err() {
        context.register_object_store(url.as_ref(), store::open(url.as_str())?.store);
    }
    Ok(())
}
