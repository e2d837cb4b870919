//! The process that screens one scan apart: the other side of `apart.rs`.
//!
//! Takes a request on its standard input; gives the scan's rows on its standard output. It ends when its run does, because its
//! standard input ends then.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;

use super::apart::{COMMAND, Request, write_batch};
use super::budget::Budget;
use super::journey::ScreenMetrics;
use super::outage::Outages;
use super::scan;
use super::setup::Setup;
use super::station::Station;
use super::stop::StopSwitch;
use super::work::Work;
use crate::cohort::{ScanEntry, manifest};
use crate::error::{Error, Result};
use crate::machine::{self, Memory};
use crate::model::{Bundle, device};
use crate::score::{Settings, Worker};
use crate::store;

/// Reads a request, screens its scan and writes its rows.
///
/// # Errors
/// As [`Run::prepare`](super::Run::prepare); the error of a store that is down.
pub async fn serve(input: impl BufRead + Send + 'static, output: impl Write) -> Result<()> {
    let (request, entry, input) = read_request(input)?;
    end_with(input);
    let Request { order, bundle, device, memory_mib } = request;
    let on = device::resolve(device)?;
    if on == tch::Device::Cpu {
        // Its run holds memory of its own meanwhile.
        machine::limit_memory(memory_mib.saturating_mul(1 << 20).min(Memory::of_process().free));
    }
    let bundle = Arc::new(Bundle::open(&bundle)?);
    let settings = Settings::new(&order.score, &bundle)?;
    let cohort = store::open(&order.cohort)?;
    let stop = Arc::new(StopSwitch::default());
    let setup = Setup {
        settings: settings.clone(),
        worker: Worker::start(bundle, on, settings, 1).await?,
        // Its run judges outages by other scans.
        outages: Outages::new(cohort.clone(), Vec::new(), Duration::ZERO),
        journal: None,
        apart: None,
        broken_sidecar: AtomicBool::default(),
        stop: Arc::clone(&stop),
        // It writes nothing.
        tables: cohort.clone(),
        cohort,
    };
    let station = Station::new((on, device), Arc::new(Budget::new(memory_mib, 1)?), 1, None);
    let metrics = ScreenMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
    let work = Work { order: Arc::new(order), station: Arc::new(station), setup: Arc::new(setup) };
    let rows = scan::screen(work, metrics, entry).await?;
    match (rows, stop.take_failure()) {
        (Some(rows), _) => {
            write_batch(output, &rows).map_err(|e| Error::io("cannot pass the rows on", std::io::Error::other(e)))
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::Bug("a scan without rows".into())),
    }
}

fn read_request<R: BufRead>(mut input: R) -> Result<(Request, ScanEntry, R)> {
    let unusable = |what: String| Error::Config(format!("{COMMAND} is for `neurosieve run` alone: {what}"));
    let mut line = String::new();
    input.read_line(&mut line).map_err(|e| unusable(e.to_string()))?;
    let request = serde_json::from_str(&line).map_err(|e| unusable(e.to_string()))?;
    let mut batches = StreamReader::try_new(&mut input, None).map_err(|e| unusable(e.to_string()))?;
    let batch = batches.next().and_then(Result::ok).ok_or_else(|| unusable("there is no scan".into()))?;
    let entry = manifest::from_batch(&batch)?.pop().ok_or_else(|| unusable("there is no scan".into()))?;
    drop(batches);
    Ok((request, entry, input))
}

/// Ends this process when its input ends: then its run is dead.
fn end_with(mut input: impl BufRead + Send + 'static) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut input, &mut std::io::sink());
        machine::end_at_once(1);
    });
}
