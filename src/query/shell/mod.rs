//! The interactive shell: statements that end with `;`, and commands that start with `\`.
//!
//! A terminal gets a greeting, and a line editor with history, completion and colours. Input from a pipe is read line by line,
//! its last statement needs no `;`, and only results are printed. A statement that fails prints its error, and the shell reads
//! on. Each statement that gives rows reads the newest snapshot of the tables.

mod command;
mod editor;

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect, dialect_from_str};
use futures::StreamExt as _;

use self::command::{Command, Shown};
use super::export::{self, Format, write_error};
use super::functions::functions;
use super::permit::{self, Access};
use super::recipe::{self, Recipe};
use super::{comments, engine, views};
use crate::error::{Error, Result};
use crate::terminal::{self, Output, errln};

/// Rows of a result that a table at a terminal shows. The other formats, and a pipe, get all rows.
const SHOWN_ROWS: usize = 100;

/// The functions of a session.
const FUNCTIONS: &str =
    "SELECT DISTINCT routine_name, syntax_example AS syntax, description FROM information_schema.routines";

/// The recipes, and which of them the views show.
const RECIPES: &str = "SELECT cohort, recipe_id, current AS shown, started_at AS last_asked_for, bundle, version
    FROM public.recipes ORDER BY cohort, started_at DESC, recipe_id";

/// The tables and views of a session, with what they show: not those that describe it.
fn tables() -> String {
    format!(
        "SELECT t.table_schema AS schema, t.table_name AS name, lower(t.table_type) AS type, c.comment
         FROM information_schema.tables t LEFT JOIN (VALUES {}) AS c(schema, name, comment)
             ON c.schema = t.table_schema AND c.name = t.table_name
         WHERE t.table_schema <> 'information_schema' ORDER BY t.table_schema, t.table_name",
        comments::relation_values()
    )
}

/// How a shell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Somebody at a terminal has seen what failed; or nothing did.
    Well,
    /// A statement or a command from a pipe failed. Those after it were run.
    WithErrors,
}

/// Reads statements and commands until the end of input or `\q`. Rows are printed in `format` until `\pset` changes it.
/// `reload` brings the session to the newest snapshot of the tables; it is called before each statement that gives rows.
///
/// # Errors
/// The terminal cannot be read or written. What a statement or a command fails for is printed and does not end the shell.
pub async fn repl<F: AsyncFnMut() -> Result<()>>(
    context: &SessionContext,
    access: Access<'_>,
    format: Format,
    reload: F,
) -> Result<Ended> {
    let typed = io::stdin().is_terminal();
    let interactive = typed && io::stdout().is_terminal();
    let mut shell =
        Shell { context, access, reload, format, quiet: false, expanded: false, interactive, failed: false };
    let ended = if typed { shell.terminal().await } else { shell.pipe().await };
    match ended {
        // The reader has closed the pipe, as in `… | head`.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(Ended::Well),
        Err(error) => Err(error),
        Ok(()) if shell.failed && !typed => Ok(Ended::WithErrors),
        Ok(()) => Ok(Ended::Well),
    }
}

/// What follows an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Read,
    Leave,
}

struct Shell<'a, F> {
    context: &'a SessionContext,
    access: Access<'a>,
    reload: F,
    format: Format,
    quiet: bool,
    /// Rows of tables are printed as records.
    expanded: bool,
    /// Somebody at a terminal reads what is printed.
    interactive: bool,
    /// Something has failed.
    failed: bool,
}

impl<F: AsyncFnMut() -> Result<()>> Shell<'_, F> {
    async fn terminal(&mut self) -> Result<()> {
        if self.interactive {
            greet(self.context)?;
        }
        let mut lines = editor::open(self.context).await?;
        while let Some(input) = editor::read(&mut lines)? {
            let next = tokio::select! {
                next = self.input(&input) => next?,
                // Dropping the future above cancels the query.
                _ = tokio::signal::ctrl_c() => {
                    print("^C")?;
                    Next::Read
                }
            };
            if next == Next::Leave {
                break;
            }
            editor::learn(&mut lines, &input).await?;
        }
        editor::close(lines);
        Ok(())
    }

    async fn pipe(&mut self) -> Result<()> {
        let mut input = String::new();
        for line in io::stdin().lines() {
            let line = line.map_err(|e| Error::io("cannot read the standard input", e))?;
            let command = input.trim().is_empty() && line.starts_with('\\');
            input.push_str(&line);
            input.push('\n');
            if command || line.trim_end().ends_with(';') {
                if self.input(&input).await? == Next::Leave {
                    return Ok(());
                }
                input.clear();
            }
        }
        self.input(&input).await.map(drop)
    }

    /// Runs one command, or one or more statements.
    async fn input(&mut self, input: &str) -> Result<Next> {
        let Some(command) = input.strip_prefix('\\') else {
            self.statements(input).await?;
            return Ok(Next::Read);
        };
        match command.parse() {
            Ok(Command::Quit) => return Ok(Next::Leave),
            Ok(command) => {
                let outcome = self.command(command).await;
                self.report(outcome)?;
            }
            Err(message) => {
                self.failed = true;
                errln!("{message}");
            }
        }
        Ok(Next::Read)
    }

    async fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Quit => Ok(()),
            Command::Help => print(command::HELP),
            Command::Tables => self.statements(&tables()).await,
            Command::Columns(table) => self.statements(&format!("DESCRIBE {table}")).await,
            Command::Recipe(None) => self.statements(RECIPES).await,
            Command::Recipe(Some(shown)) => self.show_recipe(shown).await,
            Command::Functions(None) => functions()
                .filter_map(|f| f.documentation().cloned())
                .try_for_each(|doc| print(format!("{:<45}{}", doc.syntax_example, doc.description))),
            Command::Functions(Some(name)) => {
                // What begins with the name, also where it has characters that a pattern gives a meaning.
                let name = name.trim_end_matches(['*', '(']).to_lowercase().replace('\'', "''");
                self.statements(&format!("{FUNCTIONS} WHERE starts_with(routine_name, '{name}') ORDER BY routine_name"))
                    .await
            }
            Command::Include(path) => {
                let text = std::fs::read_to_string(&path).map_err(|e| Error::io(format!("cannot read {path}"), e))?;
                self.statements(&text).await
            }
            Command::Syntax(statement) => print(command::syntax(statement.as_deref())?),
            Command::Quiet(quiet) => {
                self.quiet = quiet.unwrap_or(self.quiet);
                self.state(quiet.is_none(), format!("Quiet mode is {}.", on_or_off(self.quiet)))
            }
            Command::Expanded(expanded) => {
                self.expanded = expanded.unwrap_or(!self.expanded);
                self.state(false, format!("Rows as records: {}.", on_or_off(self.expanded)))
            }
            Command::Format(format) => {
                self.format = format.unwrap_or(self.format);
                self.state(format.is_none(), format!("Output format is {}.", command::name(self.format)))
            }
        }
    }

    async fn show_recipe(&mut self, shown: Shown) -> Result<()> {
        // A run may have begun since the last statement.
        (self.reload)().await?;
        let (recipe, said) = match shown {
            Shown::Last => (None, "Each cohort shows the recipe of its last run.".to_owned()),
            Shown::Id(id) => (Some(Recipe::find(self.context, &id).await?), format!("Recipe {id} is shown.")),
        };
        recipe::show_recipe(self.context, recipe.as_ref()).await?;
        if let Some(note) = recipe::recipe_note(self.context).await? {
            errln!("{note}");
        }
        self.state(false, said)
    }

    /// Prints a setting that was asked for, or one that somebody at a terminal has changed. A pipe holds rows only.
    fn state(&self, asked: bool, text: String) -> Result<()> {
        if asked || self.interactive { print(text) } else { Ok(()) }
    }

    /// Prints the error of a statement or a command. Only a standard output that was closed ends the shell.
    fn report(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(Error::Io { source, context }) if source.kind() == io::ErrorKind::BrokenPipe => {
                Err(Error::Io { source, context })
            }
            Err(error) => {
                self.failed = true;
                errln!("{}", error.text());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Runs the statements one after the other; one that fails does not keep the next from running.
    async fn statements(&mut self, sql: &str) -> Result<()> {
        match parse(self.context, sql) {
            Ok(statements) => {
                for statement in statements {
                    let outcome = self.statement(statement).await;
                    self.report(outcome)?;
                }
                Ok(())
            }
            Err(error) => self.report(Err(error.into())),
        }
    }

    async fn statement(&mut self, statement: Statement) -> Result<()> {
        let started = Instant::now();
        if permit::gives_rows(&statement) {
            (self.reload)().await?;
        }
        // What is asked for whole is shown whole.
        let shows = matches!(&statement, Statement::Statement(sql)
            if matches!(**sql, ast::Statement::ShowVariable { .. } | ast::Statement::ExplainTable { .. }));
        let heading = comments::heading(self.context, &statement).filter(|_| self.format == Format::Table);
        let plan = permit::plan(self.context, self.access, statement).await?;
        let explains = matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
        let whole = shows || explains || !self.interactive;
        let limit = if whole { usize::MAX } else { SHOWN_ROWS };
        let rows = engine::rows(self.context, self.context.execute_logical_plan(plan).await?).await?;
        heading.map_or(Ok(()), print)?;
        // A statement such as CREATE VIEW has no columns, and nothing to print in any format.
        let (fetched, cut) = if self.format == Format::Table || rows.schema().fields().is_empty() {
            self.table(rows, limit).await?
        } else {
            let mut out = Output::default();
            match export::write(rows, self.format, &mut out).await {
                // Some writers of rows do not pass the kind of the error on.
                Err(_) if out.is_closed() => return Err(terminal::unwritable(io::ErrorKind::BrokenPipe.into())),
                written => (written?, false),
            }
        };
        // Other formats are for programs, and through a pipe they hold what --format gives.
        if self.quiet || !self.interactive && self.format != Format::Table {
            return Ok(());
        }
        let note = if cut { format!(" (first {SHOWN_ROWS} shown)") } else { String::new() };
        let elapsed = started.elapsed().as_secs_f64();
        print(format!("{fetched} row(s) fetched{note}.\nElapsed {elapsed:.3} seconds.\n"))
    }

    /// Prints up to `limit` rows as a table. Gives the number of all rows, and whether some were left out.
    async fn table(&self, mut rows: SendableRecordBatchStream, limit: usize) -> Result<(usize, bool)> {
        let mut shown = vec![RecordBatch::new_empty(rows.schema())];
        let mut fetched = 0;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let room = limit.saturating_sub(fetched).min(batch.num_rows());
            fetched += batch.num_rows();
            if room > 0 {
                shown.push(batch.slice(0, room));
            }
        }
        if !rows.schema().fields().is_empty() {
            let state = self.context.state();
            let options: FormatOptions = (&state.config_options().format).try_into()?;
            match self.expanded {
                true => print_records(&shown, &options)?,
                false => print(pretty_format_batches_with_options(&shown, &options).map_err(write_error)?)?,
            }
        }
        Ok((fetched, fetched > limit))
    }
}

/// The statements of `sql`, in the dialect that the session is set to.
fn parse(context: &SessionContext, sql: &str) -> Result<VecDeque<Statement>, DataFusionError> {
    DFParser::parse_sql_with_dialect(sql, dialect(context).as_ref())
}

fn dialect(context: &SessionContext) -> Box<dyn Dialect> {
    // Every name that the setting accepts is known to the parser; the default is the generic dialect.
    let name = context.state().config_options().sql_parser.dialect;
    dialect_from_str(name).unwrap_or_else(|| Box::new(GenericDialect {}))
}

/// Prints each value of a row on a line of its own.
fn print_records(batches: &[RecordBatch], options: &FormatOptions<'_>) -> Result<()> {
    let mut number = 0;
    for batch in batches {
        let schema = batch.schema();
        let width = schema.fields().iter().map(|field| field.name().chars().count()).max().unwrap_or_default();
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), options));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(write_error)?;
        for row in 0..batch.num_rows() {
            number += 1;
            print(format!("-[ record {number} ]"))?;
            for (field, values) in schema.fields().iter().zip(&columns) {
                let value = values.value(row).try_to_string().map_err(write_error)?;
                print(format!("{:<width$} | {}", field.name(), value.replace('\n', &format!("\n{:width$} | ", ""))))?;
            }
        }
    }
    Ok(())
}

fn on_or_off(mode: bool) -> &'static str {
    if mode { "on" } else { "off" }
}

fn greet(context: &SessionContext) -> Result<()> {
    print("For research use only: scores are not a diagnosis.")?;
    for view in views() {
        // A table that was never written to has no view.
        if context.table_exist(view.name)? {
            print(format!("  {:<11} {}", view.name, view.doc))?;
        }
    }
    print("\\d lists tables, \\d NAME the columns of one, \\? shows help, \\q quits.")
}

/// A line on the standard output. Unlike `println!` it does not panic where the reader has closed the pipe.
fn print(text: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout(), "{text}").map_err(terminal::unwritable)
}
