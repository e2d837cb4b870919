//! Tables of another version of this program: columns that came later are added, what does not fit is refused.
//!
//! A column that is added to [`super::columns`] after tables exist must be one that may be null: rows from before have
//! nothing in it. Reading needs none of this: a view of an older table lacks the column until the next run.

use deltalake_core::DeltaTable;
use deltalake_core::kernel::transaction::CommitProperties;

use super::{Table, load};
use crate::error::{Error, Result};
use crate::store::Location;

/// The table with all columns of this version.
///
/// # Errors
/// [`Error::Config`] where it cannot have them, or has some that this version cannot fill; storage errors.
pub(super) async fn evolved(location: &Location, table: Table, found: DeltaTable) -> Result<DeltaTable> {
    let missing = missing(table, &found)?;
    if missing.is_empty() {
        return Ok(found);
    }
    let names: Vec<&str> = missing.iter().map(|field| field.name().as_str()).collect();
    tracing::info!(table = table.name(), columns = names.join(", "), "columns of this version are added");
    // With retries, whoever comes second would add them twice.
    let properties = CommitProperties::default().with_max_retries(0);
    match found.add_columns().with_fields(missing.clone()).with_commit_properties(properties).await {
        Ok(evolved) => Ok(evolved),
        // Another process may have added them in the meantime, which is as good.
        Err(error) => {
            let again = load(location, table).await?;
            match again.as_ref().map(|again| self::missing(table, again)).transpose()? {
                Some(missing) if missing.is_empty() => again.ok_or_else(|| Error::Bug("a table went away".into())),
                _ => Err(Error::table(format!("cannot add columns to table {}", table.name()), error)),
            }
        }
    }
}

/// Columns of this version that the table lacks.
fn missing(table: Table, found: &DeltaTable) -> Result<Vec<deltalake_core::kernel::StructField>> {
    let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
    let schema = found.snapshot().map_err(unreadable)?.schema();
    let misfit = |what: String| {
        Error::Config(format!(
            "table {} was made by another version of this program: {what}. Screen into new tables, or use that version",
            table.name()
        ))
    };
    let ours = table.delta_fields()?;
    let mut missing = Vec::new();
    for field in &ours {
        match schema.field(field.name()) {
            Some(theirs) if theirs.data_type() != field.data_type() => {
                return Err(misfit(format!("column {} is {} there", field.name(), theirs.data_type())));
            }
            Some(_) => {}
            None if field.is_nullable() => missing.push(field.clone()),
            None => return Err(misfit(format!("it lacks column {}", field.name()))),
        }
    }
    let unknown =
        schema.fields().find(|theirs| !theirs.is_nullable() && ours.iter().all(|f| f.name() != theirs.name()));
    match unknown {
        Some(theirs) => Err(misfit(format!("this one does not know column {}", theirs.name()))),
        None => Ok(missing),
    }
}
