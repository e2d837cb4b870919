//! The shape in which a whole scan travels from screening to writing: one row per scan, one list of rows per table.
//!
//! Takes a scan's rows as one batch per table of [`Table::SCREENED`]; gives them as one row, and back. Refuses rows that
//! do not fit their table.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, ListArray, RecordBatch, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use super::schema::Table;
use crate::error::{Error, Result};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let list = |t: Table| Field::new(t.name(), DataType::List(scan_item(t)), false);
    Arc::new(Schema::new(Table::SCREENED.map(list).to_vec()))
});

/// One row per scan: for each table of [`Table::SCREENED`] a list of that scan's rows. Exactly one of `scans` and
/// `failures` holds exactly one row; `tokens` come in z, y, x order and `findings` by rank.
pub fn screen_schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// One scan's rows, per table in the order of [`Table::SCREENED`] and with its [`Table::held_schema`], as one row of
/// [`screen_schema`].
///
/// # Errors
/// [`Error::Bug`] for rows of another schema.
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
///
/// # Errors
/// [`Error::Bug`] for a batch of another schema than [`screen_schema`].
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

fn scan_item(table: Table) -> FieldRef {
    Arc::new(Field::new("element", DataType::Struct(table.held_schema().fields().clone()), false))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
