//! What a data set says about its scans and subjects, beside the voxels.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::support::cohorts::scan;
use super::support::program::{WITHOUT_NETWORKS, number, ok, printed, program, rows, screen};
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

/// Two subjects with scans, of which the first is described by `file`.
fn cohort_with(root: &Path, file: &str) {
    put(
        root,
        &[
            ("dataset_description.json", Some(r#"{"Name": "x", "BIDSVersion": "1.9.0"}"#)),
            ("participants.tsv", Some(file)),
            ("sub-a/anat/sub-a_T1w.nii.gz", None),
            ("sub-b/anat/sub-b_T1w.nii.gz", None),
        ],
    );
}

const FILE: &str = "participant_id\tage\tsex\tsite\tgroup\thand\nsub-a\t61.5\tF\tLeeds\tpatient\tright\nsub-b\tn/a\tx\tLeeds\tcontrol\tn/a\n";

const SAID: &str =
    "SELECT subject, age_years, sex, site, \"group\", more[1] AS hand FROM participants ORDER BY subject";

#[test]
fn a_run_records_participants_and_the_command_records_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    cohort_with(&cohort, FILE);
    let (cohort_url, tables) = (path(&cohort), path(&tables));
    let options = [&WITHOUT_NETWORKS[..], &["--set", "cohort.metadata.more=['hand']"]].concat();
    let run = screen(cohort_url, tables, &options);
    assert_eq!(run.status.code(), Some(0), "{}", printed(&run));
    assert!(printed(&run).contains("2 subjects; unknown or unusable: age_years in 1, sex in 1"), "{}", printed(&run));
    let a = json!({"subject": "a", "age_years": 61.5, "sex": "F", "site": "Leeds", "group": "patient", "hand": "hand=right"});
    let b = json!({"subject": "b", "site": "Leeds", "group": "control"});
    let said = || rows(tables, SAID).into_iter().map(without_nulls).collect::<Vec<_>>();
    assert_eq!(said(), [a.clone(), b.clone()]);

    // A run with nothing to do writes what changed, and nothing else.
    fs::write(cohort.join("participants.tsv"), FILE.replace("n/a\tx", "70\tm")).unwrap();
    let idle = screen(cohort_url, tables, &options);
    assert!(printed(&idle).contains("Nothing to do"), "{}", printed(&idle));
    let b = json!({"subject": "b", "age_years": 70.0, "sex": "M", "site": "Leeds", "group": "control"});
    assert_eq!(said(), [a, b]);
    assert_eq!(number(tables, "SELECT count(*) AS n FROM raw.participants"), 3);

    let record =
        ["tables", "metadata", "--cohort", cohort_url, "--tables", tables, "--set", "cohort.metadata.more=['hand']"];
    assert!(ok(&record).contains("0 new, 0 changed, 2 as before"));
    assert_eq!(number(tables, "SELECT count(*) AS n FROM raw.participants"), 3);
    for command in ["optimize", "vacuum", "check"] {
        ok(&["tables", command, "--tables", tables]);
    }
    assert_eq!(number(tables, "SELECT count(*) AS n FROM participants"), 2);
}

#[test]
fn metadata_that_cannot_be_trusted_is_refused_and_the_scans_are_screened() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    cohort_with(&cohort, "participant_id\tage\nsub-a\t1\nsub-a\t2\n");
    let (cohort, tables) = (path(&cohort), path(&tables));
    let run = screen(cohort, tables, &WITHOUT_NETWORKS);
    assert_eq!(run.status.code(), Some(0), "{}", printed(&run));
    assert!(printed(&run).contains("participants.tsv line 3 lists sub-a again"), "{}", printed(&run));
    assert_eq!(number(tables, "SELECT count(*) AS n FROM scans"), 2);
    assert_eq!(number(tables, "SELECT count(*) AS n FROM participants"), 0);
    let recorded = program(&["tables", "metadata", "--cohort", cohort, "--tables", tables]);
    assert_eq!(recorded.status.code(), Some(2), "{}", printed(&recorded));
}

#[test]
fn a_person_who_is_forgotten_is_gone_from_participants_and_stays_away_while_excluded() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    cohort_with(&cohort, FILE);
    let (cohort, tables) = (path(&cohort), path(&tables));
    // Without a scan in the tables, the person is known by this row alone.
    ok(&["tables", "metadata", "--cohort", cohort, "--tables", tables]);
    let forget =
        |options: &[&str]| ok(&[&["tables", "forget", "--tables", tables, "--subject", "sub-a"], options].concat());
    assert!(forget(&["--dry-run"]).contains("participants: 1 rows would be deleted"));
    assert!(forget(&[]).contains("participants: 1 rows deleted"));
    let excluding = [&WITHOUT_NETWORKS[..], &["--set", "cohort.select.exclude=['sub-a_*']"]].concat();
    screen(cohort, tables, &excluding);
    assert_eq!(number(tables, "SELECT count(*) AS n FROM raw.participants WHERE subject = 'a'"), 0);
    assert_eq!(number(tables, "SELECT count(*) AS n FROM raw.participants"), 1);
}
