//! A result table as a plain scan of its Parquet files, which executors can decode: they know no Delta.
//!
//! The files, their sizes and their statistics come from the log that is already loaded. **Partitioning**: files are spread
//! over the session's target partitions; the engine may split large ones by row groups. **Faults**: a table that plain
//! readers would misread is refused: one with deletion vectors, with partitions, or with column mapping.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics, project_schema};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::{ObjectMeta, ObjectStoreScheme};
use serde_json::Value;
use url::{Position, Url};

use crate::error::{Error, Result};
use crate::tables::{Table, Tables};

/// The files of one table, as of the last refresh.
#[derive(Debug)]
pub struct ParquetTable {
    schema: SchemaRef,
    store: ObjectStoreUrl,
    files: Vec<PartitionedFile>,
    statistics: Statistics,
}

impl ParquetTable {
    /// The files of `table`, which must be present. Its columns are those of its log, and then those of this version that it
    /// lacks, which are null.
    ///
    /// # Errors
    /// [`Error::Config`] for a table that plain readers would misread, and for an address that executors cannot open;
    /// [`Error::Table`] where the log cannot be read.
    pub fn open(tables: &Tables, table: Table) -> Result<Self> {
        let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
        let state = tables.delta(table).snapshot().map_err(unreadable)?;
        let mapping = state.table_config().column_mapping_mode;
        if mapping.is_some() && mapping != "none".parse().ok() {
            return Err(refused(table, "its columns have other names in its files"));
        }
        if !state.metadata().partition_columns().is_empty() {
            return Err(refused(table, "it is partitioned"));
        }
        let schema = with_all_columns(&state.snapshot().arrow_schema(), table);
        let mut files = Vec::new();
        for file in state.snapshot().try_log_data().map_err(unreadable)?.iter() {
            if file.deletion_vector_descriptor().is_some() {
                return Err(refused(table, "rows of its files are marked as deleted"));
            }
            let meta = ObjectMeta {
                location: tables.location().path_of(&format!("{}/{}", table.name(), file.path()))?,
                last_modified: file.modification_datetime().map_err(unreadable)?,
                size: u64::try_from(file.size()).unwrap_or_default(),
                e_tag: None,
                version: None,
            };
            let logged = file.stats().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null);
            let statistics = statistics(&schema, meta.size, &logged);
            files.push(PartitionedFile::new_from_meta(meta).with_statistics(Arc::new(statistics)));
        }
        let of_files: Vec<_> = files.iter().filter_map(|file| file.statistics.as_deref()).collect();
        let statistics = Statistics::try_merge_iter(of_files, &schema)?;
        Ok(Self { store: store_url(&tables.location().url)?, schema, files, statistics })
    }
}

#[async_trait]
impl TableProvider for ParquetTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.statistics.clone())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        // A filter stays above the scan; the physical optimizer hands it down for row groups to be left out.
        _: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        if self.files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema, projection)?)));
        }
        let global = session.config_options().execution.parquet.clone();
        let options = TableParquetOptions { global, ..Default::default() };
        let source = ParquetSource::new(Arc::clone(&self.schema)).with_table_parquet_options(options);
        let groups = FileGroup::new(self.files.clone()).split_files(session.config().target_partitions());
        let scan = FileScanConfigBuilder::new(self.store.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(self.statistics.clone())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit);
        Ok(DataSourceExec::from_data_source(scan.build()))
    }
}

fn refused(table: Table, why: &str) -> Error {
    Error::Config(format!(
        "a cluster cannot read table {}, because {why}: another program has changed it. Run the query without --cluster",
        table.name()
    ))
}

/// The columns of the log, and then those of this version that are missing in it.
fn with_all_columns(found: &Schema, table: Table) -> SchemaRef {
    let newer = table.arrow_schema();
    let missing = newer.fields().iter().filter(|f| f.is_nullable() && found.field_with_name(f.name()).is_err());
    Arc::new(Schema::new(found.fields().iter().chain(missing).cloned().collect::<Vec<_>>()))
}

/// Scheme and authority, from which an executor opens the same store.
fn store_url(url: &Url) -> Result<ObjectStoreUrl> {
    let is_azure = matches!(ObjectStoreScheme::parse(url), Ok((ObjectStoreScheme::MicrosoftAzure, _)));
    if is_azure && matches!(url.scheme(), "http" | "https") {
        return Err(Error::Config(
            "a cluster cannot open the tables by an https:// address of Azure: give it as \
             abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH"
                .into(),
        ));
    }
    Ok(ObjectStoreUrl::parse(&url[..Position::BeforePath])?)
}

/// What the log says of a file. Counts are exact. Least and greatest numbers only help the engine to estimate: the log leaves
/// NaN out, and shortens texts and times, which are not taken over.
fn statistics(schema: &Schema, size: u64, logged: &Value) -> Statistics {
    let exact = |count: &Value| match count.as_u64().and_then(|n| usize::try_from(n).ok()) {
        Some(n) => Precision::Exact(n),
        None => Precision::Absent,
    };
    let bound = |field: &Field, value: &Value| {
        let number = value.as_number().filter(|_| field.data_type().is_numeric());
        let value = number.and_then(|n| ScalarValue::try_from_string(n.to_string(), field.data_type()).ok());
        value.map_or(Precision::Absent, Precision::Inexact)
    };
    let column = |field: &Arc<Field>| ColumnStatistics {
        null_count: exact(&logged["nullCount"][field.name()]),
        min_value: bound(field, &logged["minValues"][field.name()]),
        max_value: bound(field, &logged["maxValues"][field.name()]),
        ..ColumnStatistics::new_unknown()
    };
    Statistics {
        num_rows: exact(&logged["numRecords"]),
        total_byte_size: usize::try_from(size).map_or(Precision::Absent, Precision::Inexact),
        column_statistics: schema.fields().iter().map(column).collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use arrow::array::RecordBatch;
    use arrow::compute::concat_batches;
    use arrow::datatypes::DataType;
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::prelude::SessionContext;
    use tempfile::TempDir;

    use super::*;
    use crate::tables::{RevertRow, RunRow};

    fn run(number: i64) -> RunRow {
        RunRow {
            run_id: format!("run-{number}"),
            cohort: "study".into(),
            started_at: 1_700_000_000_000_001 + number,
            finished_at: None,
            status: "running".into(),
            n_listed: 10,
            n_selected: 10 - number,
            n_already_done: 0,
            n_done: 0,
            n_failed: 0,
            scans_per_minute: 0.5,
            device: "cpu".into(),
            recipe_id: "recipe".into(),
            bundle: "bundle".into(),
            bundle_digest: "digest".into(),
            config: "{}".into(),
            version: "1".into(),
            cores: 2,
            run_number: None,
            cohort_root: None,
            host: (number == 1).then(|| "node".into()),
            operator: None,
            image: None,
            message: None,
        }
    }

    /// Tables with three runs, of which two have ended, and with two reverts; every row in a file of its own or two.
    pub(in crate::cluster) async fn written() -> (TempDir, Tables) {
        let folder = tempfile::tempdir().unwrap();
        let mut tables = Tables::open_or_create(folder.path().to_str().unwrap()).await.unwrap();
        for number in 0..3 {
            let mut row = run(number);
            tables.begin_run(&mut row).await.unwrap();
            row.finished_at = Some(row.started_at + 1_000_000);
            row.status = "done".into();
            if number < 2 {
                tables.end_run(&row).await.unwrap();
            }
        }
        let revert = |scan: &str| RevertRow {
            run_id: "run-1".into(),
            run_number: 2,
            scan_id: scan.into(),
            content_id: "content".into(),
            recipe_id: "recipe".into(),
            cohort: "study".into(),
        };
        tables.record_reverts(&[revert("a"), revert("b")]).await.unwrap();
        (folder, tables)
    }

    async fn rows(context: &SessionContext, sql: &str) -> RecordBatch {
        let rows = context.sql(sql).await.unwrap();
        let schema: SchemaRef = rows.schema().as_arrow().clone().into();
        concat_batches(&schema, &rows.collect().await.unwrap()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_rows_are_those_of_the_table() {
        let (_folder, tables) = written().await;
        let delta = tables.raw_session().await.unwrap();
        for table in tables.present() {
            let plain = SessionContext::new();
            let provider = ParquetTable::open(&tables, table).unwrap();
            assert_eq!(
                provider.schema(),
                delta.table(format!("raw.{}", table.name())).await.unwrap().schema().inner().clone()
            );
            plain.register_table("t", Arc::new(provider)).unwrap();
            let order = "ORDER BY 1, 2, 3, 4, 5";
            let found = rows(&plain, &format!("SELECT * FROM t {order}")).await;
            let expected = rows(&delta, &format!("SELECT * FROM raw.{} {order}", table.name())).await;
            let text = |batch: &RecordBatch| pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string();
            assert_eq!(text(&found), text(&expected), "{}", table.name());
            let count = rows(&plain, "SELECT count(*) FROM t").await;
            assert!(text(&count).contains(&format!(" {} ", expected.num_rows())), "{}", table.name());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_column_that_the_files_lack_is_null_and_counts_come_from_the_log() {
        let (_folder, tables) = written().await;
        let mut provider = ParquetTable::open(&tables, Table::Runs).unwrap();
        assert_eq!((provider.files.len(), provider.statistics.num_rows), (5, Precision::Exact(5)));
        let host = provider.schema.index_of("host").unwrap();
        assert_eq!(provider.statistics.column_statistics[host].null_count, Precision::Exact(3));
        let newer = Arc::new(Field::new("newer", DataType::Utf8, true));
        provider.schema = Arc::new(Schema::new([provider.schema.fields().to_vec(), vec![newer]].concat()));
        provider.statistics = Statistics::new_unknown(&provider.schema);
        for file in &mut provider.files {
            file.statistics = None;
        }
        let context = SessionContext::new();
        context.register_table("t", Arc::new(provider)).unwrap();
        let found = rows(&context, "SELECT newer FROM t WHERE n_selected < 10 AND newer IS NULL").await;
        assert_eq!((found.num_rows(), found.column(0).null_count()), (3, 3));
    }

    #[test]
    fn an_address_without_its_container_is_refused() {
        let url = |text: &str| store_url(&Url::parse(text).unwrap());
        assert_eq!(url("s3://bucket/results").unwrap().as_str(), "s3://bucket/");
        assert_eq!(url("file:///data/results/").unwrap().as_str(), "file:///");
        let of_azure = url("abfss://container@account.dfs.core.windows.net/results").unwrap();
        assert_eq!(of_azure.as_str(), "abfss://container@account.dfs.core.windows.net/");
        let refused = url("https://account.blob.core.windows.net/container/results").unwrap_err().to_string();
        assert!(refused.contains("abfss://"), "{refused}");
    }
}
