//! The shell's commands: what follows a `\`.

use std::str::FromStr;

use clap::ValueEnum as _;

use crate::error::{Error, Result};
use crate::query::Format;

/// What a user may ask of the shell itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Quit,
    Help,
    Tables,
    Columns(String),
    /// Lists the recipes, or makes the views show one.
    Recipe(Option<Shown>),
    /// The functions of the tables, or those of the engine whose names begin so.
    Functions(Option<String>),
    Include(String),
    /// The syntax of a statement, or the list of statements.
    Syntax(Option<String>),
    /// Sets quiet mode, or prints it.
    Quiet(Option<bool>),
    /// Turns rows as records on or off, or the other way.
    Expanded(Option<bool>),
    /// Sets the format of rows, or prints it.
    Format(Option<Format>),
}

/// Which recipe the views are to show.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// That of the run that began last on each cohort.
    Last,
    /// The one with this id.
    Id(String),
}

pub(super) const HELP: &str = r"\d                     list tables and views
\d NAME                list the columns of a table or view, with units and comments
\recipe                list the recipes of the cohorts, and which is shown
\recipe ID             show the results of this recipe; views of your own keep theirs
\recipe last           show the recipe of each cohort's last run again
\df                    list the functions for masks and regions
\df NAME               list all functions whose names begin with NAME
\i FILE                run the statements of a file
\h                     list statements
\h STATEMENT           show the syntax of a statement
\pset                  print the output format
\pset format FORMAT    set it: table, csv, tsv, json or nd-json
\x [on|off]            in tables, print a line for each value of a row, or a line for each row again
\quiet [on|off]        leave out counts and times, or print the setting
\q                     quit";

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let argument = Some(words.collect::<Vec<_>>().join(" ")).filter(|words| !words.is_empty());
        Ok(match (name, argument) {
            ("q", None) => Self::Quit,
            ("?", None) => Self::Help,
            ("d", None) => Self::Tables,
            ("d", Some(table)) => Self::Columns(table),
            ("recipe", None) => Self::Recipe(None),
            ("recipe", Some(id)) if id == "last" => Self::Recipe(Some(Shown::Last)),
            ("recipe", Some(id)) => Self::Recipe(Some(Shown::Id(id))),
            ("df", name) => Self::Functions(name),
            ("i", Some(path)) => Self::Include(path),
            ("i", None) => return Err(r"\i needs the name of a file".into()),
            ("h", statement) => Self::Syntax(statement),
            ("quiet", None) => Self::Quiet(None),
            ("quiet", Some(value)) => Self::Quiet(Some(switch(name, &value)?)),
            ("x", None) => Self::Expanded(None),
            ("x", Some(value)) => Self::Expanded(Some(switch(name, &value)?)),
            ("pset", None) => Self::Format(None),
            ("pset", Some(option)) => Self::Format(Some(format(&option)?)),
            _ => return Err(format!("`\\{}` is not a command; `\\?` lists the commands", line.trim_end())),
        })
    }
}

/// Whether a command turns its mode on.
fn switch(command: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "t" | "yes" | "y" | "on" => Ok(true),
        "false" | "f" | "no" | "n" | "off" => Ok(false),
        _ => Err(format!("\\{command} takes `on` or `off`, not `{value}`")),
    }
}

/// The format that `format NAME` names.
fn format(option: &str) -> Result<Format, String> {
    let Some(value) = option.strip_prefix("format ") else {
        return Err(format!("`{option}` is not an option; the one option is `format FORMAT`"));
    };
    match Format::from_str(value, true) {
        Ok(Format::Parquet) => {
            Err("Parquet needs a file: use `neurosieve sql -c … --format parquet --output FILE`".into())
        }
        Ok(format) => Ok(format),
        Err(_) => Err(format!("`{value}` is not a format; use table, csv, tsv, json or nd-json")),
    }
}

/// The word by which the command line knows `format`.
pub(super) fn name(format: Format) -> String {
    format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Statements and their syntax.
const SYNTAX: [(&str, &str); 9] = [
    (
        "SELECT",
        "[ WITH name AS ( query ) [, ...] ]
SELECT [ ALL | DISTINCT [ ON ( expression [, ...] ) ] ] [ * | expression [ [ AS ] name ] [, ...] ]
    [ FROM { table | ( query ) } [ [ AS ] alias ]
        [ [ LEFT | RIGHT | FULL ] JOIN table { ON condition | USING ( column [, ...] ) } ] [, ...] ]
    [ WHERE condition ]
    [ GROUP BY { ALL | expression [, ...] } ]
    [ HAVING condition ]
    [ WINDOW name AS ( definition ) [, ...] ]
    [ QUALIFY condition ]
    [ { UNION | INTERSECT | EXCEPT } [ ALL | DISTINCT ] query ]
    [ ORDER BY expression [ ASC | DESC ] [ NULLS { FIRST | LAST } ] [, ...] ]
    [ LIMIT count ] [ OFFSET start ]",
    ),
    ("EXPLAIN", "EXPLAIN [ ANALYZE ] [ VERBOSE ] query"),
    ("SHOW", "SHOW { TABLES | COLUMNS FROM table | FUNCTIONS [ LIKE 'pattern' ] | ALL | setting }"),
    ("CREATE VIEW", "CREATE [ OR REPLACE ] VIEW name AS query"),
    ("DROP VIEW", "DROP VIEW [ IF EXISTS ] name"),
    ("SET", "SET setting = value"),
    ("PREPARE", "PREPARE name [ ( type [, ...] ) ] AS query\nEXECUTE name [ ( value [, ...] ) ]"),
    (
        "CREATE EXTERNAL TABLE",
        "CREATE EXTERNAL TABLE name [ ( column type [, ...] ) ]
    STORED AS { CSV | JSON | PARQUET | ARROW } LOCATION 'file, folder or URL' [ OPTIONS ( 'key' 'value' [, ...] ) ]

Only where the shell was started with --local-files.",
    ),
    (
        "COPY",
        "COPY { table | ( query ) } TO 'new file, folder or URL' [ STORED AS { CSV | JSON | PARQUET } ]

Only where the shell was started with --local-files.",
    ),
];

/// The syntax of one statement, or the names of those that [`SYNTAX`] has.
///
/// # Errors
/// There is no such statement.
pub(super) fn syntax(statement: Option<&str>) -> Result<String> {
    let Some(statement) = statement else {
        let names: Vec<_> = SYNTAX.iter().map(|(name, _)| *name).collect();
        return Ok(names.join("\n"));
    };
    let found = SYNTAX.iter().find(|(name, _)| name.eq_ignore_ascii_case(statement.trim_end_matches(';')));
    found
        .map(|(_, syntax)| (*syntax).to_owned())
        .ok_or_else(|| Error::Config(format!("`{statement}` is not in the list of statements; `\\h` prints the list")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_documented() {
        assert_eq!("q".parse(), Ok(Command::Quit));
        assert_eq!("d  raw.scans\n".parse(), Ok(Command::Columns("raw.scans".into())));
        assert_eq!("pset format nd-json".parse(), Ok(Command::Format(Some(Format::NdJson))));
        assert_eq!("df mask".parse(), Ok(Command::Functions(Some("mask".into()))));
        assert_eq!("pset".parse(), Ok(Command::Format(None)));
        assert_eq!("recipe last".parse(), Ok(Command::Recipe(Some(Shown::Last))));
        assert_eq!("recipe 1f".parse(), Ok(Command::Recipe(Some(Shown::Id("1f".into())))));
        assert_eq!("quiet yes".parse(), Ok(Command::Quiet(Some(true))));
        assert_eq!("x".parse(), Ok(Command::Expanded(None)));
        assert_eq!("x off".parse(), Ok(Command::Expanded(Some(false))));
        assert!("x maybe".parse::<Command>().unwrap_err().contains("\\x takes `on` or `off`"));
        assert!("quit".parse::<Command>().unwrap_err().contains("`\\?` lists the commands"));
        assert!("pset format xml".parse::<Command>().unwrap_err().contains("nd-json"));
        assert!("pset format parquet".parse::<Command>().unwrap_err().contains("--output"));
    }

    #[test]
    fn every_listed_statement_has_a_syntax() {
        for name in syntax(None).unwrap().lines() {
            assert!(syntax(Some(&name.to_lowercase())).unwrap().contains(name.split(' ').next().unwrap()), "{name}");
        }
        assert!(syntax(Some("MERGE")).is_err());
    }
}
