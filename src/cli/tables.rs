//! `neurosieve tables`: what the result tables hold.

use clap::Subcommand;

use crate::tables::Table;

/// Look after the result tables
#[derive(Debug, clap::Args)]
pub struct TablesArgs {
    #[command(subcommand)]
    command: TablesCommand,
}

#[derive(Debug, Subcommand)]
enum TablesCommand {
    /// Print every table's columns with type, unit and meaning
    Describe,
}

impl TablesArgs {
    /// Runs the command.
    pub fn run(self) {
        match self.command {
            TablesCommand::Describe => {
                for table in Table::EVERY {
                    println!("{}", table.describe());
                }
            }
        }
    }
}
