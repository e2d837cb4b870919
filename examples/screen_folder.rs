//! Screens a folder of scans into tables, as `neurosieve run` does.
//!
//!     cargo run --release --example screen_folder -- COHORT TABLES
//!
//! Both are folders or URLs of an object store. Run twice, the second run has nothing to do.

use neurosieve::flow::{Pipeline, Run, RunReport};

/// Screens the scans of `cohort` that have no result in `tables` yet.
///
/// # Errors
/// Those of the run as a whole: a store that cannot be reached, settings that do not fit. A scan that cannot be screened
/// becomes a row in the table `failures`.
pub async fn screen(mut pipeline: Pipeline, cohort: &str, tables: &str) -> neurosieve::Result<RunReport> {
    pipeline.cohort.url = cohort.to_owned();
    pipeline.tables.url = tables.to_owned();
    let run = Run::prepare(pipeline).await?;
    println!("{} scans pending, {} done earlier", run.pending(), run.already_done());
    // A future that ends the run early when it completes; this one never does.
    run.execute(std::future::pending()).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cohort, tables] = arguments.as_slice() else {
        return Err("usage: screen_folder COHORT TABLES".into());
    };
    let report = screen(Pipeline::default(), cohort, tables).await?;
    println!("{} scans done, {} failed, in {:.0} s", report.done, report.failed, report.elapsed.as_secs_f64());
    Ok(())
}
