//! What lies in a cohort beside good scans: links to absent files, names that no store can hold, images that are not of
//! their own, namesakes in several folders, and nothing at all.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use super::support::cohorts::scan;
use super::support::program::{ok, printed, program, quick_run, rows, text};
use super::support::shared::{head, path};

/// Puts a file into a cohort; a scan's content where there is none.
fn put(root: &Path, uri: &str, content: Option<&str>) {
    let to = root.join(uri);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    match content {
        Some(content) => fs::write(to, content).unwrap(),
        None => drop(fs::copy(head().join(scan(1)), to).unwrap()),
    }
}

/// A link in a cohort.
fn link(root: &Path, uri: &str, target: &str) {
    let at = root.join(uri);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    symlink(target, at).unwrap();
}

/// The cohort as `neurosieve cohort --json` prints it.
fn listed(root: &Path, options: &[&str]) -> Value {
    serde_json::from_str(&ok(&[&["cohort", path(root), "--name", "c", "--json"], options].concat())).unwrap()
}

fn ids(listing: &Value) -> Vec<&str> {
    listing["selected"].as_array().unwrap().iter().map(|scan| scan["scan_id"].as_str().unwrap()).collect()
}

/// What is left out, with the reasons.
fn left_out(listing: &Value) -> Vec<(&str, &str)> {
    let skipped = listing["skipped"].as_array().unwrap();
    skipped.iter().map(|entry| (entry["uri"].as_str().unwrap(), entry["reason"].as_str().unwrap())).collect()
}

#[test]
fn absent_scans_of_a_datalad_dataset_are_named_and_neither_screened_nor_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (root, tables) = (folder.path().join("study"), folder.path().join("tables"));
    put(&root, "dataset_description.json", Some("{}"));
    put(&root, ".git/annex/objects/aa/01/K/K.nii.gz", None);
    link(&root, "sub-01/anat/sub-01_T1w.nii.gz", "../../.git/annex/objects/aa/01/K/K.nii.gz");
    for n in ["02", "03"] {
        let target = format!("../../.git/annex/objects/zz/{n}/K/K.nii.gz");
        link(&root, &format!("sub-{n}/anat/sub-{n}_T1w.nii.gz"), &target);
        link(&root, &format!("sub-{n}/func/sub-{n}_task-rest_bold.nii.gz"), &target);
        link(&root, &format!("sub-{n}/anat/sub-{n}_T1w.json"), &target);
    }
    link(&root, "sub-04", "../elsewhere/sub-04");
    let listing = listed(&root, &[]);
    assert_eq!(ids(&listing), ["c/sub-01_T1w"]);
    assert_eq!(
        left_out(&listing),
        [
            ("sub-02/anat/sub-02_T1w.nii.gz", "absent"),
            ("sub-02/func/sub-02_task-rest_bold.nii.gz", "suffix"),
            ("sub-03/anat/sub-03_T1w.nii.gz", "absent"),
            ("sub-03/func/sub-03_task-rest_bold.nii.gz", "suffix"),
            ("sub-04", "absent"),
        ]
    );
    assert_eq!(listing["selected"][0]["sidecar_uri"], Value::Null);

    let run = program(&quick_run(path(&root), path(&tables)));
    let said = printed(&run);
    assert_eq!(run.status.code(), Some(0), "{said}");
    for words in ["1 scans selected", "3 (absent", "datalad get", "sub-03/anat/sub-03_T1w.nii.gz", "1 scans done"] {
        assert!(said.contains(words), "no `{words}` in\n{said}");
    }
    let report = ok(&["cohort", path(&root)]);
    assert!(report.contains("3 cannot be used") && report.contains("sub-02/anat/sub-02_T1w.nii.gz"), "{report}");
}

#[test]
fn one_bad_name_or_link_loop_stops_no_listing_and_exclude_works_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(root, "sub-01/anat/sub-01_T1w.nii.gz", None);
    link(root, "derivatives/fmriprep/sourcedata/raw", "../../..");
    link(root, "sub-01/anat/latest", ".");
    link(root, "sub-01/anat/sub-01_run-2_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz");
    put(root, "note\nto \u{1b}[2Jself.txt", Some("x"));
    put(root, "sub-02/anat/sub-02\t_T1w.nii.gz", None);
    let latin1 = root.join(OsStr::from_bytes(b"sub-M\xfcller/anat"));
    fs::create_dir_all(&latin1).unwrap();
    fs::write(latin1.join(OsStr::from_bytes(b"sub-M\xfcller_T1w.nii.gz")), "x").unwrap();

    let listing = listed(root, &[]);
    assert_eq!(ids(&listing), ["c/sub-01_T1w"]);
    assert_eq!(
        left_out(&listing),
        [
            ("derivatives/fmriprep/sourcedata/raw", "link_loop"),
            (r"note\nto \u{1b}[2Jself.txt", "name"),
            ("sub-01/anat/latest", "link_loop"),
            ("sub-01/anat/sub-01_run-2_T1w.nii.gz", "link_loop"),
            (r"sub-02/anat/sub-02\t_T1w.nii.gz", "name"),
            (r"sub-M\xfcller/anat/sub-M\xfcller_T1w.nii.gz", "name"),
        ]
    );
    let report = ok(&["cohort", path(root)]);
    assert!(report.contains("6 cannot be used") && !report.contains('\u{1b}') && !report.contains('\t'), "{report}");

    let globs = ["*.txt", "derivatives/**", "sub-M*/**", "sub-02/**", "latest", "*_run-2_*"];
    let exclude: Vec<&str> = globs.iter().flat_map(|glob| ["--exclude", glob]).collect();
    let listing = listed(root, &exclude);
    assert_eq!(ids(&listing), ["c/sub-01_T1w"]);
    assert!(left_out(&listing).iter().all(|(_, reason)| *reason == "excluded"), "{listing}");
}

#[test]
fn a_link_out_of_the_cohort_is_followed_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("study");
    put(folder.path(), "elsewhere/anat/sub-01_T1w.nii.gz", None);
    link(&root, "sub-01/anat", "../../elsewhere/anat");
    link(&root, "sub-02/anat/sub-02_T1w.nii.gz", "../../../elsewhere/anat/sub-01_T1w.nii.gz");
    let listing = listed(&root, &[]);
    assert_eq!(ids(&listing), ["c/sub-01_T1w", "c/sub-02_T1w"]);
    assert!(left_out(&listing).is_empty());
}

/// A request that no client library would send, with the key as it is.
pub fn put_key(address: &str, bucket_and_key: &str) {
    let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
    write!(stream, "PUT /{bucket_and_key} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn sessions_that_only_folders_name_are_two_scans() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(root, "dataset_description.json", Some("{}"));
    for ses in ["1", "2"] {
        put(root, &format!("sub-01/ses-{ses}/anat/sub-01_T1w.nii.gz"), Some(ses));
        put(root, &format!("sub-02/ses-{ses}/anat/sub-02_ses-{ses}_T1w.nii.gz"), Some(ses));
    }
    let listing = listed(root, &[]);
    assert!(left_out(&listing).is_empty(), "{listing}");
    assert_eq!(ids(&listing), ["c/sub-01_T1w", "c/sub-01_ses-2_T1w", "c/sub-02_ses-1_T1w", "c/sub-02_ses-2_T1w"]);
    // The same id, whatever is selected.
    assert_eq!(ids(&listed(root, &["--session", "2"])), ["c/sub-01_ses-2_T1w", "c/sub-02_ses-2_T1w"]);
}

#[test]
fn phases_echoes_and_what_pipelines_made_are_left_out_by_rule() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(root, "dataset_description.json", Some(r#"{"Name":"x"}"#));
    put(root, ".bidsignore", Some("sub-02/\n*_rec-bad_T1w.nii.gz\n"));
    let names = ["part-mag", "part-phase", "echo-1", "echo-2", "desc-preproc", "space-MNI152", "rec-bad"];
    for name in names {
        put(root, &format!("sub-01/anat/sub-01_{name}_T1w.nii.gz"), Some("x"));
    }
    put(root, "sub-02/anat/sub-02_T1w.nii.gz", Some("x"));
    put(root, "fmriprep/dataset_description.json", Some(r#"{"GeneratedBy":[{"Name":"fMRIPrep"}]}"#));
    put(root, "fmriprep/sub-01/anat/sub-01_T1w.nii.gz", Some("x"));
    let listing = listed(root, &[]);
    assert_eq!(ids(&listing), ["c/sub-01_echo-1_T1w", "c/sub-01_part-mag_T1w"]);
    assert_eq!(
        left_out(&listing),
        [
            ("fmriprep/sub-01/anat/sub-01_T1w.nii.gz", "derivative_dataset"),
            ("sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "derived_name"),
            ("sub-01/anat/sub-01_echo-2_T1w.nii.gz", "echo"),
            ("sub-01/anat/sub-01_part-phase_T1w.nii.gz", "part"),
            ("sub-01/anat/sub-01_rec-bad_T1w.nii.gz", "bids_ignore"),
            ("sub-01/anat/sub-01_space-MNI152_T1w.nii.gz", "derived_name"),
            ("sub-02/anat/sub-02_T1w.nii.gz", "bids_ignore"),
        ]
    );
    assert_eq!(ids(&listed(root, &["--derivatives", "--all-parts", "--ignored"])).len(), 9);

    // The output of fMRIPrep as the cohort itself.
    put(root, "dataset_description.json", Some(r#"{"DatasetType":"derivative"}"#));
    let listing = listed(root, &[]);
    assert!(ids(&listing).is_empty());
    assert!(left_out(&listing).iter().all(|(_, reason)| *reason == "derivative_dataset"), "{listing}");
}

#[test]
fn a_participants_table_is_read_or_refused_but_never_selects_nothing_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for n in ["01", "02"] {
        put(root, &format!("sub-{n}/anat/sub-{n}_T1w.nii.gz"), Some("x"));
    }
    let utf16: Vec<u8> = "\u{feff}participant_id\tsex\nsub-01\tF\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let tables: [(&[u8], Result<(), &str>); 9] = [
        (b"participant_id\tsex\rsub-01\tF\rsub-02\tM\r", Ok(())),
        (b"\"participant_id\"\t\"sex\"\n\"sub-01\"\t\"F\"\n\"sub-02\"\t\"M\"\n", Ok(())),
        (b"participant_id\tsex\n1\tF\n2\tM\n", Ok(())),
        (b"\xef\xbb\xbfparticipant_id\tsex\t\r\n01\tF\t\r\n02\tM\t\r\n", Ok(())),
        (&utf16, Err("UTF-16")),
        (b"participant_id\tsex\nM\xfcller\tF\n", Err("not UTF-8")),
        (
            b"participant_id\tsex\nP1\tF\nP2\tM\n",
            Err("no row of any subject here: its column participant_id has P1, P2"),
        ),
        (b"participant_id\tgender\nsub-01\tF\n", Err("it has participant_id, gender")),
        (b"participant_id\tsex\nsub-01\tfemale\nsub-02\tmale\n", Err("its values are female, male")),
    ];
    for (table, expected) in tables {
        fs::write(root.join("participants.tsv"), table).unwrap();
        let output = program(&["cohort", path(root), "--name", "c", "--json", "--where", "sex=F"]);
        match expected {
            Ok(()) => {
                let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(ids(&listing), ["c/sub-01_T1w"], "{}", text(table));
            }
            Err(said) => {
                assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
                assert!(text(&output.stderr).contains(said), "no `{said}` in {}", text(&output.stderr));
            }
        }
    }
    fs::remove_file(root.join("participants.tsv")).unwrap();
    link(root, "participants.tsv", ".git/annex/objects/x.tsv");
    let absent = program(&["cohort", path(root), "--where", "sex=F"]);
    assert!(text(&absent.stderr).contains("datalad get participants.tsv"), "{}", printed(&absent));
}

#[test]
fn a_run_with_nothing_selected_says_what_there_is_and_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (dicom, study, tables) = (at("dicom"), at("study"), at("tables"));
    put(Path::new(&dicom), "1/IM0001.dcm", Some("x"));
    put(Path::new(&study), "sub-01/anat/sub-01_T1w.nii.gz", None);
    put(Path::new(&study), "sub-01/anat/sub-01_T2w.nii.gz", Some("x"));
    let set = |assignment: &'static str| vec!["--set", assignment];
    for (cohort, options, words) in [
        (&dicom, vec![], vec!["1 .dcm", "dcm2niix"]),
        (&study, set("cohort.select.suffixes=[\"flair\"]"), vec!["1 T1w, 1 T2w", "2 left out: suffix not selected"]),
        (&study, set("cohort.select.include=[\"sub-9*/**\"]"), vec!["1 left out: no include glob matches"]),
        (&study, set("cohort.select.limit=0"), vec!["1 left out: over the limit (cohort.select.limit)"]),
    ] {
        let run = program(&[&quick_run(cohort, &tables)[..], &options].concat());
        assert_eq!(run.status.code(), Some(2), "{}", printed(&run));
        for words in words {
            assert!(text(&run.stderr).contains(words), "no `{words}` in\n{}", printed(&run));
        }
        assert!(!Path::new(&tables).exists(), "such a run makes no tables");
    }
    // A part of a cohort may be empty, and what is done is done.
    let shard = |shard: &str| program(&[&quick_run(&study, &tables)[..], &["--shard", shard]].concat());
    let shards: Vec<_> = (1..=4).map(|i| shard(&format!("{i}/4"))).collect();
    assert!(shards.iter().all(|run| run.status.success()));
    let said: Vec<String> = shards.iter().map(printed).collect();
    assert_eq!(said.iter().filter(|said| said.contains("1 scans done")).count(), 1, "{said:?}");
    assert_eq!(said.iter().filter(|said| said.contains("belongs to this shard")).count(), 3, "{said:?}");
    let again = program(&quick_run(&study, &tables));
    assert!(again.status.success() && text(&again.stdout).contains("every selected scan has a result"));
}

#[test]
fn a_scan_that_was_not_fetched_fails_with_how_to_fetch_it() {
    let folder = tempfile::tempdir().unwrap();
    let (root, tables) = (folder.path().join("study"), folder.path().join("tables"));
    put(&root, "annex.nii.gz", Some("/annex/objects/MD5E-s7482611--0f1d.nii.gz\n"));
    put(&root, "page.nii.gz", Some("<!DOCTYPE html><html><body>403 Forbidden</body></html>"));
    let run = program(&quick_run(path(&root), path(&tables)));
    assert_eq!(run.status.code(), Some(3), "{}", printed(&run));
    let failures = rows(path(&tables), "SELECT kind, message FROM failures ORDER BY kind DESC");
    let (annex, page) = (&failures[0], &failures[1]);
    assert_eq!((&annex["kind"], &page["kind"]), (&"pointer".into(), &"not_nifti".into()));
    assert!(annex["message"].as_str().unwrap().contains("datalad get"), "{annex}");
    assert!(page["message"].as_str().unwrap().contains("HTML page"), "{page}");
    // Both are quarantined, which is not the same as done.
    let again = program(&quick_run(path(&root), path(&tables)));
    assert!(
        text(&again.stdout).contains("Selected scans without a result from earlier runs: 2."),
        "{}",
        printed(&again)
    );
    assert_eq!(again.status.code(), Some(3));
}
