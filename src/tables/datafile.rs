//! One Parquet data file of a table: from rows to bytes and Delta statistics, and from bytes into the store.
//!
//! Zstandard and dictionaries; row groups small enough to prune tokens by scan and to read one mask without
//! its neighbours. Files are never changed: a name is used once, and a file counts only when it is committed.

use arrow::array::{Array, RecordBatch};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;
use datafusion::scalar::ScalarValue;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use super::Table;
use super::schema::Kind;
use crate::cohort::store::{Location, with_retries};
use crate::error::{Error, Result};

/// Zstandard level: higher ones gain a few percent of size for several times the encoding time.
const ZSTD_LEVEL: i32 = 3;
/// That of masks, which are most of the bytes: level 3 makes them an eighth smaller in one and a half times the time.
const ZSTD_LEVEL_MASKS: i32 = 1;
/// Rows in a row group: about 30 scans' tokens.
const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Rows in a row group of masks, which are a megabyte each: who asks for one mask reads few others.
const ROW_GROUP_MASKS: usize = 8;
/// Text bounds in the statistics are cut here: they serve to skip files by id, not to store messages.
const STATS_TEXT_BYTES: usize = 64;

/// A data file that is ready to be put into the store.
#[derive(Debug)]
pub struct DataFile {
    /// The Parquet file.
    pub bytes: Bytes,
    /// Its rows.
    pub num_rows: usize,
    /// Its Delta statistics as JSON: `numRecords`, `minValues`, `maxValues`, `nullCount`.
    pub stats: String,
}

impl DataFile {
    /// Encodes rows, which must be in the order of [`Table::sorted_by`]. Takes processor time: call it off the
    /// asynchronous threads.
    pub fn encode(table: Table, batches: &[RecordBatch]) -> Result<Self> {
        let bug = |e| Error::Bug(format!("cannot encode rows of {}: {e}", table.name()));
        let mut writer = ArrowWriter::try_new(Vec::<u8>::new(), table.arrow_schema(), Some(properties(table, true)?))
            .map_err(bug)?;
        for batch in batches {
            writer.write(batch).map_err(bug)?;
        }
        let bytes = Bytes::from(writer.into_inner().map_err(bug)?);
        let num_rows = batches.iter().map(RecordBatch::num_rows).sum();
        Ok(Self { bytes, num_rows, stats: stats(table, batches, num_rows)? })
    }

    /// Puts the file into the table's folder; gives its path relative to that folder.
    pub async fn put(&self, location: &Location, table: Table) -> Result<String> {
        // Version 7 ids sort by time, so a listing of the folder reads in the order of writing.
        let name = format!("part-{}.zstd.parquet", uuid::Uuid::now_v7());
        let path = location.path_of(&format!("{}/{name}", table.name()))?;
        // A name is used once: a try whose answer was lost and the next one write the same object.
        with_retries(|| self.put_once(location, &path)).await?;
        Ok(name)
    }

    async fn put_once(&self, location: &Location, path: &Path) -> Result<()> {
        let put = location.store.put(path, self.bytes.clone().into()).await;
        put.map(drop).map_err(|e| location.explain("write a data file under", e))
    }
}

/// How files of a table are written; `sorted`: their rows are in the order of [`Table::sorted_by`].
pub(super) fn properties(table: Table, sorted: bool) -> Result<WriterProperties> {
    let level = if table == Table::Masks { ZSTD_LEVEL_MASKS } else { ZSTD_LEVEL };
    let zstd = ZstdLevel::try_new(level).map_err(|e| Error::Bug(e.to_string()))?;
    let index = |name: &&str| table.columns().iter().position(|c| c.name == *name);
    // Positions are those of Parquet's leaves; every sorting column comes before the table's first nested one.
    let sorting = table.sorted_by().iter().filter_map(index);
    let sorting = sorting.map(|i| SortingColumn { column_idx: i as i32, descending: false, nulls_first: false });
    let sorting: Vec<_> = sorting.filter(|_| sorted).collect();
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(if table == Table::Masks { ROW_GROUP_MASKS } else { ROW_GROUP_ROWS }))
        .set_sorting_columns((!sorting.is_empty()).then_some(sorting))
        .set_created_by(format!("neurosieve {}", env!("CARGO_PKG_VERSION")));
    for column in table.columns().iter().filter(|c| c.kind == Kind::Binary) {
        // No two masks are equal, and nobody searches by their first bytes.
        let path = ColumnPath::from(column.name);
        builder = builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    Ok(builder.build())
}

/// Delta statistics (PROTOCOL.md, "Per-file Statistics") of the simple columns. Lists and binary have none; a bound
/// that is not finite or too long is left out, which a reader takes as unknown.
fn stats(table: Table, batches: &[RecordBatch], num_rows: usize) -> Result<String> {
    let bug = |e| Error::Bug(format!("statistics of {}: {e}", table.name()));
    let (mut min_values, mut max_values, mut null_count) = (Map::new(), Map::new(), Map::new());
    for (i, column) in table.columns().iter().enumerate() {
        if matches!(
            column.kind,
            Kind::Binary | Kind::TextList | Kind::Int32List | Kind::Float32List | Kind::Float64List
        ) {
            continue;
        }
        let nulls: usize = batches.iter().map(|b| b.column(i).null_count()).sum();
        null_count.insert(column.name.to_owned(), json!(nulls));
        if column.kind == Kind::Boolean {
            continue;
        }
        let data_type = column.kind.data_type();
        let mut min = MinAccumulator::try_new(&data_type).map_err(bug)?;
        let mut max = MaxAccumulator::try_new(&data_type).map_err(bug)?;
        for batch in batches {
            min.update_batch(std::slice::from_ref(batch.column(i))).map_err(bug)?;
            max.update_batch(std::slice::from_ref(batch.column(i))).map_err(bug)?;
        }
        if let Some(value) = bound(&min.evaluate().map_err(bug)?, true) {
            min_values.insert(column.name.to_owned(), value);
        }
        if let Some(value) = bound(&max.evaluate().map_err(bug)?, false) {
            max_values.insert(column.name.to_owned(), value);
        }
    }
    let stats = json!({
        "numRecords": num_rows, "minValues": min_values, "maxValues": max_values, "nullCount": null_count
    });
    Ok(stats.to_string())
}

/// A bound as Delta writes it, or nothing where it would not bound.
fn bound(value: &ScalarValue, lower: bool) -> Option<Value> {
    match value {
        ScalarValue::Utf8(Some(text)) if text.len() <= STATS_TEXT_BYTES => Some(json!(text)),
        // A prefix is never above the text itself, so it still bounds from below.
        ScalarValue::Utf8(Some(text)) if lower => Some(json!(text[..text.floor_char_boundary(STATS_TEXT_BYTES)])),
        ScalarValue::Int8(Some(v)) => Some(json!(v)),
        ScalarValue::Int16(Some(v)) => Some(json!(v)),
        ScalarValue::Int32(Some(v)) => Some(json!(v)),
        ScalarValue::Int64(Some(v)) => Some(json!(v)),
        ScalarValue::Float32(Some(v)) if v.is_finite() => Some(json!(f64::from(*v))),
        ScalarValue::TimestampMicrosecond(Some(v), _) => {
            DateTime::from_timestamp_micros(*v).map(|t| json!(t.to_rfc3339_opts(SecondsFormat::Micros, true)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_would_not_bound_is_left_out() {
        let long = "é".repeat(60);
        let text = ScalarValue::Utf8(Some(long.clone()));
        assert_eq!(bound(&text, false), None);
        let prefix = bound(&text, true).unwrap();
        assert!(long.starts_with(prefix.as_str().unwrap()) && prefix.as_str().unwrap().len() <= STATS_TEXT_BYTES);
        assert_eq!(bound(&ScalarValue::Float32(Some(f32::NAN)), false), None);
        let instant = ScalarValue::TimestampMicrosecond(Some(1_700_000_000_000_001), None);
        assert_eq!(bound(&instant, true), Some(json!("2023-11-14T22:13:20.000001Z")));
    }
}
