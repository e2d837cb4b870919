//! What statements may do: the one list that `-c`, `-f` and the shell share.
//!
//! ```text
//! statement ─► plan ─► every node of it, subqueries and nested statements included
//!   reads                                 allowed: SELECT, EXPLAIN, SHOW, DESCRIBE, PREPARE and EXECUTE of such
//!   own views, settings of the session    allowed, unless they hide a table or name a place on the disk
//!   CREATE EXTERNAL TABLE, COPY           with Access::Files, outside the tables, and COPY only to a new place
//!   anything else                         refused
//! ```
//! The list names what is allowed. A kind of statement that a later version of the engine adds is therefore refused until it
//! is added here.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ResolvedTableReference, TableReference};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::logical_expr::{CreateView, DdlStatement, LogicalPlan, Statement as Control};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use futures::StreamExt as _;
use object_store::ObjectStoreExt as _;
use url::Url;

use super::{comments, views};
use crate::error::{Error, Result};
use crate::store::{self, Location};
use crate::tables::{CATALOG, PUBLIC_SCHEMA, RAW_SCHEMA};

/// What statements may reach besides the tables.
#[derive(Debug, Clone, Copy)]
pub enum Access<'a> {
    /// Nothing.
    Tables,
    /// Also files and objects of others: `CREATE EXTERNAL TABLE` reads them, and `COPY` writes new ones, outside these
    /// tables.
    Files {
        /// Where the session's tables are.
        tables: &'a Location,
    },
}

/// Settings that a statement may change, by the beginning of their names. Those of the catalog and of the runtime can name
/// places on the disk.
const SETTINGS: [&str; 7] = [
    "datafusion.catalog.default_schema",
    "datafusion.execution.",
    "datafusion.explain.",
    "datafusion.format.",
    "datafusion.optimizer.",
    "datafusion.runtime.max_temp_directory_size",
    "datafusion.sql_parser.",
];

/// Plans a statement that is allowed, and opens the object stores that it names, with the credentials of the environment.
///
/// # Errors
/// [`Error::Config`] for a statement that is not allowed, with what to use instead; [`Error::Query`] where it is not valid
/// for the session; errors of a store that it names.
pub(super) async fn plan(context: &SessionContext, access: Access<'_>, statement: Statement) -> Result<LogicalPlan> {
    let (verb, object) = verb(&statement);
    let described = comments::described(context, &statement);
    let plan = match context.state().statement_to_plan(statement).await {
        // Every view lasts as long as the session.
        Ok(LogicalPlan::Ddl(DdlStatement::CreateView(view))) => {
            LogicalPlan::Ddl(DdlStatement::CreateView(CreateView { temporary: false, ..view }))
        }
        Ok(plan) => plan,
        // The engine's own reason would not say what to do instead.
        Err(_) if !READING.contains(&verb.as_str()) && !is_file_statement(&verb, &object) => {
            return Err(refused(&verb, &object));
        }
        Err(error) => {
            return Err(match file_as_table(&error.to_string()) {
                Some(name) => Error::Config(format!(
                    "{name} is not a table: start `neurosieve sql` with --local-files and read it with CREATE EXTERNAL TABLE \
                     name STORED AS CSV LOCATION '…'"
                )),
                None => error.into(),
            });
        }
    };
    let mut outcome = Ok(());
    plan.apply_with_subqueries(|node| {
        outcome = check(context, access, node).map_err(|refusal| refusal.unwrap_or_else(|| refused(&verb, &object)));
        Ok(if outcome.is_ok() { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    outcome?;
    if let Access::Files { tables } = access {
        open_places(context, tables, &plan).await?;
    }
    comments::with_comments(context, described, plan)
}

/// The first words of statements that only read, or that change nothing but the session.
const READING: [&str; 14] = [
    "SELECT",
    "WITH",
    "VALUES",
    "FROM",
    "TABLE",
    "EXPLAIN",
    "SHOW",
    "DESCRIBE",
    "DESC",
    "SET",
    "RESET",
    "PREPARE",
    "EXECUTE",
    "DEALLOCATE",
];

/// True where a statement gives rows. The others change the session and print nothing.
pub(super) fn gives_rows(statement: &Statement) -> bool {
    let silent = ["SET", "RESET", "CREATE", "DROP", "PREPARE", "DEALLOCATE", "BEGIN", "START", "COMMIT", "ROLLBACK"];
    !silent.contains(&verb(statement).0.as_str())
}

/// The first word of a statement, and what follows it.
fn verb(statement: &Statement) -> (String, String) {
    let text = statement.to_string();
    let text = text.trim_start_matches(|c: char| c == '(' || c.is_whitespace());
    let (verb, rest) = text.split_once(|c: char| !c.is_ascii_alphabetic()).unwrap_or((text, ""));
    (verb.to_uppercase(), rest.to_uppercase())
}

/// The name in the engine's message about an unknown table, where it is that of a file or of a function that reads files.
fn file_as_table(message: &str) -> Option<&str> {
    let name = |of: &str| message.split_once(of)?.1.split_once("' not found").map(|(name, _)| name);
    if let Some(function) = name("table function '") {
        return ["read_", "glob", "parquet_", "csv_"]
            .iter()
            .any(|start| function.starts_with(start))
            .then_some(function);
    }
    let table = name("table '")?;
    let table = table.strip_prefix(&format!("{CATALOG}.{PUBLIC_SCHEMA}.")).unwrap_or(table);
    let endings = [".csv", ".tsv", ".json", ".ndjson", ".jsonl", ".parquet", ".arrow", ".avro", ".gz", ".zst"];
    (table.contains('/') || endings.iter().any(|ending| table.ends_with(ending))).then_some(table)
}

fn is_file_statement(verb: &str, object: &str) -> bool {
    verb == "COPY" || verb == "CREATE" && object.trim_start_matches("UNBOUNDED ").starts_with("EXTERNAL TABLE")
}

/// Allows one node of a plan. Without a reason of its own, a refusal is that of the statement.
fn check(context: &SessionContext, access: Access, node: &LogicalPlan) -> Result<(), Option<Error>> {
    use LogicalPlan as P;
    match node {
        P::Projection(_) | P::Filter(_) | P::Window(_) | P::Aggregate(_) | P::Sort(_) | P::Join(_) => Ok(()),
        P::Repartition(_) | P::Union(_) | P::TableScan(_) | P::EmptyRelation(_) | P::Subquery(_) => Ok(()),
        P::SubqueryAlias(_) | P::Limit(_) | P::Values(_) | P::Distinct(_) | P::Unnest(_) => Ok(()),
        P::RecursiveQuery(_) | P::DescribeTable(_) | P::Explain(_) | P::Analyze(_) => Ok(()),
        P::Statement(Control::SetVariable(set)) => setting(&set.variable).map_err(Some),
        P::Statement(Control::ResetVariable(reset)) => setting(&reset.variable).map_err(Some),
        // A prepared statement is checked when it is prepared. It may run often, so it may not write even a new file.
        P::Statement(Control::Prepare(prepare)) => match written_files(&prepare.input).first() {
            Some(_) => Err(None),
            None => Ok(()),
        },
        P::Statement(Control::Execute(_) | Control::Deallocate(_)) => Ok(()),
        P::Ddl(DdlStatement::CreateView(view)) => own_name(context, &view.name).map_err(Some),
        P::Ddl(DdlStatement::DropView(view)) => own_name(context, &view.name).map_err(Some),
        P::Ddl(DdlStatement::CreateExternalTable(table)) if matches!(access, Access::Files { .. }) => {
            own_name(context, &table.name).map_err(Some)
        }
        P::Ddl(DdlStatement::DropTable(table)) if matches!(access, Access::Files { .. }) => {
            own_name(context, &table.name).map_err(Some)
        }
        P::Copy(_) if matches!(access, Access::Files { .. }) => Ok(()),
        P::Statement(_) | P::Ddl(_) | P::Copy(_) | P::Dml(_) | P::Extension(_) => Err(None),
    }
}

fn setting(variable: &str) -> Result<()> {
    if SETTINGS.iter().any(|allowed| variable.starts_with(allowed)) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "SQL cannot change the setting `{variable}`: `SHOW ALL` lists the settings, of which those of execution, explain, \
         format, optimizer and sql_parser can be changed, and --memory-mib sets the limit of memory"
    )))
}

/// Refuses a name that belongs to the tables: a statement may neither hide nor drop what other statements rely on.
fn own_name(context: &SessionContext, name: &TableReference) -> Result<()> {
    let state = context.state();
    let defaults = &state.config_options().catalog;
    let ResolvedTableReference { catalog, schema, table } =
        name.clone().resolve(&defaults.default_catalog, &defaults.default_schema);
    let ours = &*schema != PUBLIC_SCHEMA || &*catalog != CATALOG;
    if ours || views().iter().any(|view| view.name == &*table) {
        return Err(Error::Config(format!(
            "`{name}` belongs to the result tables, which SQL can neither replace nor drop: choose another name, in the \
             schema {PUBLIC_SCHEMA}"
        )));
    }
    Ok(())
}

/// Why a statement is not allowed, and what to use instead.
fn refused(verb: &str, object: &str) -> Error {
    let instead = match verb {
        "COPY" => {
            "write the rows of a query with `-c 'SELECT …' --output FILE --format csv`, or start `neurosieve sql` with \
             --local-files"
        }
        "CREATE" if is_file_statement(verb, object) => {
            "it reads files outside the tables; start `neurosieve sql` with --local-files to allow that"
        }
        "CREATE" => "use CREATE VIEW name AS SELECT …, which lasts as long as the session",
        "DROP" => "only your own views can be dropped, with DROP VIEW",
        "SELECT" | "WITH" => {
            "SELECT … INTO makes a table; use CREATE VIEW name AS SELECT …, or write a file with --output"
        }
        "EXPLAIN" | "PREPARE" => "only queries can be explained and prepared here",
        "INSERT" | "UPDATE" | "DELETE" | "TRUNCATE" | "MERGE" | "ALTER" => {
            "the tables change only by `neurosieve run`, `eval` and `tables`; for other values of a column use CREATE VIEW \
             name AS SELECT …"
        }
        _ => "only SELECT, EXPLAIN, SHOW, DESCRIBE, SET, CREATE VIEW, DROP VIEW, PREPARE and EXECUTE are allowed",
    };
    let mut words = object.split_whitespace();
    let name = match verb {
        "CREATE" if is_file_statement(verb, object) => "CREATE EXTERNAL TABLE".to_owned(),
        "CREATE" | "DROP" | "ALTER" => format!("{verb} {}", words.next().unwrap_or_default()),
        _ => verb.to_owned(),
    };
    Error::Config(format!("{name} is not allowed, because SQL only reads the tables: {instead}"))
}

/// The places that `COPY` writes to, wherever it stands in a plan.
fn written_files(plan: &LogicalPlan) -> Vec<String> {
    let mut places = Vec::new();
    // The closure never fails.
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Copy(copy) = node {
            places.push(copy.output_url.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    places
}

/// Opens the stores that a plan names, and refuses to write over anything.
async fn open_places(context: &SessionContext, tables: &Location, plan: &LogicalPlan) -> Result<()> {
    if let LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) = plan {
        for address in &table.locations {
            let url = register(context, address)?;
            if tables.contains(url.as_ref()) {
                return Err(Error::Config(format!(
                    "CREATE EXTERNAL TABLE cannot read {address}: the place is among the result tables, whose files also hold \
                     rows that were replaced; query {RAW_SCHEMA}.scans and the others"
                )));
            }
        }
    }
    for address in written_files(plan) {
        let url = register(context, &address)?;
        refuse_written_place(context, tables, &address, &url).await?;
    }
    Ok(())
}

fn register(context: &SessionContext, address: &str) -> Result<ListingTableUrl> {
    let url = ListingTableUrl::parse(address)?;
    // A session has the local file system, and the store of the tables, from the start.
    if context.runtime_env().object_store(&url).is_err() {
        context.register_object_store(url.as_ref(), store::open(url.as_str())?.store);
    }
    Ok(url)
}

/// Refuses a place of `COPY` that exists, that is among the tables, or that is not one place.
async fn refuse_written_place(
    context: &SessionContext,
    tables: &Location,
    address: &str,
    place: &ListingTableUrl,
) -> Result<()> {
    let refuse = |why: &str| Err(Error::Config(format!("COPY cannot write to {address}: {why}")));
    if place.get_glob().is_some() {
        return refuse("give a name without * ? [");
    }
    let url: &Url = place.as_ref();
    // Another spelling of the tables' address, or another way to their disk, leads to a log all the same.
    if tables.contains(url) || place.prefix().parts().any(|part| part.as_ref() == "_delta_log") {
        return refuse("the place is among the result tables; give a place outside them");
    }
    let taken = "something is there already, and COPY would overwrite it; give a new name";
    if url.scheme() == "file" {
        let Ok(path) = url.to_file_path() else { return refuse("give an absolute path without a host") };
        let is_empty_folder = || std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        return if path.symlink_metadata().is_err() || is_empty_folder() { Ok(()) } else { refuse(taken) };
    }
    let found = context.runtime_env().object_store(place)?;
    match found.head(place.prefix()).await {
        Ok(_) => return refuse(taken),
        Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(store::open(url.as_str())?.explain("look at", error)),
    }
    match found.list(Some(place.prefix())).next().await {
        None => Ok(()),
        Some(Ok(_)) => refuse(taken),
        Some(Err(error)) => Err(store::open(url.as_str())?.explain("list", error)),
    }
}
