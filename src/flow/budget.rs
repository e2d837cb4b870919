//! The memory budget of a run: bytes are reserved before a scan is fetched.
//!
//! ```text
//! run.memory_mib  =  BASE + threads with networks  │  scans in flight (3/4 of the rest)  │  rows that wait to be written
//! ```
//! The memory of a scan is estimated; `tests/it/memory.rs` compares the estimate with the memory of the real program:
//!
//! | until | bytes |
//! |---|---|
//! | it is fetched | the object twice, its voxels in f32, and [`SCRATCH`]; the size of the voxels is not known yet and is estimated as eight times the object of a `.gz`, four times any other object |
//! | it is preprocessed | the object, its voxels twice, as its header states them, and [`SCRATCH`] |
//! | its rows are made | [`SCORED`] |
//!
//! A scan that turns out larger than estimated gives its share back and waits for a larger one; its compressed object, which
//! it holds meanwhile, is not counted. A scan that needs more than the budget has for all scans is refused ([`Budget::refuse`]):
//! it would end the process. Reservations are made in DataFusion's memory pool too, so the writer notices a full pool and writes
//! its rows at once.

use std::sync::Arc;

use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer, MemoryPool, MemoryReservation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cohort::ScanEntry;
use crate::error::{Error, Result};
use crate::machine::Memory;

const MIB: u64 = 1 << 20;

/// Memory of the program, its libraries and the template, without any scan.
const BASE: u64 = 384 * MIB;

/// Memory of a thread's networks and of libtorch's intermediate results.
const PER_THREAD: u64 = 96 * MIB;

/// Memory of preprocessing in addition to the voxels: the model's grid and registration pyramids.
const SCRATCH: u64 = 96 * MIB;

/// Memory of a preprocessed scan with its maps, until its rows are made.
pub(super) const SCORED: u64 = 48 * MIB;

/// Share of the budget for scans in flight; the rest is for rows that wait for their commit.
const SCANS_SHARE: f64 = 0.75;

/// Share of the free memory, of the machine or the control group, that a run uses by default.
const FREE_SHARE: f64 = 0.75;

/// Estimated ratio of the voxels in f32 to the stored object, for a `.gz` and for any other object.
const GZIP_RATIO: u64 = 8;
const PLAIN_RATIO: u64 = 4;

/// The memory of scans in flight, reserved in MiB.
#[derive(Debug)]
pub struct Budget {
    total_mib: u64,
    scans_mib: u32,
    free: Arc<Semaphore>,
    pool: Arc<dyn MemoryPool>,
}

/// The reservation of one scan; dropping it returns the memory.
#[derive(Debug)]
pub struct Grant {
    permit: OwnedSemaphorePermit,
    reservation: MemoryReservation,
}

impl Budget {
    /// A budget of `memory_mib` MiB for the whole run with `threads` device threads; 0: three quarters of the free memory.
    ///
    /// # Errors
    /// [`Error::Config`] where not even one small scan fits; the message states the required memory.
    pub fn new(memory_mib: u64, threads: usize) -> Result<Self> {
        let total = match memory_mib {
            0 => (Memory::of_process().free as f64 * FREE_SHARE) as u64,
            given => given.saturating_mul(MIB),
        };
        let fixed = BASE + threads as u64 * PER_THREAD;
        let least = fixed + (2. * SCRATCH as f64 / SCANS_SHARE) as u64;
        if total < least {
            return Err(Error::Config(format!(
                "a run on {threads} thread(s) needs at least {} MiB of memory, but has {}: raise run.memory_mib, or free memory",
                least / MIB,
                total / MIB
            )));
        }
        let scans_mib = ((total - fixed) as f64 * SCANS_SHARE) as u64 / MIB;
        let scans_mib = u32::try_from(scans_mib).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32);
        Ok(Self {
            total_mib: total / MIB,
            scans_mib,
            free: Arc::new(Semaphore::new(scans_mib as usize)),
            pool: Arc::new(GreedyMemoryPool::new((total - fixed) as usize)),
        })
    }

    /// Memory of the whole run, MiB.
    pub fn total_mib(&self) -> u64 {
        self.total_mib
    }

    /// Memory for scans in flight, MiB.
    pub fn scans_mib(&self) -> u32 {
        self.scans_mib
    }

    /// Refuses a scan that needs more memory than there is for scans. Its size may be that of its header alone, which is read
    /// before the voxels are decoded.
    ///
    /// # Errors
    /// [`Error::NeedsMemory`] with the need and the advice.
    pub fn refuse(&self, bytes: u64) -> Result<()> {
        let (needs, has) = (bytes.div_ceil(MIB), u64::from(self.scans_mib));
        if needs <= has {
            return Ok(());
        }
        Err(Error::NeedsMemory {
            message: format!(
                "the scan needs about {needs} MiB of memory, and this run has {has} MiB for scans: set run.memory_mib to at least \
                 {enough} on a machine with that much, which tries it again, or resample the scan",
                enough = self.total_mib + ((needs - has) as f64 / SCANS_SHARE).ceil() as u64
            ),
            bytes: needs * MIB,
        })
    }

    /// Memory for scans in flight, bytes.
    pub fn scans_bytes(&self) -> u64 {
        u64::from(self.scans_mib) * MIB
    }

    /// The pool that all operators of the run reserve from.
    pub fn pool(&self) -> Arc<dyn MemoryPool> {
        Arc::clone(&self.pool)
    }

    /// Waits until `bytes` are free, and reserves them. Requests are served in order, so a large scan is not starved by small
    /// ones.
    ///
    /// # Errors
    /// Only [`Error::Bug`].
    pub async fn take(&self, bytes: u64) -> Result<Grant> {
        let wanted = self.mib(bytes);
        let permit = Arc::clone(&self.free).acquire_many_owned(wanted).await;
        let permit = permit.map_err(|_| Error::Bug("the memory budget is closed".into()))?;
        let reservation = MemoryConsumer::new("scan").register(&self.pool);
        reservation.grow((u64::from(wanted) * MIB) as usize);
        Ok(Grant { permit, reservation })
    }

    fn mib(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(MIB)).unwrap_or(u32::MAX).clamp(1, self.scans_mib)
    }

    /// Changes a grant to `bytes`. Excess memory is returned at once. A grant that must grow is returned whole before it waits
    /// for the larger one, because holding memory while waiting for more could deadlock.
    ///
    /// # Errors
    /// As [`Budget::take`].
    pub async fn settle(&self, mut grant: Grant, bytes: u64) -> Result<Grant> {
        let (has, wanted) = (grant.permit.num_permits(), self.mib(bytes) as usize);
        if wanted > has {
            drop(grant);
            return self.take(bytes).await;
        }
        drop(grant.permit.split(has - wanted));
        grant.reservation.resize(wanted * MIB as usize);
        Ok(grant)
    }
}

/// Bytes that a scan needs until it is fetched, estimated from its listing. Scans above `limit_bytes` are refused, so no more
/// is reserved for voxels.
pub fn before_fetching(entry: &ScanEntry, limit_bytes: u64) -> u64 {
    let object = u64::try_from(entry.size_bytes).unwrap_or(0);
    let is_gzip = [Some(&entry.uri), entry.voxels_uri.as_ref()].into_iter().flatten().any(|uri| uri.ends_with(".gz"));
    let ratio = if is_gzip { GZIP_RATIO } else { PLAIN_RATIO };
    object.saturating_mul(2).saturating_add(object.saturating_mul(ratio).min(limit_bytes)).saturating_add(SCRATCH)
}

/// Bytes that a scan needs at least until it is fetched.
pub fn least_for_fetching(entry: &ScanEntry) -> u64 {
    u64::try_from(entry.size_bytes).unwrap_or(0).saturating_mul(2).saturating_add(SCRATCH)
}

/// Bytes that a scan needs from its fetch to the end of its preprocessing. `object` is the number of bytes read, `voxels`
/// that of the decoded voxels; it is `None` without a valid header, and decoding will refuse the scan.
pub fn before_scoring(object: usize, voxels: Option<u64>, limit_bytes: u64) -> u64 {
    let voxels = voxels.unwrap_or(0).min(limit_bytes).saturating_mul(2);
    voxels.saturating_add(object as u64).saturating_add(SCRATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(scans_mib: u64) -> Budget {
        let fixed = BASE + PER_THREAD;
        Budget::new((fixed + (scans_mib as f64 / SCANS_SHARE) as u64 * MIB) / MIB + 1, 1).unwrap()
    }

    #[tokio::test]
    async fn what_is_granted_never_exceeds_the_budget_and_comes_back() {
        let budget = budget(400);
        let all = budget.scans_mib() as usize;
        let first = budget.take(300 * MIB).await.unwrap();
        assert_eq!(budget.free.available_permits(), all - 300);
        assert_eq!(budget.pool().reserved(), 300 << 20);
        let wait = budget.take(200 * MIB);
        tokio::pin!(wait);
        assert!(futures::poll!(wait.as_mut()).is_pending(), "only {} MiB are free", all - 300);
        let first = budget.settle(first, 100 * MIB).await.unwrap();
        let second = wait.await.unwrap();
        assert_eq!(budget.pool().reserved(), 300 << 20);
        // A growing grant holds nothing while it waits, and continues when the others are returned.
        let grown = budget.settle(first, 10_000 * MIB);
        tokio::pin!(grown);
        assert!(futures::poll!(grown.as_mut()).is_pending());
        assert_eq!(budget.pool().reserved(), 200 << 20);
        drop(second);
        let grown = grown.await.unwrap();
        assert_eq!(grown.permit.num_permits(), all);
        drop(grown);
        assert_eq!((budget.free.available_permits(), budget.pool().reserved()), (all, 0));
    }

    #[tokio::test]
    async fn a_scan_larger_than_the_budget_is_refused_and_an_estimate_above_it_takes_all() {
        let budget = budget(300);
        assert!(budget.refuse(budget.scans_bytes()).is_ok());
        let refused = budget.refuse(budget.scans_bytes() + 1).unwrap_err();
        assert!(refused.to_string().contains("run.memory_mib"), "{refused}");
        assert!(matches!(refused, Error::NeedsMemory { bytes, .. } if bytes == budget.scans_bytes() + MIB));
        let alone = budget.take(u64::MAX).await.unwrap();
        assert_eq!(budget.free.available_permits(), 0);
        drop(alone);
        assert_eq!(budget.free.available_permits(), budget.scans_mib() as usize);
    }

    #[test]
    fn too_little_memory_is_refused_at_the_start() {
        let message = Budget::new(256, 2).unwrap_err().to_string();
        assert!(message.contains("run.memory_mib") && message.contains("832 MiB"), "{message}");
        assert!(Budget::new(0, 1).is_ok(), "this machine has memory for one thread");
    }
}
