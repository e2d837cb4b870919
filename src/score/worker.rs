//! The device worker: one thread that owns the networks and serves every partition.
//!
//! libtorch is called from this thread alone, so the networks exist once and a GPU sees one stream
//! of work. Jobs wait in a short queue; a scan that makes libtorch panic is answered with an error,
//! the worker goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{Inference, Settings, infer};
use crate::error::{Error, Result};
use crate::model::Bundle;
use crate::preprocess::Prepared;

/// Prepared scans that may wait for the device: enough that it never waits for a core.
const QUEUE: usize = 2;

struct Job {
    scan_id: String,
    prepared: Arc<Prepared>,
    reply: oneshot::Sender<Result<(Inference, Duration)>>,
}

/// A handle to the device thread; clones share it. The thread ends with the last handle.
#[derive(Debug, Clone)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread and loads the networks onto `device`.
    ///
    /// # Errors
    /// [`Error::Model`] where the bundle does not load, [`Error::Device`] where the device fails.
    pub async fn start(bundle: Arc<Bundle>, device: tch::Device, settings: Settings) -> Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let (ready, started) = oneshot::channel();
        std::thread::Builder::new()
            .name("device".into())
            .spawn(move || {
                let networks = match caught(|| bundle.networks_in(device, settings.config.precision.kind())) {
                    Ok(networks) => {
                        let _ = ready.send(Ok(()));
                        networks
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                while let Some(job) = queue.blocking_recv() {
                    if job.reply.is_closed() {
                        continue; // the scan was given up meanwhile
                    }
                    let started = Instant::now();
                    let prepared = &job.prepared;
                    let result = caught(|| infer(&networks, &prepared.image, &prepared.brain, &job.scan_id, &settings));
                    let _ = job.reply.send(result.map(|inference| (inference, started.elapsed())));
                }
            })
            .map_err(|e| Error::io("cannot start the device thread", e))?;
        started.await.map_err(|_| gone())??;
        Ok(Self { jobs })
    }

    /// Scores one scan; waits for its turn. Also tells the time spent on the device.
    ///
    /// # Errors
    /// What [`infer`] says; [`Error::Device`] where libtorch panics.
    pub async fn score(&self, scan_id: &str, prepared: Arc<Prepared>) -> Result<(Inference, Duration)> {
        let (reply, answer) = oneshot::channel();
        let job = Job { scan_id: scan_id.to_owned(), prepared, reply };
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn gone() -> Error {
    Error::Bug("the device thread has ended".into())
}

/// Runs `work`; a panic (tch turns libtorch's exceptions into panics) becomes a device error.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(tch::TchError::Torch(text.to_owned()).into())
    })
}
