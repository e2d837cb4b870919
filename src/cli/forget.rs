//! `neurosieve tables forget`: removes a person from the tables.

use chrono::Utc;

use crate::error::{Error, Result};
use crate::flow::delete_journals;
use crate::tables::{Forgotten, Lease, Person, Tables};
use crate::terminal::outln;

/// Remove a person from all tables, their data files and their earlier versions
///
/// Rows of the person's scans are deleted, also those of failed scans and those that killed runs left, and the person's name
/// is taken out of the settings of runs. Then all earlier versions of all tables are deleted, and data files that no version
/// refers to: neither time travel nor a file holds the person afterwards. No run may be in progress.
///
/// The next run screens the person again unless the scans are gone from the cohort, or `cohort.select.exclude` names them.
/// Copies outside the tables are yours to delete: exports, reports, backups, old object versions of the bucket.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve tables forget --tables s3://bucket/results --subject sub-0042 --dry-run
  neurosieve tables forget --tables s3://bucket/results --subject 0042 --cohort study
  neurosieve tables forget --tables ./results --scan study/IXI002-Guys-0828-T1")]
pub struct ForgetArgs {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    tables: String,
    /// Label of the subject, 01 or sub-01, as the tables have it
    #[arg(long, value_name = "LABEL", required_unless_present = "scans")]
    subject: Option<String>,
    /// Id of a scan, where names do not say the subject; may be given several times
    #[arg(long = "scan", value_name = "SCAN_ID")]
    scans: Vec<String>,
    /// Only in this cohort; may be given several times. Needed where several cohorts have the label
    #[arg(long = "cohort", value_name = "NAME")]
    cohorts: Vec<String>,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Id of a run that has no end because it was killed, and is not in progress; may be given several times
    #[arg(long, value_name = "RUN_ID")]
    killed: Vec<String>,
    /// Delete the earlier versions also where no row names the person now
    #[arg(long)]
    even_unknown: bool,
}

impl ForgetArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Tables::open`], [`Tables::refuse_active_runs`] and [`Tables::forget`]; [`Error::Config`] where a schedule is at
    /// work on the tables.
    pub(super) async fn run(self) -> Result<()> {
        let mut tables = Tables::open(&self.tables).await?;
        let person = Person { subject: self.subject, scans: self.scans, cohorts: self.cohorts };
        if self.dry_run {
            let forgotten = tables.forget(&person, self.even_unknown, true).await?;
            report(&forgotten, true);
            forgotten.scans.iter().for_each(|scan| outln!("  {scan}"));
            return Ok(());
        }
        let location = tables.location().clone();
        let Some(schedules) = Lease::of_all_schedules(&location).await? else {
            return Err(Error::Config(
                "a schedule is at work on these tables: try again when its job has ended, or stop it (after a crash, its \
                 lease ends within three minutes)"
                    .into(),
            ));
        };
        let work = async {
            tables.refuse_active_runs(&self.killed).await?;
            let began = Utc::now();
            let forgotten = tables.forget(&person, self.even_unknown, false).await?;
            // They name scans by digests, which anyone who knows a scan's id can compute.
            delete_journals(&location, began).await?;
            Ok(forgotten)
        };
        let outcome = Lease::during(&location, work).await;
        Lease::give_all_back(schedules).await;
        report(&outcome?, false);
        outln!(
            "The next run screens this person again, unless you remove the scans from the cohort or exclude them: \
             cohort.select.exclude = [\"sub-LABEL_*\"]"
        );
        Ok(())
    }
}

fn report(forgotten: &Forgotten, dry_run: bool) {
    let (done, cohorts) = (if dry_run { "would be deleted" } else { "deleted" }, &forgotten.cohorts);
    for (table, rows) in &forgotten.rows {
        outln!("{table}: {rows} rows {done}");
    }
    if forgotten.settings > 0 {
        let done = if dry_run { "would be" } else { "were" };
        outln!("runs: the settings of {} rows named the person, and {done} changed", forgotten.settings);
    }
    for (table, files) in &forgotten.files {
        let more = if dry_run { ", and those with these rows," } else { "" };
        outln!("{table}: {} old files of the log and {} data files{more} {done}", files.log_files, files.data_files);
    }
    let cohorts: Vec<&str> = cohorts.iter().map(String::as_str).collect();
    outln!("{} scans of cohort {}", forgotten.scans.len(), cohorts.join(", "));
}
