//! Screening one scan in a process of its own.
//!
//! A scan that was in flight when a process died may have killed it: by memory that it did not seem to need, or by a defect of
//! a library. It is screened again where that ends no run:
//!
//! ```text
//! run ──► order, manifest of one scan ──► neurosieve screen-apart ──► its rows ──► run
//!                                              │ dies
//!                                              └─► a row in `failures` of kind `crashed`
//! ```
//! On the processor the process may take as much memory as its run was given, so that an allocation fails before the system kills
//! a whole control group. It ends when its run does, because its standard input ends then.

use std::io::{BufRead, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::budget::Budget;
use super::journey::ScreenMetrics;
use super::order::Order;
use super::outage::Outages;
use super::progress::Progress;
use super::scan;
use super::station::{Station, StopSwitch, device_name};
use crate::cohort::{ScanEntry, manifest};
use crate::error::{Error, Result};
use crate::machine;
use crate::model::Bundle;
use crate::model::device::{self, DeviceChoice};
use crate::score::{Settings, Worker};
use crate::store;

/// The command of the program that screens one scan.
pub const COMMAND: &str = "screen-apart";

/// The program, where this process is one. A process that only uses the library has none to start.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Tells the library that this process is the program, which knows [`COMMAND`].
pub fn this_is_the_program() {
    if let Ok(program) = std::env::current_exe() {
        PROGRAM.get_or_init(|| program);
    }
}

/// The program, if this process is one.
pub(super) fn program() -> Option<PathBuf> {
    PROGRAM.get().cloned()
}

/// How a station starts such processes.
#[derive(Debug, Clone)]
pub struct Apart {
    /// The program.
    pub program: PathBuf,
    /// The bundle, as the pipeline names it.
    pub bundle: String,
    /// The device, as the pipeline names it.
    pub device: DeviceChoice,
    /// Memory of the run, MiB.
    pub memory_mib: u64,
}

/// What the process is told, before the manifest of its scan.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    order: Order,
    bundle: String,
    device: DeviceChoice,
    memory_mib: u64,
}

impl Apart {
    /// Screens a scan in a process of its own; gives its row of `screen_schema`.
    ///
    /// # Errors
    /// [`Error::Crashed`] where the process dies; [`Error::Io`] where it cannot be started or ends with an error, which it has
    /// printed.
    pub(super) async fn screen(&self, order: &Order, entry: &ScanEntry) -> Result<RecordBatch> {
        let failed = |e| Error::io("cannot screen a scan in a process of its own", e);
        let mut process = Command::new(&self.program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(mut input), Some(mut output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::Bug("a process without pipes".into()));
        };
        // A process that died takes no input; its status says so.
        let _ = input.write_all(&self.request(order, entry)?).await;
        let mut rows = Vec::new();
        output.read_to_end(&mut rows).await.map_err(failed)?;
        let status = process.wait().await.map_err(failed)?;
        // Only now: the process ends when its input does.
        drop(input);
        if !status.success() {
            return Err(died(status));
        }
        let batch = StreamReader::try_new(rows.as_slice(), None)
            .and_then(|mut batches| batches.next().unwrap_or_else(|| Err(ArrowError::IpcError("no rows".into()))));
        batch.map_err(|e| Error::Bug(format!("rows of a process of its own: {e}")))
    }

    fn request(&self, order: &Order, entry: &ScanEntry) -> Result<Vec<u8>> {
        let bug = |e: &dyn std::fmt::Display| Error::Bug(format!("a scan for a process of its own: {e}"));
        let attempts = order.attempts.get_key_value(&entry.scan_id).map(|(id, &n)| (id.clone(), n));
        let order = Order { attempts: attempts.into_iter().collect(), apart: [].into(), ..order.clone() };
        let Self { bundle, device, memory_mib, .. } = self.clone();
        let mut bytes = serde_json::to_vec(&Request { order, bundle, device, memory_mib }).map_err(|e| bug(&e))?;
        bytes.push(b'\n');
        write_batch(&mut bytes, &manifest::to_batch(std::slice::from_ref(entry))?).map_err(|e| bug(&e))?;
        Ok(bytes)
    }
}

fn died(status: ExitStatus) -> Error {
    match (status.signal(), status.code()) {
        // 101 is a panic outside a scan, and 134 an abort that a shell reports.
        (None, Some(code)) if code < 101 => Error::io(
            "the process that screened the scan by itself ended with an error, which it has printed",
            std::io::Error::other(format!("exit code {code}")),
        ),
        (signal, code) => {
            let how = match (signal, code) {
                (Some(9), _) => "was killed, which the system does for want of memory".to_owned(),
                (Some(signal), _) => format!("was ended by signal {signal}"),
                (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
            };
            Error::Crashed(format!(
                "a run died while the scan was in flight, and then the process that screened it alone {how}: look at the scan \
                 with `neurosieve inspect`, exclude it, or give the run more memory (run.memory_mib)"
            ))
        }
    }
}

fn write_batch(to: impl Write, batch: &RecordBatch) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(to, &batch.schema())?;
    writer.write(batch)?;
    writer.finish()
}

/// The other side: reads a request, screens its scan and writes its rows.
///
/// # Errors
/// As [`Run::prepare`](super::Run::prepare); the error of a store that is down.
pub async fn serve(input: impl BufRead + Send + 'static, output: impl Write) -> Result<()> {
    let (request, entry, input) = read_request(input)?;
    end_with(input);
    let Request { order, bundle, device, memory_mib } = request;
    let on = device::resolve(device)?;
    if on == tch::Device::Cpu {
        machine::limit_memory(memory_mib.saturating_mul(1 << 20));
    }
    let bundle = Arc::new(Bundle::open(&bundle)?);
    let settings = Settings::new(&order.score, &bundle)?;
    let cohort = store::open(&order.cohort)?;
    let stop = Arc::new(StopSwitch::default());
    let station = Station {
        settings: settings.clone(),
        worker: Worker::start(bundle, on, settings, 1).await?,
        on,
        device: device_name(on),
        in_flight: 1,
        permits: Arc::new(Semaphore::new(1)),
        budget: Arc::new(Budget::new(memory_mib, 1)?),
        progress: Arc::new(Progress::new(1, 1, 1)),
        // Its run judges outages by other scans.
        outages: Outages::new(cohort.clone(), &[], Duration::ZERO),
        journal: None,
        apart: None,
        stop: Arc::clone(&stop),
        cohort,
    };
    let metrics = ScreenMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
    let rows = scan::screen(Arc::new(order), Arc::new(station), metrics, entry).await?;
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
        std::process::exit(1);
    });
}
