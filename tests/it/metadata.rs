//! What a data set says about its scans and subjects, beside the voxels.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::support::cohorts::scan;
use super::support::program::{WITHOUT_NETWORKS, printed, rows, screen};
use super::support::shared::{head, path};

/// Writes files of a cohort; a scan without content is a copy of a good one.
fn put(root: &Path, files: &[(&str, Option<&str>)]) {
    for (uri, content) in files {
        let to = root.join(uri);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        match content {
            Some(content) => fs::write(to, content).unwrap(),
            None => drop(fs::copy(head().join(scan(1)), to).unwrap()),
        }
    }
}

#[test]
fn scans_say_scanner_field_strength_and_date_and_a_broken_sidecar_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    put(
        &cohort,
        &[
            ("dataset_description.json", Some(r#"{"Name": "x", "BIDSVersion": "1.9.0"}"#)),
            (
                "T1w.json",
                Some(r#"{"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma", "MagneticFieldStrength": 3}"#),
            ),
            ("sub-a/anat/sub-a_T1w.nii.gz", None),
            ("sub-a/anat/sub-a_T1w.json", Some(r#"{"ManufacturersModelName": "Skyra"}"#)),
            ("sub-a/sub-a_scans.tsv", Some("filename\tacq_time\nanat/sub-a_T1w.nii.gz\t2020-03-04T05:06:07\n")),
            ("sub-b/ses-1/anat/sub-b_ses-1_T1w.nii.gz", None),
            ("sub-b/ses-1/anat/sub-b_ses-1_T1w.json", Some("{\"Manufacturer\": ")),
            ("sub-b/sub-b_sessions.tsv", Some("session_id\tacq_time\nses-1\t2021-01-02\n")),
        ],
    );
    let run = screen(path(&cohort), path(&tables), &WITHOUT_NETWORKS);
    assert_eq!(run.status.code(), Some(0), "{}", printed(&run));
    assert_eq!(printed(&run).matches("cannot be parsed").count(), 1, "{}", printed(&run));
    let found = rows(
        path(&tables),
        "SELECT subject, manufacturer, scanner_model, field_strength_t, CAST(acquired_at AS DATE) AS day, token_threshold,
             mask_dice > 0.5 AND mask_symmetry > 0.5 AND mask_sphericity > 0.1 AS measured
         FROM scans ORDER BY subject",
    );
    let row = |subject: &str, model: &str, day: &str| {
        json!({"subject": subject, "manufacturer": "Siemens", "scanner_model": model, "field_strength_t": 3.0, "day": day,
               "measured": true})
    };
    // The method has no token threshold; the JSON leaves nulls out.
    let found: Vec<Value> = found.into_iter().map(without_nulls).collect();
    assert_eq!(found, [row("a", "Skyra", "2020-03-04"), row("b", "Prisma", "2021-01-02")]);
}

fn without_nulls(mut row: Value) -> Value {
    row.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    row
}
