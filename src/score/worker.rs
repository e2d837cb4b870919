//! The device worker: threads that own the networks and serve all partitions.
//!
//! libtorch is called on these threads alone. A GPU has one thread, so that it gets one stream of work. The processor
//! has one thread per core, each with networks of its own, and libtorch computes on the calling thread
//! ([`device::on_calling_thread`]): numbers do not depend on the number of cores, and no core waits for another.
//!
//! Jobs wait in a short queue. A thread takes one job, and as many waiting ones as may share its batches
//! ([`Settings::scans_at_once`]). If libtorch panics, the scans that were scored together are scored one by one, so
//! that only the faulty scan gets an error. If the device runs out of memory, scans are scored again with half as many
//! slices per batch, down to one ([`within_memory`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::config::{Method, ScoreConfig};
use super::infer::{Inference, infer};
use super::memory::within_memory;
use super::settings::{Settings, batch_slices};
use super::slices::Scan;
use crate::error::{Error, Result};
use crate::model::{Bundle, Networks, device};
use crate::preprocess::Prepared;

/// Prepared scans that may wait per thread: enough to keep the thread busy while a core prepares the next one.
const QUEUE: usize = 2;

struct Job {
    scan_id: String,
    prepared: Arc<Prepared>,
    /// Signals that a thread has started on the job.
    started: Option<oneshot::Sender<()>>,
    reply: oneshot::Sender<Result<(Inference, Duration)>>,
}

/// The queue that all threads take jobs from.
type Queue = Arc<Mutex<mpsc::Receiver<Job>>>;

/// A handle to the device threads; clones share them. The threads end when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts `threads` threads, and loads the networks onto the device `on`. More than one thread makes sense on the
    /// processor alone.
    ///
    /// # Errors
    /// [`Error::Model`] where the bundle does not load, [`Error::Device`] where the device fails, [`Error::Io`] where
    /// the system cannot start a thread.
    pub async fn start(bundle: Arc<Bundle>, on: tch::Device, settings: Settings, threads: usize) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>((QUEUE * threads).max(settings.scans_at_once(on)));
        let queue: Queue = Arc::new(Mutex::new(queue));
        let mut started = Vec::with_capacity(threads);
        for number in 0..threads {
            let (ready, answer) = oneshot::channel();
            let (bundle, queue, settings) = (Arc::clone(&bundle), Arc::clone(&queue), settings.clone());
            std::thread::Builder::new()
                .name(format!("device-{number}"))
                .spawn(move || serve(&bundle, on, &settings, &queue, ready))
                .map_err(|e| Error::io("cannot start a device thread", e))?;
            started.push(answer);
        }
        for answer in started {
            answer.await.map_err(|_| threads_ended())??;
        }
        Ok(Self { jobs })
    }

    /// Scores one scan. Signals on `started` when its turn comes. Also gives the time spent on the device.
    ///
    /// # Errors
    /// As [`infer`]; [`Error::Device`] also where libtorch panics.
    pub async fn score(
        &self,
        scan_id: &str,
        prepared: Arc<Prepared>,
        started: oneshot::Sender<()>,
    ) -> Result<(Inference, Duration)> {
        let (reply, answer) = oneshot::channel();
        let job = Job { scan_id: scan_id.to_owned(), prepared, started: Some(started), reply };
        self.jobs.send(job).await.map_err(|_| threads_ended())?;
        answer.await.map_err(|_| threads_ended())?
    }
}

/// The body of a thread: loads the networks, reports on `ready`, and serves jobs until the last handle is dropped.
fn serve(bundle: &Bundle, on: tch::Device, settings: &Settings, queue: &Queue, ready: oneshot::Sender<Result<()>>) {
    device::on_calling_thread();
    let networks = match device::caught(|| bundle.networks_in(on, settings.config.precision.kind())) {
        // Only the method `ar` uses the prior.
        Ok(networks) if settings.config.method != Method::Ar => Networks { prior: None, ..networks },
        Ok(networks) => networks,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    while let Some(mut jobs) = next(queue, settings.scans_at_once(on)) {
        jobs.retain(|job| !job.reply.is_closed()); // scans that were given up meanwhile
        if jobs.is_empty() {
            continue;
        }
        let started = Instant::now();
        for signal in jobs.iter_mut().filter_map(|job| job.started.take()) {
            let _ = signal.send(());
        }
        let scans: Vec<Scan<'_>> = jobs.iter().map(|job| Scan::new(&job.scan_id, &job.prepared)).collect();
        let results = together_or_each(&scans, &|scans| {
            within_memory(batch_slices(settings.config.batch_slices, on), |batch_slices| {
                let config = ScoreConfig { batch_slices, ..settings.config.clone() };
                let settings = Settings { config, ..settings.clone() };
                device::caught(|| infer(&networks, scans, &settings))
            })
        });
        let spent = started.elapsed() / jobs.len() as u32;
        for (job, result) in jobs.into_iter().zip(results) {
            let _ = job.reply.send(result.map(|inference| (inference, spent)));
        }
    }
}

/// Waits for a job, and takes those that wait behind it, at most `limit` in all; `None` when the last handle is
/// dropped. One thread holds the queue and waits for a job, the others wait for the queue.
fn next(queue: &Queue, limit: usize) -> Option<Vec<Job>> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let first = queue.blocking_recv()?;
    let more = std::iter::from_fn(|| queue.try_recv().ok()).take(limit - 1);
    Some(std::iter::once(first).chain(more).collect())
}

/// Runs `work` on all scans together or, if that fails, on each alone, so that a faulty scan does not fail the others.
fn together_or_each<S: Copy, T>(scans: &[S], work: &dyn Fn(&[S]) -> Result<Vec<T>>) -> Vec<Result<T>> {
    match work(scans) {
        Ok(all) => all.into_iter().map(Ok).collect(),
        Err(_) if scans.len() > 1 => {
            scans.iter().flat_map(|scan| together_or_each(std::slice::from_ref(scan), work)).collect()
        }
        Err(error) => vec![Err(error)],
    }
}

fn threads_ended() -> Error {
    Error::Bug("the device threads have ended".into())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_faulty_scan_does_not_fail_the_others() {
        let calls = RefCell::new(Vec::new());
        let results = together_or_each(&[1, 2, 3], &|scans: &[i32]| {
            calls.borrow_mut().push(scans.to_vec());
            if scans.contains(&2) { Err(Error::input("no_brain", "none")) } else { Ok(scans.to_vec()) }
        });
        assert_eq!(calls.into_inner(), [vec![1, 2, 3], vec![1], vec![2], vec![3]]);
        assert!(matches!(results.as_slice(), [Ok(1), Err(_), Ok(3)]), "{results:?}");
    }
}
