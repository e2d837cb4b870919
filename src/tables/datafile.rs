//! One Parquet data file of a table: from rows to bytes and Delta statistics, and from bytes to an object in the store.
//!
//! Takes rows in the order of [`Table::sorted_by`]. Files are compressed with Zstandard and dictionaries; row groups are
//! small enough to prune tokens by scan and to read one mask without its neighbours. A file is never changed: its name is
//! used once, and it counts only once it is committed.

use arrow::array::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::ByteArray;
use parquet::file::metadata::{ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use super::column::Kind;
use super::schema::Table;
use crate::error::{Error, Result};
use crate::store::{Location, with_retries};

/// Zstandard level. Level 3 makes tokens 1 % and masks 12 % smaller, but takes 1.5 times as long.
const ZSTD_LEVEL: i32 = 1;
/// Rows in a row group: the tokens of about 30 scans.
const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Rows in a row group of masks, which have a megabyte each: a query for one mask reads few others.
const ROW_GROUP_MASKS: usize = 8;

/// Columns of `tokens` with the position of a token.
const POSITIONS: [&str; 6] = ["z", "y", "x", "mni_x_mm", "mni_y_mm", "mni_z_mm"];

/// A data file that is ready to be written to the store.
#[derive(Debug)]
pub struct DataFile {
    /// The Parquet file.
    pub bytes: Bytes,
    /// Number of rows.
    pub num_rows: usize,
    /// Its Delta statistics as JSON: `numRecords`, `minValues`, `maxValues`, `nullCount`.
    pub stats: String,
}

impl DataFile {
    /// Encodes rows, which must be in the order of [`Table::sorted_by`]. Text may come in dictionaries; the schema in the
    /// file is [`Table::arrow_schema`]. Takes processor time: call it off the asynchronous threads.
    ///
    /// # Errors
    /// [`Error::Bug`] for rows that do not fit the table.
    pub fn encode(table: Table, batches: &[RecordBatch]) -> Result<Self> {
        let bug = |e| Error::Bug(format!("cannot encode rows of {}: {e}", table.name()));
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, table.arrow_schema(), Some(properties(table, true)?)).map_err(bug)?;
        for batch in batches {
            writer.write(batch).map_err(bug)?;
        }
        let metadata = writer.close().map_err(bug)?;
        let num_rows = batches.iter().map(RecordBatch::num_rows).sum();
        Ok(Self { bytes: bytes.into(), num_rows, stats: stats(table, &metadata, num_rows) })
    }

    /// Writes the file to the table's folder; gives its path relative to that folder.
    ///
    /// # Errors
    /// [`Error::Storage`] where the store fails repeatedly.
    pub async fn put(&self, location: &Location, table: Table) -> Result<String> {
        // Version 7 ids sort by time, so a listing of the folder reads in the order of writing.
        let name = format!("part-{}.zstd.parquet", uuid::Uuid::now_v7());
        let path = location.path_of(&format!("{}/{name}", table.name()))?;
        // The name is used once, so an attempt whose answer was lost and the next one write the same object.
        with_retries(|| self.put_once(location, &path)).await?;
        Ok(name)
    }

    async fn put_once(&self, location: &Location, path: &Path) -> Result<()> {
        let put = location.store.put(path, self.bytes.clone().into()).await;
        put.map(drop).map_err(|e| location.explain_write("write a data file under", e))
    }
}

/// How files of a table are written; `sorted` is whether their rows are in the order of [`Table::sorted_by`].
pub(super) fn properties(table: Table, sorted: bool) -> Result<WriterProperties> {
    let zstd = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|e| Error::Bug(e.to_string()))?;
    let index = |name: &&str| table.columns().iter().position(|c| c.name == *name);
    // The index is that of Parquet's leaves. It equals the column's, because every sorting column comes before the table's
    // first nested column.
    let sorting = table.sorted_by().iter().filter_map(index);
    let sorting = sorting.map(|i| SortingColumn { column_idx: i as i32, descending: false, nulls_first: false });
    let sorting: Vec<_> = sorting.filter(|_| sorted).collect();
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(if table == Table::Masks { ROW_GROUP_MASKS } else { ROW_GROUP_ROWS }))
        .set_sorting_columns((!sorting.is_empty()).then_some(sorting))
        .set_created_by(format!("neurosieve {}", env!("CARGO_PKG_VERSION")));
    for column in table.columns().iter().filter(|c| c.kind == Kind::Binary) {
        // No two masks are equal, and no query searches by their first bytes.
        let path = ColumnPath::from(column.name);
        builder = builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    if table == Table::Tokens && sorted {
        // Positions follow each other in the order of the grid. Zstandard compresses them as well without dictionaries, in
        // half the time.
        for name in POSITIONS {
            builder = builder.set_column_dictionary_enabled(ColumnPath::from(name), false);
        }
        // A scan has tokens in every region, so the bounds would prune nothing.
        builder = builder.set_column_statistics_enabled(ColumnPath::from("region"), EnabledStatistics::None);
    }
    Ok(builder.build())
}

/// Delta statistics (PROTOCOL.md, "Per-file Statistics") of the simple columns, from those of the Parquet writer for its row
/// groups. Lists and binary have none. A bound that is not known for every group, or not finite, is omitted, which a reader
/// takes as unknown.
fn stats(table: Table, file: &ParquetMetaData, num_rows: usize) -> String {
    let (mut min_values, mut max_values, mut null_count) = (Map::new(), Map::new(), Map::new());
    for column in table.columns() {
        if matches!(
            column.kind,
            Kind::Binary | Kind::TextList | Kind::Int32List | Kind::Float32List | Kind::Float64List
        ) {
            continue;
        }
        // The path of a leaf at the top level is its name.
        let leaf = file.file_metadata().schema_descr().columns().iter().position(|c| c.path().string() == column.name);
        let of_leaf = |leaf| {
            let groups = file.row_groups().iter();
            groups.map(move |group| Some((group.num_rows() as u64, group.column(leaf).statistics()?))).collect()
        };
        let groups: Option<Vec<(u64, &Statistics)>> = leaf.and_then(of_leaf);
        let Some(groups) = groups else { continue };
        if let Some(nulls) = groups.iter().map(|(_, statistics)| statistics.null_count_opt()).sum::<Option<u64>>() {
            null_count.insert(column.name.to_owned(), json!(nulls));
        }
        let with_values = groups.into_iter().filter(|&(rows, statistics)| statistics.null_count_opt() != Some(rows));
        let bounds: Option<Vec<_>> = with_values.map(|(_, statistics)| Bounds::of(statistics)).collect();
        let Some(bounds) = bounds.and_then(|all| all.into_iter().reduce(Bounds::with)) else { continue };
        let (min, max) = bounds.in_delta(column.kind);
        min_values.extend(min.map(|bound| (column.name.to_owned(), bound)));
        max_values.extend(max.map(|bound| (column.name.to_owned(), bound)));
    }
    let stats = json!({
        "numRecords": num_rows, "minValues": min_values, "maxValues": max_values, "nullCount": null_count
    });
    stats.to_string()
}

/// The smallest and the largest value of a column.
#[derive(Debug, Clone, PartialEq)]
enum Bounds {
    Int(i64, i64),
    Float(f32, f32),
    /// The writer truncates long texts, the upper one such that it is still a bound.
    Text(String, String),
}

impl Bounds {
    /// Those of a row group; `None` where the writer computed none.
    fn of(statistics: &Statistics) -> Option<Self> {
        let text = |bytes: Option<&ByteArray>| Some(bytes?.as_utf8().ok()?.to_owned());
        Some(match statistics {
            Statistics::Int32(s) => Self::Int((*s.min_opt()?).into(), (*s.max_opt()?).into()),
            Statistics::Int64(s) => Self::Int(*s.min_opt()?, *s.max_opt()?),
            Statistics::Float(s) => Self::Float(*s.min_opt()?, *s.max_opt()?),
            Statistics::ByteArray(s) => Self::Text(text(s.min_opt())?, text(s.max_opt())?),
            _ => return None,
        })
    }

    /// Of both together, which must be of one kind, like all row groups of a column.
    fn with(self, other: Self) -> Self {
        match (self, other) {
            (Self::Int(a, b), Self::Int(c, d)) => Self::Int(a.min(c), b.max(d)),
            (Self::Float(a, b), Self::Float(c, d)) => Self::Float(a.min(c), b.max(d)),
            (Self::Text(a, b), Self::Text(c, d)) => Self::Text(a.min(c), b.max(d)),
            (first, _) => first,
        }
    }

    /// As Delta writes them; `None` where the value is not a bound.
    fn in_delta(self, kind: Kind) -> (Option<Value>, Option<Value>) {
        let instant =
            |us| DateTime::from_timestamp_micros(us).map(|t| json!(t.to_rfc3339_opts(SecondsFormat::Micros, true)));
        // Parquet writes a zero as -0 for the lower and as +0 for the upper bound; adding 0 makes both +0.
        let float = |v: f32| v.is_finite().then(|| json!(f64::from(v) + 0.));
        match self {
            Self::Int(min, max) if kind == Kind::Timestamp => (instant(min), instant(max)),
            Self::Int(min, max) => (Some(json!(min)), Some(json!(max))),
            Self::Float(min, max) => (float(min), float(max)),
            Self::Text(min, max) => (Some(json!(min)), Some(json!(max))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats_of(texts: &[String]) -> Value {
        let row = |text: &String| {
            json!({
                "run_id": "r1", "scan_id": text, "content_id": "c", "recipe_id": "p", "cohort": "study",
                "uri": "sub-01.nii.gz", "stage": "decode", "kind": "truncated", "message": "cut short",
                "permanent": true, "attempts": 1, "failed_at": 1_700_000_000_000_001_i64
            })
        };
        let rows = Table::Failures.rows(&texts.iter().map(row).collect::<Vec<_>>()).unwrap();
        serde_json::from_str(&DataFile::encode(Table::Failures, &[rows]).unwrap().stats).unwrap()
    }

    #[test]
    fn bounds_of_long_text_are_short_and_still_bound() {
        let texts = ["a".to_owned(), "é".repeat(60)];
        let stats = stats_of(&texts);
        assert_eq!((&stats["numRecords"], &stats["nullCount"]["scan_id"]), (&json!(2), &json!(0)));
        assert_eq!(stats["minValues"]["scan_id"], "a");
        let greatest = stats["maxValues"]["scan_id"].as_str().unwrap();
        assert!(greatest.len() <= 64 && *greatest > *texts[1], "{greatest}");
        let least = stats_of(&texts[1..]);
        let least = least["minValues"]["scan_id"].as_str().unwrap();
        assert!(least.len() <= 64 && *least < *texts[1], "{least}");
        assert_eq!(stats["maxValues"]["failed_at"], "2023-11-14T22:13:20.000001Z");
        assert_eq!(stats["minValues"].get("permanent"), None);
    }

    #[test]
    fn a_value_that_is_no_bound_is_omitted() {
        let bounds = Bounds::Float(-0., f32::INFINITY);
        assert_eq!(bounds.in_delta(Kind::Float32), (Some(json!(0.)), None));
        assert_eq!(Bounds::Int(3, 5).with(Bounds::Int(-1, 4)), Bounds::Int(-1, 5));
        assert_eq!(Bounds::of(&Statistics::boolean(Some(false), Some(true), None, Some(0), false)), None);
    }
}
