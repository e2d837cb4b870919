//! The examples: those in Rust are compiled into these tests, and each is run. Files for other programs are checked by
//! those programs, where they are installed, and their commands by ours.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use arrow::array::RecordBatch;
use neurosieve::flow::Pipeline;
use serde_json::Value;

use super::support::cohorts::{scan, synth};
use super::support::program::{number, ok, printed, program, python, text};
use super::support::root;
use super::support::shared::{path, screened, sharded, study};

#[path = "../../examples/inspect_scan.rs"]
#[allow(dead_code, reason = "main is for the example on its own")]
mod inspect_scan;
#[path = "../../examples/query_tables.rs"]
#[allow(dead_code, reason = "main is for the example on its own")]
mod query_tables;
#[path = "../../examples/screen_folder.rs"]
#[allow(dead_code, reason = "main is for the example on its own")]
mod screen_folder;

fn example(name: &str) -> PathBuf {
    root().join("examples").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn screen_folder_screens_a_cohort_once() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    let (cohort, tables) = (path(&cohort), path(&tables));
    synth(cohort, &["--subjects", "2", "--lesions", "0", "--corrupt", "1", "--spacing", "4"]);
    let quick: Pipeline = toml::from_str("[score]\nmethod = \"threshold\"\n[run]\ndevice = \"cpu\"\n").unwrap();
    let report = screen_folder::screen(quick.clone(), cohort, tables).await.unwrap();
    assert_eq!((report.pending, report.done, report.failed), (2, 1, 1));
    let again = screen_folder::screen(quick, cohort, tables).await.unwrap();
    assert_eq!((again.pending, again.quarantined), (0, 1));
}

#[test]
fn inspect_scan_describes_a_scan_and_refuses_a_damaged_one() {
    let described = inspect_scan::describe(&inspect_scan::inspect(&study().join(scan(1))).unwrap());
    for words in ["voxels of 2.00 x 2.00 x 2.00 mm", "brain volume: 1", "registration NCC: 0.", "flags: "] {
        assert!(described.contains(words), "no `{words}` in\n{described}");
    }
    assert!(inspect_scan::inspect(&study().join(scan(4))).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn query_tables_gives_a_row_for_each_scan() {
    let found = query_tables::most_anomalous(sharded()).await.unwrap();
    let scans: usize = found.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(scans as u64, number(sharded(), "SELECT count(*) AS n FROM scans"));
}

/// The Python package `deltalake` and DuckDB share no code with the program's reader.
#[test]
fn read_tables_counts_in_python_the_rows_that_sql_counts() {
    let Some(python) = python() else { return };
    let tables = &screened().tables;
    let output = Command::new(python).arg(example("read_tables.py")).arg(tables).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let theirs: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    for table in ["scans", "tokens", "masks", "findings", "failures", "runs", "reverts"] {
        let ours = number(tables, &format!("SELECT count(*) AS n FROM raw.{table}"));
        assert_eq!((&theirs[table]["rows"], &theirs[table]["rows_duckdb"]), (&ours.into(), &ours.into()), "{table}");
    }
}

#[test]
fn plot_finding_draws_the_largest_finding_of_a_scan() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let scan = study().join("sub-synth001/anat/sub-synth001_T1w.nii.gz");
    let (steps, picture) = (folder.path().join("steps"), folder.path().join("finding.png"));
    ok(&["inspect", path(&scan), "--nifti", path(&steps), "--png", path(&folder.path().join("steps.png"))]);
    let brain = steps.join("sub-synth001_T1w_step-6mni.nii.gz");
    let draw = |brain: &Path| {
        let mut command = Command::new(&python);
        command.arg(example("plot_finding.py")).args(["--tables", &screened().tables]);
        command.args(["--scan", "study/sub-synth001_T1w", "--brain", path(brain)]).arg(&picture).output().unwrap()
    };
    let drawn = draw(&brain);
    assert!(drawn.status.success(), "{}", printed(&drawn));
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    // A brain on another grid would put the finding in the wrong place.
    let other_grid = draw(&steps.join("sub-synth001_T1w_step-1working.nii.gz"));
    assert!(printed(&other_grid).contains("is not on the grid of the table"), "{}", printed(&other_grid));
}

/// Runs the command of a deployment file on a cohort that does not exist. Any other mistake in it would be reported first.
fn assert_accepted(arguments: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("none"), folder.path().join("tables"));
    let report = folder.path().join("run.json");
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| match argument.as_str() {
            "s3://bucket/study" => path(&cohort),
            "s3://bucket/results" => path(&tables),
            "/var/lib/neurosieve/run.json" => path(&report),
            pipeline if pipeline.ends_with("screen.toml") => "pipelines/screen.toml",
            other => other,
        })
        .collect();
    let output = program(&arguments);
    assert!(text(&output.stderr).contains("check the spelling"), "{arguments:?}: {}", printed(&output));
}

/// Whether a program is installed; prints a line where it is not.
fn installed(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: {tool} is not installed");
    }
    found
}

#[test]
fn systemd_accepts_the_service_and_the_timer() {
    let service = std::fs::read_to_string(example("systemd/neurosieve.service")).unwrap();
    let command = service.replace("\\\n", " ");
    let command = command.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let mut words = command.split_whitespace().map(|word| word.replace("%%", "%"));
    assert_eq!(words.next().as_deref(), Some("/usr/local/bin/neurosieve"));
    assert!(service.contains("\nStateDirectory=neurosieve\n"), "systemd makes the folder of the report");
    assert_accepted(&words.collect::<Vec<_>>());

    if !installed("systemd-analyze") {
        return;
    }
    // The file requires that the program exists.
    let folder = tempfile::tempdir().unwrap();
    let service = service.replace("/usr/local/bin/neurosieve", env!("CARGO_BIN_EXE_neurosieve"));
    std::fs::write(folder.path().join("neurosieve.service"), service).unwrap();
    std::fs::copy(example("systemd/neurosieve.timer"), folder.path().join("neurosieve.timer")).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no"])
        .args(["service", "timer"].map(|kind| folder.path().join(format!("neurosieve.{kind}"))));
    let output = verify.output().unwrap();
    // A key that it does not know is a warning about the file, and no failure.
    assert!(output.status.success() && !printed(&output).contains("neurosieve."), "{}", printed(&output));
}

#[test]
fn the_kubernetes_job_is_yaml_and_runs_the_program() {
    let Some(python) = python() else { return };
    let to_json = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let output = Command::new(python).args(["-c", to_json]).arg(example("kubernetes/cronjob.yaml")).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let job: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(job["kind"], "CronJob");
    let container = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0];
    assert_accepted(&serde_json::from_value::<Vec<String>>(container["args"].clone()).unwrap());
}

#[test]
fn the_slurm_job_is_a_script_whose_tasks_take_one_part_each() {
    let folder = tempfile::tempdir().unwrap();
    let srun = folder.path().join("srun");
    std::fs::write(&srun, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&srun, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg(example("slurm/screen.sbatch")).env("PATH", path).env("SLURM_ARRAY_TASK_ID", "3");
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let words: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(words[0], "neurosieve");
    assert!(words.windows(2).any(|pair| pair == ["--shard", "3/16"]), "{words:?}");
    assert_accepted(&words[1..]);
}

/// The index names every example.
#[test]
fn the_readme_of_the_examples_names_every_file() {
    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }
    let index = std::fs::read_to_string(example("README.md")).unwrap();
    for file in files(&example("")).iter().map(|file| file.strip_prefix(example("")).unwrap()) {
        // A folder in the index covers its files.
        let named = file.ancestors().any(|part| index.contains(&format!("]({})", part.display())));
        assert!(named || file == Path::new("README.md"), "{} is not in the index", file.display());
    }
}
