//! `neurosieve sql`: queries the tables. Without `-c` and `-f` it is an interactive shell.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::query::{self, Format};
use crate::tables::Tables;

/// Query the result tables with SQL; without -c and -f, in an interactive shell
#[derive(Debug, clap::Args)]
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
    /// Write the rows to this file instead of the terminal; needs exactly one -c or -f
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
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
    if args.output.is_some() && statements.len() != 1 {
        return Err(Error::Config("--output needs exactly one -c or -f".into()));
    }
    let context = query::session(&Tables::open(&args.tables).await?).await?;
    if statements.is_empty() {
        return query::repl(&context, args.format).await;
    }
    for sql in statements {
        query::execute(&context, &sql, args.format, args.output.as_deref()).await?;
    }
    Ok(())
}
