//! Screening one scan in a process of its own.
//!
//! A scan that was in flight when a process died may have killed it: by memory that it did not seem to need, or by a defect of
//! a library. It is screened again where that ends no run:
//!
//! ```text
//! run ──► order, manifest of one scan ──► neurosieve screen-apart (apart_process.rs) ──► its rows ──► run
//!                                              │ dies
//!                                              └─► a row in `failures` of kind `crashed`
//! ```
//! On the processor the process may take as much memory as its run was given, so that an allocation fails before the system kills
//! a whole control group.

use std::io::Write;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard, watch};

use super::order::Order;
use crate::cohort::{ScanEntry, manifest};
use crate::error::{Error, Result};
use crate::model::device::DeviceChoice;

/// The exit code of a process that cannot read its scan because of the store.
pub const STORE_IS_DOWN: u8 = 75;

/// The command of the program that screens one scan.
pub const COMMAND: &str = "screen-apart";

/// The program, where this process is one. A process that only uses the library has none to start.
static PROGRAM: OnceLock<Program> = OnceLock::new();

/// The program, and how another process of it logs as this one does.
#[derive(Debug, Clone)]
pub struct Program {
    file: PathBuf,
    /// A variable of the environment, with its value.
    log_format: (&'static str, String),
}

/// Tells the library that this process is the program, which knows [`COMMAND`].
pub fn this_is_the_program(log_format: (&'static str, String)) {
    if let Ok(file) = std::env::current_exe() {
        PROGRAM.get_or_init(|| Program { file, log_format });
    }
}

/// How a station starts such processes.
#[derive(Debug)]
pub struct Apart {
    /// The program.
    pub program: Program,
    /// The bundle, as the pipeline names it.
    pub bundle: String,
    /// The device, as the pipeline names it.
    pub device: DeviceChoice,
    /// Memory of the run, MiB.
    pub memory_mib: u64,
    /// Scans of the run that are screened as usual and have not ended.
    pub others: watch::Sender<usize>,
    /// One such process at a time.
    pub turn: Mutex<()>,
}

/// The instructions for the process; the manifest of its scan follows them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) order: Order,
    pub(super) bundle: String,
    pub(super) device: DeviceChoice,
    pub(super) memory_mib: u64,
}

impl Apart {
    /// Processes of this program with `bundle`, as a pipeline names it; none where this process is not the program. They wait until
    /// `others`, the scans that are screened as usual, have ended.
    pub(super) fn new(bundle: String, device: DeviceChoice, memory_mib: u64, others: usize) -> Option<Self> {
        let program = PROGRAM.get().cloned()?;
        Some(Self { program, bundle, device, memory_mib, others: watch::Sender::new(others), turn: Mutex::default() })
    }

    /// A scan that is screened as usual has ended.
    pub(super) fn other_ended(&self) {
        self.others.send_modify(|left| *left = left.saturating_sub(1));
    }

    /// Waits until all other scans have ended, and those screened apart that came before. What may kill a process comes last,
    /// when no other scan is in flight.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        // Fails only without a sender, and `self` has one.
        let _ = self.others.subscribe().wait_for(|&left| left == 0).await;
        self.turn.lock().await
    }

    /// Screens a scan in a process of its own; gives its row of `screen_schema`.
    ///
    /// # Errors
    /// [`Error::Crashed`] where the process dies; [`Error::Io`] where it cannot be started or ends with an error, which it has
    /// printed.
    pub(super) async fn screen(&self, order: &Order, entry: &ScanEntry) -> Result<RecordBatch> {
        let failed = |e| Error::io("cannot screen a scan in a process of its own", e);
        let (variable, value) = &self.program.log_format;
        let mut process = Command::new(&self.program.file)
            .arg(COMMAND)
            .env(variable, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            // A signal to the run's group, such as Ctrl-C, is for the run alone: it decides how its scans end.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (Some(mut input), Some(mut output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::Bug("a process without pipes".into()));
        };
        // Writing fails if the process has died; its exit status then gives the reason.
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
        let (order, entry) = (order.clone(), ScanEntry { apart: false, ..entry.clone() });
        let (bundle, device, memory_mib) = (self.bundle.clone(), self.device, self.memory_mib);
        let mut bytes = serde_json::to_vec(&Request { order, bundle, device, memory_mib }).map_err(|e| bug(&e))?;
        bytes.push(b'\n');
        write_batch(&mut bytes, &manifest::to_batch(std::slice::from_ref(&entry))?).map_err(|e| bug(&e))?;
        Ok(bytes)
    }
}

fn died(status: ExitStatus) -> Error {
    match (status.signal(), status.code()) {
        (None, Some(code)) if code == i32::from(STORE_IS_DOWN) => {
            let source = object_store::Error::Generic { store: "apart", source: "down".into() };
            Error::storage("the process that screened the scan by itself could not read it", source)
        }
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

/// Writes a batch as a stream of Arrow IPC.
pub(super) fn write_batch(to: impl Write, batch: &RecordBatch) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(to, &batch.schema())?;
    writer.write(batch)?;
    writer.finish()
}
