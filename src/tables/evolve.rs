//! Tables of another version of this program: missing columns are added, columns that do not fit are refused.
//!
//! Takes a table that is about to be written to; gives it with all columns of this version. A column that is added to
//! `columns.rs` after tables exist must be nullable, because it is null in the rows that exist. Reading changes nothing; a
//! session shows the missing columns of an older table as null.

use deltalake_core::DeltaTable;
use deltalake_core::kernel::transaction::CommitProperties;

use super::delta::load;
use super::protocol::refuse_unwritable;
use super::schema::Table;
use crate::error::{Error, Result};
use crate::store::Location;

/// The table with all columns of this version.
///
/// # Errors
/// [`Error::Config`] where the table has a feature that this program cannot write, or where a column that must have a value
/// is missing on either side or has another type; [`Error::Table`] where the columns cannot be added.
pub(super) async fn prepare_for_writing(location: &Location, table: Table, found: DeltaTable) -> Result<DeltaTable> {
    refuse_unwritable(table, &found)?;
    let missing = missing(table, &found)?;
    if missing.is_empty() {
        return Ok(found);
    }
    let names: Vec<&str> = missing.iter().map(|field| field.name().as_str()).collect();
    tracing::info!(table = table.name(), columns = names.join(", "), "adding columns of this version");
    // With retries, the second of two processes would add them again.
    let properties = CommitProperties::default().with_max_retries(0);
    match found.add_columns().with_fields(missing).with_commit_properties(properties).await {
        Ok(evolved) => Ok(evolved),
        // Another process may have added them meanwhile.
        Err(error) => match load(location, table).await? {
            Some(reloaded) if self::missing(table, &reloaded)?.is_empty() => Ok(reloaded),
            _ => Err(Error::table(format!("cannot add columns to table {}", table.name()), error)),
        },
    }
}

/// Columns of this version that the table lacks.
fn missing(table: Table, found: &DeltaTable) -> Result<Vec<deltalake_core::kernel::StructField>> {
    let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
    let schema = found.snapshot().map_err(unreadable)?.schema();
    let misfit = |what: String| {
        Error::Config(format!(
            "table {} was created by another version of this program: {what}. Screen into new tables, or use that version",
            table.name()
        ))
    };
    let ours = table.delta_fields()?;
    let mut missing = Vec::new();
    for field in &ours {
        match schema.field(field.name()) {
            Some(theirs) if theirs.data_type() != field.data_type() => {
                return Err(misfit(format!(
                    "column {} is {} there, not {}",
                    field.name(),
                    theirs.data_type(),
                    field.data_type()
                )));
            }
            Some(theirs) if field.is_nullable() && !theirs.is_nullable() => {
                return Err(misfit(format!("column {} may not be null there", field.name())));
            }
            Some(_) => {}
            None if field.is_nullable() => missing.push(field.clone()),
            None => return Err(misfit(format!("it lacks column {}", field.name()))),
        }
    }
    let unknown =
        schema.fields().find(|theirs| !theirs.is_nullable() && ours.iter().all(|f| f.name() != theirs.name()));
    match unknown {
        Some(theirs) => Err(misfit(format!("this version does not know column {}", theirs.name()))),
        None => Ok(missing),
    }
}
