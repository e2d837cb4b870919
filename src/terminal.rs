//! What the program prints: results on the standard output, remarks and errors on the standard error.
//!
//! `println!` panics where the reader has closed the pipe, as `… | head -1` does, and the panic stops the work. The macros
//! here do not: output that nobody reads is dropped, and the command still writes its files and commits its
//! rows. A result that cannot be written for another reason, such as a full disk, is kept by [`failure`] until the command
//! ends.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{SecondsFormat, Utc};

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

/// Whether every line begins with the time.
static STAMPED: AtomicBool = AtomicBool::new(false);

/// Begins every further line with the time (UTC, RFC 3339), for programs that run for weeks and whose output is read later.
pub fn stamp_lines() {
    STAMPED.store(true, Ordering::Relaxed);
}

/// The lines of a text, each with the time after [`stamp_lines`].
fn stamped(text: fmt::Arguments) -> String {
    let text = text.to_string();
    if !STAMPED.load(Ordering::Relaxed) {
        return text;
    }
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    text.split_inclusive('\n').map(|line| format!("{now} {line}")).collect()
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
    let outcome = output.write_all(stamped(text).as_bytes()).and_then(|()| output.flush());
    if let (Err(error), false) = (outcome, output.is_closed()) {
        let mut failure = FAILURE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.get_or_insert(error);
    }
}

/// Prints a line on the standard error; `errln!` calls it. There is nowhere to report that it failed.
pub fn remark(text: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{}", stamped(text));
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
