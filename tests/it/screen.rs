//! The main job, driven through the real program: a synthetic cohort to committed tables and back.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use neurosieve::volume::nifti;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

fn neurosieve(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neurosieve")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn ok(args: &[&str]) -> String {
    let output = neurosieve(args);
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub fn rows(tables: &str, sql: &str) -> Vec<Value> {
    serde_json::from_str(&ok(&["sql", "--tables", tables, "--format", "json", "-c", sql])).unwrap()
}

fn run(cohort: &str, tables: &str, more: &[&str]) -> Output {
    neurosieve(
        &[&["run", "pipelines/demo.toml", "--cohort", cohort, "--tables", tables, "--device", "cpu"], more].concat(),
    )
}

/// Reads a volume with the decoder that the golden tests compare with nibabel.
fn read(path: &Path) -> nifti::Decoded {
    nifti::decode(&std::fs::read(path).unwrap(), 1 << 30).unwrap()
}

#[test]
fn a_cohort_becomes_tables_and_only_what_is_new_is_screened() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cohort, tables) = (path("study"), path("tables"));
    ok(&["synth", &cohort, "--subjects", "4", "--lesions", "1", "--corrupt", "1"]);
    // The third scan arrives later.
    let late = folder.path().join("late");
    std::fs::rename(folder.path().join("study/sub-synth003"), &late).unwrap();

    let first = run(&cohort, &tables, &["--explain"]);
    let said = text(&first.stdout);
    assert_eq!(first.status.code(), Some(3), "done with failures: {said}{}", text(&first.stderr));
    assert!(said.contains("2 scans done, 1 failed"), "{said}");
    for word in ["ScreenExec", "WriteExec", "decode_time", "device_time", "preprocess_time", "scans_failed=1"] {
        assert!(said.contains(word), "EXPLAIN ANALYZE lacks {word}: {said}");
    }

    // Contract 1: every scan is one row in scans or in failures.
    let scans = rows(
        &tables,
        "SELECT scan_id, n_tokens, n_findings, brain_volume_ml, stripped_input FROM scans ORDER BY scan_id",
    );
    assert_eq!(scans.len(), 2);
    assert_eq!(scans[0]["scan_id"], "study/sub-synth001_T1w");
    for scan in &scans {
        assert_eq!(scan["stripped_input"], false);
        let volume = scan["brain_volume_ml"].as_f64().unwrap();
        assert!((900. ..2000.).contains(&volume), "{volume} ml");
        assert!(scan["n_tokens"].as_i64().unwrap() > 5000);
    }
    let failures = rows(&tables, "SELECT scan_id, stage, kind, permanent, attempts FROM failures");
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0]["scan_id"], "study/sub-synth004_T1w");
    assert_eq!((&failures[0]["stage"], &failures[0]["permanent"]), (&Value::from("decode"), &Value::from(true)));

    // The tables agree with each other.
    let counts = rows(
        &tables,
        "SELECT s.scan_id, s.n_tokens, s.n_findings, s.max_token_p, \
           (SELECT max(p_anomalous) FROM tokens t WHERE t.scan_id = s.scan_id) AS highest_p, \
           (SELECT count(*) FROM tokens t WHERE t.scan_id = s.scan_id) AS tokens, \
           (SELECT count(*) FROM findings f WHERE f.scan_id = s.scan_id) AS findings, \
           (SELECT count(*) FROM masks m WHERE m.scan_id = s.scan_id) AS masks FROM scans s",
    );
    for scan in &counts {
        assert_eq!(scan["n_tokens"], scan["tokens"]);
        assert_eq!(scan["n_findings"].as_i64(), Some(scan["findings"].as_i64().unwrap_or(0)));
        assert_eq!(scan["masks"], 1);
        assert_eq!(scan["max_token_p"], scan["highest_p"]);
    }
    // Tokens are the bulk of the tables: a row takes few bytes.
    let token_rows = rows(&tables, "SELECT count(*) AS n FROM raw.tokens")[0]["n"].as_u64().unwrap();
    let token_bytes: u64 = std::fs::read_dir(Path::new(&tables).join("tokens"))
        .unwrap()
        .map(|file| file.unwrap())
        .filter(|file| file.path().extension().is_some_and(|e| e == "parquet"))
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(token_rows > 10_000 && token_bytes <= 6 * token_rows, "{token_bytes} bytes for {token_rows} rows");
    let runs = rows(&tables, "SELECT status, n_done, n_failed, n_selected FROM runs");
    assert_eq!(runs.len(), 1);
    assert_eq!(
        (&runs[0]["status"], &runs[0]["n_done"], &runs[0]["n_failed"]),
        (&"finished".into(), &2.into(), &1.into())
    );

    // Again: nothing to do, the quarantined scan included.
    let again = run(&cohort, &tables, &[]);
    assert!(again.status.success() && text(&again.stdout).contains("Nothing to do"), "{}", text(&again.stdout));
    assert_eq!(rows(&tables, "SELECT 1 FROM raw.scans").len(), 2);

    // One more scan: only it is screened.
    std::fs::rename(&late, folder.path().join("study/sub-synth003")).unwrap();
    let more = run(&cohort, &tables, &[]);
    assert!(more.status.success() && text(&more.stdout).contains("1 scans done, 0 failed"), "{}", text(&more.stdout));
    assert_eq!(rows(&tables, "SELECT 1 FROM scans").len(), 3);

    every_shipped_query_runs(&tables);
    exports_fit_their_scans(&cohort, &tables, folder.path());
    other_readers_agree(&tables);
    the_same_numbers_twice(&cohort, &tables, folder.path());
}

fn every_shipped_query_runs(tables: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut files = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        ok(&["sql", "--tables", tables, "-f", &file.unwrap().path().display().to_string()]);
        files += 1;
    }
    assert!(files >= 6);
}

fn exports_fit_their_scans(cohort: &str, tables: &str, folder: &Path) {
    let to = folder.join("derivatives");
    ok(&["export", "--tables", tables, "--to", &to.display().to_string(), "--scan", "study/sub-synth001_T1w"]);
    let native = read(&Path::new(cohort).join("sub-synth001/anat/sub-synth001_T1w.nii.gz"));
    let stem = to.join("sub-synth001/anat/sub-synth001");
    let file = |kind: &str| format!("{}_desc-{kind}.nii.gz", stem.display());
    let brain = read(Path::new(&file("brain_mask")));
    let score = read(Path::new(&file("anomaly_score")));
    assert_eq!((brain.datatype.as_str(), score.datatype.as_str()), ("uint8", "float32"));
    assert_eq!(brain.volume.grid.shape, native.volume.grid.shape);
    for (row, expected) in score.volume.grid.affine.0.iter().zip(&native.volume.grid.affine.0) {
        assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3));
    }
    assert!(score.volume.data.iter().zip(&brain.volume.data).all(|(&s, &b)| b > 0. || s == 0.));
    // The brain mask comes back where the brain is: compared with the mask that the generator wrote.
    let truth =
        read(&Path::new(cohort).join("derivatives/truth/sub-synth001/anat/sub-synth001_label-brain_mask.nii.gz"));
    let overlap = brain.volume.data.iter().zip(&truth.volume.data).filter(|&(&a, &b)| a > 0. && b > 0.).count();
    let size = |v: &[f32]| v.iter().filter(|&&x| x > 0.).count();
    let dice = 2. * overlap as f64 / (size(&brain.volume.data) + size(&truth.volume.data)) as f64;
    assert!(dice > 0.85, "exported brain mask has Dice {dice:.3} with the generator's");
    let unknown =
        neurosieve(&["export", "--tables", tables, "--to", &to.display().to_string(), "--scan", "study/none"]);
    assert!(!unknown.status.success() && text(&unknown.stderr).contains("study/none"));
}

/// Row counts by the Python `deltalake` package and by DuckDB are ours.
fn other_readers_agree(tables: &str) {
    let Some(python) = std::env::var_os("NEUROSIEVE_PYTHON") else {
        println!("skipped: NEUROSIEVE_PYTHON is not set (make test sets it)");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/read_tables.py");
    let output = Command::new(python).arg(script).arg(tables).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let theirs: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    for table in ["scans", "tokens", "masks", "findings", "failures", "runs"] {
        let ours = &rows(tables, &format!("SELECT count(*) AS n FROM raw.{table}"))[0]["n"];
        assert_eq!((&theirs[table]["rows"], &theirs[table]["rows_duckdb"]), (ours, ours), "{table}");
    }
}

/// Contract 4: a scan screened again, in other company and with other threads, has the same rows.
fn the_same_numbers_twice(cohort: &str, tables: &str, folder: &Path) {
    let other = folder.join("again").display().to_string();
    let alone = ["--set", "cohort.select.subjects=[\"synth001\"]", "--set", "run.scans_in_flight=1"];
    let status = Command::new(env!("CARGO_BIN_EXE_neurosieve"))
        .args(["run", "pipelines/demo.toml", "--cohort", cohort, "--tables", &other, "--device", "cpu"])
        .args(alone)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // Sums that are cut up among threads would come out otherwise.
        .env("OMP_NUM_THREADS", "3")
        .status()
        .unwrap();
    assert!(status.success());
    let sql = "SELECT z, y, x, code, p_anomalous, nll, residual FROM tokens WHERE scan_id = 'study/sub-synth001_T1w' ORDER BY z, y, x";
    let (once, twice) = (rows(tables, sql), rows(&other, sql));
    assert!(!once.is_empty());
    assert!(once == twice, "tokens differ between two runs of one scan");
}

/// Quick: no network runs.
const NO_MODEL: [&str; 2] = ["--set", "score.method=threshold"];

#[test]
fn a_run_is_cut_up_limited_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cohort, tables) = (path("study"), path("tables"));
    ok(&["synth", &cohort, "--subjects", "6", "--lesions", "0", "--corrupt", "4"]);
    let screen = |tables: &str, more: &[&str]| run(&cohort, tables, &[&NO_MODEL, more].concat());

    // Given up: the first failure is one too many, and what ended is there.
    let report = path("report.json");
    let given_up =
        screen(&path("other"), &["--max-failures", "0", "--set", "run.scans_in_flight=1", "--report", &report]);
    assert_eq!(given_up.status.code(), Some(5), "{}{}", text(&given_up.stdout), text(&given_up.stderr));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert_eq!((&report["outcome"], &report["pending"]), (&"gave_up".into(), &6.into()));
    assert_eq!((&report["run"]["status"], &report["failed"]), (&"gave_up".into(), &1.into()));
    let ended = report["done"].as_u64().unwrap() + report["failed"].as_u64().unwrap();
    assert!(ended < 6, "{report}");
    let kept = "SELECT scan_id FROM scans UNION ALL SELECT scan_id FROM failures";
    assert_eq!(rows(&path("other"), kept).len() as u64, ended);

    // Two processes, each with its part, at the same time: every scan once.
    let shards = ["1/2", "2/2"].map(|shard| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
        let arguments = ["run", "pipelines/demo.toml", "--cohort", &cohort, "--tables", &tables, "--device", "cpu"];
        command.args(arguments).args(NO_MODEL).args(["--shard", shard]).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.spawn().unwrap()
    });
    for mut shard in shards {
        assert!([0, 3].contains(&shard.wait().unwrap().code().unwrap()));
    }
    let all = rows(&tables, "SELECT scan_id FROM raw.scans UNION ALL SELECT scan_id FROM raw.failures ORDER BY 1");
    let ids: Vec<&str> = all.iter().map(|row| row["scan_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6].map(|n| format!("study/sub-synth00{n}_T1w")));

    // Two processes on the whole cohort at the same time: one result of each scan, and both end well.
    let both = path("both");
    let runs = [1, 2].map(|_| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
        command.args(["run", "pipelines/demo.toml", "--cohort", &cohort, "--tables", &both, "--device", "cpu"]);
        command.args(NO_MODEL).args(["--set", "tables.commit_scans=1"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.spawn().unwrap()
    });
    for mut run in runs {
        assert!([0, 3].contains(&run.wait().unwrap().code().unwrap()));
    }
    let once = rows(&both, "SELECT scan_id, count(*) AS n FROM raw.scans GROUP BY 1");
    assert!(once.len() == 2 && once.iter().all(|scan| scan["n"] == 1), "{once:?}");

    // Why they failed, by reason and one by one; tried again only where that is asked for.
    assert!(ok(&["failures", "--tables", &tables]).contains("truncated"));
    let failures = |more: &[&str]| -> Vec<Value> {
        let said = ok(&[&["failures", "--tables", &tables, "--scans", "--format", "json"], more].concat());
        serde_json::from_str(&said).unwrap()
    };
    assert_eq!(failures(&["--stage", "decode"]).len(), 4);
    assert_eq!(failures(&["--kind", "it's no kind"]).len(), 0);
    assert!(text(&screen(&tables, &[]).stdout).contains("Nothing to do"));
    assert_eq!(screen(&tables, &["--retry"]).status.code(), Some(3));
    assert!(failures(&[]).iter().all(|failure| failure["attempts"] == 2), "{:?}", failures(&[]));

    maintenance_changes_no_answer(&tables);
}

/// Files are put together and left ones deleted; queries answer as before.
fn maintenance_changes_no_answer(tables: &str) {
    let answers = || {
        let tokens =
            "SELECT scan_id, region, count(*) AS n, sum(p_anomalous) AS p FROM tokens GROUP BY 1, 2 ORDER BY 1, 2";
        (rows(tables, tokens), rows(tables, "SELECT scan_id, anomaly_score FROM scans ORDER BY 1"))
    };
    let files = |table: &str| {
        let listed = std::fs::read_dir(Path::new(tables).join(table)).unwrap();
        listed.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "parquet")).count()
    };
    let (before, many) = (answers(), files("scans"));
    assert!(many > 1 && !before.0.is_empty());
    let said = ok(&["tables", "optimize", "--tables", tables]);
    assert!(said.contains(&format!("scans: {many} files became 1")), "{said}");
    let close = |a: &Value, b: &Value| (a["p"].as_f64().unwrap() - b["p"].as_f64().unwrap()).abs() < 1e-3;
    let after = answers();
    assert_eq!(after.1, before.1);
    assert!(
        after.0.len() == before.0.len() && after.0.iter().zip(&before.0).all(|(a, b)| a["n"] == b["n"] && close(a, b))
    );
    assert!(ok(&["tables", "history", "--tables", tables, "--table", "tokens"]).contains("OPTIMIZE"));

    // As plain files, for readers that know no log.
    let plain = format!("{tables}-plain");
    ok(&["tables", "export", "--tables", tables, "--to", &plain]);
    let exported = std::fs::File::open(Path::new(&plain).join("tokens.parquet")).unwrap();
    let exported = ParquetRecordBatchReaderBuilder::try_new(exported).unwrap().metadata().file_metadata().num_rows();
    assert_eq!(rows(tables, "SELECT count(*) AS n FROM tokens")[0]["n"], exported);
    ok(&["tables", "export", "--tables", tables, "--to", &plain, "--table", "failures", "--format", "csv"]);
    let failures = std::fs::read_to_string(Path::new(&plain).join("failures.csv")).unwrap();
    assert!(failures.starts_with("run_id,scan_id,") && failures.contains("truncated"), "{failures}");

    // What the optimizing left is young: nothing is deleted yet, and less than a day is refused.
    let vacuum =
        |more: &[&str]| neurosieve(&[&["tables", "vacuum", "--tables", tables, "--table", "scans"], more].concat());
    assert!(text(&vacuum(&[]).stdout).contains("scans: 0 files deleted"));
    assert_eq!(vacuum(&["--keep-days", "0"]).status.code(), Some(2));
    assert_eq!(files("scans"), many + 1);
    // A file that a killed run left behind, ten days ago.
    let orphan = Path::new(tables).join("scans/part-orphan.zstd.parquet");
    std::fs::write(&orphan, "left").unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10 * 24 * 3600);
    std::fs::File::options().write(true).open(&orphan).unwrap().set_modified(old).unwrap();
    assert!(text(&vacuum(&["--dry-run"]).stdout).contains("part-orphan"));
    assert!(orphan.exists());
    assert!(text(&vacuum(&[]).stdout).contains("scans: 1 files deleted"));
    assert!(!orphan.exists());
    assert_eq!(answers().1, before.1);
}

/// Runs a program to its end; also gives the most memory that it held, in MiB.
pub fn with_peak(mut command: Command) -> (std::process::ExitStatus, usize) {
    let mut child = command.spawn().unwrap();
    let mut peak_mib = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<usize>().ok());
        peak_mib = peak_mib.max(now.unwrap_or(0) / 1024);
        if let Some(status) = child.try_wait().unwrap() {
            return (status, peak_mib);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Contract 5, on volumes of 1 mm.
#[test]
fn memory_stays_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    ok(&["synth", &path("study"), "--subjects", "6", "--lesions", "0", "--spacing", "1"]);
    let cores = std::thread::available_parallelism().unwrap().get();
    // Room for two such scans at a time, whatever the number of cores.
    let budget_mib = 384 + 96 * cores + 600;
    let budget = format!("run.memory_mib={budget_mib}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
    let (study, tables) = (path("study"), path("tables"));
    command.args(["run", "pipelines/demo.toml", "--cohort", &study, "--tables", &tables, "--device", "cpu"]);
    command.args(["--set", "run.scans_in_flight=6", "--set", &budget]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let (status, peak_mib) = with_peak(command);
    assert!(status.success());
    println!("peak {peak_mib} MiB of {budget_mib}");
    assert!(peak_mib > 100 && peak_mib as f64 <= 1.15 * budget_mib as f64, "{peak_mib} MiB, budget {budget_mib} MiB");
    let little = neurosieve(&[
        "run",
        "pipelines/demo.toml",
        "--cohort",
        &path("study"),
        "--tables",
        &path("none"),
        "--device",
        "cpu",
        "--set",
        "run.memory_mib=100",
    ]);
    assert_eq!(little.status.code(), Some(2));
    assert!(text(&little.stderr).contains("run.memory_mib") && !Path::new(&path("none")).exists());
}

#[test]
fn wrong_settings_are_told_before_anything_is_done() {
    let said = |args: &[&str]| {
        let output = neurosieve(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let typo = said(&["run", "pipelines/demo.toml", "--cohort", ".", "--tables", "x", "--set", "score.stepz=3"]);
    assert!(typo.contains("did you mean `steps`"), "{typo}");
    assert!(said(&["run", "pipelines/demo.toml", "--cohort", "."]).contains("--tables"));
    assert!(said(&["run", "pipelines/none.toml"]).contains("pipelines/"));
    assert!(
        said(&["run", "pipelines/demo.toml", "--cohort", ".", "--tables", "x", "--device", "gpu"]).contains("cuda")
    );
}

/// The real program as a schedule; what it says on both outputs, line by line.
struct Scheduled {
    process: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
    /// Not asked for yet: the two outputs come in any order.
    heard: Vec<String>,
}

impl Scheduled {
    fn start(cohort: &str, tables: &str, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
        command.args(["schedule", "pipelines/nightly.toml", "--cohort", cohort, "--tables", tables]);
        command.args(["--set", "run.device=\"cpu\"", "--set", "schedule.run=\"0 0 1 1 *\""]).args(NO_MODEL).args(more);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (said, lines) = std::sync::mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
        for output in outputs {
            let said = said.clone();
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|l| said.send(l))
            });
        }
        Self { process, lines, heard: Vec::new() }
    }

    /// Waits for a line with these words.
    fn says(&mut self, words: &str) -> String {
        loop {
            if let Some(at) = self.heard.iter().position(|line| line.contains(words)) {
                return self.heard.remove(at);
            }
            match self.lines.recv_timeout(std::time::Duration::from_secs(120)) {
                Ok(line) => self.heard.push(line),
                Err(error) => panic!("{error} while waiting for `{words}`: {:#?}", self.heard),
            }
        }
    }

    fn stopped(mut self) -> Option<i32> {
        assert!(Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap().success());
        self.process.wait().unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_screens_what_is_new_and_one_works_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cohort, tables) = (path("study"), path("tables"));
    ok(&["synth", &cohort, "--subjects", "3", "--lesions", "0", "--spacing", "4"]);
    let late = folder.path().join("late");
    std::fs::rename(folder.path().join("study/sub-synth003"), &late).unwrap();

    // At once, then not before new year; a monitor reads what was done.
    let mut first =
        Scheduled::start(&cohort, &tables, &["--now", "--metrics", "127.0.0.1:0", "--set", "tables.commit_scans=1"]);
    let address = first.says("metrics at").split_once("http://").unwrap().1.to_owned();
    first.says("2 scans done, 0 failed");
    first.says("next ");
    let mut stream = std::net::TcpStream::connect(address.trim_end_matches("/metrics")).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    assert!(metrics.contains("neurosieve_stage_scans_total{place=\"commit\"} 2"), "{metrics}");
    assert_eq!(first.stopped(), Some(0));

    // A scan arrives: the next time that comes takes it, the one after has nothing to do.
    std::fs::rename(&late, folder.path().join("study/sub-synth003")).unwrap();
    let mut second = Scheduled::start(&cohort, &tables, &["--set", "schedule.run=\"* * * * * *\""]);
    second.says("1 scans done, 0 failed");
    second.says("Nothing to do");
    assert!([Some(0), Some(4)].contains(&second.stopped()));
    assert_eq!(rows(&tables, "SELECT 1 FROM raw.scans").len(), 3);

    // Somebody else is at work.
    let location = neurosieve::store::open(&tables).unwrap();
    let lease = neurosieve::tables::Lease::take(&location).await.unwrap().unwrap();
    let mut third = Scheduled::start(&cohort, &tables, &["--now"]);
    third.says("another schedule is at work");
    lease.give_back().await;
    assert_eq!(third.stopped(), Some(0));

    // The tables are looked after.
    let mut fourth = Scheduled::start(&cohort, &tables, &["--set", "schedule.upkeep=\"* * * * * *\""]);
    fourth.says("scans: 3 files became 1, 0 deleted");
    assert_eq!(fourth.stopped(), Some(0));
    assert_eq!(rows(&tables, "SELECT 1 FROM scans").len(), 3);
}

#[test]
fn the_log_is_json_with_a_span_for_each_scan_and_no_folder_of_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cohort, tables) = (path("study"), path("tables"));
    ok(&["synth", &cohort, "--subjects", "2", "--spacing", "4", "--lesions", "0", "--corrupt", "1"]);
    let run = ["run", "pipelines/demo.toml", "--device", "cpu", "--set", "score.method=threshold"];
    let mut command = super::server::program(&run);
    command.args(["--cohort", &cohort, "--tables", &tables]).env("NEUROSIEVE_LOG", "neurosieve=debug");
    let said = text(&command.output().unwrap().stderr);
    let log: Vec<serde_json::Value> =
        said.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |scan: &str| log.iter().find(|entry| entry["span"]["scan_id"] == format!("study/{scan}_T1w"));
    assert_eq!(of("sub-synth001").unwrap()["fields"]["message"], "done", "{said}");
    let failed = of("sub-synth002").unwrap();
    assert_eq!((&failed["level"], &failed["fields"]["stage"]), (&"WARN".into(), &"decode".into()), "{said}");
    assert!(!said.contains(&path("")), "{said}");
}
