//! Which recipe the views of a session show.
//!
//! Each cohort shows the recipe of the run that began last on it, or one that its user chose. A chosen recipe holds for all
//! cohorts: one that was never screened with it shows nothing. The views are defined anew for it, so that views of the user's
//! own keep the recipe that they were made with, and two recipes can be compared.

use arrow::array::AsArray as _;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::TableReference;
use datafusion::prelude::SessionContext;

use super::views::views;
use crate::error::{Error, Result};
use crate::tables::{CATALOG, PUBLIC_SCHEMA};

/// The known recipes, for the error about one that is not. A recipe may have screened several cohorts.
const KNOWN: &str = "SELECT recipe_id || '  cohort ' || cohort || ', last asked for ' || CAST(started_at AS VARCHAR)
        || CASE WHEN current THEN ', shown' ELSE '' END
    FROM public.recipes ORDER BY cohort, run_number DESC NULLS LAST, recipe_id";

/// Scans with a result, and those of them that the views leave out.
const WITHOUT: &str = "SELECT count(*), count(*) FILTER (WHERE s.scan_id IS NULL)
    FROM (SELECT DISTINCT scan_id FROM raw.scans) a LEFT JOIN public.scans s ON s.scan_id = a.scan_id";

/// A recipe that some run has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    id: String,
}

impl Recipe {
    /// The recipe with this id.
    ///
    /// # Errors
    /// [`Error::Config`] where no run has asked for it, with those that runs have asked for; [`Error::Query`] where the tables
    /// cannot be read.
    pub async fn find(context: &SessionContext, id: &str) -> Result<Self> {
        let literal = literal(id);
        let found = format!("SELECT count(*), 0 FROM public.recipes WHERE recipe_id = {literal}");
        if numbers(context, &found).await?.0 > 0 {
            return Ok(Self { id: id.to_owned() });
        }
        let mut known = Vec::new();
        for batch in context.sql(KNOWN).await?.collect().await? {
            // The engine may give text as a view of it.
            let lines = cast(batch.column(0), &DataType::Utf8).map_err(|error| Error::Query(error.into()))?;
            known.extend(lines.as_string::<i32>().iter().flatten().map(|line| format!("\n  {line}")));
        }
        Err(Error::Config(match known.is_empty() {
            true => format!("no recipe `{id}` in these tables: no run has begun to screen yet"),
            false => format!("no recipe `{id}` in these tables; use one of{}", known.concat()),
        }))
    }

    /// The view `recipes` in which this recipe is current.
    fn recipes(&self, view: &str) -> String {
        format!(
            "SELECT cohort, recipe_id, run_id, run_number, started_at, bundle, version, config, recipe_id = {} AS current
             FROM ({view})",
            literal(&self.id)
        )
    }
}

/// Makes the views show `recipe`; without one, that of the run last begun on each cohort.
///
/// # Errors
/// [`Error::Query`] where the engine refuses a view.
pub async fn show_recipe(context: &SessionContext, recipe: Option<&Recipe>) -> Result<()> {
    // The user may have set another schema as the default; the views name each other without theirs.
    let mut state = context.state();
    PUBLIC_SCHEMA.clone_into(&mut state.config_mut().options_mut().catalog.default_schema);
    for view in views() {
        if !context.table_exist(TableReference::full(CATALOG, PUBLIC_SCHEMA, view.name))? {
            continue;
        }
        let query = match recipe {
            Some(recipe) if view.name == "recipes" => recipe.recipes(view.sql),
            _ => view.sql.to_owned(),
        };
        let definition = format!("CREATE OR REPLACE VIEW {PUBLIC_SCHEMA}.{} AS {query}", view.name);
        let plan = state.create_logical_plan(&definition).await?;
        context.execute_logical_plan(plan).await?;
    }
    Ok(())
}

/// A note where scans have results of other recipes than the one that is shown, and so are left out.
///
/// # Errors
/// [`Error::Query`] where the tables cannot be read.
pub async fn recipe_note(context: &SessionContext) -> Result<Option<String>> {
    // Most tables have one recipe, and the small table of runs says so.
    if numbers(context, "SELECT count(*), 0 FROM public.recipes WHERE NOT current").await?.0 == 0 {
        return Ok(None);
    }
    let (known, without) = numbers(context, WITHOUT).await?;
    Ok((without > 0).then(|| {
        format!(
            "note: {without} of {known} scans have results of other recipes only and are not shown; SELECT * FROM recipes lists the \
             recipes, and --recipe ID (\\recipe ID in the shell) shows another"
        )
    }))
}

/// A text in SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The two counts that a query of one row gives.
async fn numbers(context: &SessionContext, sql: &str) -> Result<(i64, i64)> {
    let batches = context.sql(sql).await?.collect().await?;
    let row = batches.iter().find(|batch| batch.num_rows() > 0);
    let count = |column: usize| row.map_or(0, |row| row.column(column).as_primitive::<Int64Type>().value(0));
    Ok((count(0), count(1)))
}
