//! The error messages of wrong settings.

use sha2::{Digest as _, Sha256};

use super::support::program::{number, printed, program, rows, screen, text};
use super::support::root;
use super::support::shared::study;

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

/// NaN lies above no threshold: with such a bundle every scan would be healthy.
#[test]
fn a_bundle_with_numbers_that_are_not_finite_screens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, tables) = (folder.path().join("bundle"), folder.path().join("tables"));
    std::fs::create_dir(&bundle).unwrap();
    for file in std::fs::read_dir(root().join("models/t1w-2mm")).unwrap().map(|file| file.unwrap().path()) {
        std::fs::copy(&file, bundle.join(file.file_name().unwrap())).unwrap();
    }
    let run = || {
        let set = format!("--set=model.bundle={:?}", bundle.to_str().unwrap());
        let output = screen(study().to_str().unwrap(), tables.to_str().unwrap(), &[&set]);
        assert!([Some(1), Some(2)].contains(&output.status.code()), "{}", printed(&output));
        text(&output.stderr)
    };
    let description = bundle.join("bundle.toml");
    let as_it_is = std::fs::read_to_string(&description).unwrap();
    let line = as_it_is.lines().find(|line| line.starts_with("mask_threshold = ")).unwrap();
    std::fs::write(&description, as_it_is.replace(line, "mask_threshold = nan")).unwrap();
    let said = run();
    assert!(said.contains("calibration.mask_threshold is NaN"), "{said}");
    assert!(!tables.exists(), "tables were made");

    // A weight of the detector: the last number of its file, in 16 bits. The description has the file's digest.
    let weights = bundle.join("detector.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let before = digest(&bytes);
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&0x7e00_u16.to_le_bytes());
    std::fs::write(&weights, &bytes).unwrap();
    assert!(as_it_is.contains(&before));
    std::fs::write(&description, as_it_is.replace(&before, &digest(&bytes))).unwrap();
    let said = run();
    assert!(said.contains("not finite") || said.contains("NaN"), "{said}");
    // The networks are loaded when the run begins, so it is recorded; it has screened nothing.
    assert_eq!(number(tables.to_str().unwrap(), "SELECT count(*) AS n FROM raw.scans"), 0);
    assert_eq!(rows(tables.to_str().unwrap(), "SELECT status FROM runs")[0]["status"], "failed");
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
