//! The result tables: what is written is committed once, becomes visible whole, and is described rightly.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::SessionContext;
use neurosieve::flow::{RollPolicy, WriteExec};
use neurosieve::query;
use neurosieve::store::{Location, open_or_create};
use neurosieve::tables::{Receipt, RunRow, Table, Tables, screen_row, screen_schema};
use object_store::memory::InMemory;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

/// Midnight of 2026-01-01 UTC, in microseconds.
pub const DAY_ONE: i64 = 1_767_225_600_000_000;
pub const MINUTE: i64 = 60_000_000;
const TOKENS_PER_SCAN: usize = 4;

fn one_row(table: Table, row: Value) -> RecordBatch {
    table.rows(&[row]).unwrap()
}

/// A finished scan as ScreenExec gives it: one row in scans, four tokens, one mask, one finding. `score` is the
/// highest of its token probabilities.
pub fn finished(run_id: &str, scan_id: &str, at: i64, score: f64) -> RecordBatch {
    let tokens: Vec<Value> = (0..TOKENS_PER_SCAN)
        .map(|i| {
            let p = score * (i + 1) as f64 / TOKENS_PER_SCAN as f64;
            let x = if i % 2 == 0 { -30.0 } else { 30.0 };
            json!({
                "run_id": run_id, "scan_id": scan_id, "z": i / 2, "y": 0, "x": i % 2, "mni_x_mm": x, "mni_y_mm": 0.0,
                "mni_z_mm": 8.0, "region": if x < 0.0 { "left parietal lobe" } else { "right parietal lobe" },
                "code": 100 + i, "p_anomalous": p, "nll": if i == 0 { None } else { Some(2.5) }, "residual": 0.25
            })
        })
        .collect();
    let mask = json!({
        "run_id": run_id, "scan_id": scan_id, "shape": [2, 2, 2], "spacing_mm": [2.0, 2.0, 2.0],
        "affine": [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0], "mask": "81", "brain": "ff", "score": "00ff00ff00ff00ff",
        "threshold": 0.5
    });
    let finding = json!({
        "run_id": run_id, "scan_id": scan_id, "finding": 1, "volume_ml": 10.0 * score, "mni_x_mm": 30.0,
        "mni_y_mm": 0.0, "mni_z_mm": 8.0, "bbox_min_mm": [20, -10, 0], "bbox_max_mm": [40, 10, 16],
        "region": "right parietal lobe", "max_score": score, "mean_score": score / 2.0
    });
    let scan = json!({
        "run_id": run_id, "scan_id": scan_id, "content_id": format!("{scan_id}-v1"), "recipe_id": "recipe",
        "cohort": "study", "subject": scan_id, "suffix": "T1w", "uri": format!("{scan_id}/anat/{scan_id}_T1w.nii.gz"),
        "size_bytes": 1000, "last_modified": DAY_ONE, "finished_at": at, "native_shape": [192, 256, 256],
        "native_spacing_mm": [1.0, 0.9, 0.9], "native_affine": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "orientation": "RAS", "datatype": "int16", "registration_affine": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "registration_ncc": 0.9, "stripped_input": false, "brain_volume_ml": 1300.0, "snr": 20.0, "cnr": 4.0,
        "mask_ratio": 1.0, "cropped_fraction": 0.0, "entropy_focus": 0.5,
        "qc_flags": if score > 0.8 { vec!["motion"] } else { vec![] }, "n_tokens": 4, "n_anomalous_tokens": 1,
        "max_token_p": score, "anomaly_score": score, "anomaly_volume_ml": 10.0 * score, "n_findings": 1,
        "threshold": 0.5, "fetch_ms": 1.0, "decode_ms": 1.0, "preprocess_ms": 1.0, "score_ms": 1.0, "device": "cpu",
        "bundle": "builtin", "version": "0.1.0"
    });
    let failures = RecordBatch::new_empty(Table::Failures.arrow_schema());
    let tokens = held(Table::Tokens, &Table::Tokens.rows(&tokens).unwrap());
    let (mask, finding) = (one_row(Table::Masks, mask), one_row(Table::Findings, finding));
    screen_row([tokens, mask, finding, failures, one_row(Table::Scans, scan)]).unwrap()
}

/// Rows in the shape in which they travel.
fn held(table: Table, rows: &RecordBatch) -> RecordBatch {
    let schema = table.held_schema();
    let columns = rows.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()).unwrap()).collect();
    RecordBatch::try_new(schema, columns).unwrap()
}

/// A failed scan as ScreenExec gives it.
pub fn failed(run_id: &str, scan_id: &str, at: i64, kind: &str, attempts: i32) -> RecordBatch {
    let failure = one_row(
        Table::Failures,
        json!({
            "run_id": run_id, "scan_id": scan_id, "content_id": format!("{scan_id}-v1"), "recipe_id": "recipe",
            "cohort": "study", "uri": format!("{scan_id}.nii.gz"), "stage": "decode", "kind": kind,
            "message": format!("{kind}: copy the file again"), "permanent": kind == "truncated",
            "attempts": attempts, "failed_at": at
        }),
    );
    screen_row(Table::SCREENED.map(|t| match t {
        Table::Failures => failure.clone(),
        other => RecordBatch::new_empty(other.held_schema()),
    }))
    .unwrap()
}

/// Sends scans through WriteExec; gives its receipts.
pub async fn write(target: &Location, partitions: Vec<Vec<RecordBatch>>, roll_at: usize) -> Vec<Receipt> {
    let (_, receipts) = write_plan(target, partitions, roll_at).await;
    receipts
}

async fn write_plan(
    target: &Location,
    partitions: Vec<Vec<RecordBatch>>,
    roll_at: usize,
) -> (Arc<dyn ExecutionPlan>, Vec<Receipt>) {
    let leaf = MemorySourceConfig::try_new_exec(&partitions, screen_schema(), None).unwrap();
    let policy = RollPolicy { scans: roll_at, ..RollPolicy::default() };
    let plan: Arc<dyn ExecutionPlan> = Arc::new(WriteExec::try_new(leaf, target.clone(), policy).unwrap());
    let batches = collect(Arc::clone(&plan), SessionContext::new().task_ctx()).await.unwrap();
    let receipts = batches.iter().flat_map(|b| Receipt::from_batch(b).unwrap()).collect();
    (plan, receipts)
}

pub async fn open(folder: &Path) -> Tables {
    Tables::open_or_create(folder.to_str().unwrap()).await.unwrap()
}

/// Screens and commits in one go.
pub async fn commit(tables: &mut Tables, run_id: &str, scans: Vec<RecordBatch>) {
    let receipts = write(tables.location(), vec![scans], 64).await;
    tables.commit(run_id, 0, &receipts).await.unwrap();
}

pub async fn count(context: &SessionContext, from: &str) -> i64 {
    let batches = context.sql(&format!("SELECT count(*) FROM {from}")).await.unwrap().collect().await.unwrap();
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

async fn counts<const N: usize>(tables: &Tables, from: [&str; N]) -> [i64; N] {
    let context = query::session(tables).await.unwrap();
    let mut counts = [0; N];
    for (n, from) in counts.iter_mut().zip(from) {
        *n = count(&context, from).await;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scan_is_written_once_whatever_the_partitions() {
    for n_partitions in [1, 2, 5] {
        let folder = tempfile::tempdir().unwrap();
        let mut tables = open(folder.path()).await;
        let mut partitions = vec![Vec::new(); n_partitions];
        for i in 0..12_i32 {
            let (scan_id, at) = (format!("sub-{i:02}"), DAY_ONE + i64::from(i));
            let scan = match i {
                3 | 7 => failed("r1", &scan_id, at, "truncated", 1),
                _ => finished("r1", &scan_id, at, 0.5),
            };
            partitions[i as usize % n_partitions].push(scan);
        }
        let (plan, receipts) = write_plan(tables.location(), partitions, 3).await;

        // A roll takes 3 scans, so no file holds more, and every partition rolls by itself.
        assert!(receipts.iter().filter(|r| r.table == Table::Scans).all(|r| r.num_rows <= 3));
        let mut rolls: Vec<_> = receipts.iter().map(|r| (&r.batch_id, r.n_scans, r.n_failed)).collect();
        rolls.sort_unstable();
        rolls.dedup();
        assert_eq!(rolls.iter().map(|r| r.1).sum::<i64>(), 10);
        assert_eq!(rolls.iter().map(|r| r.2).sum::<i64>(), 2);

        tables.commit("r1", 0, &receipts).await.unwrap();
        let seen = counts(&tables, ["scans", "tokens", "masks", "findings", "failures"]).await;
        assert_eq!(seen, [10, 40, 10, 10, 2], "{n_partitions} partitions");
        let metrics = plan.metrics().unwrap();
        let summed = |name| metrics.sum_by_name(name).unwrap().as_usize();
        assert_eq!(metrics.output_rows(), Some(receipts.len()));
        assert_eq!(summed("files_written"), receipts.len());
        assert_eq!(summed("bytes_written") as i64, receipts.iter().map(|r| r.size_bytes).sum::<i64>());
        assert!(summed("encode_time") > 0 && summed("write_time") > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_does_not_repartition_below_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let target = open_or_create(folder.path().to_str().unwrap()).unwrap();
    let leaf = MemorySourceConfig::try_new_exec(&[vec![finished("r1", "a", DAY_ONE, 0.5)]], screen_schema(), None);
    let mut plan: Arc<dyn ExecutionPlan> =
        Arc::new(WriteExec::try_new(leaf.unwrap(), target, RollPolicy::default()).unwrap());
    let state = SessionContext::new().state();
    for rule in state.physical_optimizers() {
        plan = rule.optimize(plan, state.config_options()).unwrap();
    }
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    assert!(!shown.contains("Repartition") && !shown.contains("Coalesce"), "{shown}");
    assert!(shown.starts_with("WriteExec: roll at 64 scans, 64 MiB or 60 s"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_roll_does_not_wait_for_more_scans() {
    let folder = tempfile::tempdir().unwrap();
    let target = open_or_create(folder.path().to_str().unwrap()).unwrap();
    let leaf = MemorySourceConfig::try_new_exec(
        &[(0..3).map(|i| finished("r1", &format!("s{i}"), DAY_ONE, 0.5)).collect()],
        screen_schema(),
        None,
    );
    let policy = RollPolicy { every: Duration::ZERO, ..RollPolicy::default() };
    let plan = Arc::new(WriteExec::try_new(leaf.unwrap(), target, policy).unwrap());
    let batches = collect(plan, SessionContext::new().task_ctx()).await.unwrap();
    let scans: i64 = batches.iter().map(|b| Receipt::from_batch(b).unwrap()[0].n_scans).sum();
    assert_eq!(scans, 3);
    assert!(batches.len() > 1, "one roll although every scan was old at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_without_an_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let target = open_or_create(folder.path().to_str().unwrap()).unwrap();
    let nothing = screen_row(Table::SCREENED.map(|t| RecordBatch::new_empty(t.held_schema()))).unwrap();
    let leaf = MemorySourceConfig::try_new_exec(&[vec![nothing]], screen_schema(), None).unwrap();
    let plan = Arc::new(WriteExec::try_new(leaf, target, RollPolicy::default()).unwrap());
    let error = collect(plan, SessionContext::new().task_ctx()).await.unwrap_err().to_string();
    assert!(error.contains("one row in scans or in failures"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_sorted_and_their_statistics_are_true() {
    let folder = tempfile::tempdir().unwrap();
    let tables = open(folder.path()).await;
    let scans = ["sub-c", "sub-a", "sub-b"].map(|id| finished("r1", id, DAY_ONE + MINUTE, 0.8)).to_vec();
    let receipts = write(tables.location(), vec![scans], 64).await;

    let receipt = receipts.iter().find(|r| r.table == Table::Tokens).unwrap();
    let stats: Value = serde_json::from_str(&receipt.stats).unwrap();
    assert_eq!(stats["numRecords"], 12);
    assert_eq!((&stats["minValues"]["scan_id"], &stats["maxValues"]["scan_id"]), (&json!("sub-a"), &json!("sub-c")));
    assert_eq!((&stats["minValues"]["code"], &stats["maxValues"]["code"]), (&json!(100), &json!(103)));
    assert_eq!(stats["minValues"]["mni_x_mm"], -30.0);
    assert_eq!(stats["maxValues"]["p_anomalous"], f64::from(0.8_f32));
    assert_eq!((&stats["nullCount"]["nll"], &stats["nullCount"]["z"]), (&json!(3), &json!(0)));
    let scans = receipts.iter().find(|r| r.table == Table::Scans).unwrap();
    let stats: Value = serde_json::from_str(&scans.stats).unwrap();
    assert_eq!(stats["maxValues"]["finished_at"], "2026-01-01T00:01:00.000000Z");
    assert_eq!(stats["nullCount"]["session"], 3);
    assert!(stats["maxValues"].get("qc_flags").is_none());

    let path = folder.path().join("tokens").join(&receipt.path);
    assert_eq!(std::fs::metadata(&path).unwrap().len() as i64, receipt.size_bytes);
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
    let group = reader.metadata().row_group(0).clone();
    let sorting: Vec<_> =
        group.sorting_columns().unwrap().iter().map(|c| group.column(c.column_idx as usize)).collect();
    assert_eq!(sorting.iter().map(|c| c.column_path().string()).collect::<Vec<_>>(), ["scan_id", "z", "y", "x"]);
    assert!(format!("{:?}", sorting[0].compression()).contains("ZSTD"));
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    let rows = concat_batches(&batches[0].schema(), &batches).unwrap();
    let ids: Vec<_> = rows.column(1).as_string::<i32>().iter().flatten().collect();
    assert!(ids.is_sorted(), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_repeated_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let receipts = write(tables.location(), vec![vec![finished("r1", "sub-01", DAY_ONE, 0.5)]], 64).await;
    let done = tables.commit("r1", 0, &receipts).await.unwrap();
    assert_eq!(done.tables, [Table::Tokens, Table::Masks, Table::Findings, Table::Scans]);
    assert!(tables.commit("r1", 0, &receipts).await.unwrap().tables.is_empty());
    // A process that starts afresh knows it from the log alone.
    let mut again = open(folder.path()).await;
    assert!(again.commit("r1", 0, &receipts).await.unwrap().tables.is_empty());
    assert_eq!(counts(&again, ["raw.scans", "raw.tokens"]).await, [1, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_cut_short_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let receipts = write(tables.location(), vec![vec![finished("r1", "sub-01", DAY_ONE, 0.5)]], 64).await;
    let tokens: Vec<_> = receipts.iter().filter(|r| r.table == Table::Tokens).cloned().collect();
    tables.commit("r1", 0, &tokens).await.unwrap();
    // The tokens are there, but no reader of the views sees a scan without its other half.
    assert_eq!(counts(&tables, ["raw.tokens", "tokens", "scans"]).await, [4, 0, 0]);

    let rest = tables.commit("r1", 0, &receipts).await.unwrap();
    assert_eq!(rest.tables, [Table::Masks, Table::Findings, Table::Scans]);
    assert_eq!(counts(&tables, ["raw.tokens", "tokens", "scans", "masks"]).await, [4, 4, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_commit_at_the_same_time_all_count() {
    // Atomic conditional writes, as in the clouds; all runs also race to create the tables.
    let url = url::Url::parse("memory:///results").unwrap();
    let location = Location::new(Arc::new(InMemory::new()), "results".into(), url);
    let runs = (0..4).map(|i| {
        let location = location.clone();
        tokio::spawn(async move {
            let mut tables = Tables::open_or_create_at(location).await.unwrap();
            let (run, scan) = (format!("r{i}"), format!("sub-{i}"));
            commit(&mut tables, &run, vec![finished(&run, &scan, DAY_ONE, 0.5)]).await;
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    let tables = Tables::open_at(location).await.unwrap();
    assert_eq!(counts(&tables, ["scans", "tokens", "raw.scans"]).await, [4, 16, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_with_the_same_scans_at_the_same_time_leave_one_result_of_each() {
    let url = url::Url::parse("memory:///results").unwrap();
    let location = Location::new(Arc::new(InMemory::new()), "results".into(), url);
    // All open the tables before anyone commits; each has a scan of its own besides the two that all have.
    let mut opened = Vec::new();
    for i in 0..4 {
        opened.push((format!("r{i}"), Tables::open_or_create_at(location.clone()).await.unwrap()));
    }
    let runs = opened.into_iter().map(|(run, mut tables)| {
        tokio::spawn(async move {
            let scans = ["sub-1", "sub-2", &format!("sub-{run}")].map(|scan| finished(&run, scan, DAY_ONE, 0.5));
            let mut superseded = 0;
            for (epoch, scan) in scans.into_iter().enumerate() {
                let receipts = write(tables.location(), vec![vec![scan]], 64).await;
                superseded += tables.commit(&run, epoch as i64, &receipts).await.unwrap().superseded;
            }
            superseded
        })
    });
    let mut superseded = 0;
    for run in runs.collect::<Vec<_>>() {
        superseded += run.await.unwrap();
    }
    let tables = Tables::open_at(location).await.unwrap();
    assert_eq!(counts(&tables, ["raw.scans", "scans", "tokens", "masks"]).await, [6, 6, 24, 6]);
    assert_eq!(superseded, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_roll_only_what_another_run_has_not_committed_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (open(folder.path()).await, open(folder.path()).await);
    commit(&mut first, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.5)]).await;
    // Putting files together anew is no news, and other content or another recipe is no rival.
    first.optimize(Table::Scans, std::num::NonZeroU64::new(1 << 20).unwrap(), 1 << 28).await.unwrap();
    let scans = ["sub-1", "sub-2", "sub-3"].map(|scan| finished("r2", scan, DAY_ONE + MINUTE, 0.6));
    let receipts = write(second.location(), vec![scans.to_vec()], 64).await;
    let committed = second.commit("r2", 0, &receipts).await.unwrap();
    assert_eq!((committed.superseded, committed.tables.len()), (1, 4));
    // No row of the scan that came second is anywhere.
    assert_eq!(counts(&second, ["raw.scans", "raw.tokens", "raw.masks", "raw.findings"]).await, [3, 12, 3, 3]);
    let context = query::session(&second).await.unwrap();
    assert_eq!(count(&context, "scans WHERE scan_id = 'sub-1' AND run_id = 'r1'").await, 1);
    // Asked again, as after an answer that was lost: nothing more.
    assert!(second.commit("r2", 0, &receipts).await.unwrap().tables.is_empty());
    assert_eq!(counts(&second, ["raw.scans"]).await, [3]);
}

/// Rewrites the first entry of a table's log as a version would have that did not know these columns yet, or knew others.
fn as_of_another_version(folder: &Path, table: Table, edit: impl Fn(&mut Vec<Value>)) {
    let entry = folder.join(table.name()).join("_delta_log/00000000000000000000.json");
    let lines = std::fs::read_to_string(&entry).unwrap();
    let lines = lines.lines().map(|line| {
        let mut action: Value = serde_json::from_str(line).unwrap();
        if let Some(text) = action["metaData"]["schemaString"].as_str() {
            let mut schema: Value = serde_json::from_str(text).unwrap();
            edit(schema["fields"].as_array_mut().unwrap());
            action["metaData"]["schemaString"] = schema.to_string().into();
        }
        action.to_string() + "\n"
    });
    std::fs::write(&entry, lines.collect::<String>()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_older_version_are_read_and_written_on() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await;
    as_of_another_version(folder.path(), Table::Scans, |fields| fields.retain(|f| f["name"] != "acquisition"));
    as_of_another_version(folder.path(), Table::Tokens, |fields| fields.retain(|f| f["name"] != "nll"));
    // As the older version left it: without rows here, and readers see what is there.
    let old = Tables::open(folder.path().to_str().unwrap()).await.unwrap();
    let context = query::session(&old).await.unwrap();
    assert!(context.sql("SELECT acquisition FROM scans").await.is_err());
    assert_eq!(count(&context, "scans").await, 0);

    // Whoever writes next adds what is missing, two at once included.
    let (mut first, second) = tokio::join!(open(folder.path()), open(folder.path()));
    commit(&mut first, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.5)]).await;
    drop(second);
    let context = query::session(&first).await.unwrap();
    assert_eq!(count(&context, "tokens WHERE nll IS NOT NULL").await, 3);
    assert_eq!(count(&context, "scans WHERE acquisition IS NULL").await, 1);
    assert_eq!(first.history(Table::Scans, 9).await.unwrap().len(), 3, "made, evolved once, written");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_this_version_cannot_fill_are_refused() {
    let said = async |edit: &dyn Fn(&mut Vec<Value>)| {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).await;
        as_of_another_version(folder.path(), Table::Scans, edit);
        Tables::open_or_create(folder.path().to_str().unwrap()).await.unwrap_err().to_string()
    };
    let named = |fields: &mut Vec<Value>, name: &str| fields.iter().position(|f| f["name"] == name).unwrap();
    let lacks = said(&|fields| fields.retain(|f| f["name"] != "content_id")).await;
    assert!(lacks.contains("lacks column content_id") && lacks.contains("another version"), "{lacks}");
    let newer = said(&|fields| {
        let mut field = fields[0].clone();
        field["name"] = "mood".into();
        fields.push(field);
    })
    .await;
    assert!(newer.contains("does not know column mood"), "{newer}");
    let other = said(&|fields| {
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
    // Opened anew, as by a later run: what came before is no news to it.
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r2", vec![finished("r2", "sub-01", DAY_ONE + MINUTE, 0.9)]).await;

    let seen = counts(&tables, ["raw.scans", "scans", "raw.tokens", "tokens", "masks", "findings"]).await;
    assert_eq!(seen, [3, 2, 12, 8, 2, 2]);
    let replaced = counts(&tables, ["scans WHERE scan_id = 'sub-01' AND run_id = 'r2'"]).await;
    let stale = counts(&tables, ["tokens WHERE scan_id = 'sub-01' AND run_id = 'r1'"]).await;
    assert_eq!((replaced, stale), ([1], [0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_stands_until_a_result_answers_it() {
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

    let done = tables.done("recipe").await.unwrap();
    let key = |scan: &str| (scan.to_owned(), format!("{scan}-v1"));
    assert_eq!(done.finished, [key("healed"), key("worse")].into());
    assert_eq!(
        done.failed,
        [(key("healed"), (1, false)), (key("broken"), (2, true)), (key("worse"), (1, true))].into()
    );
    assert_eq!(tables.done("another recipe").await.unwrap(), Default::default());
}

pub fn run_row(run_id: &str, finished_at: Option<i64>, n_done: i64) -> RunRow {
    RunRow {
        run_id: run_id.into(),
        cohort: "study".into(),
        started_at: DAY_ONE,
        finished_at,
        status: if finished_at.is_some() { "finished" } else { "running" }.into(),
        n_listed: 10,
        n_selected: 10,
        n_already_done: 0,
        n_done,
        n_failed: 2,
        scans_per_minute: 5.0,
        device: "cpu".into(),
        recipe_id: "recipe".into(),
        bundle: "builtin".into(),
        bundle_digest: "00".into(),
        config: "[preprocess]\n".repeat(20),
        version: "0.1.0".into(),
        cores: 2,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_running_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    tables.record_run(&run_row("r1", None, 0)).await.unwrap();
    assert_eq!(counts(&tables, ["runs WHERE status = 'running'"]).await, [1]);
    for _ in 0..2 {
        tables.record_run(&run_row("r1", Some(DAY_ONE + MINUTE), 8)).await.unwrap();
    }
    assert_eq!(counts(&tables, ["runs", "runs WHERE status = 'finished' AND n_done = 8"]).await, [1, 1]);
    assert_eq!(counts(&tables, ["raw.runs"]).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_without_tables_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tables::open(folder.path().to_str().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("screen a cohort into it first"), "{error}");
}
