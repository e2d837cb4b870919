//! Tables that cannot be read: one message with the next step, and nothing of the libraries' own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::support::program::{WITHOUT_NETWORKS, command, screening, text};
use super::support::shared::{copy, head, path, sharded};

/// The newest commit of a table.
fn last_commit(tables: &Path, table: &str) -> PathBuf {
    let log = tables.join(table).join("_delta_log");
    let entries = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "json")).max().unwrap()
}

fn cut(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len().min(40)]).unwrap();
}

fn data_files(tables: &Path, table: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(tables.join(table)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

/// The program with `RUST_BACKTRACE=1`.
fn asked(arguments: &[&str]) -> Output {
    command(arguments).env_remove("NEUROSIEVE_LOG").env("RUST_BACKTRACE", "1").output().unwrap()
}

/// The one line that a command prints.
fn one_error(case: &str, output: &Output) -> String {
    let said = text(&output.stderr);
    assert!([Some(1), Some(2)].contains(&output.status.code()), "{case}: {:?} {said}", output.status);
    // That of a run is a line of the log.
    let begins = said.starts_with("error: ") || said.split_whitespace().nth(1) == Some("ERROR");
    assert!(said.lines().count() == 1 && begins, "{case}: {said}");
    said
}

type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGES: [Damage; 17] = [
    ("cut commit", |t| cut(&last_commit(t, "scans")), "restore"),
    ("cut first commit", |t| cut(&t.join("scans/_delta_log/00000000000000000000.json")), "restore"),
    ("empty commit", |t| fs::write(last_commit(t, "scans"), "").unwrap(), "restore"),
    ("commit of noise", |t| fs::write(last_commit(t, "scans"), [0xfe_u8, 7, 0, 200].repeat(90)).unwrap(), "restore"),
    ("a page of a portal", |t| fs::write(last_commit(t, "scans"), "<html>log in</html>").unwrap(), "restore"),
    ("another JSON", |t| fs::write(last_commit(t, "scans"), "[1, 2]\n17\n").unwrap(), "restore"),
    (
        "missing first commit",
        |t| fs::remove_file(t.join("scans/_delta_log/00000000000000000000.json")).unwrap(),
        "restore",
    ),
    ("missing middle", |t| fs::remove_file(t.join("runs/_delta_log/00000000000000000001.json")).unwrap(), "restore"),
    (
        "cut in every table",
        |t| ["scans", "runs", "masks", "tokens"].map(|n| cut(&last_commit(t, n))).iter().for_each(drop),
        "restore",
    ),
    (
        "no checkpoint",
        |t| {
            let hint = "{\"version\":1,\"size\":3}";
            fs::write(t.join("scans/_delta_log/_last_checkpoint"), hint).unwrap();
        },
        "restore",
    ),
    (
        "damaged checkpoint",
        |t| {
            fs::write(t.join("scans/_delta_log/00000000000000000001.checkpoint.parquet"), [9; 400]).unwrap();
        },
        "restore",
    ),
    ("no data file", |t| data_files(t, "scans").iter().for_each(|f| fs::remove_file(f).unwrap()), "restore"),
    ("cut data file", |t| data_files(t, "scans").iter().for_each(|f| cut(f)), "restore"),
    ("empty data file", |t| data_files(t, "scans").iter().for_each(|f| fs::write(f, "").unwrap()), "restore"),
    (
        "data file of noise",
        |t| {
            data_files(t, "scans")
                .iter()
                .for_each(|f| fs::write(f, vec![7; f.metadata().unwrap().len() as usize]).unwrap());
        },
        "restore",
    ),
    (
        "a table of the future",
        |t| {
            let first = t.join("scans/_delta_log/00000000000000000000.json");
            let commit = fs::read_to_string(&first).unwrap();
            let later = commit.replace("\"minReaderVersion\":1", "\"minReaderVersion\":99");
            assert_ne!(later, commit);
            fs::write(first, later).unwrap();
        },
        "another program",
    ),
    ("no table", |t| fs::remove_dir_all(t.join("scans")).unwrap(), "screen a cohort"),
];

#[test]
fn a_table_that_cannot_be_read_gives_one_message_with_the_next_step() {
    for (case, damage, advice) in DAMAGES {
        let folder = tempfile::tempdir().unwrap();
        let tables = copy(sharded(), &folder.path().join("tables"));
        damage(Path::new(&tables));
        // What a thread of the library says depends on when the program ends.
        for _ in 0..2 {
            let said = one_error(case, &asked(&["sql", "--tables", &tables, "-c", "SELECT count(snr) FROM scans"]));
            assert!(said.contains(advice), "{case}: no `{advice}` in {said}");
        }
    }
}

#[test]
fn every_command_says_once_that_a_log_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let tables = copy(sharded(), &folder.path().join("tables"));
    cut(&last_commit(Path::new(&tables), "scans"));
    let to = folder.path().join("out");
    for arguments in [
        vec!["failures", "--tables", &tables],
        vec!["export", "--tables", &tables, "--to", path(&to)],
        vec!["tables", "history", "--tables", &tables],
        vec!["tables", "optimize", "--tables", &tables],
        vec!["tables", "vacuum", "--tables", &tables],
        vec!["tables", "export", "--tables", &tables, "--to", path(&to)],
        vec!["sql", "--tables", &tables],
    ] {
        assert!(one_error(&format!("{arguments:?}"), &asked(&arguments)).contains("restore"));
    }
    assert!(!to.exists(), "nothing is written");
    let mut run = screening(path(head()), &tables, &WITHOUT_NETWORKS);
    let output = run.env("RUST_BACKTRACE", "1").output().unwrap();
    assert!(one_error("run", &output).contains("restore"));
}

#[test]
fn the_log_of_the_libraries_is_printed_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let tables = copy(sharded(), &folder.path().join("tables"));
    cut(&last_commit(Path::new(&tables), "scans"));
    let mut sql = command(&["sql", "--tables", &tables, "-c", "SELECT 1"]);
    let said = text(&sql.env("NEUROSIEVE_LOG", "error").output().unwrap().stderr);
    assert!(said.contains("buoyant_kernel") && !said.contains("panicked"), "{said}");
}
