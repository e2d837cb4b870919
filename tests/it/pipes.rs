//! Readers that close the pipe, as `… | head -1` does, and outputs that are full.

use std::fs::{self, File};
use std::io::pipe;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::support::cohorts::scan;
use super::support::program::{WITHOUT_NETWORKS, command, number, screening, text};
use super::support::shared::{head, path, sharded, study};

/// Runs a command whose standard output nobody reads: every byte meets a closed pipe. Gives its standard error.
fn unread(mut command: Command) -> Output {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap()
}

fn quiet(arguments: &[&str]) {
    let output = unread(command(arguments));
    assert!(output.status.success(), "{arguments:?}: {:?} {}", output.status, text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>());
    entries.unwrap_or_default().iter().map(|path| if path.is_dir() { files(path) } else { 1 }).sum()
}

#[test]
fn inspect_writes_its_files_where_nobody_reads_the_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (png, steps) = (folder.path().join("p.png"), folder.path().join("steps"));
    let scan = head().join(scan(1));
    for json in [false, true] {
        let mut arguments = vec!["inspect", path(&scan), "--png", path(&png), "--nifti", path(&steps)];
        arguments.extend(json.then_some("--json"));
        quiet(&arguments);
        assert!(png.metadata().unwrap().len() > 1000);
        assert_eq!(files(&steps), 7);
        fs::remove_file(&png).unwrap();
        fs::remove_dir_all(&steps).unwrap();
    }
}

#[test]
fn every_command_that_prints_ends_quietly_where_nobody_reads() {
    let tables = sharded();
    let cohort = path(study());
    quiet(&["cohort", cohort]);
    quiet(&["cohort", cohort, "--json"]);
    quiet(&["doctor", "--device", "cpu"]);
    quiet(&["--help"]);
    quiet(&["tables", "describe"]);
    quiet(&["tables", "history", "--tables", tables]);
    quiet(&["tables", "vacuum", "--tables", tables, "--dry-run"]);
    for format in ["table", "csv", "tsv", "json", "nd-json"] {
        quiet(&["sql", "--tables", tables, "--format", format, "-c", "SELECT * FROM tokens"]);
        quiet(&["failures", "--tables", tables, "--format", format]);
    }
}

#[test]
fn a_shell_ends_quietly_where_nobody_reads() {
    for format in ["table", "csv", "nd-json"] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("input.sql");
        fs::write(&input, "SELECT * FROM scans;\nSELECT 1;\n").unwrap();
        let mut shell = command(&["sql", "--tables", sharded(), "--format", format]);
        let output = shell.stdin(File::open(&input).unwrap()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        assert!(output.status.success(), "{:?}", output.status);
        assert_eq!(text(&output.stderr), "", "{format}");
    }
}

#[test]
fn files_are_written_where_nobody_reads_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| folder.path().join(name);
    quiet(&["export", "--tables", sharded(), "--to", path(&of("masks"))]);
    assert_eq!(files(&of("masks")), 1 + 3 * 3, "a description, and three files of three scans");
    quiet(&["tables", "export", "--tables", sharded(), "--to", path(&of("plain"))]);
    assert!(of("plain/scans.parquet").exists() && of("plain/runs.parquet").exists());
    quiet(&["synth", path(&of("cohort")), "--subjects", "1", "--spacing", "4"]);
    assert!(of("cohort/participants.tsv").exists());
}

#[test]
fn a_run_commits_every_scan_where_nobody_reads_results_or_remarks() {
    let folder = tempfile::tempdir().unwrap();
    let (tables, report) = (folder.path().join("tables"), folder.path().join("report.json"));
    let mut run = screening(path(head()), path(&tables), &WITHOUT_NETWORKS);
    run.args(["--explain", "--report", path(&report)]).env("NEUROSIEVE_LOG", "debug");
    let (reader, errors) = pipe().unwrap();
    drop(reader);
    let (reader, results) = pipe().unwrap();
    drop(reader);
    let status = run.stdout(results).stderr(errors).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(report.exists());
    assert_eq!(number(path(&tables), "SELECT count(*) AS n FROM scans"), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_the_output_is_an_error_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = path(study());
    let out = folder.path().join("plain");
    for arguments in [
        vec!["tables", "describe"],
        vec!["cohort", cohort],
        vec!["sql", "--tables", sharded(), "-c", "SELECT 1"],
        vec!["tables", "export", "--tables", sharded(), "--to", path(&out)],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command(&arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("standard output") || said.contains("cannot write the rows"), "{said}");
        assert!(said.contains("No space left") && !said.contains("panicked"), "{said}");
    }
    assert!(out.join("scans.parquet").exists());
}

/// Runs the program with its outputs led elsewhere by a shell.
#[cfg(target_os = "linux")]
fn led_elsewhere(run: &Command, outputs: &str) -> Option<i32> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" \"$@\" {outputs}")]).arg(run.get_program()).args(run.get_args());
    shell.current_dir(run.get_current_dir().unwrap()).status().unwrap().code()
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_commits_every_scan_where_its_outputs_are_full_or_closed() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (outputs, code)) in
        [("2>/dev/full", 0), (">&-", 0), (">&- 2>&-", 0), (">/dev/full 2>/dev/full", 1)].into_iter().enumerate()
    {
        let (tables, report) = (folder.path().join(format!("tables-{n}")), folder.path().join(format!("{n}.json")));
        let run =
            screening(path(head()), path(&tables), &[&WITHOUT_NETWORKS[..], &["--report", path(&report)]].concat());
        assert_eq!(led_elsewhere(&run, outputs), Some(code), "{outputs}");
        assert_eq!(number(path(&tables), "SELECT count(*) AS n FROM scans"), 1, "{outputs}");
        assert!(fs::read_to_string(&report).unwrap().contains("\"outcome\": \"done\""), "{outputs}");
    }
}
