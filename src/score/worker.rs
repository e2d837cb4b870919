//! The device worker: the threads that own the networks and serve every partition.
//!
//! libtorch is called from these threads alone. A GPU has one, so that it sees one stream of work. The processor has one
//! per core, each with networks of its own, and libtorch computes on the thread that calls it
//! ([`device::on_calling_thread`]): numbers do not depend on the number of cores, and cores that share no operation do not
//! wait for each other.
//!
//! Jobs wait in a short queue. A thread takes one, and as many more as wait already and may share its batches
//! ([`Settings::scans_at_once`]); a scan that makes libtorch panic is answered with an error, those that came with it are
//! looked at alone, and the worker goes on. Where the device lacks memory, scans are tried again with half of the slices at
//! once, down to one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{Inference, Method, Scan, ScoreConfig, Settings, batch_slices, infer};
use crate::error::{Error, Result, Retry};
use crate::model::{Bundle, Networks, device};
use crate::preprocess::Prepared;

/// Prepared scans that may wait for each thread: enough that it never waits for a core.
const QUEUE: usize = 2;

struct Job {
    scan_id: String,
    prepared: Arc<Prepared>,
    /// Hears that the job was taken up.
    taken: Option<oneshot::Sender<()>>,
    reply: oneshot::Sender<Result<(Inference, Duration)>>,
}

/// Where the threads take their jobs from, one after the other.
type Queue = Arc<Mutex<mpsc::Receiver<Job>>>;

/// A handle to the device threads; clones share them. They end with the last handle.
#[derive(Debug, Clone)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the threads, several on the processor alone, and loads the networks onto the device `on`.
    ///
    /// # Errors
    /// [`Error::Model`] where the bundle does not load, [`Error::Device`] where the device fails.
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
            answer.await.map_err(|_| gone())??;
        }
        Ok(Self { jobs })
    }

    /// Scores one scan; waits for its turn, which `taken` hears of. Also tells the time spent on the device.
    ///
    /// # Errors
    /// What [`infer`] says; [`Error::Device`] where libtorch panics.
    pub async fn score(
        &self,
        scan_id: &str,
        prepared: Arc<Prepared>,
        taken: oneshot::Sender<()>,
    ) -> Result<(Inference, Duration)> {
        let (reply, answer) = oneshot::channel();
        let job = Job { scan_id: scan_id.to_owned(), prepared, taken: Some(taken), reply };
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A thread's life: loads the networks, says so, and takes jobs until the last handle is gone.
fn serve(bundle: &Bundle, on: tch::Device, settings: &Settings, queue: &Queue, ready: oneshot::Sender<Result<()>>) {
    device::on_calling_thread();
    let networks = match device::caught(|| bundle.networks_in(on, settings.config.precision.kind())) {
        // Only the rival asks the prior.
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
        for taken in jobs.iter_mut().filter_map(|job| job.taken.take()) {
            let _ = taken.send(());
        }
        let scans: Vec<Scan<'_>> = jobs.iter().map(|job| Scan::new(&job.scan_id, &job.prepared)).collect();
        let results = look_at(&scans, &|scans| {
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

/// Waits for a job, and takes those that wait behind it, `most` in all; none once the last handle is gone. Whoever holds
/// the queue waits for a job, the others wait for the queue.
fn next(queue: &Queue, most: usize) -> Option<Vec<Job>> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let first = queue.blocking_recv()?;
    let more = std::iter::from_fn(|| queue.try_recv().ok()).take(most - 1);
    Some(std::iter::once(first).chain(more).collect())
}

/// Does `work` on all scans together, or on each alone where that fails: one of them is to blame, not all.
fn look_at<S: Copy, T>(scans: &[S], work: &dyn Fn(&[S]) -> Result<Vec<T>>) -> Vec<Result<T>> {
    match work(scans) {
        Ok(all) => all.into_iter().map(Ok).collect(),
        Err(_) if scans.len() > 1 => scans.iter().flat_map(|scan| look_at(std::slice::from_ref(scan), work)).collect(),
        Err(error) => vec![Err(error)],
    }
}

/// Does `work` with half of the slices at once, and half of those, while the device lacks memory; gives up where not even
/// one fits. Every scan begins with `batch` again: its numbers must not depend on those before it.
fn within_memory<T>(batch: usize, work: impl Fn(usize) -> Result<T>) -> Result<T> {
    let mut batch = batch.max(1);
    loop {
        match work(batch) {
            Err(error) if error.retry() == Retry::Smaller && batch > 1 => {
                tracing::warn!(slices = batch, "the device lacks memory, trying half as many slices at once");
                batch /= 2;
            }
            outcome => return outcome,
        }
    }
}

fn gone() -> Error {
    Error::Bug("the device threads have ended".into())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tch::{Device, Kind, Tensor};

    use super::*;

    /// What libtorch says where more is asked for than any machine has: a slice takes 2^40 numbers.
    fn needs(slices: usize) -> Result<i64> {
        device::caught(|| Ok(Tensor::zeros([slices as i64, 1 << 40], (Kind::Double, Device::Cpu)).size()[0]))
    }

    #[test]
    fn a_bad_scan_costs_its_company_nothing() {
        let seen = RefCell::new(Vec::new());
        let results = look_at(&[1, 2, 3], &|scans: &[i32]| {
            seen.borrow_mut().push(scans.to_vec());
            if scans.contains(&2) { Err(Error::input("no_brain", "none")) } else { Ok(scans.to_vec()) }
        });
        assert_eq!(seen.into_inner(), [vec![1, 2, 3], vec![1], vec![2], vec![3]]);
        assert!(matches!(results.as_slice(), [Ok(1), Err(_), Ok(3)]), "{results:?}");
    }

    #[test]
    fn where_memory_lacks_half_as_many_slices_are_tried() {
        let tried = RefCell::new(Vec::new());
        let done = within_memory(16, |slices| {
            tried.borrow_mut().push(slices);
            if slices > 3 { needs(slices).map(|_| 0) } else { Ok(slices) }
        });
        assert_eq!((done.unwrap(), tried.into_inner()), (2, vec![16, 8, 4, 2]));
        let error = within_memory(2, needs).unwrap_err();
        assert_eq!(error.kind(), "out_of_device_memory", "{error}");
        // Other errors are not tried again.
        let tried = RefCell::new(0);
        let failed = within_memory(16, |_| {
            *tried.borrow_mut() += 1;
            Err::<(), _>(Error::input("no_brain", "none"))
        });
        assert!(failed.is_err() && tried.into_inner() == 1);
    }
}
