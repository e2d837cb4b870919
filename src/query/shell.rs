//! The interactive shell: that of datafusion-cli, over a session with our views.

use std::io::IsTerminal as _;
use std::sync::Arc;

use datafusion::prelude::SessionContext;
use datafusion_cli::exec::exec_from_repl;
use datafusion_cli::object_storage::instrumented::InstrumentedObjectStoreRegistry;
use datafusion_cli::print_format::PrintFormat;
use datafusion_cli::print_options::{MaxRows, PrintOptions};

use super::views::views;
use crate::error::{Error, Result};

/// Rows of a result that the shell prints at most.
const SHOWN_ROWS: usize = 100;

/// Reads and runs statements until the end of input: `\d` lists tables, `\d NAME` the columns of one, `\?` shows help, `\q`
/// quits.
///
/// # Errors
/// [`Error::Io`] where the terminal cannot be read or written. A statement that fails is reported, and the next one is read.
pub async fn repl(context: &SessionContext) -> Result<()> {
    println!("For research use only: scores are not a diagnosis.");
    for view in views() {
        println!("  {:<9} {}", view.name, view.doc);
    }
    println!("\\d lists tables, \\d NAME the columns of one, \\? shows help, \\q quits.");
    let mut options = PrintOptions {
        format: PrintFormat::Table,
        quiet: false,
        maxrows: MaxRows::Limited(SHOWN_ROWS),
        color: std::io::stdout().is_terminal(),
        instrumented_registry: Arc::new(InstrumentedObjectStoreRegistry::new()),
    };
    let ended = exec_from_repl(context, &mut options).await;
    ended.map_err(|e| Error::io("the shell ended unexpectedly", std::io::Error::other(e)))
}
