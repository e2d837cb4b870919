//! The line editor of the shell on a terminal: statements over several lines, history, completion and colours.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::env;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use arrow::array::AsArray as _;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Editor, Helper};

use super::{dialect, parse};
use crate::error::{Error, Result};
use crate::terminal::errln;

/// The file with earlier inputs: `neurosieve/history` in the user's folder for state. The current folder may be a data set.
fn history() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("neurosieve").join("history"))
}

pub(super) type Lines = Editor<Assistant, DefaultHistory>;

/// An editor that knows the tables and columns of the session.
///
/// # Errors
/// The terminal cannot be opened, or the session's schemas cannot be read.
pub(super) async fn open(context: &SessionContext) -> Result<Lines> {
    let config = Config::builder().completion_type(CompletionType::List).build();
    let mut lines = Lines::with_config(config).map_err(ended)?;
    lines.set_helper(Some(Assistant {
        context: context.clone(),
        words: words(context).await?,
        files: FilenameCompleter::new(),
        color: io::stdout().is_terminal(),
    }));
    // There is none before the first session.
    history().and_then(|file| lines.load_history(&file).ok());
    Ok(lines)
}

/// The next input: a command or complete statements. `None` at the end of input.
///
/// # Errors
/// The terminal cannot be read.
pub(super) fn read(lines: &mut Lines) -> Result<Option<String>> {
    loop {
        match lines.readline("> ") {
            Ok(input) if input.trim().is_empty() => {}
            Ok(input) => {
                lines.add_history_entry(input.trim_end()).map_err(ended)?;
                return Ok(Some(input));
            }
            Err(ReadlineError::Interrupted) => super::print("^C")?,
            Err(ReadlineError::Eof) => {
                super::print("\\q")?;
                return Ok(None);
            }
            Err(error) => return Err(ended(error)),
        }
    }
}

/// Learns the names that an input has changed.
///
/// # Errors
/// The session's schemas cannot be read.
pub(super) async fn learn(lines: &mut Lines, input: &str) -> Result<()> {
    let lower = input.to_lowercase();
    // What else runs changes no names.
    if ["create", "drop", "\\i"].iter().any(|word| lower.contains(word))
        && let Some(assistant) = lines.helper_mut()
    {
        assistant.words = words(&assistant.context).await?;
    }
    Ok(())
}

/// Keeps the history for the next session.
pub(super) fn close(mut lines: Lines) {
    let Some(file) = history() else { return };
    let saved = std::fs::create_dir_all(file.parent().unwrap_or(&file)).map_err(ReadlineError::from);
    if let Err(error) = saved.and_then(|()| lines.save_history(&file)) {
        errln!("cannot write the history to {}: {error}", file.display());
    }
}

fn ended(error: ReadlineError) -> Error {
    Error::io("the shell ended", io::Error::other(error))
}

/// What the editor asks while somebody types.
pub(super) struct Assistant {
    context: SessionContext,
    words: BTreeSet<String>,
    files: FilenameCompleter,
    color: bool,
}

impl Helper for Assistant {}

impl Validator for Assistant {
    /// Reads on until the input is blank, a command, or ends with `;`. A syntax error keeps the input in the editor.
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let input = context.input().trim();
        if input.is_empty() || input.starts_with('\\') {
            return Ok(ValidationResult::Valid(None));
        }
        if !input.ends_with(';') {
            return Ok(ValidationResult::Incomplete);
        }
        Ok(match parse(&self.context, input) {
            Ok(_) => ValidationResult::Valid(None),
            Err(error) => ValidationResult::Invalid(Some(format!("  {error}"))),
        })
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    /// File names inside quotes and after `\i`; otherwise keywords, tables, columns and functions.
    fn complete(&self, line: &str, pos: usize, _: &rustyline::Context) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..pos];
        if typed.starts_with("\\i ") || typed.matches('\'').count() % 2 == 1 {
            return self.files.complete_path(line, pos);
        }
        let (start, found) = completions(&self.words, typed);
        let pair = |word: &String| Pair { display: word.clone(), replacement: word.clone() };
        Ok((start, found.into_iter().map(pair).collect()))
    }
}

impl Hinter for Assistant {
    type Hint = String;

    fn hint(&self, line: &str, _: usize, _: &rustyline::Context) -> Option<String> {
        line.is_empty().then(|| " \\? for help, \\q to quit".to_owned())
    }
}

impl Highlighter for Assistant {
    /// Keywords in red, text in green.
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if !self.color {
            return Cow::Borrowed(line);
        }
        let dialect = dialect(&self.context);
        // Without unescaping, the tokens are the line again.
        let Ok(tokens) = Tokenizer::new(dialect.as_ref(), line).with_unescape(false).tokenize() else {
            return Cow::Borrowed(line);
        };
        let paint = |token: Token| match &token {
            Token::Word(word) if word.keyword != Keyword::NoKeyword => format!("\x1b[91m{token}\x1b[0m"),
            Token::SingleQuotedString(_) => format!("\x1b[92m{token}\x1b[0m"),
            _ => token.to_string(),
        };
        Cow::Owned(tokens.into_iter().map(paint).collect())
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        if self.color { Cow::Owned(format!("\x1b[90m{hint}\x1b[0m")) } else { Cow::Borrowed(hint) }
    }

    fn highlight_char(&self, line: &str, _: usize, _: CmdKind) -> bool {
        self.color && !line.is_empty()
    }
}

/// The words that continue what was typed, and where in it they begin. After the name or alias of a table and a dot, words
/// continue what follows the dot.
fn completions<'w>(words: &'w BTreeSet<String>, typed: &str) -> (usize, Vec<&'w String>) {
    let begins = |c: char| !c.is_alphanumeric() && !"_.".contains(c);
    let start = typed.rfind(begins).and_then(|at| Some(at + typed[at..].chars().next()?.len_utf8())).unwrap_or(0);
    let starting = |prefix: &str| {
        let prefix = prefix.to_lowercase();
        words.iter().filter(|word| !prefix.is_empty() && word.to_lowercase().starts_with(&prefix)).collect::<Vec<_>>()
    };
    let whole = starting(&typed[start..]);
    match typed[start..].rfind('.') {
        Some(dot) if whole.is_empty() => (start + dot + 1, starting(&typed[start + dot + 1..])),
        _ => (start, whole),
    }
}

/// Keywords that are worth completing.
const KEYWORDS: &str = "ALL AND ANALYZE AS ASC BETWEEN BY CASE CAST COLUMNS COPY COUNT CREATE CROSS DESC DESCRIBE \
    DISTINCT DROP ELSE END EXCEPT EXISTS EXPLAIN EXTERNAL FALSE FIRST FROM FULL FUNCTIONS GROUP HAVING INNER INTERSECT IS \
    JOIN LAST LEFT LIKE LIMIT LOCATION NOT NULL NULLS OFFSET OPTIONS ORDER OVER PARTITION QUALIFY RIGHT SELECT SHOW \
    STORED TABLE TABLES THEN TRUE UNION USING VALUES VIEW WHEN WHERE WINDOW WITH";

/// The keywords, and the names of the session's tables, columns and functions. Those of functions end in `(`.
async fn words(context: &SessionContext) -> Result<BTreeSet<String>> {
    let names = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'
        UNION SELECT concat(table_schema, '.', table_name) FROM information_schema.tables WHERE table_schema = 'raw'
        UNION SELECT column_name FROM information_schema.columns WHERE table_schema = 'public'";
    let mut words: BTreeSet<String> = KEYWORDS.split_whitespace().map(str::to_owned).collect();
    for batch in context.sql(names).await?.collect().await? {
        let names = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8)
            .map_err(|e| Error::Query(e.into()))?;
        words.extend(names.as_string::<i32>().iter().flatten().map(str::to_owned));
    }
    let state = context.state();
    let functions = [
        state.scalar_functions().keys().collect::<Vec<_>>(),
        state.aggregate_functions().keys().collect(),
        state.window_functions().keys().collect(),
        state.table_functions().keys().collect(),
    ];
    words.extend(functions.into_iter().flatten().map(|name| format!("{name}(")));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tables_columns_functions_and_keywords_are_completed() {
        let context = SessionContext::new_with_config(crate::tables::session_config());
        context.sql("CREATE VIEW visits AS SELECT 1 AS visit_day, 2 AS weight_kg").await.unwrap();
        let words = words(&context).await.unwrap();
        let found = |typed: &str| {
            let (start, found) = completions(&words, typed);
            (typed[start..].to_owned(), found.into_iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert_eq!(found("SELECT * FROM vis"), ("vis".into(), vec!["visit_day", "visits"]));
        assert_eq!(found("SELECT v.weig"), ("weig".into(), vec!["weight_kg"]));
        assert_eq!(found("SELECT approx_med"), ("approx_med".into(), vec!["approx_median("]));
        assert_eq!(found("SELECT power("), (String::new(), Vec::new()));
        assert_eq!(found("SELECT 'ä'\u{a0}qual"), ("qual".into(), vec!["QUALIFY"]));
    }
}
