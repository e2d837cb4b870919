//! The program under test: running it, and asking its tables in SQL.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use serde_json::Value;

use super::root;

/// Options of a run that scores by intensity alone: no network runs.
pub const WITHOUT_NETWORKS: [&str; 2] = ["--set", "score.method=threshold"];

/// The program, in the repository's root.
pub fn command(arguments: &[&str]) -> Command {
    command_in(root(), arguments)
}

/// The program, in another folder.
pub fn command_in(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
    command.args(arguments).current_dir(folder);
    command
}

/// Runs the program to its end.
pub fn program(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Runs the program, which must succeed; gives its standard output.
pub fn ok(arguments: &[&str]) -> String {
    let output = program(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", printed(&output));
    text(&output.stdout)
}

/// A run with the settings of the demo, on the processor.
pub fn screening(cohort: &str, tables: &str, more: &[&str]) -> Command {
    let mut command = command(&["run", "pipelines/demo.toml", "--cohort", cohort, "--tables", tables]);
    command.args(["--device", "cpu"]).args(more);
    command
}

/// Screens a cohort as [`screening`] says.
pub fn screen(cohort: &str, tables: &str, more: &[&str]) -> Output {
    screening(cohort, tables, more).output().unwrap()
}

/// The arguments of a run without networks that commits every scan.
pub const fn quick_run<'a>(cohort: &'a str, tables: &'a str) -> [&'a str; 11] {
    [
        "run",
        "pipelines/demo.toml",
        "--cohort",
        cohort,
        "--tables",
        tables,
        "--device",
        "cpu",
        "--set",
        "score.method=threshold",
        "--set=tables.commit_scans=1",
    ]
}

/// The rows of a query of tables.
pub fn rows(tables: &str, sql: &str) -> Vec<Value> {
    serde_json::from_str(&ok(&["sql", "--tables", tables, "--format", "json", "-c", sql])).unwrap()
}

/// The number in the column `n` of a query of tables that gives one row.
pub fn number(tables: &str, sql: &str) -> u64 {
    rows(tables, sql)[0]["n"].as_u64().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both outputs of a program that ended.
pub fn printed(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// The peak memory of a running process, in MiB; 0 where it has ended.
pub fn peak_memory_mib(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<usize>().ok()).unwrap_or(0) / 1024
}

/// Runs a program to its end; also gives its peak memory, in MiB.
pub fn with_peak_memory(mut command: Command) -> (ExitStatus, usize) {
    let mut child = command.spawn().unwrap();
    let mut peak_mib = 0;
    loop {
        peak_mib = peak_mib.max(peak_memory_mib(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            return (status, peak_mib);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The Python of the tests; prints a line where there is none.
pub fn python() -> Option<OsString> {
    let python = std::env::var_os("NEUROSIEVE_PYTHON");
    if python.is_none() {
        println!("skipped: NEUROSIEVE_PYTHON is not set (make test sets it)");
    }
    python
}
