//! SQL over the tables: the shipped queries give the figures that they promise, and rows are exported in every format.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use neurosieve::query::{self, Access, Format};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use super::support::program::{ok, program, text};
use super::support::results::{DAY_ONE, MINUTE, commit, failed, finished, open, run_row};
use super::support::root;
use super::support::shared::{path, sharded};

/// Three results with scores 0.3, 0.6 and 0.9, the first a repetition by a second run, which also answered one of two
/// failures.
async fn study(folder: &Path) -> SessionContext {
    let mut tables = open(folder).await;
    let first = vec![
        finished("r1", "sub-01", DAY_ONE, 0.1),
        finished("r1", "sub-02", DAY_ONE, 0.6),
        failed("r1", "sub-03", DAY_ONE, "storage", 1),
        failed("r1", "sub-04", DAY_ONE, "truncated", 1),
    ];
    commit(&mut tables, "r1", first).await;
    let second = vec![finished("r2", "sub-01", DAY_ONE + MINUTE, 0.3), finished("r2", "sub-03", DAY_ONE + MINUTE, 0.9)];
    // Opened again, as by a later run, which knows the earlier result.
    let mut tables = open(folder).await;
    commit(&mut tables, "r2", second).await;
    for run in ["r1", "r2"] {
        tables.end_run(&run_row(run, Some(DAY_ONE + 3 * MINUTE), 8)).await.unwrap();
    }
    query::session(&tables).await.unwrap()
}

fn shipped(name: &str) -> PathBuf {
    root().join("sql").join(name)
}

/// The rows of a shipped query: each a list of its values as text, in the order of `columns`.
async fn rows(context: &SessionContext, name: &str, columns: &[&str]) -> Vec<Vec<String>> {
    let sql = std::fs::read_to_string(shipped(name)).unwrap();
    let batches = context.sql(&sql).await.unwrap().collect().await.unwrap();
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(|i| texts(batch, i, columns))).collect()
}

fn texts(batch: &RecordBatch, row: usize, columns: &[&str]) -> Vec<String> {
    let options = FormatOptions::default();
    let text = |name: &&str| {
        let column = batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
        ArrayFormatter::try_new(column, &options).unwrap().value(row).to_string()
    };
    columns.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shipped_query_runs_and_begins_with_its_purpose() {
    let folder = tempfile::tempdir().unwrap();
    let context = study(folder.path()).await;
    let files: Vec<_> = std::fs::read_dir(shipped("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 14, "{files:?}");
    for path in files {
        let sql = std::fs::read_to_string(&path).unwrap();
        assert!(sql.starts_with("-- "), "{} has no comment", path.display());
        context.sql(&sql).await.unwrap().collect().await.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shipped_queries_give_the_expected_figures() {
    let folder = tempfile::tempdir().unwrap();
    let context = study(folder.path()).await;

    let columns =
        ["cohort", "scans", "subjects", "median_brain_ml", "scans_with_findings", "scans_flagged", "scans_failed"];
    let overview = rows(&context, "cohort_overview.sql", &columns).await;
    assert_eq!(overview, [["study", "3", "3", "1300.0", "3", "1", "1"]]);

    let most =
        rows(&context, "most_anomalous_scans.sql", &["scan_id", "anomaly_score", "largest_finding_ml", "qc_flags"]);
    let expected = [["sub-03", "0.9", "9.0", "motion"], ["sub-02", "0.6", "6.0", ""], ["sub-01", "0.3", "3.0", ""]];
    assert_eq!(most.await, expected);

    let regions = rows(&context, "findings_by_region.sql", &["region", "findings", "scans", "total_ml", "median_ml"]);
    assert_eq!(regions.await, [["right parietal lobe", "3", "3", "18.0", "6.0"]]);

    // A scan's four tokens have a quarter, a half, three quarters and all of its score.
    let bins = rows(&context, "token_score_distribution.sql", &["p_from", "tokens", "percent"]).await;
    assert_eq!(bins[..2], [["0.0", "1", "8.333"], ["0.1", "2", "16.667"]]);
    assert_eq!(bins[4..6], [["0.4", "2", "16.667"], ["0.6", "2", "16.667"]]);
    assert_eq!(bins.iter().map(|bin| bin[1].parse::<u32>().unwrap()).sum::<u32>(), 12);

    let reasons =
        rows(&context, "failures_by_reason.sql", &["stage", "kind", "permanent", "scans", "example_uri"]).await;
    assert_eq!(reasons, [["decode", "truncated", "true", "1", "sub-04.nii.gz"]]);

    let runs = rows(&context, "run_throughput.sql", &["run_id", "status", "minutes", "n_done", "percent_failed"]).await;
    assert_eq!(runs, ["r2", "r1"].map(|run| [run, "finished", "3.0", "8", "20.0"]));

    let flags = rows(&context, "qc_flags.sql", &["flag", "scans", "median_anomaly_score", "median_of_all_scans"]).await;
    assert_eq!(flags, [["motion", "1", "0.9", "0.6"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_exported_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let context = study(folder.path()).await;
    let out = |name: &str| folder.path().join(name);
    let sql = "SELECT scan_id, native_shape, session, n_tokens FROM scans ORDER BY scan_id";
    let export =
        async |format, path: &Path| query::execute(&context, Access::Tables, sql, format, Some(path)).await.unwrap();

    export(Format::Csv, &out("rows.csv")).await;
    let csv = std::fs::read_to_string(out("rows.csv")).unwrap();
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines[..2], ["scan_id,native_shape,session,n_tokens", "sub-01,\"[192, 256, 256]\",,4"]);
    assert_eq!(lines.len(), 4);

    export(Format::Json, &out("rows.json")).await;
    let rows: Value = serde_json::from_slice(&std::fs::read(out("rows.json")).unwrap()).unwrap();
    let first = json!({"scan_id": "sub-01", "native_shape": [192, 256, 256], "session": null, "n_tokens": 4});
    assert_eq!((&rows[0], rows.as_array().unwrap().len()), (&first, 3));

    export(Format::Parquet, &out("rows.parquet")).await;
    let file = std::fs::File::open(out("rows.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3);

    export(Format::Table, &out("rows.txt")).await;
    assert!(std::fs::read_to_string(out("rows.txt")).unwrap().contains("| sub-02  | [192, 256, 256] |"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_result_has_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let context = study(folder.path()).await;
    let path = folder.path().join("none.csv");
    let sql = "SELECT scan_id, finding FROM findings WHERE volume_ml > 1000";
    query::execute(&context, Access::Tables, sql, Format::Csv, Some(&path)).await.unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), "scan_id,finding\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_takes_the_rows_of_one_statement() {
    let folder = tempfile::tempdir().unwrap();
    let context = study(folder.path()).await;
    let path = folder.path().join("two.csv");
    let error =
        query::execute(&context, Access::Tables, "SELECT 1; SELECT 2", Format::Csv, Some(&path)).await.unwrap_err();
    assert!(error.to_string().contains("one statement, not of 2"));
    let error = query::execute(&context, Access::Tables, "SELECT 1", Format::Parquet, None).await.unwrap_err();
    assert!(error.to_string().contains("--output"));
}

#[test]
fn only_statements_that_give_rows_print_in_every_format() {
    let silent = "SET datafusion.execution.time_zone = '+02:00'; CREATE VIEW v AS SELECT 7 AS n, 'a,b' AS t; \
                  PREPARE p AS SELECT * FROM v; EXECUTE p; DEALLOCATE p; DROP VIEW v; RESET datafusion.execution.time_zone;";
    let printed = |format: &str, sql: &str| ok(&["sql", "--tables", sharded(), "--format", format, "-c", sql]);
    assert_eq!(printed("csv", silent), "n,t\n7,\"a,b\"\n");
    assert_eq!(printed("tsv", silent), "n\tt\n7\ta,b\n");
    assert_eq!(printed("json", silent), "[{\"n\":7,\"t\":\"a,b\"}]\n");
    assert_eq!(printed("nd-json", silent), "{\"n\":7,\"t\":\"a,b\"}\n");
    assert_eq!(printed("ndjson", silent), printed("nd-json", silent));
    assert_eq!(printed("table", silent).lines().count(), 5);
    for format in ["csv", "json", "table"] {
        assert_eq!(printed(format, "CREATE VIEW v AS SELECT 1"), "");
        assert_eq!(printed(format, ";; -- nothing"), "");
    }
    for (format, empty) in [("csv", "n\n"), ("tsv", "n\n"), ("json", "[]\n"), ("nd-json", "")] {
        assert_eq!(printed(format, "SELECT 1 AS n WHERE false"), empty);
    }
    assert_eq!(printed("csv", "SELECT 1 AS a; SELECT 2 AS b"), "a\n1\nb\n2\n");
}

#[test]
fn several_results_are_refused_as_json_before_any_is_printed() {
    let two = |more: &[&str]| program(&[&["sql", "--tables", sharded(), "--format", "json"], more].concat());
    for arguments in [&["-c", "SELECT 1; SELECT 2"][..], &["-c", "SELECT 1 -- one", "-c", "SHOW TABLES"]] {
        let output = two(arguments);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{said}");
        assert!(said.contains("nd-json") && said.contains("not of 2"), "{said}");
    }
}

#[test]
fn a_file_takes_the_one_result_among_statements_without_rows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.parquet");
    let sql = |statements: &str| {
        let options = ["sql", "--tables", sharded(), "--format", "parquet", "--output", path(&file), "-c", statements];
        program(&options)
    };
    let output = sql("CREATE VIEW v AS SELECT 1 AS n UNION SELECT 2; SELECT * FROM v");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&file).unwrap()).unwrap().build().unwrap();
    assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 2);
    assert!(text(&sql("SET datafusion.execution.time_zone = 'UTC'").stderr).contains("not of 0"));
}

#[test]
fn structs_and_maps_are_text_in_csv() {
    let sql = "SELECT {a: 1} AS s, map {'k': 2} AS m, [1, 2] AS l, X'ff' AS b";
    let csv = ok(&["sql", "--tables", sharded(), "--format", "csv", "-c", sql]);
    assert_eq!(csv, "s,m,l,b\n{a: 1},{k: 2},\"[1, 2]\",ff\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn analysts_cannot_write_to_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    let context = study(folder.path()).await;
    for sql in ["INSERT INTO raw.findings SELECT * FROM raw.findings", "DELETE FROM raw.scans"] {
        let outcome = async { context.sql(sql).await?.collect().await }.await;
        assert!(outcome.is_err(), "{sql}");
    }
    let names = context.sql("SHOW TABLES").await.unwrap().collect().await.unwrap();
    let listed = arrow::util::pretty::pretty_format_batches(&names).unwrap().to_string();
    assert!(listed.contains("| public ") && listed.contains("| raw "), "{listed}");
}
