//! The six tables and what their columns are in Arrow, in Delta and for a reader.
//!
//! ```text
//! columns.rs  ──►  arrow_schema()  what rows are built, written and queried with
//!             ──►  delta_fields()  what the Delta log says, with unit and meaning as comments
//!             ──►  describe()      what `neurosieve tables describe` prints
//! ```
//! Types are the ones that Delta knows: no unsigned integers, timestamps in microseconds UTC. [`screen_schema`] is
//! the shape in which a whole scan travels from screening to writing: one row per scan, one list per table.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, ListArray, RecordBatch, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use deltalake_core::kernel::StructField;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use serde::Serialize;

use super::columns;
use crate::error::{Error, Result};

/// One column, as defined in `columns.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Whether it may be null.
    pub nullable: bool,
    /// Unit of its values; empty for names and labels.
    pub unit: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// Types that Arrow, Delta and Parquet all have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each says what it is")]
pub enum Kind {
    Text,
    Int8,
    Int16,
    Int32,
    Int64,
    Float32,
    Boolean,
    /// Microseconds since 1970, UTC.
    Timestamp,
    Binary,
    TextList,
    Int32List,
    Float32List,
    Float64List,
}

impl Kind {
    /// The Arrow type. List items are called `element` and may be null, as the Delta reader has them.
    pub fn data_type(self) -> DataType {
        let list = |item| DataType::List(Arc::new(Field::new("element", item, true)));
        match self {
            Self::Text => DataType::Utf8,
            Self::Int8 => DataType::Int8,
            Self::Int16 => DataType::Int16,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Boolean => DataType::Boolean,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Binary => DataType::Binary,
            Self::TextList => list(DataType::Utf8),
            Self::Int32List => list(DataType::Int32),
            Self::Float32List => list(DataType::Float32),
            Self::Float64List => list(DataType::Float64),
        }
    }
}

/// The tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// One row per scan that finished.
    Scans,
    /// One row per token in the brain of a scan.
    Tokens,
    /// One row per scan: its anomaly mask, brain mask and anomaly map.
    Masks,
    /// One row per connected component of a scan's anomaly mask.
    Findings,
    /// One row per attempt that failed.
    Failures,
    /// One row per change of a run's state.
    Runs,
    /// One row per method of an evaluation; the table is there once something was evaluated.
    Evaluations,
}

impl Table {
    /// All, those of [`Table::ALL`] first.
    pub const EVERY: [Self; 7] =
        [Self::Scans, Self::Tokens, Self::Masks, Self::Findings, Self::Failures, Self::Runs, Self::Evaluations];

    /// Those of a screening, in the order in which a reader must open them: `scans` first. What a reader then finds in `scans` was
    /// committed last, so its rows in the other tables are there.
    pub const ALL: [Self; 6] = [Self::Scans, Self::Tokens, Self::Masks, Self::Findings, Self::Failures, Self::Runs];

    /// Those that screening fills, in the order in which they are committed: `scans` last.
    pub const SCREENED: [Self; 5] = [Self::Tokens, Self::Masks, Self::Findings, Self::Failures, Self::Scans];

    /// Its name, which is also its folder's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scans => "scans",
            Self::Tokens => "tokens",
            Self::Masks => "masks",
            Self::Findings => "findings",
            Self::Failures => "failures",
            Self::Runs => "runs",
            Self::Evaluations => "evaluations",
        }
    }

    /// The table of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|t| t.name() == name)
    }

    /// What one row is.
    pub fn doc(self) -> &'static str {
        match self {
            Self::Scans => "one row per scan that finished",
            Self::Tokens => "one row per token in the brain of a scan, sorted by scan, z, y, x",
            Self::Masks => "one row per scan: anomaly mask, brain mask and anomaly map on the model's grid",
            Self::Findings => "one row per connected component of a scan's anomaly mask",
            Self::Failures => "one row per scan that failed, with the reason",
            Self::Runs => "one row per run: counts, throughput, settings, versions",
            Self::Evaluations => "one row per method of an evaluation: figures with intervals, settings, bundle",
        }
    }

    /// Its columns, in order.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Scans => columns::SCANS,
            Self::Tokens => columns::TOKENS,
            Self::Masks => columns::MASKS,
            Self::Findings => columns::FINDINGS,
            Self::Failures => columns::FAILURES,
            Self::Runs => columns::RUNS,
            Self::Evaluations => columns::EVALUATIONS,
        }
    }

    /// The columns by which every data file of the table is sorted.
    pub fn sorted_by(self) -> &'static [&'static str] {
        match self {
            Self::Tokens => &["scan_id", "z", "y", "x"],
            Self::Findings => &["scan_id", "finding"],
            Self::Scans | Self::Masks | Self::Failures => &["scan_id"],
            Self::Runs | Self::Evaluations => &[],
        }
    }

    /// The Arrow schema.
    pub fn arrow_schema(self) -> SchemaRef {
        Arc::clone(&SCHEMAS[self as usize].0)
    }

    /// The Arrow schema of rows on their way to a file: as [`Table::arrow_schema`], but the texts of `tokens`, which repeat
    /// from row to row of a scan, stand once, in a dictionary. They would be three quarters of its bytes.
    pub fn held_schema(self) -> SchemaRef {
        Arc::clone(&SCHEMAS[self as usize].1)
    }

    /// The Delta columns; each carries `comment` (which Spark, DuckDB and Unity Catalog show) and `unit`.
    pub fn delta_fields(self) -> Result<Vec<StructField>> {
        let commented = |c: &Column| {
            let mut metadata = HashMap::from([("comment".to_owned(), c.doc.to_owned())]);
            if !c.unit.is_empty() {
                metadata.insert("unit".to_owned(), c.unit.to_owned());
            }
            Field::new(c.name, c.kind.data_type(), c.nullable).with_metadata(metadata)
        };
        let delta = |c: &Column| -> Result<StructField> {
            (&commented(c)).try_into_kernel().map_err(|e| Error::Bug(format!("{}: {e}", self.name())))
        };
        self.columns().iter().map(delta).collect()
    }

    /// Rows from anything that serialises to this table's columns. Lists are arrays, timestamps are microseconds
    /// since 1970 or RFC 3339 text, binary is hexadecimal text.
    pub fn rows<T: Serialize>(self, rows: &[T]) -> Result<RecordBatch> {
        let bug = |e| Error::Bug(format!("a row does not fit table {}: {e}", self.name()));
        let mut decoder = arrow::json::ReaderBuilder::new(self.arrow_schema())
            .with_strict_mode(true)
            .with_batch_size(rows.len().max(1))
            .build_decoder()
            .map_err(bug)?;
        decoder.serialize(rows).map_err(bug)?;
        Ok(decoder.flush().map_err(bug)?.unwrap_or_else(|| RecordBatch::new_empty(self.arrow_schema())))
    }

    /// The columns as text, one per line: name, type, unit, meaning.
    pub fn describe(self) -> String {
        let mut text = format!("{}: {}\n", self.name(), self.doc());
        for c in self.columns() {
            let unit = if c.unit.is_empty() { String::new() } else { format!(" [{}]", c.unit) };
            let null = if c.nullable { ", may be null" } else { "" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {:<20} {:<12} {}{unit}{null}", c.name, format!("{:?}", c.kind), c.doc);
        }
        text
    }
}

/// [`Table::arrow_schema`] and [`Table::held_schema`] of every table: each scan asks for them several times.
static SCHEMAS: LazyLock<[(SchemaRef, SchemaRef); 7]> = LazyLock::new(|| {
    Table::EVERY.map(|table| {
        let schema = |data_type: &dyn Fn(Kind) -> DataType| {
            let fields = table.columns().iter().map(|c| Field::new(c.name, data_type(c.kind), c.nullable));
            Arc::new(Schema::new(fields.collect::<Fields>()))
        };
        let held = |kind| match (table, kind) {
            (Table::Tokens, Kind::Text) => DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
            _ => kind.data_type(),
        };
        (schema(&Kind::data_type), schema(&held))
    })
});

static SCREEN_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let list = |t: Table| Field::new(t.name(), DataType::List(scan_item(t)), false);
    Arc::new(Schema::new(Table::SCREENED.map(list).to_vec()))
});

fn scan_item(table: Table) -> FieldRef {
    Arc::new(Field::new("element", DataType::Struct(table.held_schema().fields().clone()), false))
}

/// One row per scan: for each table of [`Table::SCREENED`] a list of that scan's rows. Exactly one of `scans` and
/// `failures` holds exactly one row; `tokens` come in z, y, x order and `findings` by rank.
pub fn screen_schema() -> SchemaRef {
    Arc::clone(&SCREEN_SCHEMA)
}

/// One scan's rows, in the order of [`Table::SCREENED`] and of their [`Table::held_schema`], as one row of
/// [`screen_schema`].
pub fn screen_row(tables: [RecordBatch; 5]) -> Result<RecordBatch> {
    let bug = |e| Error::Bug(format!("a scan's rows do not fit the tables: {e}"));
    let mut lists = Vec::with_capacity(tables.len());
    for (table, rows) in Table::SCREENED.into_iter().zip(tables) {
        let n = rows.num_rows();
        let values =
            StructArray::try_new(table.held_schema().fields().clone(), rows.columns().to_vec(), None).map_err(bug)?;
        let offsets = OffsetBuffer::from_lengths([n]);
        let list = ListArray::try_new(scan_item(table), offsets, Arc::new(values), None).map_err(bug)?;
        lists.push(Arc::new(list) as ArrayRef);
    }
    RecordBatch::try_new(screen_schema(), lists).map_err(bug)
}

/// The inverse of [`screen_row`]: row `row` of `screened`, per table in the order of [`Table::SCREENED`].
pub fn scan_rows(screened: &RecordBatch, row: usize) -> Result<[RecordBatch; 5]> {
    let mut tables = Table::SCREENED.map(|t| RecordBatch::new_empty(t.held_schema()));
    for ((table, rows), column) in Table::SCREENED.into_iter().zip(&mut tables).zip(screened.columns()) {
        let bug = || Error::Bug(format!("column {} is not a list of rows", table.name()));
        let list = column.as_any().downcast_ref::<ListArray>().ok_or_else(bug)?.value(row);
        let values = list.as_any().downcast_ref::<StructArray>().ok_or_else(bug)?;
        *rows = RecordBatch::try_new(table.held_schema(), values.columns().to_vec())
            .map_err(|e| Error::Bug(format!("rows of {}: {e}", table.name())))?;
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_opened_in_the_order_of_declaration() {
        assert!(Table::EVERY.into_iter().enumerate().all(|(i, table)| table as usize == i));
        assert!(Table::EVERY.starts_with(&Table::ALL));
        assert_eq!(Table::SCREENED.last(), Some(&Table::Scans));
    }

    #[test]
    fn every_column_is_documented_and_named_once() {
        for table in Table::EVERY {
            let mut names: Vec<_> = table.columns().iter().map(|c| c.name).collect();
            assert!(table.columns().iter().all(|c| !c.doc.is_empty()), "{}", table.name());
            assert!(table.describe().lines().count() == names.len() + 1);
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.columns().len(), "{}", table.name());
        }
    }

    #[test]
    fn delta_columns_keep_unit_and_meaning() {
        let fields = Table::Scans.delta_fields().unwrap();
        let volume = fields.iter().find(|f| f.name() == "brain_volume_ml").unwrap();
        assert_eq!(volume.metadata()["unit"].to_string(), "ml");
        assert!(volume.metadata()["comment"].to_string().contains("brain mask"));
        assert!(!volume.is_nullable());
    }

    #[test]
    fn a_scan_survives_packing_and_unpacking() {
        let failure = Table::Failures
            .rows(&[serde_json::json!({
                "run_id": "r1", "scan_id": "sub-01", "content_id": "c", "recipe_id": "p", "cohort": "study",
                "uri": "sub-01.nii.gz", "stage": "decode", "kind": "truncated", "message": "cut short",
                "permanent": true, "attempts": 1, "failed_at": 1_700_000_000_000_000_i64
            })])
            .unwrap();
        let rows = Table::SCREENED.map(|t| match t {
            Table::Failures => failure.clone(),
            other => RecordBatch::new_empty(other.held_schema()),
        });
        let packed = screen_row(rows.clone()).unwrap();
        assert_eq!((packed.num_rows(), packed.num_columns()), (1, 5));
        assert_eq!(scan_rows(&packed, 0).unwrap(), rows);
    }

    #[test]
    fn a_row_with_an_unknown_or_missing_column_is_refused() {
        assert!(Table::Findings.rows(&[serde_json::json!({"run_id": "r1", "scan": "x"})]).is_err());
        assert!(Table::Findings.rows(&[serde_json::json!({"run_id": "r1", "scan_id": "x"})]).is_err());
    }
}
