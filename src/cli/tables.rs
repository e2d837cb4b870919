//! `neurosieve tables`: what the result tables hold, and their maintenance.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::query::{self, Format};
use crate::tables::{Commit, Optimized, Table, Tables};

/// Look after the result tables
#[derive(Debug, clap::Args)]
pub struct TablesArgs {
    #[command(subcommand)]
    command: TablesCommand,
}

const MIB: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();

#[derive(Debug, Subcommand)]
enum TablesCommand {
    /// Print every table's columns with type, unit and meaning
    Describe,
    /// Put small files together, tokens clustered by scan and region; queries answer as before, faster
    Optimize {
        #[command(flatten)]
        which: Which,
        /// Size that files should have, MiB
        #[arg(long, value_name = "MIB", default_value = "128")]
        target_mib: NonZeroU64,
        /// Memory that sorting may take, MiB; it goes by way of temporary files beyond. 0: half of what is free
        #[arg(long, value_name = "MIB", default_value_t = 0)]
        memory_mib: u64,
    },
    /// Delete files that no version of the last days refers to, those that killed runs left behind among them
    Vacuum {
        #[command(flatten)]
        which: Which,
        /// Days; longer than any run or query takes
        #[arg(long, value_name = "DAYS", default_value_t = 7)]
        keep_days: u64,
        /// Only say what would be deleted
        #[arg(long)]
        dry_run: bool,
    },
    /// Write the newest result of each scan as plain files, a file per table: for readers that do not know Delta Lake
    Export {
        #[command(flatten)]
        which: Which,
        /// The folder that they are written to, made if missing
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        /// How rows are written
        #[arg(long, value_enum, default_value = "parquet")]
        format: Format,
    },
    /// Print the newest commits of each table
    History {
        #[command(flatten)]
        which: Which,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 10)]
        limit: usize,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    tables: String,
    /// One table; left out, all of them
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
}

impl Which {
    async fn open(&self) -> Result<(Tables, Vec<Table>)> {
        let tables = Tables::open(&self.tables).await?;
        let Some(name) = &self.table else {
            let all = tables.present().collect();
            return Ok((tables, all));
        };
        let names: Vec<&str> = tables.present().map(Table::name).collect();
        match tables.present().find(|table| table.name() == name) {
            Some(table) => Ok((tables, vec![table])),
            None => Err(Error::Config(format!("there is no table `{name}` here; there are {}", names.join(", ")))),
        }
    }
}

impl TablesArgs {
    /// Runs the command.
    pub async fn run(self) -> Result<()> {
        match self.command {
            TablesCommand::Describe => Table::ALL.iter().for_each(|table| println!("{}", table.describe())),
            TablesCommand::Optimize { which, target_mib, memory_mib } => {
                let (mut tables, wanted) = which.open().await?;
                let memory_bytes =
                    if memory_mib == 0 { Memory::of_process().free / 2 } else { memory_mib.saturating_mul(MIB.get()) };
                for table in wanted {
                    let target = target_mib.saturating_mul(MIB);
                    let Optimized { removed, added } = tables.optimize(table, target, memory_bytes).await?;
                    println!("{}: {removed} files became {added}", table.name());
                }
            }
            TablesCommand::Vacuum { which, keep_days, dry_run } => {
                let (mut tables, wanted) = which.open().await?;
                let keep = Duration::from_secs(keep_days.saturating_mul(24 * 3600));
                for table in wanted {
                    let files = tables.vacuum(table, keep, dry_run).await?;
                    if dry_run {
                        println!("{}: {} files would be deleted", table.name(), files.len());
                        files.iter().for_each(|file| println!("  {file}"));
                    } else {
                        println!("{}: {} files deleted", table.name(), files.len());
                    }
                }
            }
            TablesCommand::Export { which, to, format } => {
                let extension = match format {
                    Format::Parquet => "parquet",
                    Format::Csv => "csv",
                    Format::Json => "json",
                    Format::Table => "txt",
                };
                let (tables, wanted) = which.open().await?;
                let context = query::session(&tables).await?;
                std::fs::create_dir_all(&to).map_err(|e| Error::io(format!("cannot make {}", to.display()), e))?;
                for table in wanted {
                    let file = to.join(format!("{}.{extension}", table.name()));
                    let sql = format!("SELECT * FROM {}", table.name());
                    query::execute(&context, &sql, format, Some(&file)).await?;
                    println!("{}", file.display());
                }
            }
            TablesCommand::History { which, limit } => {
                let (tables, wanted) = which.open().await?;
                for table in wanted {
                    println!("{}", table.name());
                    for Commit { at, operation, engine } in tables.history(table, limit).await? {
                        let at = at.map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string());
                        println!("  {at:24} {operation:16} {engine}");
                    }
                }
            }
        }
        Ok(())
    }
}
