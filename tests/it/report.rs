//! The file of `--report`: what a monitor finds there before, during and after a run.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::support::program::{WITHOUT_NETWORKS, program, screen, screening, text};
use super::support::shared::{head, path, study};

fn report(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_else_happens() {
    let folder = tempfile::tempdir().unwrap();
    let (tables, absent) = (folder.path().join("tables"), folder.path().join("absent/run.json"));
    for (command, file) in [("run", "pipelines/demo.toml"), ("schedule", "pipelines/nightly.toml")] {
        for target in [absent.as_path(), folder.path()] {
            let address = ["--cohort", path(study()), "--tables", path(&tables), "--report", path(target)];
            let refused = program(&[&[command, file][..], &address].concat());
            let said = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{command}: {said}");
            assert!(said.contains(path(target)) && said.contains("give a file"), "{said}");
            assert!(!tables.exists());
        }
    }
}

#[test]
fn a_run_that_fails_says_so_in_its_report_instead_of_leaving_last_nights() {
    let folder = tempfile::tempdir().unwrap();
    let (tables, file, empty) =
        (folder.path().join("tables"), folder.path().join("run.json"), folder.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    let asked = [&WITHOUT_NETWORKS[..], &["--report", path(&file)]].concat();
    assert_eq!(screen(path(head()), path(&tables), &asked).status.code(), Some(0));
    let last = report(&file);
    assert_eq!((&last["outcome"], &last["error"], &last["done"]), (&"done".into(), &Value::Null, &1.into()));
    assert!(last["written_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{last}");

    let mistyped = [&asked[..], &["--set", "score.stepz=3"]].concat();
    for (cohort, more, kind, words) in
        [(&empty, &asked, "nothing_selected", "nothing is selected"), (&empty, &mistyped, "config", "did you mean")]
    {
        assert_eq!(screen(path(cohort), path(&tables), more).status.code(), Some(2));
        let failed = report(&file);
        assert_eq!((&failed["outcome"], &failed["error"]["kind"]), (&"failed".into(), &kind.into()), "{failed}");
        assert!(failed["error"]["message"].as_str().unwrap().contains(words), "{failed}");
    }
}

#[test]
fn a_report_says_running_while_a_run_is_active_and_after_it_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (tables, file) = (folder.path().join("tables"), folder.path().join("run.json"));
    fs::write(&file, r#"{"outcome": "done"}"#).unwrap();
    let mut run = screening(path(study()), path(&tables), &["--report", path(&file)]);
    let mut process = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // At every moment the file holds one whole report.
    while report(&file)["outcome"] == "done" {
        assert!(process.try_wait().unwrap().is_none(), "the run ended, and the report is that of last night");
    }
    while report(&file)["pending"] != 6 {
        assert!(process.try_wait().unwrap().is_none(), "the run ended before its report gave the number of scans");
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(report(&file)["outcome"], "running");
    let stopped = report(&file);
    assert_eq!((&stopped["done"], &stopped["run"]), (&0.into(), &Value::Null), "{stopped}");
}
