//! The shell of `neurosieve sql`, as a pipe sees it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Output, Stdio};

use super::support::program::{command, ok, text};
use super::support::results::{DAY_ONE, MINUTE, commit, finished, open};
use super::support::shared::{path, sharded};

fn shell(options: &[&str], input: &str) -> Output {
    let mut shell = command(&[&["sql", "--tables", sharded()], options].concat());
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    shell.wait_with_output().unwrap()
}

/// What a shell prints that must succeed.
fn printed(options: &[&str], input: &str) -> String {
    let output = shell(options, input);
    assert!(output.status.success(), "{input}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn statements_and_commands_are_run_and_an_error_gives_exit_code_1_at_the_end() {
    let input = "SELECT 40 +\n  2 AS answer;\n\\d\nSELECT nonsense;\n\\nothing\n\\pset format csv\n\
                 SELECT scan_id FROM scans ORDER BY scan_id;\n\\q\nSELECT 'after the end';\n";
    let output = shell(&[], input);
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}{errors}");
    for words in ["| answer |", "| 42     |", "1 row(s) fetched", "findings", "\nscan_id\nstudy/sub-synth001_T1w\n"] {
        assert!(said.contains(words), "no `{words}` in\n{said}");
    }
    assert!(errors.contains("nonsense") && errors.contains("`\\nothing` is not a command"), "{errors}");
    assert!(!said.contains("after the end"), "\\q ends the shell: {said}");
    for wrong in ["SELEC 1;", "\\nothing\n", "\\i no-such-file.sql\n", "DROP TABLE scans"] {
        assert_eq!(shell(&[], wrong).status.code(), Some(1), "{wrong}");
    }
}

#[test]
fn the_last_statement_needs_no_semicolon() {
    assert!(printed(&[], "SELECT count(*) AS n_runs FROM runs").contains("| n_runs |"));
}

#[test]
fn a_pipe_gets_results_only_and_in_other_formats_what_the_option_gives() {
    assert_eq!(printed(&[], ""), "");
    assert!(printed(&[], "SELECT 1 AS n;").starts_with("+---+\n| n |\n"));
    let statement = "SELECT scan_id, native_shape, session FROM scans ORDER BY scan_id";
    for format in ["csv", "tsv", "json", "nd-json"] {
        let expected = ok(&["sql", "--tables", sharded(), "--format", format, "-c", statement]);
        assert_eq!(printed(&["--format", format], statement), expected);
        assert_eq!(printed(&[], &format!("\\pset format {format}\n{statement};\n")), expected);
    }
    let rows = printed(&["--format", "table"], "\\quiet on\nSELECT * FROM generate_series(1, 150);");
    assert_eq!(rows.lines().count(), 150 + 4, "a pipe gets all rows");
}

#[test]
fn tables_are_listed_without_those_of_the_catalogue_and_without_absent_ones() {
    let listed = printed(&["--format", "csv"], "CREATE VIEW mine AS SELECT 1 AS a;\n\\d\n");
    assert!(listed.starts_with("schema,name,type,comment\npublic,drift,view,"), "{listed}");
    for line in [
        "public,failures,view,",
        "public,mine,view,",
        "public,masks,view,the masks of the scans in scans",
        "raw,runs,base table,",
    ] {
        assert!(listed.lines().any(|l| l.starts_with(line)), "no `{line}` in {listed}");
    }
    assert!(!listed.contains("information_schema") && !listed.contains("evaluations,"), "{listed}");
}

#[test]
fn descriptions_have_units_and_comments() {
    let volume = "brain_volume_ml,Float32,NO,ml,volume of the brain mask in native space\n";
    for input in ["\\d scans\n", "\\d raw.scans\n", "DESCRIBE scans;", "desc public.scans"] {
        let columns = printed(&["--format", "csv"], input);
        assert!(columns.starts_with("column_name,data_type,is_nullable,unit,comment\nrun_id,Utf8,NO,,"), "{columns}");
        assert!(columns.contains(volume), "{input}: {columns}");
    }
    let described = ok(&["sql", "--tables", sharded(), "--format", "csv", "-c", "DESCRIBE longitudinal"]);
    assert!(described.contains("brain_volume_ml_per_year,Float64,YES,ml/year,change"), "{described}");
    // A table of rows has what the view shows above it.
    let shows = "masks: the masks of the scans in scans\n+---";
    assert!(printed(&[], "\\d masks\n").starts_with(shows));
    assert!(ok(&["sql", "--tables", sharded(), "-c", "describe masks"]).starts_with(shows));
    // Views of one's own have no comments, not even under the name of a table elsewhere.
    let own = printed(&["--format", "csv"], "CREATE VIEW mine AS SELECT 1 AS snr;\n\\d mine\n");
    assert_eq!(own, "column_name,data_type,is_nullable,unit,comment\nsnr,Int64,NO,,\n");
    assert_eq!(shell(&[], "\\d nothing\n").status.code(), Some(1));
}

#[test]
fn functions_are_listed() {
    let ours = printed(&[], "\\df\n");
    for syntax in ["mask_dice(a, b)", "mask_ml_native(mask, spacing, registration)", "region_at(x, y, z)"] {
        assert!(ours.lines().any(|line| line.starts_with(syntax)), "no `{syntax}` in {ours}");
    }
    assert!(printed(&["--format", "csv"], "\\df Approx_Med\n").contains("approx_median,"));
    assert!(printed(&["--format", "csv"], "\\df mask_d\n").contains("Dice coefficient of two masks"));
}

#[test]
fn rows_are_shown_as_records() {
    let records = printed(
        &[],
        "\\quiet on\n\\x\nSELECT 1 AS a, 'two\nlines' AS long_name UNION ALL SELECT 2, NULL ORDER BY a;\n",
    );
    let expected = "-[ record 1 ]\na         | 1\nlong_name | two\n          | lines\n\
                    -[ record 2 ]\na         | 2\nlong_name | \n";
    assert_eq!(records, expected);
    assert!(printed(&[], "\\x on\n\\x off\nSELECT 1 AS a;").contains("| a |"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_statement_reads_the_newest_snapshot_also_through_views_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r1", vec![finished("r1", "sub-01", DAY_ONE, 0.1)]).await;

    let mut shell = command(&["sql", "--tables", path(folder.path()), "--format", "csv"]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
    let mut ask = |statement: &str| {
        input.write_all(statement.as_bytes()).unwrap();
        let mut lines = [String::new(), String::new()];
        for line in &mut lines {
            output.read_line(line).unwrap();
        }
        lines[1].trim().to_owned()
    };
    assert_eq!(ask("CREATE VIEW mine AS SELECT scan_id FROM scans; SELECT count(*) AS n FROM mine;\n"), "1");
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r2", vec![finished("r2", "sub-02", DAY_ONE + MINUTE, 0.2)]).await;
    assert_eq!(ask("SELECT count(*) AS n FROM scans;\n"), "2");
    assert_eq!(ask("SELECT count(*) AS n FROM mine;\n"), "2");
    drop(input);
    assert!(shell.wait().unwrap().success());
}
