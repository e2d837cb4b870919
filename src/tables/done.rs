//! What earlier runs have done with one recipe: scans that a new run skips, and scans that it may try again.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use datafusion::functions_aggregate::expr_fn::{bool_or, max};
use datafusion::prelude::{DataFrame, col, lit};

use super::open::Tables;
use super::schema::Table;
use super::session::RAW_SCHEMA;
use crate::error::{Error, Result};

/// The state of every scan that was screened with one recipe, by (scan_id, content_id).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Done {
    /// Scans that finished.
    pub finished: HashSet<(String, String)>,
    /// Scans that failed: attempts so far, and whether a further attempt cannot succeed. A scan that finished after a
    /// failure is in both.
    pub failed: HashMap<(String, String), (i32, bool)>,
}

impl Tables {
    /// What was done with `recipe_id`, as of the last refresh. Reads three columns of `scans` and five of `failures`; holds
    /// two strings per scan in memory.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Query`] where the tables cannot be read.
    pub async fn done(&self, recipe_id: &str) -> Result<Done> {
        let context = self.raw_session().await?;
        let of_recipe = async |table: Table| -> Result<DataFrame> {
            Ok(context
                .table(format!("{RAW_SCHEMA}.{}", table.name()))
                .await?
                .filter(col("recipe_id").eq(lit(recipe_id)))?)
        };

        let mut done = Done::default();
        let scans = of_recipe(Table::Scans).await?.select_columns(&["scan_id", "content_id"])?;
        for batch in scans.collect().await? {
            done.finished.extend(keys(&batch)?);
        }
        let failures = of_recipe(Table::Failures).await?.aggregate(
            vec![col("scan_id"), col("content_id")],
            vec![max(col("attempts")).alias("attempts"), bool_or(col("permanent")).alias("permanent")],
        )?;
        for batch in failures.collect().await? {
            let attempts = batch.column(2).as_primitive_opt::<Int32Type>().ok_or_else(unexpected)?;
            let permanent = batch.column(3).as_boolean_opt().ok_or_else(unexpected)?;
            let outcomes = (0..batch.num_rows()).map(|i| (attempts.value(i), permanent.value(i)));
            done.failed.extend(keys(&batch)?.zip(outcomes));
        }
        Ok(done)
    }
}

/// The first two columns as (scan_id, content_id).
fn keys(batch: &RecordBatch) -> Result<impl Iterator<Item = (String, String)>> {
    let scans = batch.column(0).as_string_opt::<i32>().ok_or_else(unexpected)?;
    let contents = batch.column(1).as_string_opt::<i32>().ok_or_else(unexpected)?;
    let key = move |i| (scans.value(i).to_owned(), contents.value(i).to_owned());
    Ok((0..scans.len()).map(key))
}

fn unexpected() -> Error {
    Error::Bug("the tables have other column types than this version writes".into())
}
