//! The main job, driven through the real program: a synthetic cohort to committed tables and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use neurosieve::volume::nifti;
use serde_json::Value;

fn neurosieve(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neurosieve")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(args: &[&str]) -> String {
    let output = neurosieve(args);
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn rows(tables: &str, sql: &str) -> Vec<Value> {
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
        "SELECT s.scan_id, s.n_tokens, s.n_findings, \
           (SELECT count(*) FROM tokens t WHERE t.scan_id = s.scan_id) AS tokens, \
           (SELECT count(*) FROM findings f WHERE f.scan_id = s.scan_id) AS findings, \
           (SELECT count(*) FROM masks m WHERE m.scan_id = s.scan_id) AS masks FROM scans s",
    );
    for scan in &counts {
        assert_eq!(scan["n_tokens"], scan["tokens"]);
        assert_eq!(scan["n_findings"].as_i64(), Some(scan["findings"].as_i64().unwrap_or(0)));
        assert_eq!(scan["masks"], 1);
    }
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

/// Contract 4: a scan screened again, in other company, has the same rows.
fn the_same_numbers_twice(cohort: &str, tables: &str, folder: &Path) {
    let other = folder.join("again").display().to_string();
    run(cohort, &other, &["--set", "cohort.select.subjects=[\"synth001\"]", "--set", "run.scans_in_flight=1"]);
    let sql = "SELECT z, y, x, code, p_anomalous, nll, residual FROM tokens WHERE scan_id = 'study/sub-synth001_T1w' ORDER BY z, y, x";
    let (once, twice) = (rows(tables, sql), rows(&other, sql));
    assert!(!once.is_empty());
    assert!(once == twice, "tokens differ between two runs of one scan");
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
