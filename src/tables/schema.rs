//! The tables: their columns in Arrow, in Delta and as text for a reader.
//!
//! ```text
//! columns.rs  ──►  arrow_schema()  what rows are built, written and queried with
//!             ──►  delta_fields()  what the Delta log holds, with unit and meaning as comments
//!             ──►  describe()      what `neurosieve tables describe` prints
//! ```
//! The types are those that Delta has: no unsigned integers, timestamps in microseconds UTC. Refuses rows with an unknown
//! column or without a required one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use deltalake_core::kernel::StructField;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use serde::Serialize;

use super::column::{Column, Kind};
use super::columns;
use crate::error::{Error, Result};

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// One row per scan that a run found with an earlier content again.
    Reverts,
    /// One row per method of an evaluation. The first evaluation creates the table.
    Evaluations,
    /// One row per subject and change of its metadata. The first subject creates the table.
    Participants,
}

impl Table {
    /// All tables, those of [`Table::REQUIRED`] first.
    pub const ALL: [Self; 9] = [
        Self::Scans,
        Self::Tokens,
        Self::Masks,
        Self::Findings,
        Self::Failures,
        Self::Runs,
        Self::Reverts,
        Self::Evaluations,
        Self::Participants,
    ];

    /// The tables that every place of results has, in the order in which a reader must open them: `scans` first. Because
    /// `scans` is committed last, the rows that a reader finds there have their rows in the other tables.
    pub const REQUIRED: [Self; 6] =
        [Self::Scans, Self::Tokens, Self::Masks, Self::Findings, Self::Failures, Self::Runs];

    /// The tables that screening fills, in the order in which they are committed: `scans` last.
    pub const SCREENED: [Self; 5] = [Self::Tokens, Self::Masks, Self::Findings, Self::Failures, Self::Scans];

    /// Whether every run creates it; the others are created by what first writes to them.
    pub(super) fn is_created_by_runs(self) -> bool {
        !matches!(self, Self::Evaluations | Self::Participants)
    }

    /// Its name, which is also the name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scans => "scans",
            Self::Tokens => "tokens",
            Self::Masks => "masks",
            Self::Findings => "findings",
            Self::Failures => "failures",
            Self::Runs => "runs",
            Self::Reverts => "reverts",
            Self::Evaluations => "evaluations",
            Self::Participants => "participants",
        }
    }

    /// The table with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
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
            Self::Reverts => "one row per scan that a run found with an earlier content again",
            Self::Participants => {
                "one row per subject and change of its metadata: age, sex, site, group, as participants.tsv says"
            }
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
            Self::Reverts => columns::REVERTS,
            Self::Evaluations => columns::EVALUATIONS,
            Self::Participants => columns::PARTICIPANTS,
        }
    }

    /// The columns by which every data file of the table is sorted.
    pub fn sorted_by(self) -> &'static [&'static str] {
        match self {
            Self::Tokens => &["scan_id", "z", "y", "x"],
            Self::Findings => &["scan_id", "finding"],
            Self::Scans | Self::Masks | Self::Failures | Self::Reverts => &["scan_id"],
            Self::Participants => &["cohort", "subject"],
            Self::Runs | Self::Evaluations => &[],
        }
    }

    /// The Arrow schema.
    pub fn arrow_schema(self) -> SchemaRef {
        Arc::clone(&SCHEMAS[self as usize].0)
    }

    /// The Arrow schema of rows that are held in memory until they are written: [`Table::arrow_schema`], but with the texts
    /// of `tokens` in dictionaries. They repeat from row to row of a scan and would take three quarters of the bytes.
    pub fn held_schema(self) -> SchemaRef {
        Arc::clone(&SCHEMAS[self as usize].1)
    }

    /// The Delta columns; each carries `comment` (which Spark, DuckDB and Unity Catalog show) and `unit`.
    ///
    /// # Errors
    /// [`Error::Bug`] for a type that Delta lacks, which is a defect of this program.
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

    /// Rows from values that serialise to this table's columns. Lists are arrays, timestamps are microseconds since 1970 or
    /// RFC 3339 text, binary is hexadecimal text.
    ///
    /// # Errors
    /// [`Error::Bug`] for a value with an unknown column, without a required one, or of another type.
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

/// [`Table::arrow_schema`] and [`Table::held_schema`] of every table, built once because each scan needs them several times.
static SCHEMAS: LazyLock<[(SchemaRef, SchemaRef); 9]> = LazyLock::new(|| {
    Table::ALL.map(|table| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_opened_in_the_order_of_declaration() {
        assert!(Table::ALL.into_iter().enumerate().all(|(i, table)| table as usize == i));
        assert!(Table::ALL.starts_with(&Table::REQUIRED));
        // A reader opens `runs` after `scans`, so it knows the run of every result.
        assert!((Table::Scans as usize) < Table::Runs as usize);
        assert_eq!(Table::SCREENED.last(), Some(&Table::Scans));
    }

    #[test]
    fn every_column_is_documented_and_named_once() {
        for table in Table::ALL {
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
    fn a_row_with_an_unknown_or_missing_column_is_refused() {
        assert!(Table::Findings.rows(&[serde_json::json!({"run_id": "r1", "scan": "x"})]).is_err());
        assert!(Table::Findings.rows(&[serde_json::json!({"run_id": "r1", "scan_id": "x"})]).is_err());
    }
}
