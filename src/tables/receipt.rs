//! Receipts: what the writing operator gives to the driver.
//!
//! A receipt says that a data file is in the store and is not part of a table yet; `Tables::commit` makes it
//! part. A **roll** is the scans that one partition writes together, as at most one file per table: its receipts
//! share a `batch_id` and are committed together.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::schema::Table;
use crate::error::{Error, Result};

/// A data file that was written and is not committed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The roll: its files hold every row of its scans, so they are committed together.
    pub batch_id: String,
    /// The file's table.
    pub table: Table,
    /// The file's path, relative to the table's folder.
    pub path: String,
    /// The file's size.
    pub size_bytes: i64,
    /// Rows in the file.
    pub num_rows: i64,
    /// The file's Delta statistics, as JSON.
    pub stats: String,
    /// Scans of the whole roll that finished; the same in each of its receipts.
    pub n_scans: i64,
    /// Scans of the whole roll that failed; the same in each of its receipts.
    pub n_failed: i64,
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let number = |name| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        text("batch_id"),
        text("table"),
        text("path"),
        number("size_bytes"),
        number("num_rows"),
        text("stats"),
        number("n_scans"),
        number("n_failed"),
    ]))
});

impl Receipt {
    /// The columns of receipts as a record batch.
    pub fn schema() -> SchemaRef {
        Arc::clone(&SCHEMA)
    }

    /// Receipts as a record batch.
    ///
    /// # Errors
    /// [`Error::Bug`] where the columns do not fit the schema, which is a defect of this program.
    pub fn to_batch(receipts: &[Self]) -> Result<RecordBatch> {
        let text = |get: fn(&Self) -> &str| {
            Arc::new(receipts.iter().map(|r| Some(get(r))).collect::<StringArray>()) as ArrayRef
        };
        let number = |get: fn(&Self) -> i64| Arc::new(receipts.iter().map(get).collect::<Int64Array>()) as ArrayRef;
        let columns = vec![
            text(|r| &r.batch_id),
            text(|r| r.table.name()),
            text(|r| &r.path),
            number(|r| r.size_bytes),
            number(|r| r.num_rows),
            text(|r| &r.stats),
            number(|r| r.n_scans),
            number(|r| r.n_failed),
        ];
        RecordBatch::try_new(Self::schema(), columns)
            .map_err(|e| Error::Bug(format!("the receipts do not fit their schema: {e}")))
    }

    /// Receipts from a record batch.
    ///
    /// # Errors
    /// [`Error::Bug`] for a batch of another schema, or with an unknown table.
    pub fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let text = column::<StringArray>;
        let number = column::<Int64Array>;
        let (batch_id, table, path) = (text(batch, "batch_id")?, text(batch, "table")?, text(batch, "path")?);
        let (size_bytes, num_rows) = (number(batch, "size_bytes")?, number(batch, "num_rows")?);
        let (stats, n_scans, n_failed) = (text(batch, "stats")?, number(batch, "n_scans")?, number(batch, "n_failed")?);
        (0..batch.num_rows())
            .map(|i| {
                let name = table.value(i);
                Ok(Self {
                    batch_id: batch_id.value(i).to_owned(),
                    table: Table::from_name(name)
                        .ok_or_else(|| Error::Bug(format!("a receipt names the unknown table {name}")))?,
                    path: path.value(i).to_owned(),
                    size_bytes: size_bytes.value(i),
                    num_rows: num_rows.value(i),
                    stats: stats.value(i).to_owned(),
                    n_scans: n_scans.value(i),
                    n_failed: n_failed.value(i),
                })
            })
            .collect()
    }
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A> {
    let column = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref());
    column.ok_or_else(|| Error::Bug(format!("the receipts lack column {name}, or it has another type")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_survive_the_way_through_rows() {
        let receipt = |table, n_scans| Receipt {
            batch_id: "b".into(),
            table,
            path: "part-1.zstd.parquet".into(),
            size_bytes: 10,
            num_rows: 2,
            stats: "{\"numRecords\":2}".into(),
            n_scans,
            n_failed: 1,
        };
        let receipts = vec![receipt(Table::Tokens, 3), receipt(Table::Scans, 3)];
        assert_eq!(Receipt::from_batch(&Receipt::to_batch(&receipts).unwrap()).unwrap(), receipts);
    }
}
