//! What SQL may do: it reads the tables. With --local-files it also reads files of others and writes new ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use super::support::program::{command, command_in, text};
use super::support::shared::{copy, path, sharded};

/// Statements that would write, read outside the tables, or hide them, with a word of the advice.
const REFUSED: [(&str, &str); 42] = [
    ("COPY scans TO 'x.csv'", "--output"),
    ("COPY (SELECT 1) TO 'x.csv' STORED AS CSV", "--local-files"),
    ("EXPLAIN COPY scans TO 'x.csv'", "queries"),
    ("EXPLAIN ANALYZE COPY scans TO 'x.csv'", "queries"),
    ("EXPLAIN ANALYZE VERBOSE COPY scans TO 'x.csv'", "queries"),
    ("CREATE EXTERNAL TABLE p STORED AS CSV LOCATION '/etc/passwd'", "--local-files"),
    ("create  external\ttable p (l text) stored as csv location '/etc/passwd'", "--local-files"),
    ("CREATE UNBOUNDED EXTERNAL TABLE p (l TEXT) STORED AS CSV LOCATION '/etc/passwd'", "--local-files"),
    ("SELECT * FROM '/etc/passwd'", "--local-files"),
    ("SELECT * FROM 'x.csv'", "--local-files"),
    ("SELECT * FROM read_parquet('x.parquet')", "--local-files"),
    ("SELECT count(*) FROM scans WHERE EXISTS (SELECT 1 FROM '/etc/passwd')", "--local-files"),
    ("INSERT INTO raw.scans SELECT * FROM raw.scans", "CREATE VIEW"),
    ("INSERT INTO scans SELECT * FROM scans", "CREATE VIEW"),
    ("INSERT OVERWRITE raw.scans SELECT * FROM raw.scans", "CREATE VIEW"),
    ("EXPLAIN INSERT INTO raw.scans SELECT * FROM raw.scans", "queries"),
    ("EXPLAIN ANALYZE INSERT INTO raw.scans SELECT * FROM raw.scans", "queries"),
    ("PREPARE p AS INSERT INTO raw.scans SELECT * FROM raw.scans", "queries"),
    ("PREPARE p AS DELETE FROM raw.scans", "queries"),
    ("UPDATE raw.scans SET snr = 0", "CREATE VIEW"),
    ("UPDATE scans SET snr = 0", "CREATE VIEW"),
    ("DELETE FROM raw.scans", "CREATE VIEW"),
    ("TRUNCATE TABLE raw.scans", "CREATE VIEW"),
    ("MERGE INTO raw.scans t USING scans s ON t.scan_id = s.scan_id WHEN MATCHED THEN DELETE", "CREATE VIEW"),
    ("ALTER TABLE raw.scans ADD COLUMN x INT", "CREATE VIEW"),
    ("DROP TABLE raw.scans", "own views"),
    ("DROP TABLE IF EXISTS raw.scans", "own views"),
    ("DROP VIEW scans", "choose another name"),
    ("DROP VIEW IF EXISTS \"neurosieve\".\"public\".\"scans\"", "choose another name"),
    ("DROP SCHEMA raw CASCADE", "own views"),
    ("CREATE TABLE t AS SELECT 1", "CREATE VIEW"),
    ("CREATE TABLE t (a INT)", "CREATE VIEW"),
    ("SELECT * INTO t FROM scans", "CREATE VIEW"),
    ("CREATE SCHEMA s", "CREATE VIEW"),
    ("CREATE DATABASE d", "CREATE VIEW"),
    ("CREATE FUNCTION f(INT) RETURNS INT RETURN $1", "CREATE VIEW"),
    ("CREATE VIEW scans AS SELECT 1", "choose another name"),
    ("CREATE OR REPLACE VIEW public.failures AS SELECT 1", "choose another name"),
    ("CREATE VIEW raw.v AS SELECT 1", "choose another name"),
    ("SET datafusion.catalog.default_schema = 'raw'; CREATE OR REPLACE VIEW masks AS SELECT 1", "choose another name"),
    ("SET datafusion.runtime.temp_directory = 'x'", "settings"),
    ("SET datafusion.catalog.location = '/etc'", "settings"),
];

/// Statements that only read.
const ALLOWED: [&str; 19] = [
    "SELECT count(*) FROM scans",
    "(SELECT 1) UNION ALL (SELECT 2)",
    "VALUES (1), (2)",
    "WITH a AS (SELECT * FROM scans) SELECT * FROM a WHERE snr > (SELECT avg(snr) FROM a)",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT * FROM n",
    "SELECT * FROM generate_series(1, 3)",
    "SELECT unnest(qc_flags) FROM raw.scans",
    "SELECT * FROM information_schema.tables",
    "EXPLAIN SELECT * FROM scans",
    "EXPLAIN ANALYZE SELECT count(*) FROM tokens",
    "SHOW TABLES",
    "SHOW COLUMNS FROM scans",
    "SHOW ALL",
    "DESCRIBE scans",
    "SET datafusion.execution.batch_size = 100; SET TIME ZONE = 'UTC'; SHOW datafusion.execution.batch_size",
    "CREATE VIEW v AS SELECT 1 AS a; CREATE OR REPLACE VIEW v AS SELECT 2 AS a; SELECT * FROM v; DROP VIEW v",
    "CREATE TEMPORARY VIEW v AS SELECT scan_id FROM scans; SELECT * FROM public.v",
    "PREPARE p(DOUBLE) AS SELECT scan_id FROM scans WHERE snr > $1; EXECUTE p(3.5); DEALLOCATE p",
    "CREATE VIEW \"Scans\" AS SELECT 1 AS a; SELECT * FROM \"Scans\"",
];

/// Every file below a folder, with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            all.extend(contents(&entry));
        } else if entry.is_file() {
            all.insert(entry.clone(), fs::read(&entry).unwrap());
        }
    }
    all
}

/// Tables of their own folder, and a folder beside them in which statements run.
struct Place {
    folder: tempfile::TempDir,
    tables: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tables = copy(sharded(), &folder.path().join("tables"));
        Self { folder, tables }
    }

    fn of(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sql(&self, options: &[&str], statements: &str) -> Output {
        let arguments = [&["sql", "--tables", &self.tables, "-c", statements], options].concat();
        command_in(self.folder.path(), &arguments).output().unwrap()
    }
}

#[test]
fn a_statement_that_writes_or_reads_elsewhere_is_refused_with_what_to_use_instead() {
    let place = Place::new();
    let before = contents(place.folder.path());
    for (statement, advice) in REFUSED {
        let output = place.sql(&["--format", "csv"], statement);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{statement}: {said}");
        assert!(said.contains(advice) && said.lines().count() == 1, "{statement}: no `{advice}` in {said}");
    }
    assert_eq!(contents(place.folder.path()), before, "nothing was written");
}

#[test]
fn statements_that_read_are_allowed() {
    let place = Place::new();
    for statement in ALLOWED {
        let output = place.sql(&[], statement);
        assert!(output.status.success(), "{statement}: {}", text(&output.stderr));
        assert!(!output.stdout.is_empty(), "{statement}");
    }
}

#[test]
fn the_shell_and_a_file_refuse_the_same_and_the_shell_reads_on() {
    let place = Place::new();
    let before = contents(Path::new(&place.tables));
    let all: String = REFUSED.iter().map(|(statement, _)| format!("{statement};\n")).collect();
    let mut shell = command(&["sql", "--tables", &place.tables]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let input = format!("{all}SELECT 'still here';\n");
    shell.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr).lines().count(), REFUSED.len(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("still here"));

    let file = place.of("write.sql");
    fs::write(&file, "SELECT 1;\nCOPY scans TO 'y.csv';\n").unwrap();
    let output = command(&["sql", "--tables", &place.tables, "-f", path(&file)]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert_eq!(contents(Path::new(&place.tables)), before);
}

#[test]
fn a_table_of_ones_own_is_joined_where_files_are_allowed() {
    let place = Place::new();
    fs::write(place.of("ages.csv"), "subject,age\nsynth001,61\n").unwrap();
    let statements = "CREATE EXTERNAL TABLE ages STORED AS CSV LOCATION 'ages.csv' OPTIONS ('has_header' 'true');
        SELECT s.subject, a.age FROM scans s JOIN ages a ON a.subject = s.subject; DROP TABLE ages";
    for option in ["--local-files", "--allow-files"] {
        let output = place.sql(&[option, "--format", "csv"], statements);
        assert_eq!(text(&output.stdout), "subject,age\nsynth001,61\n", "{}", text(&output.stderr));
    }
    std::os::unix::fs::symlink(&place.tables, place.of("link")).unwrap();
    for statement in [
        "CREATE EXTERNAL TABLE scans STORED AS CSV LOCATION 'ages.csv'",
        "DROP TABLE raw.scans",
        "DROP VIEW scans",
        "CREATE EXTERNAL TABLE t (a INT) STORED AS PARQUET LOCATION 'tables/scans/'; INSERT INTO t VALUES (1)",
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'tables/scans/'",
        "CREATE EXTERNAL TABLE t STORED AS JSON LOCATION 'link/scans/_delta_log/'",
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'tables/*/*.parquet'",
        "CREATE TABLE t AS SELECT 1",
    ] {
        let output = place.sql(&["--local-files"], statement);
        assert_eq!(output.status.code(), Some(2), "{statement}: {}", text(&output.stderr));
    }
}

#[test]
fn copy_writes_new_files_only_and_never_among_the_tables() {
    let place = Place::new();
    fs::write(place.of("mine.csv"), "mine").unwrap();
    fs::create_dir(place.of("full")).unwrap();
    fs::write(place.of("full/x"), "x").unwrap();
    std::os::unix::fs::symlink(&place.tables, place.of("link")).unwrap();
    std::os::unix::fs::symlink(place.of("tables/scans/new.parquet"), place.of("dangling.parquet")).unwrap();
    let committed = contents(&place.of("tables/scans"));
    let data_file = committed.keys().find(|file| file.extension().is_some_and(|e| e == "parquet")).unwrap();
    let before = contents(place.folder.path());
    let absolute = format!("file://{}/scans/y.csv", place.tables);
    for target in [
        path(data_file),
        "tables/x.csv",
        "tables/scans/new.parquet",
        "tables/scans/_delta_log/00000000000000000009.json",
        "link/scans/new.parquet",
        "full/../tables/x.csv",
        &absolute,
        "elsewhere/_delta_log/00000000000000000000.json",
        "mine.csv",
        "full/",
        "dangling.parquet",
        "tables/*.csv",
    ] {
        for explain in ["", "EXPLAIN ANALYZE "] {
            let statement = format!("{explain}COPY (SELECT 1 AS a) TO '{target}' STORED AS CSV");
            let output = place.sql(&["--local-files"], &statement);
            assert_eq!(output.status.code(), Some(2), "{statement}: {}", text(&output.stderr));
        }
    }
    assert_eq!(contents(place.folder.path()), before, "nothing was written");

    let output = place.sql(&["--local-files"], "COPY (SELECT 1 AS a) TO 'new.csv'");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(place.of("new.csv")).unwrap(), "a\n1\n");
    assert_eq!(place.sql(&["--local-files"], "COPY (SELECT 2 AS a) TO 'new.csv'").status.code(), Some(2));
    assert_eq!(fs::read_to_string(place.of("new.csv")).unwrap(), "a\n1\n");
}

#[test]
fn rows_are_not_written_over_the_tables_own_files() {
    let place = Place::new();
    let committed = contents(&place.of("tables"));
    let data_file = committed.keys().find(|file| file.extension().is_some_and(|e| e == "parquet")).unwrap();
    for output in [path(data_file), "tables/x.csv", "tables/scans/_delta_log/00000000000000000009.json"] {
        let refused = place.sql(&["--output", output], "SELECT 1");
        assert_eq!(refused.status.code(), Some(2), "{output}: {}", text(&refused.stderr));
    }
    assert_eq!(contents(&place.of("tables")), committed);
}
