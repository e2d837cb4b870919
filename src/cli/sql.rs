//! `neurosieve sql`: queries the tables. Without `-c` and `-f` it is an interactive shell.

use std::path::PathBuf;

use super::outside_tables;
use crate::error::{Error, Result};
use crate::query::{self, Access, Format};
use crate::tables::Tables;

/// Query the result tables with SQL; without -c and -f, in an interactive shell
///
/// Statements read the tables and can change nothing but their session: SELECT, EXPLAIN, SHOW, DESCRIBE, SET, PREPARE,
/// EXECUTE, and CREATE VIEW and DROP VIEW for views of your own. Write rows into a file with --output.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve sql --tables ./results -c 'SELECT * FROM findings ORDER BY volume_ml DESC LIMIT 10'
  neurosieve sql --tables ./results -f sql/qc_flags.sql --format csv --output flags.csv
  neurosieve sql --tables ./results --allow-files -c \"CREATE EXTERNAL TABLE ages STORED AS CSV LOCATION 'ages.csv'\" \\
      -c 'SELECT a.age, s.anomaly_score FROM scans s JOIN ages a ON a.subject = s.subject'

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
    /// Allow CREATE EXTERNAL TABLE, which reads any file or URL that this user can read, and COPY, which writes new files
    /// outside the tables. Do not use it with SQL that you did not write
    #[arg(long)]
    pub allow_files: bool,
}

/// Runs the command.
///
/// # Errors
/// As [`Tables::open`] and [`query::execute`]; [`Error::Io`] where a file cannot be read.
pub async fn run(args: SqlArgs) -> Result<()> {
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
    let tables = Tables::open(&args.tables).await?;
    let context = query::session(&tables).await?;
    let access = if args.allow_files { Access::Files { tables: tables.location() } } else { Access::Tables };
    if statements.is_empty() {
        return query::repl(&context, access, args.format).await;
    }
    // A line of its own ends a statement that ends in a comment.
    query::execute(&context, access, &statements.join("\n;\n"), args.format, args.output.as_deref()).await
}
