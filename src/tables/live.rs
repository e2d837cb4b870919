//! A table of a session whose content can be replaced by that of a later snapshot.
//!
//! Views and prepared statements hold the providers of the tables that they name. They see a later snapshot only where the
//! provider itself hands over to another one.

use std::sync::{Arc, PoisonError, RwLock};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{ScanArgs, ScanResult, Session, TableProvider};
use datafusion::common::Statistics;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;

/// The newest snapshot of a table that a session knows. Its columns are those of the first.
#[derive(Debug)]
pub(super) struct LiveTable {
    schema: SchemaRef,
    newest: RwLock<Arc<dyn TableProvider>>,
}

impl LiveTable {
    pub(super) fn new(provider: Arc<dyn TableProvider>) -> Self {
        Self { schema: provider.schema(), newest: RwLock::new(provider) }
    }

    /// Reads from `newer` from now on, unless its columns differ: plans name columns by their positions.
    pub(super) fn replace(&self, newer: Arc<dyn TableProvider>) {
        let fields = |schema: &SchemaRef| -> Vec<_> {
            schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
        };
        if fields(&newer.schema()) == fields(&self.schema) {
            *self.newest.write().unwrap_or_else(PoisonError::into_inner) = newer;
        }
    }

    fn newest(&self) -> Arc<dyn TableProvider> {
        Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl TableProvider for LiveTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    // Not the logical plan of a provider that is a view: a view of this table would keep it.

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.newest().supports_filters_pushdown(filters)
    }

    fn statistics(&self) -> Option<Statistics> {
        self.newest().statistics()
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.newest().scan(session, projection, filters, limit).await
    }

    async fn scan_with_args<'a>(&self, session: &dyn Session, args: ScanArgs<'a>) -> Result<ScanResult> {
        self.newest().scan_with_args(session, args).await
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    /// A view of one row with this query's columns.
    async fn of(context: &SessionContext, sql: &str) -> Arc<dyn TableProvider> {
        context.sql(sql).await.unwrap().into_view()
    }

    #[tokio::test]
    async fn a_view_sees_the_newest_snapshot_and_keeps_its_columns() {
        let context = SessionContext::new();
        let table = Arc::new(LiveTable::new(of(&context, "SELECT 1 AS a").await));
        context.register_table("t", Arc::<LiveTable>::clone(&table)).unwrap();
        context.sql("CREATE VIEW v AS SELECT a + 1 AS a FROM t").await.unwrap();
        let sum = async || {
            let rows = context.sql("SELECT a FROM v WHERE a > 0").await.unwrap().collect().await.unwrap();
            arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string()
        };
        assert!(sum().await.contains("| 2 |"));
        table.replace(of(&context, "SELECT 7 AS a").await);
        assert!(sum().await.contains("| 8 |"));
        table.replace(of(&context, "SELECT 9 AS a, 1 AS b").await);
        assert!(sum().await.contains("| 8 |"), "columns changed");
    }
}
