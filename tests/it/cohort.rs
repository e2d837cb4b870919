//! Listing a cohort: what is selected, what is not and why, and what errors say.

use std::path::Path as FilePath;
use std::sync::Arc;

use neurosieve::cohort::{self, Listing, Reason, Selection, manifest, report};
use neurosieve::store::{self, Location};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

use super::support::data::data;
use super::support::root;

/// A bucket in memory with a cohort `ukb` that holds these files, and a neighbour whose name starts the same.
async fn bucket(files: &[(&str, &str)]) -> Location {
    let store = Arc::new(InMemory::new());
    for (uri, content) in files {
        store.put(&Path::parse(format!("data/ukb/{uri}")).unwrap(), content.to_string().into()).await.unwrap();
    }
    store.put(&Path::from("data/ukb2/sub-99/anat/sub-99_T1w.nii"), "x".into()).await.unwrap();
    Location::new(store as Arc<dyn ObjectStore>, Path::from("data/ukb"), Url::parse("s3://data/ukb").unwrap())
}

async fn list(files: &[&str], selection: &Selection) -> Listing {
    let files: Vec<(&str, &str)> = files.iter().map(|uri| (*uri, "voxels")).collect();
    let location = bucket(&files).await;
    cohort::list(&location, location.name(), selection).await.unwrap()
}

fn ids(listing: &Listing) -> Vec<&str> {
    listing.selected.iter().map(|scan| scan.scan_id.as_str()).collect()
}

fn skipped(listing: &Listing) -> Vec<(&str, Reason)> {
    listing.skipped.iter().map(|s| (s.uri.as_str(), s.reason)).collect()
}

fn write(root: &FilePath, uri: &str, content: &str) {
    let path = root.join(uri);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

#[tokio::test]
async fn a_bids_dataset_gives_its_t1w_scans_and_says_why_not_the_others() {
    let listing = list(
        &[
            "dataset_description.json",
            "participants.tsv",
            ".git/annex/sub-07_T1w.nii.gz",
            "derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
            "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
            "sub-01/ses-02/anat/sub-01_ses-02_acq-x_run-1_T1w.nii.gz",
            "sub-01/ses-02/anat/sub-01_ses-02_acq-x_run-1_T1w.json",
            "sub-01/ses-02/anat/sub-01_ses-02_FLAIR.nii.gz",
            "sub-01/ses-02/anat/._sub-01_ses-02_FLAIR.nii.gz",
            "sub-02/anat/sub-02_T1w.nii",
        ],
        &Selection::default(),
    )
    .await;
    assert!(listing.bids);
    assert_eq!(ids(&listing), ["ukb/sub-01_ses-02_acq-x_run-1_T1w", "ukb/sub-02_T1w"]);
    assert_eq!(
        skipped(&listing),
        [
            ("derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz", Reason::Derivative),
            ("sourcedata/sub-01/anat/sub-01_T1w.nii.gz", Reason::SourceData),
            ("sub-01/ses-02/anat/sub-01_ses-02_FLAIR.nii.gz", Reason::Suffix),
        ]
    );
    assert_eq!((listing.n_other, listing.n_hidden), (3, 2));

    let scan = &listing.selected[0];
    assert_eq!(scan.uri, "sub-01/ses-02/anat/sub-01_ses-02_acq-x_run-1_T1w.nii.gz");
    assert_eq!((scan.subject.as_deref(), scan.session.as_deref()), (Some("01"), Some("02")));
    assert_eq!((scan.acquisition.as_deref(), scan.run.as_deref()), (Some("x"), Some("1")));
    assert_eq!(scan.sidecar(), Some("sub-01/ses-02/anat/sub-01_ses-02_acq-x_run-1_T1w.json"));
    assert_eq!((scan.size_bytes, scan.content_id.len()), (6, 32));
    let batch = manifest::to_batch(&listing.selected).unwrap();
    assert_eq!(manifest::from_batch(&batch).unwrap(), listing.selected);

    let text = report::describe(&listing, 1);
    for said in ["2 scans selected, 2 subjects, 1 session, 12 B", "and 1 more", "FLAIR", "sourcedata/"] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    let json = report::to_json(&listing);
    assert_eq!((&json["n_selected"], &json["skipped"][2]["reason"]), (&2.into(), &"suffix".into()));
}

#[tokio::test]
async fn of_two_files_of_one_scan_the_original_is_kept_rather_than_a_derivative() {
    let both =
        ["derivatives/n4/sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T1w.nii.gz"];
    let listing = list(&both, &Selection { derivatives: true, ..Selection::default() }).await;
    assert_eq!(listing.selected[0].uri, both[1]);
    assert_eq!(skipped(&listing), [(both[0], Reason::Duplicate), (both[2], Reason::Duplicate)]);
}

#[tokio::test]
async fn any_tree_of_images_is_a_cohort_whatever_its_names() {
    let listing = list(
        &["A/Scan 1.nii", "a/Scan 1.nii", "a/scan 1.nii", "a/Größe_é.NII.GZ", "a/b/c.nii.gz", "notes.txt"],
        &Selection::default(),
    )
    .await;
    assert!(!listing.bids);
    assert_eq!(ids(&listing), ["ukb/A/Scan 1", "ukb/a/Größe_é", "ukb/a/Scan 1", "ukb/a/b/c", "ukb/a/scan 1"]);
    assert_eq!((skipped(&listing).len(), listing.n_other), (0, 1));
}

#[tokio::test]
async fn subject_folders_with_one_file_name_in_each_do_not_collide() {
    let files = ["sub-01/anat/brain.nii.gz", "sub-02/anat/brain.nii.gz"];
    let strict = list(&files, &Selection::default()).await;
    assert_eq!(skipped(&strict), [(files[0], Reason::Suffix), (files[1], Reason::Suffix)]);
    let any =
        list(&files, &Selection { suffixes: vec![], subjects: vec!["sub-02".into()], ..Selection::default() }).await;
    assert_eq!(ids(&any), ["ukb/sub-02/anat/brain"]);
}

#[tokio::test]
async fn empty_files_are_skipped_and_a_limit_takes_the_first_scans_by_path() {
    let files = [("b.nii", "x"), ("a.nii", ""), ("d.nii", "x"), ("c.nii", "x")];
    let selection = Selection { limit: Some(2), ..Selection::default() };
    let listing = cohort::list(&bucket(&files).await, "c", &selection).await.unwrap();
    assert_eq!(ids(&listing), ["c/b", "c/c"]);
    assert_eq!(skipped(&listing), [("a.nii", Reason::Empty), ("d.nii", Reason::OverLimit)]);
}

#[tokio::test]
async fn participants_are_filtered_by_their_table() {
    let filter =
        |column: &str| Selection { participants: [(column.into(), vec!["val".into()])].into(), ..Selection::default() };
    let scans = ["sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T1w.nii", "sub-03/anat/sub-03_T1w.nii"];
    let table = "participant_id\tsplit\nsub-01\tval\nsub-02\ttrain\n";
    let mut files: Vec<(&str, &str)> = scans.iter().map(|uri| (*uri, "x")).collect();

    let without = cohort::list(&bucket(&files).await, "c", &filter("split")).await.unwrap_err();
    assert!(without.to_string().contains("no such file"), "{without}");

    files.push(("participants.tsv", table));
    let location = bucket(&files).await;
    let listing = cohort::list(&location, "c", &filter("split")).await.unwrap();
    assert_eq!(ids(&listing), ["c/sub-01_T1w"]);
    assert_eq!(skipped(&listing), [(scans[1], Reason::Participants), (scans[2], Reason::Participants)]);

    let typo = cohort::list(&location, "c", &filter("spilt")).await.unwrap_err();
    assert!(typo.to_string().contains("it has participant_id, split"), "{typo}");
}

#[tokio::test]
async fn a_local_folder_lists_like_a_bucket_and_a_scan_opens_by_its_uri() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("My cohort ü #2");
    write(&root, "b/Scan [1] 100%.nii", "voxels");
    write(&root, "a.nii.gz", "voxels");
    let location = store::open(root.to_str().unwrap()).unwrap();
    assert_eq!(location.name(), "My cohort ü #2");
    let listing = cohort::list(&location, "c", &Selection::default()).await.unwrap();
    assert_eq!(ids(&listing), ["c/a", "c/b/Scan [1] 100%"]);
    for scan in &listing.selected {
        let bytes = location.store.get(&location.path_of(&scan.uri).unwrap()).await.unwrap().bytes().await.unwrap();
        assert_eq!(&bytes[..], b"voxels");
    }
    // The same folder by its URL is the same cohort.
    let by_url = store::open(location.url.as_str()).unwrap();
    assert_eq!(cohort::list(&by_url, "c", &Selection::default()).await.unwrap().selected, listing.selected);
}

#[tokio::test]
async fn a_changed_file_gets_a_new_content_id_and_an_untouched_one_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.nii", "voxels");
    write(folder.path(), "b.nii", "voxels");
    let location = store::open(folder.path().to_str().unwrap()).unwrap();
    let before = cohort::list(&location, "c", &Selection::default()).await.unwrap().selected;
    write(folder.path(), "b.nii", "more voxels");
    let after = cohort::list(&location, "c", &Selection::default()).await.unwrap().selected;
    assert_eq!(before[0].content_id, after[0].content_id);
    assert_ne!(before[1].content_id, after[1].content_id);
}

#[tokio::test]
async fn an_error_of_listing_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let said = |given: &str| store::open(given).unwrap_err().to_string();
    assert!(said(folder.path().join("typo").to_str().unwrap()).contains("check the spelling"));
    assert!(said("ftp://host/scans").contains("`ftp://` is not supported: use s3://"));
    write(folder.path(), "one.nii", "x");
    assert!(said(folder.path().join("one.nii").to_str().unwrap()).contains("--include"));

    for signed in ["https://me:secret@host.org/dav", "s3://bucket/ukb?signature=secret"] {
        assert!(said(signed).contains("AWS_*") && !said(signed).contains("secret"), "{}", said(signed));
    }

    let location = store::open(folder.path().to_str().unwrap()).unwrap();
    let unnamed = cohort::list(&location, "a/b", &Selection::default()).await.unwrap_err();
    assert!(unnamed.to_string().contains("without `/`"), "{unnamed}");

    let made = store::open_or_create(folder.path().join("new/tables").to_str().unwrap()).unwrap();
    let empty = cohort::list(&made, "c", &Selection::default()).await.unwrap();
    assert!(report::describe(&empty, 5).contains("Nothing is here"));
}

/// The datasets of the developers, where the machine has them.
#[tokio::test]
async fn real_datasets_are_listed_completely() {
    for (name, scans, validation) in [("healthy-t1", 222, None), ("lesions-dev", 20, Some(20))] {
        let Some(folder) = data(name) else { continue };
        let location = store::open(&folder.to_string_lossy()).unwrap();
        let listing = cohort::list(&location, name, &Selection::default()).await.unwrap();
        assert_eq!(listing.selected.len(), scans, "{name}");
        assert!(listing.skipped.iter().all(|s| s.reason == Reason::Derivative), "{name}");
        let filter = Selection { participants: [("split".into(), vec!["val".into()])].into(), ..Selection::default() };
        let chosen = cohort::list(&location, name, &filter).await.unwrap().selected.len();
        assert!(validation.is_none_or(|n| n == chosen) && chosen > 0 && chosen <= scans, "{name}: {chosen}");
    }
}

#[tokio::test]
async fn a_header_and_its_image_are_one_scan() {
    let files = ["sub-01/anat/sub-01_T1w.hdr", "sub-01/anat/sub-01_T1w.img", "sub-01/anat/sub-01_T1w.json"];
    let listing = list(&files, &Selection::default()).await;
    assert_eq!(ids(&listing), ["ukb/sub-01_T1w"]);
    let scan = &listing.selected[0];
    assert_eq!((scan.uri.as_str(), scan.voxels_uri.as_deref()), (files[0], Some(files[1])));
    assert_eq!((scan.size_bytes, scan.sidecar()), (12, Some(files[2])));
    assert!(scan.etag.is_some() && scan.voxels_etag.is_some());
    let batch = manifest::to_batch(&listing.selected).unwrap();
    assert_eq!(manifest::from_batch(&batch).unwrap(), listing.selected);
    let whole = ["x.img", "x.nii.gz", "x.hdr.gz", "x.img.gz"];
    let listing = list(&whole, &Selection::default()).await;
    assert_eq!(listing.selected[0].uri, "x.hdr.gz");
    assert_eq!(skipped(&listing), [("x.img", Reason::Duplicate), ("x.nii.gz", Reason::Duplicate)]);
}

#[tokio::test]
async fn a_pair_is_read_whole_and_pinned_to_what_was_listed() {
    let golden = root().join("tests/golden/volume");
    let folder = tempfile::tempdir().unwrap();
    for half in ["pair.hdr", "pair.img"] {
        std::fs::copy(golden.join(half), folder.path().join(half)).unwrap();
    }
    let location = store::open(folder.path().to_str().unwrap()).unwrap();
    let before = cohort::list(&location, "c", &Selection::default()).await.unwrap().selected;
    let bytes = cohort::read(&location, &before[0], 1 << 20).await.unwrap();
    assert_eq!(bytes.n_bytes() as i64, before[0].size_bytes);
    assert_eq!(bytes.decode(1 << 20).unwrap().volume.grid.shape, [5, 4, 3]);
    assert_eq!(cohort::read(&location, &before[0], 400).await.unwrap_err().kind(), "too_large");

    // Another image under the same header.
    let mut image = std::fs::read(golden.join("pair.img")).unwrap();
    image.push(0);
    std::fs::write(folder.path().join("pair.img"), image).unwrap();
    assert_eq!(cohort::read(&location, &before[0], 1 << 20).await.unwrap_err().kind(), "changed_while_reading");
    let after = cohort::list(&location, "c", &Selection::default()).await.unwrap().selected;
    assert_ne!(before[0].content_id, after[0].content_id);
    assert_eq!(before[0].etag, after[0].etag);
}

#[tokio::test]
async fn half_a_pair_is_a_scan_that_fails_with_the_reason() {
    for (half, missing) in [("a/x.hdr", ".img"), ("x.img.gz", ".hdr")] {
        let location = bucket(&[(half, "bytes")]).await;
        let listing = cohort::list(&location, "c", &Selection::default()).await.unwrap();
        let error = cohort::read(&location, &listing.selected[0], 1 << 20).await.unwrap_err();
        assert_eq!(error.kind(), "half_pair");
        assert!(error.to_string().contains(&format!("put the {missing}")), "{error}");
    }
}
