//! `neurosieve tables retain`: removes the results of an old recipe.

use crate::error::Result;
use crate::tables::{Lease, Retention, Tables};
use crate::terminal::outln;

/// Remove the results of an old recipe, keeping those of recent runs
///
/// Deletes the rows of runs with this recipe that ended more than --days ago, from all tables but `runs`, which stays the
/// record of what was done. The current recipe of a cohort, that of its last run, is refused. Earlier versions of the tables
/// hold the rows until the next `tables vacuum`, which frees the space.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve sql --tables ./results -c 'SELECT cohort, recipe_id, current, started_at FROM recipes'
  neurosieve tables retain --tables ./results --recipe 4f1c… --days 90 --dry-run")]
pub struct RetainArgs {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    tables: String,
    /// Id of the recipe, as in the view `recipes`
    #[arg(long, value_name = "RECIPE_ID")]
    recipe: String,
    /// Keep the results of runs that ended in the last DAYS days
    #[arg(long, value_name = "DAYS")]
    days: u32,
    /// Only of this cohort; may be given several times [default: all]
    #[arg(long = "cohort", value_name = "NAME")]
    cohorts: Vec<String>,
    /// Also where the recipe is the current one of a cohort, whose results the views show
    #[arg(long)]
    even_current: bool,
    /// Only print how many rows would be deleted
    #[arg(long)]
    dry_run: bool,
}

impl RetainArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Tables::open`] and [`Tables::retain`].
    pub(super) async fn run(self) -> Result<()> {
        let mut tables = Tables::open(&self.tables).await?;
        let location = tables.location().clone();
        let what = Retention {
            recipe_id: self.recipe,
            cohorts: self.cohorts,
            days: self.days,
            even_current: self.even_current,
        };
        let work = tables.retain(&what, self.dry_run);
        let retained = if self.dry_run { work.await? } else { Lease::during(&location, work).await? };
        let done = if self.dry_run { "would be deleted" } else { "deleted" };
        for (table, rows) in &retained.rows {
            outln!("{table}: {rows} rows {done}");
        }
        outln!("{} runs ended more than {} days ago; {} younger ones stay", retained.runs, self.days, retained.younger);
        Ok(())
    }
}
