//! `cohort.pseudonyms`: no output of the program names a person, and the same key finds every scan again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::support::cohorts::scan;
use super::support::program::{command, ok, printed, program, quick_run, rows, screening, text};
use super::support::shared::{head, path};

const KEY: &str = "a secret of these tests, long enough";

/// What nobody may see: labels of subjects and sessions, and words of paths.
const NAMES: [&str; 7] =
    ["annakarenina", "vronsky", "levin", "moscow1878", "oblonsky", "secret of these", "another secret"];

const TABLES: [&str; 7] = ["scans", "tokens", "masks", "findings", "failures", "runs", "reverts"];

/// Two good scans, a damaged one, an empty one, a link to nothing, and one of another contrast.
fn cohort(root: &Path) {
    let put = |uri: &str, content: Option<&str>| {
        let to = root.join(uri);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        match content {
            Some(content) => fs::write(to, content).unwrap(),
            None => drop(fs::copy(head().join(scan(1)), to).unwrap()),
        }
    };
    put("dataset_description.json", Some("{\"Name\": \"x\", \"BIDSVersion\": \"1.9.0\"}"));
    put("participants.tsv", Some("participant_id\tsite\nsub-annakarenina\tA\nsub-vronsky\tA\nsub-levin\tB\n"));
    put("sub-annakarenina/ses-moscow1878/anat/sub-annakarenina_ses-moscow1878_T1w.nii.gz", None);
    put("sub-vronsky/anat/sub-vronsky_T1w.nii.gz", None);
    put("sub-levin/anat/sub-levin_T1w.nii.gz", Some("no image, but a text"));
    put("sub-levin/anat/sub-levin_run-2_T1w.nii.gz", Some(""));
    put("sub-levin/anat/sub-levin_FLAIR.nii.gz", Some("x"));
    let absent = root.join("sub-vronsky/anat/sub-vronsky_run-2_T1w.nii.gz");
    std::os::unix::fs::symlink("../.git/annex/oblonsky.nii.gz", absent).unwrap();
}

struct Study {
    folder: tempfile::TempDir,
}

impl Study {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        cohort(&folder.path().join("study"));
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run under pseudonyms with this key that logs as much as it can.
    fn command(&self, key: &str, options: &[&str]) -> Command {
        self.command_at(["study", "tables"], key, options)
    }

    /// The same for a cohort and tables at these places.
    fn command_at(&self, places: [&str; 2], key: &str, options: &[&str]) -> Command {
        let [cohort, tables] = places.map(|place| self.at(place));
        let mut command = command(&quick_run(path(&cohort), path(&tables)));
        command.args(["--set", "cohort.pseudonyms=true"]).args(options);
        command.env("NEUROSIEVE_PSEUDONYM_KEY", key).env("NEUROSIEVE_LOG", "debug");
        command
    }

    fn run(&self, key: &str, options: &[&str]) -> Output {
        self.command(key, options).output().unwrap()
    }
}

/// Refuses a text that names anybody.
fn anonymous(what: &str, said: &str) {
    let lower = said.to_lowercase();
    for name in NAMES {
        let at = lower.find(name).map(|at| &said[at.saturating_sub(80)..(at + 80).min(said.len())]);
        assert_eq!(at, None, "{what} names {name}");
    }
}

/// Every file below a folder, by its bytes and its path.
fn anonymous_files(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        anonymous("a file's name", entry.file_name().unwrap().to_str().unwrap());
        match entry.is_dir() {
            true => anonymous_files(&entry),
            false => anonymous(path(&entry), &String::from_utf8_lossy(&fs::read(&entry).unwrap())),
        }
    }
}

#[test]
fn nothing_that_a_run_writes_or_prints_names_a_person() {
    let study = Study::new();
    let (tables, report) = (study.at("tables"), study.at("run.json"));
    let first = study.run(KEY, &["--report", path(&report), "--set", "model.any_contrast=true", "--explain"]);
    assert_eq!(first.status.code(), Some(3), "{}", printed(&first));
    assert!(text(&first.stdout).contains("2 scans done, 1 failed"), "{}", printed(&first));
    anonymous("the output", &printed(&first));
    assert!(printed(&first).contains("left out: 1 (absent"), "{}", printed(&first));
    anonymous("the report", &fs::read_to_string(&report).unwrap());
    // The bytes of compressed columns say nothing, the rows do.
    anonymous_files(&tables);
    for table in TABLES {
        let sql = format!("SELECT * FROM raw.{table}");
        anonymous(table, &ok(&["sql", "--tables", path(&tables), "--format", "json", "-c", &sql]));
    }
    anonymous("failures", &ok(&["failures", "--tables", path(&tables), "--scans"]));
    let ended = rows(path(&tables), "SELECT subject, session, uri, scan_id FROM scans ORDER BY session");
    assert_eq!(ended.len(), 2);
    let [subject, session] = ["subject", "session"].map(|column| ended[0][column].as_str().unwrap());
    assert!(ended[0]["uri"].as_str().unwrap().starts_with(&format!("sub-{subject}/ses-{session}/")), "{ended:?}");

    // An export has the names of the tables.
    let exported = study.at("exported");
    ok(&["export", "--tables", path(&tables), "--to", path(&exported)]);
    anonymous_files(&exported);
    assert!(exported.join(format!("sub-{subject}/ses-{session}")).is_dir());

    // The same key: nothing is screened twice, and a selection by real names finds its scan.
    let again = study.run(KEY, &[]);
    assert!(text(&again.stdout).contains("Nothing to do"), "{}", printed(&again));
    let one = study.run(
        KEY,
        &["--set", "cohort.select.subjects=[\"sub-annakarenina\"]", "--set=cohort.select.include=[\"sub-anna*/**\"]"],
    );
    assert!(text(&one.stderr).contains("1 scans selected") && one.status.success(), "{}", printed(&one));
    let site = study
        .run(KEY, &["--set", "cohort.select.participants.site=[\"A\"]", "--set=cohort.select.exclude=[\"*levin*\"]"]);
    assert!(text(&site.stderr).contains("2 scans selected") && site.status.success(), "{}", printed(&site));
    anonymous("runs", &ok(&["sql", "--tables", path(&tables), "--format", "json", "-c", "SELECT * FROM raw.runs"]));
    anonymous("the output", &(printed(&again) + &printed(&one) + &printed(&site)));
}

#[test]
fn errors_that_would_quote_names_do_not() {
    let study = Study::new();
    let report = study.at("run.json");
    let participants = study.at("study/participants.tsv");
    let report_to = ["--report", path(&report)];
    for (table, value, code) in [
        ("participant_id\tsite\nsub-levin\tA\nsub-levin\tB\n", "A", 2),
        ("participant_id\tsite\nsub-oblonsky\tA\n", "A", 2),
        ("participant_id\tsite\nsub-levin\tvronsky\n", "B", 2),
    ] {
        fs::write(&participants, table).unwrap();
        let site = format!("cohort.select.participants.site=[\"{value}\"]");
        let refused = study.run(KEY, &[&report_to[..], &["--set", &site]].concat());
        let said = printed(&refused);
        assert_eq!(refused.status.code(), Some(code), "{said}");
        assert!(said.contains("`neurosieve cohort`"), "{said}");
        anonymous("the error", &said);
        anonymous("the report", &fs::read_to_string(&report).unwrap());
    }
    let none = study.run(KEY, &["--set", "cohort.select.suffixes=[\"T2w\"]"]);
    assert_eq!(none.status.code(), Some(2), "{}", printed(&none));
    anonymous("the error", &printed(&none));
    let refused = study.command_at(["study/sub-levin", "tables"], KEY, &[]).output().unwrap();
    assert!(text(&refused.stderr).contains("names a subject"), "{}", printed(&refused));
}

#[test]
fn a_scan_gets_no_second_id_from_another_key_or_from_none() {
    let study = Study::new();
    assert_eq!(study.run(KEY, &[]).status.code(), Some(3));
    let refused = |output: Output, words: &str| {
        let said = printed(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
        anonymous("the error", &said);
    };
    let other = "another secret, also long enough";
    refused(study.run(other, &[]), "pseudonyms of another key");
    refused(study.run(other, &["--set", "cohort.moves=true"]), "pseudonyms of another key");
    refused(study.run(KEY, &["--set", "cohort.pseudonyms=false"]), "cohort.pseudonyms is not set");
    refused(study.run("", &[]), "NEUROSIEVE_PSEUDONYM_KEY is not set");
    refused(study.run("a secret of the", &[]), "NEUROSIEVE_PSEUDONYM_KEY is too short");
    // With consent both names stand there, and from then on the new one counts.
    assert_eq!(study.run(other, &["--set", "cohort.new_names=true"]).status.code(), Some(3));
    assert!(printed(&study.run(other, &[])).contains("Nothing to do"));
    refused(study.run(KEY, &[]), "pseudonyms of another key");

    let (cohort, clear) = (study.at("study"), study.at("clear"));
    let named = screening(path(&cohort), path(&clear), &["--set", "score.method=threshold"]).output().unwrap();
    assert_eq!(named.status.code(), Some(3));
    // Without the debug log, in which libraries print what they read of these tables.
    let mut hidden = study.command_at(["study", "clear"], KEY, &[]);
    refused(hidden.env_remove("NEUROSIEVE_LOG").output().unwrap(), "under their real names");
}

#[test]
fn who_has_the_key_and_the_cohort_gets_the_names_in_a_private_file() {
    let study = Study::new();
    assert_eq!(study.run(KEY, &[]).status.code(), Some(3));
    let (cohort, file) = (study.at("study"), study.at("names.tsv"));
    let write = |key: &str| {
        let mut command = command(&["cohort", path(&cohort), "--pseudonyms-to", path(&file)]);
        command.env("NEUROSIEVE_PSEUDONYM_KEY", key).output().unwrap()
    };
    assert!(text(&write("").stderr).contains("NEUROSIEVE_PSEUDONYM_KEY is not set") && !file.exists());
    let written = write(KEY);
    assert!(written.status.success(), "{}", printed(&written));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let mapping = fs::read_to_string(&file).unwrap();
    let uri = "sub-annakarenina/ses-moscow1878/anat/sub-annakarenina_ses-moscow1878_T1w.nii.gz";
    let line = mapping.lines().find(|line| line.ends_with(uri)).unwrap();
    let cells: Vec<&str> = line.split('\t').collect();
    assert_eq!(cells[3..6], ["study/sub-annakarenina_ses-moscow1878_T1w", "annakarenina", "moscow1878"]);
    let sql = format!("SELECT subject, session FROM scans WHERE scan_id = '{}'", cells[0]);
    let row = rows(path(&study.at("tables")), &sql);
    assert_eq!((row[0]["subject"].as_str(), row[0]["session"].as_str()), (Some(cells[1]), Some(cells[2])));
    // A file that is there is not replaced.
    assert!(text(&write(KEY).stderr).contains("give a new file"));
    assert_eq!(fs::read_to_string(&file).unwrap(), mapping);
    assert!(!text(&program(&["cohort", path(&cohort)]).stdout).contains(cells[1]), "only on request");
}

#[test]
fn metrics_and_progress_name_nobody() {
    let study = Study::new();
    let address = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let mut running = study.command(KEY, &["--metrics", &address]);
    // Not into a pipe, which would be full before the run ends.
    let log = study.at("log");
    running.stdout(fs::File::create(study.at("out")).unwrap()).stderr(fs::File::create(&log).unwrap());
    let mut running = running.spawn().unwrap();
    let mut seen = String::new();
    while running.try_wait().unwrap().is_none() {
        if let Ok(mut stream) = TcpStream::connect(&address) {
            let asked = write!(stream, "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
            if asked.is_ok() {
                let _ = stream.read_to_string(&mut seen);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = fs::read_to_string(study.at("out")).unwrap() + &fs::read_to_string(&log).unwrap();
    assert!(seen.contains("neurosieve_"), "{seen} {said}");
    anonymous("the metrics", &seen);
    anonymous("the output", &said);
}
