//! What the program prints: results on the standard output, remarks and errors on the standard error.
//!
//! `println!` panics where the reader has closed the pipe, as `… | head -1` does, and the panic stops the work. The macros
//! here do not: output that nobody reads is dropped, and the command still writes its files and commits its
//! rows. A result that cannot be written for another reason, such as a full disk, is kept by [`failure`] until the command
//! ends.
//!
//! Remarks are plain sentences for somebody at a terminal. After [`log_lines`], and where JSON is asked for, they are lines of
//! the log, in the same format as those of the crate `tracing` and those of panics: `TIME LEVEL text`, or a JSON object.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use chrono::{SecondsFormat, Utc};
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::error::{Error, Result};

/// Prints a line on the standard output.
macro_rules! outln {
    ($($text:tt)*) => { $crate::terminal::result(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints text on the standard output.
macro_rules! out {
    ($($text:tt)*) => { $crate::terminal::result(format_args!($($text)*)) };
}

/// Prints a line on the standard error.
macro_rules! errln {
    ($($text:tt)*) => { $crate::terminal::remark(format_args!($($text)*)) };
}

pub(crate) use {errln, out, outln};

/// The first reason, other than a closed pipe, why a result was not printed.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// `TIME LEVEL text`; remarks of short commands and at a terminal are plain.
    Text,
    /// One JSON object per line of the standard error.
    Json,
}

/// What remarks are: plain, or lines of the log in one of the formats.
static REMARKS: AtomicU8 = AtomicU8::new(PLAIN);
const PLAIN: u8 = 0;
const TEXT: u8 = 1;
const JSON: u8 = 2;

/// Whether results are lines of the log as well.
static RESULTS: AtomicBool = AtomicBool::new(false);

/// Sets the format of the log, at the start of the program. With JSON, every remark is a line of the log.
pub fn set_format(format: LogFormat) {
    if format == LogFormat::Json {
        REMARKS.store(JSON, Ordering::Relaxed);
    }
}

/// Makes every further remark a line of the log, for programs whose output is read later; with `results`, these as well.
pub fn log_lines(results: bool) {
    let _ = REMARKS.compare_exchange(PLAIN, TEXT, Ordering::Relaxed, Ordering::Relaxed);
    RESULTS.store(results, Ordering::Relaxed);
}

/// Whether the program is ending.
static ENDING: AtomicBool = AtomicBool::new(false);

/// The program has done its work and ends: panics are printed no more. The end drops the asynchronous runtime, and a library's
/// thread that waits for it at that moment panics, which concerns nobody.
pub fn ending() {
    ENDING.store(true, Ordering::Relaxed);
}

/// Prints panics as lines of the log, with a stack trace where `RUST_BACKTRACE` asks for one.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        if ENDING.load(Ordering::Relaxed) {
            return;
        }
        let trace = std::backtrace::Backtrace::capture();
        let thread = std::thread::current();
        let text = info.to_string().replace('\n', " ");
        remark(format_args!("error: internal error in thread {}: {text}", thread.name().unwrap_or("unnamed")));
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            remark(format_args!("error: {trace}"));
        }
    }));
}

/// The time of a line of the log: UTC, RFC 3339.
fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The clock of the crate `tracing`'s lines.
#[derive(Debug, Clone, Copy)]
pub struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        out.write_str(&now())
    }
}

/// Where the crate `tracing` writes its lines: to the standard error, each event on one line.
#[derive(Debug, Clone, Copy)]
pub struct LogWriter;

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl Write for LogWriter {
    /// Takes one event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.trim_end_matches('\n').replace('\n', "\\n") + "\n";
        io::stderr().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The level of a remark, and its text without the word that says so.
fn level(text: &str) -> (&'static str, &str) {
    let marked = [("ERROR", "error: "), ("WARN", "warning: ")];
    let found = marked.into_iter().find_map(|(level, mark)| Some((level, text.strip_prefix(mark)?)));
    found.unwrap_or(("INFO", text))
}

/// A text that ends with a line break, as lines of the log in this format.
fn lines(text: &str, format: u8) -> String {
    if format == PLAIN {
        return text.to_owned();
    }
    let (level, text) = level(text);
    match format {
        JSON => {
            let (target, message) = (env!("CARGO_PKG_NAME"), text.trim_end());
            let line = json!({"timestamp": now(), "level": level, "fields": {"message": message}, "target": target});
            format!("{line}\n")
        }
        _ => text.trim_end().lines().map(|line| format!("{} {level:>5} {line}\n", now())).collect(),
    }
}

/// The standard output. It records that the reader has closed the pipe, so that a writer can stop early.
#[derive(Debug, Default)]
pub struct Output {
    closed: bool,
}

impl Output {
    /// True where the reader has closed the pipe.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn remember<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        self.closed |= outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
        outcome
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let outcome = io::stdout().write(bytes);
        self.remember(outcome)
    }

    fn flush(&mut self) -> io::Result<()> {
        let outcome = io::stdout().flush();
        self.remember(outcome)
    }
}

/// Prints text on the standard output; `outln!` and `out!` call it.
pub fn result(text: fmt::Arguments) {
    let mut output = Output::default();
    let format = if RESULTS.load(Ordering::Relaxed) { REMARKS.load(Ordering::Relaxed) } else { PLAIN };
    let outcome = output.write_all(lines(&text.to_string(), format).as_bytes()).and_then(|()| output.flush());
    if let (Err(error), false) = (outcome, output.is_closed()) {
        let mut failure = FAILURE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.get_or_insert(error);
    }
}

/// Prints a line on the standard error; `errln!` calls it. There is nowhere to report that it failed.
pub fn remark(text: fmt::Arguments) {
    let lines = lines(&format!("{text}\n"), REMARKS.load(Ordering::Relaxed));
    let _ = io::stderr().write_all(lines.as_bytes());
}

/// The first failure to print a result, if there was one.
///
/// # Errors
/// [`Error::Io`] with that failure.
pub fn failure() -> Result<()> {
    let failure = FAILURE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    failure.map_or(Ok(()), |error| Err(unwritable(error)))
}

/// The error of a result that cannot be printed.
pub fn unwritable(error: io::Error) -> Error {
    Error::io("cannot write to the standard output; check the disk or the program that it leads to", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_is_lines_with_time_and_level_or_one_json_object() {
        assert_eq!(lines("error: no\n", PLAIN), "error: no\n");
        let text = lines("warning: two\nlines\n", TEXT);
        for (line, said) in text.lines().zip(["two", "lines"]) {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[1..], ["WARN", said]);
            assert!(chrono::DateTime::parse_from_rfc3339(words[0]).is_ok(), "{line}");
        }
        assert_eq!(text.lines().count(), 2);
        let json = lines("error: two\nlines\n", JSON);
        let object: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&object["level"], &object["fields"]["message"]), (&"ERROR".into(), &"two\nlines".into()));
        assert_eq!(json.lines().count(), 1);
        assert!(lines("done\n", JSON).contains("INFO"));
    }
}
