//! The error messages of wrong settings.

use super::support::program::{program, text};

#[test]
fn wrong_settings_are_refused_with_the_next_step_before_anything_is_done() {
    let refused = |arguments: &[&str]| {
        let output = program(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let run = ["run", "pipelines/demo.toml", "--cohort", "."];
    let typo = refused(&[&run[..], &["--tables", "x", "--set", "score.stepz=3"]].concat());
    assert!(typo.contains("did you mean `steps`"), "{typo}");
    assert!(refused(&run).contains("--tables"));
    assert!(refused(&["run", "pipelines/none.toml"]).contains("pipelines/"));
    assert!(refused(&[&run[..], &["--tables", "x", "--device", "gpu"]].concat()).contains("cuda"));
}

#[test]
fn a_number_out_of_range_is_refused_with_its_range_before_tables_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables");
    for (key, value) in [
        ("tables.commit_scans", "0"),
        ("tables.commit_seconds", "9223372036854775807"),
        ("run.scans_in_flight", "9223372036854775807"),
        ("run.max_scan_mib", "17592186044416"),
        ("score.smooth_mm", "1000000000.0"),
        ("score.steps", "1000000000000"),
        ("score.mask_threshold", "nan"),
        ("schedule.keep_days", "0"),
    ] {
        let set = format!("--set={key}={value}");
        let run = ["run", "pipelines/demo.toml", "--cohort", ".", "--tables", tables.to_str().unwrap(), &set];
        let output = program(&run);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{key} is ")) && said.contains("expected a number from"), "{said}");
        assert!(!tables.exists(), "{key}");
    }
}
