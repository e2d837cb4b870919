//! `neurosieve tables`: description, maintenance and export of the result tables.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;

use super::forget::ForgetArgs;
use super::metadata::MetadataArgs;
use super::outside_tables;
use super::retain::RetainArgs;
use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::query::{self, Access, Format};
use crate::tables::{Commit, Lease, Optimized, PUBLIC_SCHEMA, RAW_SCHEMA, Table, Tables, Vacuumed};
use crate::terminal::outln;

/// Describe, maintain and export the result tables
#[derive(Debug, clap::Args)]
pub struct TablesArgs {
    #[command(subcommand)]
    command: TablesCommand,
}

const MIB: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();

#[derive(Debug, Subcommand)]
enum TablesCommand {
    /// Print the columns of every table with type, unit and meaning, and what the views show
    Describe,
    /// Merge small files, and sort tokens by scan and region; queries give the same rows, faster
    Optimize {
        #[command(flatten)]
        selected: Selected,
        /// Target size of a file, MiB
        #[arg(long, value_name = "MIB", default_value = "128")]
        target_mib: NonZeroU64,
        /// Memory limit of sorting, MiB; beyond it, sorting uses temporary files. 0: half of the free memory
        #[arg(long, value_name = "MIB", default_value_t = 0)]
        memory_mib: u64,
    },
    /// Delete files that no recent version of a table refers to, including those that killed runs left behind
    Vacuum {
        #[command(flatten)]
        selected: Selected,
        /// Keep the files of versions of the last DAYS days; must be longer than any run or query takes
        #[arg(long, value_name = "DAYS", default_value_t = 7)]
        keep_days: u64,
        /// Only print which files would be deleted
        #[arg(long)]
        dry_run: bool,
    },
    /// Write the newest result of each scan as plain files, one per table, for readers without Delta Lake
    Export {
        #[command(flatten)]
        selected: Selected,
        /// Folder of the files, created if missing
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        /// Format of the files
        #[arg(long, value_enum, default_value = "parquet")]
        format: Format,
        /// Replace files of the same names, such as those of an earlier export
        #[arg(long)]
        overwrite: bool,
    },
    /// Look for results that are there twice or incomplete, and for rows that killed runs left without a result
    Check {
        /// Where the tables are: a folder or a URL such as s3://bucket/results
        #[arg(long, value_name = "URL")]
        tables: String,
        /// Delete all but one of doubled rows, and the rows without a result, except those of runs that may be active
        #[arg(long)]
        repair: bool,
    },
    Forget(ForgetArgs),
    Retain(RetainArgs),
    Metadata(MetadataArgs),
    /// Print the newest commits of each table
    History {
        #[command(flatten)]
        selected: Selected,
        /// Number of commits per table
        #[arg(long, value_name = "N", default_value_t = 10)]
        limit: usize,
    },
}

#[derive(Debug, clap::Args)]
struct Selected {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    tables: String,
    /// Name of one table [default: all]
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
}

impl Selected {
    async fn open(&self) -> Result<(Tables, Vec<Table>)> {
        let tables = Tables::open(&self.tables).await?;
        let Some(name) = &self.table else {
            let all = tables.present().collect();
            return Ok((tables, all));
        };
        let names: Vec<&str> = tables.present().map(Table::name).collect();
        match tables.present().find(|table| table.name() == name) {
            Some(table) => Ok((tables, vec![table])),
            None => {
                Err(Error::Config(format!("no table `{name}` at this address; its tables are {}", names.join(", "))))
            }
        }
    }
}

impl TablesArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Tables::open`] and the operation; [`Error::Config`] for a table that does not exist.
    pub async fn run(self) -> Result<()> {
        match self.command {
            TablesCommand::Describe => describe(),
            TablesCommand::Optimize { selected, target_mib, memory_mib } => {
                let (mut tables, wanted) = selected.open().await?;
                let location = tables.location().clone();
                Lease::during(&location, optimize(&mut tables, wanted, target_mib, memory_mib)).await?;
            }
            TablesCommand::Vacuum { selected, keep_days, dry_run } => {
                let (mut tables, wanted) = selected.open().await?;
                let location = tables.location().clone();
                let work = vacuum(&mut tables, wanted, keep_days, dry_run);
                if dry_run { work.await? } else { Lease::during(&location, work).await? }
            }
            TablesCommand::Export { selected, to, format, overwrite } => {
                export(&selected, &to, format, overwrite).await?;
            }
            TablesCommand::Check { tables, repair } => check(&tables, repair).await?,
            TablesCommand::Forget(args) => args.run().await?,
            TablesCommand::Retain(args) => args.run().await?,
            TablesCommand::Metadata(args) => args.run().await?,
            TablesCommand::History { selected, limit } => {
                let (tables, wanted) = selected.open().await?;
                for table in wanted {
                    outln!("{}", table.name());
                    for Commit { at, operation, engine } in tables.history(table, limit).await? {
                        let at = at.map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string());
                        outln!("  {at:24} {operation:16} {engine}");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Prints the tables with their columns, then the views with what they show.
fn describe() {
    Table::ALL.iter().for_each(|table| outln!("{}", table.describe()));
    outln!("views of `neurosieve sql`:");
    query::views().iter().for_each(|view| outln!("  {:<20} {}", view.name, view.doc));
}

async fn optimize(tables: &mut Tables, wanted: Vec<Table>, target_mib: NonZeroU64, memory_mib: u64) -> Result<()> {
    let memory_bytes =
        if memory_mib == 0 { Memory::of_process().free / 2 } else { memory_mib.saturating_mul(MIB.get()) };
    for table in wanted {
        let target = target_mib.saturating_mul(MIB);
        let Optimized { removed, added } = tables.optimize(table, target, memory_bytes).await?;
        outln!("{}: {removed} files became {added}", table.name());
    }
    Ok(())
}

async fn vacuum(tables: &mut Tables, wanted: Vec<Table>, keep_days: u64, dry_run: bool) -> Result<()> {
    let keep = Duration::from_secs(keep_days.saturating_mul(24 * 3600));
    for table in wanted {
        let Vacuumed { deleted, foreign } = tables.vacuum(table, keep, dry_run).await?;
        if dry_run {
            outln!("{}: {} files would be deleted", table.name(), deleted.len());
            deleted.iter().for_each(|file| outln!("  {file}"));
        } else {
            outln!("{}: {} files deleted", table.name(), deleted.len());
        }
        if !foreign.is_empty() {
            outln!("{}: {} files stay, because they are not of this program:", table.name(), foreign.len());
            foreign.iter().for_each(|file| outln!("  {file}"));
        }
    }
    Ok(())
}

/// Writes one file per table into a folder; refuses before the first where one of them exists.
async fn export(selected: &Selected, to: &Path, format: Format, overwrite: bool) -> Result<()> {
    let extension = match format {
        Format::Parquet => "parquet",
        Format::Csv => "csv",
        Format::Tsv => "tsv",
        Format::Json => "json",
        Format::NdJson => "ndjson",
        Format::Table => "txt",
    };
    outside_tables(to, &selected.tables)?;
    let (tables, wanted) = selected.open().await?;
    let files: Vec<_> =
        wanted.iter().map(|table| (table.name(), to.join(format!("{}.{extension}", table.name())))).collect();
    for (_, file) in &files {
        let refuse = |why| Err(Error::Config(format!("{} {why}", file.display())));
        match file.symlink_metadata() {
            Ok(there) if there.is_symlink() => return refuse("is a link, which leads to a file elsewhere: remove it"),
            Ok(_) if !overwrite => return refuse("exists: give another folder, or replace it with --overwrite"),
            _ => {}
        }
    }
    let context = query::session(&tables).await?;
    std::fs::create_dir_all(to).map_err(|e| Error::io(format!("cannot create {}", to.display()), e))?;
    for (name, file) in files {
        // A table without a view has no newest rows: all are written.
        let schema = if query::views().iter().any(|view| view.name == name) { PUBLIC_SCHEMA } else { RAW_SCHEMA };
        let sql = format!("SELECT * FROM {schema}.{name}");
        query::execute(&context, Access::Tables, &sql, format, Some(&file)).await?;
        outln!("{}", file.display());
    }
    Ok(())
}

/// Prints what a check of the tables finds, after a repair where one is asked for.
///
/// # Errors
/// [`Error::Input`] where results are there twice or incomplete; errors of reading and repairing.
async fn check(url: &str, repair: bool) -> Result<()> {
    let mut tables = Tables::open(url).await?;
    if repair {
        let location = tables.location().clone();
        Lease::during(&location, mend(&mut tables)).await?;
    }
    tables.refresh().await?;
    let found = tables.check().await?;
    for (table, rows) in &found.orphans {
        outln!(
            "{table}: {rows} rows without a result; no view shows them, and --repair deletes those of runs that are over"
        );
    }
    for (what, scans) in
        [("has more than one result of one key", &found.duplicates), ("is incomplete", &found.incomplete)]
    {
        scans.iter().for_each(|scan| outln!("{scan} {what}"));
    }
    if found.is_damaged() {
        return Err(Error::input(
            "damaged_tables",
            format!(
                "{} results are there twice and {} are incomplete: {}. `neurosieve tables history` shows what was committed",
                found.duplicates.len(),
                found.incomplete.len(),
                match repair {
                    false =>
                        "--repair keeps one of equal rows, and deletes results with missing rows so that they are made again",
                    true => "restore the tables from a copy, or screen into new ones",
                }
            ),
        ));
    }
    if found.orphans.is_empty() {
        outln!("no row is doubled, missing or without a result");
    }
    Ok(())
}

/// Mends doubled rows, and deletes results with missing rows and rows without a result.
async fn mend(tables: &mut Tables) -> Result<()> {
    for (table, rows) in tables.remove_doubles().await? {
        outln!("{table}: {rows} doubled rows deleted");
    }
    let incomplete = tables.remove_incomplete().await?;
    if incomplete > 0 {
        outln!("{incomplete} incomplete results deleted; the next run with their settings screens these scans again");
    }
    for (table, rows) in tables.remove_orphans().await? {
        outln!("{table}: {rows} rows without a result deleted");
    }
    Ok(())
}
