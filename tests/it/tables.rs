//! Tables as readers and later versions see them: the newest result of each scan, failures, runs, and columns that change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neurosieve::query;
use neurosieve::tables::{Table, Tables};
use serde_json::{Value, json};

use super::support::results::{DAY_ONE, MINUTE, begin, commit, count, counts, failed, finished, open, run_row};

/// Rewrites the first entry of a table's log to what a version with other columns would have written.
fn as_of_another_version(folder: &Path, table: Table, edit: impl Fn(&mut Vec<Value>)) {
    rewrite_first_entry(folder, table, |action| {
        if let Some(text) = action["metaData"]["schemaString"].as_str() {
            let mut schema: Value = serde_json::from_str(text).unwrap();
            edit(schema["fields"].as_array_mut().unwrap());
            action["metaData"]["schemaString"] = schema.to_string().into();
        }
    });
}

/// Edits every action of the first entry of a table's log.
fn rewrite_first_entry(folder: &Path, table: Table, edit: impl Fn(&mut Value)) {
    let entry = folder.join(table.name()).join("_delta_log/00000000000000000000.json");
    let lines = std::fs::read_to_string(&entry).unwrap();
    let lines = lines.lines().map(|line| {
        let mut action: Value = serde_json::from_str(line).unwrap();
        edit(&mut action);
        action.to_string() + "\n"
    });
    std::fs::write(&entry, lines.collect::<String>()).unwrap();
}

/// A feature of Delta: its protocol, its settings of a table, and the metadata of the column `subject`.
struct Feature {
    said: &'static str,
    protocol: Value,
    configuration: Value,
    partitions: Value,
    column: Value,
}

fn features() -> [Feature; 8] {
    let none = json!({});
    let writer = |features: &[&str]| json!({"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": features});
    let feature = |said, protocol, configuration, column| Feature {
        said,
        protocol,
        configuration,
        partitions: json!([]),
        column,
    };
    [
        feature(
            "column mapping",
            json!({"minReaderVersion": 2, "minWriterVersion": 5}),
            json!({"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "99"}),
            none.clone(),
        ),
        feature("the feature rowTracking", writer(&["rowTracking", "domainMetadata"]), none.clone(), none.clone()),
        feature("the feature inCommitTimestamp", writer(&["inCommitTimestamp"]), none.clone(), none.clone()),
        feature("the feature fromTheFuture", writer(&["fromTheFuture"]), none.clone(), none.clone()),
        feature(
            "the constraint positive",
            json!({"minReaderVersion": 1, "minWriterVersion": 3}),
            json!({"delta.constraints.positive": "n_tokens > 0"}),
            none.clone(),
        ),
        feature(
            "an invariant of column subject",
            json!({"minReaderVersion": 1, "minWriterVersion": 2}),
            none.clone(),
            json!({"delta.invariants": "{\"expression\":{\"expression\":\"subject <> ''\"}}"}),
        ),
        feature(
            "a generated value of column subject",
            json!({"minReaderVersion": 1, "minWriterVersion": 4}),
            none.clone(),
            json!({"delta.generationExpression": "'x'"}),
        ),
        Feature {
            partitions: json!(["cohort"]),
            ..feature("partitions by cohort", json!({"minReaderVersion": 1, "minWriterVersion": 2}), none.clone(), none)
        },
    ]
}

fn files_below(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let below = entries.flat_map(|entry| match entry.path().is_dir() {
        true => files_below(&entry.path()).into_iter().collect::<Vec<_>>(),
        false => vec![(entry.path(), entry.metadata().unwrap().len())],
    });
    below.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_with_features_that_others_added_are_refused_before_anything_is_written() {
    for Feature { said, protocol, configuration, partitions, column } in features() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).await;
        rewrite_first_entry(folder.path(), Table::Scans, |action| {
            if action["protocol"].is_object() {
                action["protocol"] = protocol.clone();
            }
            let metadata = &mut action["metaData"];
            if let Some(text) = metadata["schemaString"].as_str() {
                let mut schema: Value = serde_json::from_str(text).unwrap();
                let mut id = 0;
                for field in schema["fields"].as_array_mut().unwrap() {
                    id += 1;
                    if said == "column mapping" {
                        field["metadata"]["delta.columnMapping.id"] = id.into();
                        field["metadata"]["delta.columnMapping.physicalName"] = format!("col-{id}").into();
                    }
                    if field["name"] == "subject" {
                        field["metadata"].as_object_mut().unwrap().extend(column.as_object().unwrap().clone());
                    }
                }
                metadata["schemaString"] = schema.to_string().into();
                metadata["configuration"].as_object_mut().unwrap().extend(configuration.as_object().unwrap().clone());
                metadata["partitionColumns"] = partitions.clone();
            }
        });
        let before = files_below(folder.path());
        let refused = Tables::open_or_create(folder.path().to_str().unwrap()).await.unwrap_err().to_string();
        assert!(refused.contains(said) && refused.contains("Screen into new tables"), "{said}: {refused}");
        assert_eq!(files_below(folder.path()), before, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_older_version_are_read_and_get_the_new_columns_when_written() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await;
    as_of_another_version(folder.path(), Table::Scans, |fields| fields.retain(|f| f["name"] != "acquisition"));
    as_of_another_version(folder.path(), Table::Tokens, |fields| fields.retain(|f| f["name"] != "nll"));
    // An older version had no numbers of runs, and no table of reverts.
    for table in [Table::Scans, Table::Failures, Table::Runs] {
        as_of_another_version(folder.path(), table, |fields| fields.retain(|f| f["name"] != "run_number"));
    }
    std::fs::remove_dir_all(folder.path().join("reverts")).unwrap();
    // Reading changes nothing: a session shows the new columns as null.
    let old = Tables::open(folder.path().to_str().unwrap()).await.unwrap();
    let context = query::session(&old).await.unwrap();
    assert_eq!(count(&context, "scans WHERE acquisition IS NULL").await, 0);
    assert_eq!(old.history(Table::Scans, 9).await.unwrap().len(), 1);

    // The next to write adds the missing columns; here two at once.
    let (mut first, second) = tokio::join!(open(folder.path()), open(folder.path()));
    commit(&mut first, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.5)]).await;
    drop(second);
    let context = query::session(&first).await.unwrap();
    assert_eq!(count(&context, "tokens WHERE nll IS NOT NULL").await, 3);
    assert_eq!(count(&context, "scans WHERE acquisition IS NULL").await, 1);
    assert_eq!(first.history(Table::Scans, 9).await.unwrap().len(), 3, "created, columns added once, written");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_this_version_cannot_fill_are_refused() {
    let refusal = async |edit: &dyn Fn(&mut Vec<Value>)| {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).await;
        as_of_another_version(folder.path(), Table::Scans, edit);
        Tables::open_or_create(folder.path().to_str().unwrap()).await.unwrap_err().to_string()
    };
    let named = |fields: &mut Vec<Value>, name: &str| fields.iter().position(|f| f["name"] == name).unwrap();
    let lacks = refusal(&|fields| fields.retain(|f| f["name"] != "content_id")).await;
    assert!(lacks.contains("lacks column content_id") && lacks.contains("another version"), "{lacks}");
    let newer = refusal(&|fields| {
        let mut field = fields[0].clone();
        field["name"] = "mood".into();
        fields.push(field);
    })
    .await;
    assert!(newer.contains("does not know column mood"), "{newer}");
    let other = refusal(&|fields| {
        let at = named(fields, "snr");
        fields[at]["type"] = "double".into();
    })
    .await;
    assert!(other.contains("column snr is double"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn views_show_the_newest_result_and_keep_the_history() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let both = vec![finished("r1", "sub-01", DAY_ONE, 0.2), finished("r1", "sub-02", DAY_ONE, 0.3)];
    commit(&mut tables, "r1", both).await;
    // Opened again, as by a later run, which knows the earlier result.
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r2", vec![finished("r2", "sub-01", DAY_ONE + MINUTE, 0.9)]).await;

    let seen = counts(&tables, ["raw.scans", "scans", "raw.tokens", "tokens", "masks", "findings"]).await;
    assert_eq!(seen, [3, 2, 12, 8, 2, 2]);
    let replaced = counts(&tables, ["scans WHERE scan_id = 'sub-01' AND run_id = 'r2'"]).await;
    let stale = counts(&tables, ["tokens WHERE scan_id = 'sub-01' AND run_id = 'r1'"]).await;
    assert_eq!((replaced, stale), ([1], [0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_shown_until_the_scan_has_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let first = vec![
        failed("r1", "healed", DAY_ONE, "storage", 1),
        failed("r1", "broken", DAY_ONE, "storage", 1),
        finished("r1", "worse", DAY_ONE, 0.5),
    ];
    commit(&mut tables, "r1", first).await;
    let second = vec![
        finished("r2", "healed", DAY_ONE + MINUTE, 0.5),
        failed("r2", "broken", DAY_ONE + MINUTE, "truncated", 2),
        failed("r2", "worse", DAY_ONE + MINUTE, "truncated", 1),
    ];
    commit(&mut tables, "r2", second).await;

    assert_eq!(counts(&tables, ["raw.failures", "failures"]).await, [4, 2]);
    assert_eq!(counts(&tables, ["failures WHERE scan_id = 'broken' AND attempts = 2"]).await, [1]);
    assert_eq!(counts(&tables, ["failures WHERE scan_id = 'healed'"]).await, [0]);
    // The earlier result of a scan that fails now is still its result.
    assert_eq!(counts(&tables, ["scans WHERE scan_id = 'worse'"]).await, [1]);

    let done = tables.done("recipe", "cohort").await.unwrap();
    let outcome = |scan: &str| {
        let outcome = done.outcome(scan, &format!("{scan}-v1")).unwrap();
        (outcome.finished, outcome.attempts, outcome.permanent)
    };
    assert_eq!(["healed", "worse", "broken"].map(outcome), [(true, 1, false), (true, 1, true), (false, 2, true)]);
    assert_eq!(done.outcome("healed", "another content"), None);
    assert_eq!(tables.done("another recipe", "cohort").await.unwrap(), Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_shown_as_running_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    begin(&mut tables, "r1").await;
    assert_eq!(counts(&tables, ["runs WHERE status = 'running'"]).await, [1]);
    for _ in 0..2 {
        tables.end_run(&run_row("r1", Some(DAY_ONE + MINUTE), 8)).await.unwrap();
    }
    assert_eq!(counts(&tables, ["runs", "runs WHERE status = 'finished' AND n_done = 8"]).await, [1, 1]);
    assert_eq!(counts(&tables, ["raw.runs"]).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_tables_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tables::open(folder.path().to_str().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("screen a cohort into it first"), "{error}");
}
