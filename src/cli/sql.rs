//! `neurosieve sql`: queries the tables. Without `-c` and `-f` it is an interactive shell.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use datafusion::prelude::SessionContext;

use super::outside_tables;
use crate::cluster::codec::Codec;
use crate::cluster::tls::Tls;
use crate::cluster::{self, Client};
use crate::error::{Error, Result};
use crate::query::{self, Access, Ended, Engine, Format, Recipe};
use crate::tables::Tables;
use crate::terminal::errln;

/// The exit code of a command that Ctrl-C ended, as shells give it.
const INTERRUPTED: u8 = 130;

/// Query the result tables with SQL; without -c and -f, in an interactive shell
///
/// Statements read the tables and can change nothing but their session: SELECT, EXPLAIN, SHOW, DESCRIBE, SET, PREPARE,
/// EXECUTE, and CREATE VIEW and DROP VIEW for views of your own. Write rows into a file with --output.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve sql --tables ./results -c 'SELECT * FROM findings ORDER BY volume_ml DESC LIMIT 10'
  neurosieve sql --tables ./results -f sql/qc_flags.sql --format csv --output flags.csv
  neurosieve sql --tables ./results --local-files -c \"CREATE EXTERNAL TABLE ages STORED AS CSV LOCATION 'ages.csv'\" \\
      -c 'SELECT a.age, s.anomaly_score FROM scans s JOIN ages a ON a.subject = s.subject'
  neurosieve sql --tables ./results --recipe 3f1c… -f sql/cohort_overview.sql
  neurosieve sql --tables s3://bucket/results --cluster http://scheduler:50050 -c 'SELECT count(*) FROM tokens'

--format json prints one array, and so takes one statement that gives rows; nd-json, csv and tsv print the results of
several statements one after the other.")]
pub struct SqlArgs {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    pub tables: String,
    /// Run these statements and exit; repeat for more
    #[arg(short, long, value_name = "SQL")]
    pub command: Vec<String>,
    /// Run the statements of this file and exit; repeat for more. Files run after commands
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write the rows to this file instead of the terminal; needs -c or -f with exactly one statement that gives rows
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Allow CREATE EXTERNAL TABLE, which reads any file or URL that this user can read but those of the tables, and COPY, which writes new files
    /// outside the tables. Do not use it with SQL that you did not write
    #[arg(long, alias = "allow-files")]
    pub local_files: bool,
    /// Show the results of this recipe, in all cohorts, instead of that of the run last asked for: a recipe_id of the view recipes
    #[arg(long, value_name = "ID")]
    pub recipe: Option<String>,
    /// Memory that statements may hold together, MiB; sorts and groups write to temporary files beyond it, and other statements
    /// end with an error. Default: half of what is free
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub memory_mib: Option<u64>,
    /// Time that a statement may take, seconds; one that takes longer ends with an error. Default: no limit
    #[arg(long, value_name = "SECONDS", value_parser = positive_seconds)]
    pub timeout: Option<Duration>,
    /// Run queries on the executors of a cluster: the address of its scheduler, such as http://host:50050. Executors read the
    /// tables, and files of CREATE EXTERNAL TABLE, by the same addresses and with their own credentials. EXPLAIN and SHOW run
    /// here, and COPY writes files here
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,
    /// Folder with ca.pem, cert.pem and key.pem: mutual TLS with the scheduler and the executors
    #[arg(long, value_name = "FOLDER", requires = "cluster")]
    pub tls: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// As [`Tables::open`], [`Client::connect`] and [`query::execute`]; [`Error::Io`] where a file cannot be read.
pub async fn run(args: SqlArgs) -> Result<ExitCode> {
    let mut statements = args.command;
    for path in &args.file {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
        statements.push(text);
    }
    if args.output.is_some() && statements.is_empty() {
        return Err(Error::Config("--output needs -c or -f".into()));
    }
    if let Some(path) = &args.output {
        outside_tables(path, &args.tables)?;
    }
    // First, because it answers at once where the address is wrong.
    let client = match &args.cluster {
        Some(url) => Some(connect(url, args.tls.as_deref()).await?),
        None => None,
    };
    let mut tables = Tables::open(&args.tables).await?;
    let location = tables.location().clone();
    let engine = Engine::new(args.memory_mib, args.timeout);
    let context = match client {
        Some(client) => cluster::sql::session(&tables, client, engine).await?,
        None => query::session_within(&tables, engine).await?,
    };
    let note = choose_recipe(&tables, &context, args.recipe.as_deref(), args.cluster.is_some()).await?;
    if let Some(note) = note {
        errln!("{note}");
    }
    let access = if args.local_files { Access::Files { tables: &location } } else { Access::Tables };
    if statements.is_empty() {
        let reload = async || {
            tables.refresh().await?;
            match args.cluster {
                Some(_) => cluster::sql::reload(&context, &tables).await,
                None => query::reload(&context, &tables).await,
            }
        };
        return Ok(match query::repl(&context, access, args.format, reload).await? {
            Ended::Well => ExitCode::SUCCESS,
            Ended::WithErrors => ExitCode::FAILURE,
        });
    }
    // A line of its own ends a statement that ends in a comment.
    let sql = statements.join("\n;\n");
    let work = query::execute(&context, access, &sql, args.format, args.output.as_deref());
    tokio::select! {
        outcome = work => outcome.map(|()| ExitCode::SUCCESS),
        // The statement is dropped by now. It removes its temporary files, and is cancelled on the cluster.
        Ok(()) = tokio::signal::ctrl_c() => {
            query::settle(&context).await;
            if args.cluster.is_some() {
                return Err(Error::Cluster("interrupted: the query on the cluster is cancelled".into()));
            }
            errln!("interrupted");
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

/// Makes a session show the recipe that was asked for. Gives a note where scans have no result with the one that is shown.
async fn choose_recipe(
    tables: &Tables,
    context: &SessionContext,
    id: Option<&str>,
    on_cluster: bool,
) -> Result<Option<String>> {
    // The small queries behind it need no cluster, which may still be starting.
    let here = if on_cluster { query::session(tables).await? } else { context.clone() };
    if let Some(id) = id {
        let recipe = Recipe::find(&here, id).await?;
        query::show_recipe(context, Some(&recipe)).await?;
        if on_cluster {
            query::show_recipe(&here, Some(&recipe)).await?;
        }
    }
    // What keeps the note from being made, such as a low limit of memory, is said by the statements.
    Ok(query::recipe_note(&here).await.unwrap_or_default())
}

/// A time in seconds that is not zero.
fn positive_seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| *seconds > 0.0);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "expected a number of seconds above 0, such as 30".into())
}

/// Connects to a scheduler.
async fn connect(url: &str, tls: Option<&Path>) -> Result<Client> {
    let tls = tls.map(Tls::open).transpose()?;
    Client::connect(url, tls.as_ref(), Arc::new(Codec::default())).await
}
