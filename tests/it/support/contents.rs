//! What tables hold, bit for bit, to compare the tables of two runs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::util::pretty::pretty_format_batches;
use neurosieve::query;
use neurosieve::tables::Tables;

use super::cohorts::synth;
use super::program::{WITHOUT_NETWORKS, printed, screen};
use super::shared::{folder, path};

/// Scans of [`heads`], and those among them whose files are whole.
pub const HEADS: usize = 20;
pub const WHOLE: usize = 10;

/// The columns of times and of the run's ids are left out. Rows of a scan are compared in an order of their own.
const QUERIES: [(&str, &str); 5] = [
    (
        "scans",
        "SELECT * EXCEPT (run_id, run_number, finished_at, fetch_ms, decode_ms, preprocess_ms, score_ms) FROM raw.scans \
         ORDER BY scan_id",
    ),
    ("failures", "SELECT * EXCEPT (run_id, run_number, failed_at) FROM raw.failures ORDER BY scan_id"),
    ("tokens", "SELECT * EXCEPT (run_id) FROM raw.tokens ORDER BY scan_id, z, y, x"),
    ("masks", "SELECT * EXCEPT (run_id) FROM raw.masks ORDER BY scan_id"),
    ("findings", "SELECT * EXCEPT (run_id) FROM raw.findings ORDER BY scan_id, finding"),
];

/// The rows of every table, each table in one batch.
pub type Contents = Vec<(&'static str, RecordBatch)>;

/// A cohort of small heads that are screened in half a second each. The files of the second half are truncated,
/// which costs nothing.
pub fn heads() -> &'static str {
    static COHORT: OnceLock<PathBuf> = OnceLock::new();
    path(COHORT.get_or_init(|| {
        let folder = folder().join("heads");
        let (all, damaged) = (HEADS.to_string(), (HEADS - WHOLE).to_string());
        synth(path(&folder), &["--subjects", &all, "--lesions", "2", "--corrupt", &damaged, "--spacing", "4"]);
        folder
    }))
}

/// What a local run without networks leaves of [`heads`].
pub fn heads_screened_here() -> &'static Contents {
    static CONTENTS: OnceLock<Contents> = OnceLock::new();
    CONTENTS.get_or_init(|| {
        let tables = folder().join("heads-here");
        let run = screen(heads(), path(&tables), &WITHOUT_NETWORKS);
        assert_eq!(run.status.code(), Some(3), "{}", printed(&run));
        let contents = contents(&tables);
        assert_eq!((contents[0].1.num_rows(), contents[1].1.num_rows()), (WHOLE, HEADS - WHOLE));
        contents
    })
}

/// What tables in a folder hold.
pub fn contents(tables: &Path) -> Contents {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let session = query::session(&Tables::open(path(tables)).await.unwrap()).await.unwrap();
        let mut contents = Vec::new();
        for (table, sql) in QUERIES {
            let frame = session.sql(sql).await.unwrap();
            let batches = frame.clone().collect().await.unwrap();
            let schema = batches.first().map_or_else(|| frame.schema().inner().clone(), RecordBatch::schema);
            contents.push((table, concat_batches(&schema, &batches).unwrap()));
        }
        contents
    })
}

/// Panics with the first row that differs.
pub fn assert_same(found: &Contents, expected: &Contents, when: &str) {
    for ((table, found), (_, expected)) in found.iter().zip(expected) {
        if found.columns() == expected.columns() {
            continue;
        }
        let rows = found.num_rows().min(expected.num_rows());
        let first = (0..rows).find(|&row| found.slice(row, 1).columns() != expected.slice(row, 1).columns());
        let row = |of: &RecordBatch| {
            let at = first.unwrap_or(rows);
            let one = if at < of.num_rows() { of.slice(at, 1) } else { return "no row".to_owned() };
            // Masks are long.
            pretty_format_batches(&[one]).unwrap().to_string().chars().take(4000).collect()
        };
        panic!(
            "{when}: {table} has {} rows, expected {}; the first that differs is\n{}\nexpected\n{}",
            found.num_rows(),
            expected.num_rows(),
            row(found),
            row(expected),
        );
    }
}
