//! Asks the tables of a screened cohort in SQL, as `neurosieve sql` does.
//!
//!     cargo run --release --example query_tables -- TABLES
//!
//! The session is DataFusion's: everything that its API offers works on it.

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use neurosieve::query;
use neurosieve::tables::Tables;

/// The scans with the highest scores, and the largest finding of each.
const MOST_ANOMALOUS: &str = "
    SELECT s.scan_id, s.anomaly_score, f.region, f.volume_ml
    FROM scans s
    LEFT JOIN findings f ON f.run_id = s.run_id AND f.scan_id = s.scan_id AND f.finding = 1
    ORDER BY s.anomaly_score DESC
    LIMIT 20";

/// The most anomalous scans of the tables in a folder or at a URL.
///
/// # Errors
/// Where no tables are there, and where they cannot be read.
pub async fn most_anomalous(tables: &str) -> neurosieve::Result<Vec<RecordBatch>> {
    let context = query::session(&Tables::open(tables).await?).await?;
    Ok(context.sql(MOST_ANOMALOUS).await?.collect().await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tables = std::env::args().nth(1).ok_or("usage: query_tables TABLES")?;
    println!("{}", pretty_format_batches(&most_anomalous(&tables).await?)?);
    Ok(())
}
