//! `WriteExec`: rows of scans become data files, each described by a receipt.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::SessionContext;
use neurosieve::flow::{RollPolicy, Target, WriteExec};
use neurosieve::store::open_or_create;
use neurosieve::tables::{Receipt, Table, screen_row, screen_schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use super::support::results::{DAY_ONE, MINUTE, begin, counts, failed, finished, open, write, write_plan};

#[tokio::test(flavor = "multi_thread")]
async fn every_scan_is_written_once_on_any_number_of_partitions() {
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

        // Files are closed after 3 scans, by each partition on its own.
        assert!(receipts.iter().filter(|r| r.table == Table::Scans).all(|r| r.num_rows <= 3));
        let mut rolls: Vec<_> = receipts.iter().map(|r| (&r.batch_id, r.n_scans, r.n_failed)).collect();
        rolls.sort_unstable();
        rolls.dedup();
        assert_eq!(rolls.iter().map(|r| r.1).sum::<i64>(), 10);
        assert_eq!(rolls.iter().map(|r| r.2).sum::<i64>(), 2);

        begin(&mut tables, "r1").await;
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
        Arc::new(WriteExec::try_new(leaf.unwrap(), Target::Opened(target), RollPolicy::default()).unwrap());
    let state = SessionContext::new().state();
    for rule in state.physical_optimizers() {
        plan = rule.optimize(plan, state.config_options()).unwrap();
    }
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    assert!(!shown.contains("Repartition") && !shown.contains("Coalesce"), "{shown}");
    assert!(shown.starts_with("WriteExec: roll at 64 scans, 64 MiB or 60 s"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_has_waited_long_enough_does_not_wait_for_more_scans() {
    let folder = tempfile::tempdir().unwrap();
    let target = open_or_create(folder.path().to_str().unwrap()).unwrap();
    let leaf = MemorySourceConfig::try_new_exec(
        &[(0..3).map(|i| finished("r1", &format!("s{i}"), DAY_ONE, 0.5)).collect()],
        screen_schema(),
        None,
    );
    let policy = RollPolicy { every: Duration::ZERO, ..RollPolicy::default() };
    let plan = Arc::new(WriteExec::try_new(leaf.unwrap(), Target::Opened(target), policy).unwrap());
    let batches = collect(plan, SessionContext::new().task_ctx()).await.unwrap();
    let scans: i64 = batches.iter().map(|b| Receipt::from_batch(b).unwrap()[0].n_scans).sum();
    assert_eq!(scans, 3);
    assert!(batches.len() > 1, "one file although every scan had waited long enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_neither_finished_nor_failed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let target = open_or_create(folder.path().to_str().unwrap()).unwrap();
    let nothing = screen_row(Table::SCREENED.map(|t| RecordBatch::new_empty(t.held_schema()))).unwrap();
    let leaf = MemorySourceConfig::try_new_exec(&[vec![nothing]], screen_schema(), None).unwrap();
    let plan = Arc::new(WriteExec::try_new(leaf, Target::Opened(target), RollPolicy::default()).unwrap());
    let error = collect(plan, SessionContext::new().task_ctx()).await.unwrap_err().to_string();
    assert!(error.contains("one row in scans or in failures"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_sorted_and_their_statistics_match_their_rows() {
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
