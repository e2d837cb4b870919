//! Tables that another program has changed: features of Delta that this program cannot honour when it writes.
//!
//! Data files are written with the columns' own names, without partitions, and without checking conditions on values. A table
//! that requires more is refused before anything is written: its readers would not find the rows, or would find rows that
//! the table forbids. Reading needs no such check, because the Delta library refuses what it cannot read.

use std::fmt::Write as _;

use deltalake_core::DeltaTable;
use deltalake_core::kernel::transaction::{PROTOCOL, TableReference as _, TransactionError};

use super::schema::Table;
use crate::error::{Error, Result};

/// Keys of a column's metadata that require a writer to check or to generate its values.
const ASKS_OF_WRITERS: [(&str, &str); 3] = [
    ("delta.invariants", "an invariant"),
    ("delta.generationExpression", "a generated value"),
    ("delta.identity.start", "an identity value"),
];

/// Refuses a table with a feature that this program cannot write.
///
/// # Errors
/// [`Error::Config`] with the features; [`Error::Table`] where the table cannot be read.
pub(super) fn refuse_unwritable(table: Table, found: &DeltaTable) -> Result<()> {
    let snapshot = found.snapshot().map_err(|e| Error::table(format!("cannot read table {}", table.name()), e))?;
    let mut asked = Vec::new();
    match PROTOCOL.can_write_to(snapshot) {
        Ok(()) => {}
        Err(TransactionError::UnsupportedTableFeatures(features)) => {
            // As the log has it; the library's own text hides the name of a feature that it does not know.
            let name = |feature: &_| match serde_json::to_value(feature) {
                Ok(serde_json::Value::String(name)) => format!("the feature {name}"),
                _ => format!("the feature {feature:?}"),
            };
            asked.extend(features.iter().map(name));
        }
        Err(other) => asked.push(other.to_string()),
    }
    let mapping = snapshot.config().column_mapping_mode;
    if mapping.is_some() && mapping != "none".parse().ok() {
        asked.push("column mapping".to_owned());
    }
    let partitions = snapshot.metadata().partition_columns();
    if !partitions.is_empty() {
        asked.push(format!("partitions by {}", partitions.join(", ")));
    }
    let constraints = snapshot.config().unknown_properties.keys().filter_map(|k| k.strip_prefix("delta.constraints."));
    asked.extend(constraints.map(|name| format!("the constraint {name}")));
    for field in snapshot.schema().fields() {
        let has = |(key, what): &(&str, &str)| {
            field.metadata().contains_key(*key).then(|| format!("{what} of column {}", field.name()))
        };
        asked.extend(ASKS_OF_WRITERS.iter().filter_map(has));
    }
    if asked.is_empty() {
        return Ok(());
    }
    asked.sort();
    let mut message = format!("table {} was changed by another program and now has ", table.name());
    // Writing to a String cannot fail.
    let _ = write!(message, "{}, which this program cannot write", asked.join(", "));
    message.push_str(
        ". It is still readable. Screen into new tables (--tables), or remove it with the program that added it",
    );
    Err(Error::Config(message))
}
