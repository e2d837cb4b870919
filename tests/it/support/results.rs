//! Results of scans as `ScreenExec` gives them, and tables that hold them: no scan is read for it.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;
use neurosieve::flow::{RollPolicy, Target, WriteExec};
use neurosieve::query;
use neurosieve::store::Location;
use neurosieve::tables::{Receipt, RunRow, Table, Tables, screen_row, screen_schema};
use serde_json::{Value, json};

/// Midnight of 2026-01-01 UTC, in microseconds.
pub const DAY_ONE: i64 = 1_767_225_600_000_000;
pub const MINUTE: i64 = 60_000_000;
const TOKENS_PER_SCAN: usize = 4;

/// Runs of the tests are called `r1`, `r2` and so on, in their order.
fn number_of(run_id: &str) -> Option<i64> {
    run_id.strip_prefix('r')?.parse().ok()
}

fn one_row(table: Table, row: Value) -> RecordBatch {
    table.rows(&[row]).unwrap()
}

/// A finished scan as ScreenExec gives it: one row in scans, four tokens, one mask, one finding. `score` is the
/// highest of its token probabilities.
pub fn finished(run_id: &str, scan_id: &str, at: i64, score: f64) -> RecordBatch {
    finished_with(run_id, scan_id, at, score, &json!({}))
}

/// [`finished`] with other values of columns of scans.
pub fn finished_with(run_id: &str, scan_id: &str, at: i64, score: f64, columns: &Value) -> RecordBatch {
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
    let mut scan = json!({
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
        "bundle": "builtin", "version": "0.1.0", "run_number": number_of(run_id)
    });
    scan.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
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
            "attempts": attempts, "failed_at": at, "run_number": number_of(run_id)
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

pub async fn write_plan(
    target: &Location,
    partitions: Vec<Vec<RecordBatch>>,
    roll_at: usize,
) -> (Arc<dyn ExecutionPlan>, Vec<Receipt>) {
    let leaf = MemorySourceConfig::try_new_exec(&partitions, screen_schema(), None).unwrap();
    let policy = RollPolicy { scans: roll_at, ..RollPolicy::default() };
    let plan: Arc<dyn ExecutionPlan> =
        Arc::new(WriteExec::try_new(leaf, Target::Opened(target.clone()), policy).unwrap());
    let batches = collect(Arc::clone(&plan), SessionContext::new().task_ctx()).await.unwrap();
    let receipts = batches.iter().flat_map(|b| Receipt::from_batch(b).unwrap()).collect();
    (plan, receipts)
}

pub async fn open(folder: &Path) -> Tables {
    Tables::open_or_create(folder.to_str().unwrap()).await.unwrap()
}

/// Begins a run, as every run does before it commits.
pub async fn begin(tables: &mut Tables, run_id: &str) {
    tables.begin_run(&mut run_row(run_id, None, 0)).await.unwrap();
}

/// Screens and commits in one go.
pub async fn commit(tables: &mut Tables, run_id: &str, scans: Vec<RecordBatch>) {
    begin(tables, run_id).await;
    let receipts = write(tables.location(), vec![scans], 64).await;
    tables.commit(run_id, 0, &receipts).await.unwrap();
}

pub async fn count(context: &SessionContext, from: &str) -> i64 {
    let batches = context.sql(&format!("SELECT count(*) FROM {from}")).await.unwrap().collect().await.unwrap();
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

pub async fn counts<const N: usize>(tables: &Tables, from: [&str; N]) -> [i64; N] {
    let context = query::session(tables).await.unwrap();
    let mut counts = [0; N];
    for (n, from) in counts.iter_mut().zip(from) {
        *n = count(&context, from).await;
    }
    counts
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
        run_number: number_of(run_id),
        cohort_root: None,
        host: None,
        operator: None,
        image: None,
        message: None,
    }
}
