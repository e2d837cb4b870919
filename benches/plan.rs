//! How long a run takes to find the pending scans of a cohort of which nearly all scans are done.
//!
//! ```sh
//! cargo bench --bench plan                        # 1,000,000 scans, 990,000 of them done
//! cargo bench --bench plan -- 100000 99000
//! ```
//! Objects and tables are in memory, so this measures the program and the table library, not a store. The results of
//! earlier runs are in files of 64 scans, as runs commit them, and then in the files that `tables optimize` makes of them.

#![allow(clippy::unwrap_used, reason = "a bench may panic")]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use neurosieve::cohort::ScanEntry;
use neurosieve::flow::{Pipeline, Run};
use neurosieve::store::Location;
use neurosieve::tables::{DataFile, Receipt, Table, Tables};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::json;

/// Scans per file, as a run commits them.
const SCANS_PER_FILE: usize = 64;

/// Files per commit: far more than in a run, to fill the tables in reasonable time. Checkpoints hide the difference.
const FILES_PER_COMMIT: usize = 256;

#[tokio::main]
async fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let [scans, done] = <[usize; 2]>::try_from(numbers).unwrap_or([1_000_000, 990_000]);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let place = |name: &str| {
        let url = url::Url::parse(&format!("memory:///{name}")).unwrap();
        Location::new(Arc::clone(&store), Path::from(name), url)
    };
    let description = r#"{"Name": "plan", "BIDSVersion": "1.9.0"}"#;
    store.put(&Path::from("study/dataset_description.json"), description.into()).await.unwrap();
    for n in 0..scans {
        let path = Path::from(format!("study/sub-{n:07}/anat/sub-{n:07}_T1w.nii.gz"));
        store.put(&path, "scan".into()).await.unwrap();
    }
    let pipeline: Pipeline = toml::from_str("[run]\ndevice = \"cpu\"").unwrap();
    let empty = Run::prepare_at(pipeline.clone(), place("study"), place("tables")).await.unwrap();
    assert_eq!(empty.pending(), scans);
    let recipe = empty.recipe_id().to_owned();
    fill(place("tables"), &empty.listing().selected[..done], &recipe).await;
    drop(empty);

    let measure = async |what: &str| {
        // Linux: resets the peak of the resident memory.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = memory_mib("VmRSS:");
        let started = Instant::now();
        let run = Run::prepare_at(pipeline.clone(), place("study"), place("tables")).await.unwrap();
        assert_eq!((run.pending(), run.already_done()), (scans - done, done));
        println!(
            "{what}: {} of {scans} scans are pending, known in {:.1} s; {before} MiB before, {} MiB at the peak",
            run.pending(),
            started.elapsed().as_secs_f64(),
            memory_mib("VmHWM:")
        );
    };
    measure("files as committed").await;
    let mut tables = Tables::open_at(place("tables")).await.unwrap();
    let started = Instant::now();
    let optimized = tables.optimize(Table::Scans, NonZeroU64::new(128 << 20).unwrap(), 4 << 30).await.unwrap();
    println!("{} files became {} in {:.1} s", optimized.removed, optimized.added, started.elapsed().as_secs_f64());
    drop(tables);
    measure("files optimized").await;
}

/// Commits a result of each scan.
async fn fill(tables: Location, entries: &[ScanEntry], recipe_id: &str) {
    let mut tables = Tables::open_or_create_at(tables).await.unwrap();
    let row = json!({
        "run_id": "earlier", "scan_id": "", "content_id": "", "recipe_id": recipe_id, "cohort": "study", "subject": "1",
        "suffix": "T1w", "uri": "sub-1/anat/sub-1_T1w.nii.gz", "size_bytes": 4, "last_modified": 0,
        "finished_at": 1_767_225_600_000_000_i64, "native_shape": [192, 256, 256], "native_spacing_mm": [1.0, 0.9, 0.9],
        "native_affine": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "orientation": "RAS", "datatype": "int16",
        "registration_affine": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "registration_ncc": 0.9, "stripped_input": false,
        "brain_volume_ml": 1300.0, "snr": 20.0, "cnr": 4.0, "mask_ratio": 1.0, "cropped_fraction": 0.0,
        "entropy_focus": 0.5, "qc_flags": [], "n_tokens": 4, "n_anomalous_tokens": 1, "max_token_p": 0.5,
        "anomaly_score": 0.5, "anomaly_volume_ml": 1.0, "n_findings": 0, "threshold": 0.5, "fetch_ms": 1.0,
        "decode_ms": 1.0, "preprocess_ms": 1.0, "score_ms": 1.0, "device": "cpu", "bundle": "t1w-2mm", "version": "0.1.0"
    });
    let one = Table::Scans.rows(&[row]).unwrap();
    let mut receipts = Vec::new();
    for (number, chunk) in entries.chunks(SCANS_PER_FILE).enumerate() {
        let file = DataFile::encode(Table::Scans, &[rows(&one, chunk)]).unwrap();
        receipts.push(Receipt {
            batch_id: number.to_string(),
            table: Table::Scans,
            path: file.put(tables.location(), Table::Scans).await.unwrap(),
            size_bytes: file.bytes.len() as i64,
            num_rows: file.num_rows as i64,
            stats: file.stats.clone(),
            n_scans: chunk.len() as i64,
            n_failed: 0,
        });
    }
    for (epoch, receipts) in receipts.chunks(FILES_PER_COMMIT).enumerate() {
        tables.commit("earlier", epoch as i64, receipts).await.unwrap();
    }
}

/// One row of `scans` for each entry.
fn rows(one: &RecordBatch, entries: &[ScanEntry]) -> RecordBatch {
    let same = take_record_batch(one, &UInt32Array::from(vec![0; entries.len()])).unwrap();
    let mut columns = same.columns().to_vec();
    let mut set = |name: &str, values: ArrayRef| columns[same.schema().index_of(name).unwrap()] = values;
    set("scan_id", Arc::new(StringArray::from_iter_values(entries.iter().map(|entry| &entry.scan_id))));
    set("content_id", Arc::new(StringArray::from_iter_values(entries.iter().map(|entry| &entry.content_id))));
    RecordBatch::try_new(same.schema(), columns).unwrap()
}

fn memory_mib(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
