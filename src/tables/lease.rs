//! Leases: the right of one schedule to screen a cohort, and that of one maintenance command to work on the tables alone. A
//! crash gives a lease back.
//!
//! | tables | what is held | after a crash |
//! |---|---|---|
//! | in a folder | a lock of the operating system on `_schedule-COHORT.lock` or `_maintenance.lock` | it ends with the process |
//! | in a store | an object of that name, written conditionally and renewed every 30 seconds | it expires after three minutes |
//!
//! Takes the tables' location; gives the lease, or nothing where another process has it, or waits for it. Correctness does
//! not depend on it, because commits are exactly once without it; it keeps two processes from doing the same work.

use std::fs::{File, TryLockError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use object_store::{Error as Store, ObjectStoreExt as _, PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::{Error, Result, Retry};
use crate::store::{Location, warn_if_slow, with_patience, with_retries};

/// What the names of the schedules' locks begin with.
const SCHEDULE: &str = "_schedule-";

/// The lock of commands that rewrite or delete data files.
const MAINTENANCE: &str = "_maintenance.lock";

/// How long a lease in a store lasts unless it is renewed. At its last renewal before a crash of the store or of the network it
/// has two and a half minutes left: longer than the clocks of two machines differ.
const TERM: TimeDelta = TimeDelta::minutes(3);
const RENEWED_EVERY: Duration = Duration::from_secs(30);

/// How often a process that waits for a lease checks whether it is free.
const CHECKED_EVERY: Duration = Duration::from_secs(5);

/// The lock of the schedules of one cohort, or of one of its shards. `cohort` is what identifies it: hexadecimal digits.
fn schedule_lock(cohort: &str) -> String {
    format!("{SCHEDULE}{cohort}.lock")
}

fn unwritable(name: &str, error: std::io::Error) -> Error {
    let advice = "give yourself write permission on the folder of the tables, or choose another (--tables)";
    Error::io(format!("cannot open {name} of the tables; {advice}"), error)
}

/// The right, until this is dropped or [`Lease::lost`] resolves.
#[derive(Debug)]
pub struct Lease {
    held: Held,
    lost: watch::Receiver<bool>,
}

#[derive(Debug)]
enum Held {
    /// Closing the file releases the lock.
    Folder {
        _file: File,
    },
    Store {
        lock: Box<LockObject>,
        renewing: JoinSet<()>,
    },
}

/// The object that a lease in a store consists of.
#[derive(Debug, Clone)]
struct LockObject {
    location: Location,
    path: Path,
    holder: String,
    term: TimeDelta,
}

/// The content of the object.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    holder: String,
    until: DateTime<Utc>,
}

impl Lease {
    /// Takes the lease of the schedules of a cohort on the tables at `location`; `None` where another process has it.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Io`] where the lock cannot be read or written.
    pub async fn take(location: &Location, cohort: &str) -> Result<Option<Self>> {
        Self::take_for(location, &schedule_lock(cohort), TERM, RENEWED_EVERY).await
    }

    /// Takes the leases of all schedules that have worked on these tables; `None` where another process has one of them.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Io`] where the locks cannot be listed, read or written.
    pub async fn of_all_schedules(location: &Location) -> Result<Option<Vec<Self>>> {
        let root = (!location.root.is_root()).then_some(&location.root);
        let found = location.store.list_with_delimiter(root).await.map_err(|e| location.explain("list", e))?;
        let names = found.objects.iter().filter_map(|object| object.location.filename());
        let mut leases = Vec::new();
        for name in names.filter(|name| name.starts_with(SCHEDULE) && name.ends_with(".lock")) {
            match Self::take_for(location, name, TERM, RENEWED_EVERY).await {
                Ok(Some(lease)) => leases.push(lease),
                other => {
                    Self::give_all_back(leases).await;
                    return other.map(|_| None);
                }
            }
        }
        Ok(Some(leases))
    }

    /// [`give_back`](Lease::give_back) for several.
    pub async fn give_all_back(leases: Vec<Self>) {
        for lease in leases {
            lease.give_back().await;
        }
    }

    /// [`take`](Lease::take), and where another process has it, calls `waiting` and waits until that process gives it back,
    /// ends or lets it expire. While it waits, a store that fails is asked again; before, for as long as `patience`.
    ///
    /// # Errors
    /// As [`take`](Lease::take).
    pub async fn wait(location: &Location, cohort: &str, patience: Duration, waiting: impl FnOnce()) -> Result<Self> {
        if let Some(lease) = with_patience(patience, || Self::take(location, cohort)).await? {
            return Ok(lease);
        }
        waiting();
        loop {
            tokio::time::sleep(CHECKED_EVERY).await;
            match Self::take(location, cohort).await {
                Ok(Some(lease)) => return Ok(lease),
                Ok(None) => {}
                Err(error) if error.retry() == Retry::Backoff => {
                    tracing::warn!(kind = error.kind(), "the lease of the cohort cannot be read; trying again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// [`of_maintenance`](Lease::of_maintenance), or `None` where another process has it.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Io`] where the lock cannot be read or written.
    pub async fn of_maintenance_if_free(location: &Location) -> Result<Option<Self>> {
        Self::take_for(location, MAINTENANCE, TERM, RENEWED_EVERY).await
    }

    /// Takes the lease of maintenance. Rewrites are safe without it; it spares two of them the same work.
    ///
    /// # Errors
    /// [`Error::Config`] where another process has it; [`Error::Storage`] and [`Error::Io`] where the lock cannot be read or
    /// written.
    pub async fn of_maintenance(location: &Location) -> Result<Self> {
        Self::of_maintenance_if_free(location).await?.ok_or_else(|| {
            Error::Config(format!(
                "another process is optimizing, cleaning or repairing the tables at {location}: try again when it has ended \
                 (after a crash, within three minutes)"
            ))
        })
    }

    /// Does work under the lease of maintenance, and gives it back also after an error: the next command would have to wait for
    /// its end.
    ///
    /// # Errors
    /// As [`of_maintenance`](Lease::of_maintenance); those of `work`.
    pub async fn during<T>(location: &Location, work: impl Future<Output = Result<T>>) -> Result<T> {
        let lease = Self::of_maintenance(location).await?;
        let outcome = work.await;
        lease.give_back().await;
        outcome
    }

    async fn take_for(
        location: &Location,
        name: &str,
        term: TimeDelta,
        renewed_every: Duration,
    ) -> Result<Option<Self>> {
        let (losing, lost) = watch::channel(false);
        if location.url.scheme() == "file"
            && let Ok(folder) = location.url.to_file_path()
        {
            let open = File::options().create(true).write(true).truncate(false).open(folder.join(name));
            let file = open.map_err(|e| unwritable(name, e))?;
            return match file.try_lock() {
                Ok(()) => Ok(Some(Self { held: Held::Folder { _file: file }, lost })),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(e)) => Err(Error::io(format!("cannot lock {name} of the tables"), e)),
            };
        }
        let holder = uuid::Uuid::now_v7().to_string();
        let lock = LockObject { location: location.clone(), path: location.path_of(name)?, holder, term };
        let claimed = warn_if_slow("taking the lease of the tables", with_retries(|| lock.claim())).await?;
        let Some(version) = claimed else { return Ok(None) };
        // Dropping the set ends the task.
        let mut renewing = JoinSet::new();
        renewing.spawn(renew(lock.clone(), renewed_every, version, losing));
        Ok(Some(Self { held: Held::Store { lock: Box::new(lock), renewing }, lost }))
    }

    /// Resolves when another process has the lease, because the store was unreachable for too long.
    pub async fn lost(&self) {
        if self.lost.clone().wait_for(|&lost| lost).await.is_err() {
            // A lock of the operating system is never lost.
            std::future::pending::<()>().await;
        }
    }

    /// Gives the lease back at once. A lease in a store that is dropped instead expires.
    pub async fn give_back(self) {
        if let Held::Store { lock, mut renewing } = self.held {
            renewing.shutdown().await;
            // An error here is harmless: the lease expires. Another process may have taken the lease, and its object stays.
            if let Ok(Some(_)) = with_retries(|| lock.own_version()).await {
                let _ = lock.location.store.delete(&lock.path).await;
            }
        }
    }
}

impl LockObject {
    /// Writes a claim where nobody else has one; gives its version. The answer to a write may be lost: then the next attempt, or
    /// the second reading, finds this holder's own claim.
    async fn claim(&self) -> Result<Option<UpdateVersion>> {
        let mode = match self.read().await? {
            None => PutMode::Create,
            Some((claim, version)) if claim.holder == self.holder => return Ok(Some(version)),
            Some((claim, _)) if claim.until > Utc::now() => return Ok(None),
            Some((_, version)) => PutMode::Update(version),
        };
        match self.write(mode).await {
            Ok(version) => Ok(Some(version)),
            Err(error) if error.is_about_content() => self.own_version().await,
            Err(error) => Err(error),
        }
    }

    /// The version of the object, if the claim in it is this holder's.
    async fn own_version(&self) -> Result<Option<UpdateVersion>> {
        let found = self.read().await?;
        Ok(found.filter(|(claim, _)| claim.holder == self.holder).map(|(_, version)| version))
    }

    async fn read(&self) -> Result<Option<(Claim, UpdateVersion)>> {
        let failed = |e| self.location.explain("read the lock of the tables at", e);
        let found = match self.location.store.get(&self.path).await {
            Err(Store::NotFound { .. }) => return Ok(None),
            found => found.map_err(failed)?,
        };
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(failed)?;
        // A claim that cannot be parsed has no holder.
        let nobody = || Claim { holder: String::new(), until: DateTime::UNIX_EPOCH };
        Ok(Some((serde_json::from_slice(&bytes).unwrap_or_else(|_| nobody()), version)))
    }

    /// Claims the lease for a term from now.
    async fn write(&self, mode: PutMode) -> Result<UpdateVersion> {
        let claim = Claim { holder: self.holder.clone(), until: Utc::now() + self.term };
        let bytes = serde_json::to_vec(&claim).map_err(|e| Error::Bug(format!("a lease is not JSON: {e}")))?;
        let put = self.location.store.put_opts(&self.path, bytes.into(), mode.into()).await;
        put.map(Into::into).map_err(|e| self.location.explain_write("write the lock of the tables at", e))
    }
}

/// Renews the lease until another process has it, or it could not be renewed for its whole term.
async fn renew(lock: LockObject, every: Duration, mut version: UpdateVersion, losing: watch::Sender<bool>) {
    let mut until = Utc::now() + lock.term;
    while Utc::now() < until {
        tokio::time::sleep(every).await;
        match lock.write(PutMode::Update(version.clone())).await {
            Ok(renewed) => (version, until) = (renewed, Utc::now() + lock.term),
            // The answer to an earlier renewal was lost, or another process has the lease.
            Err(error) if error.is_about_content() => match lock.own_version().await {
                Ok(Some(own)) => version = own,
                Ok(None) => break,
                Err(error) => tracing::warn!(kind = error.kind(), "the lease of the tables was not read; trying again"),
            },
            Err(error) => tracing::warn!(kind = error.kind(), "the lease of the tables was not renewed; trying again"),
        }
    }
    losing.send_replace(true);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::store::open_or_create;

    #[tokio::test]
    async fn a_folder_has_one_holder_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let location = open_or_create(folder.path().to_str().unwrap()).unwrap();
        let first = Lease::take(&location, "c0").await.unwrap().unwrap();
        assert!(Lease::take(&location, "c0").await.unwrap().is_none());
        // Another cohort has a lease of its own.
        assert!(Lease::take(&location, "c1").await.unwrap().is_some());
        first.give_back().await;
        assert!(Lease::take(&location, "c0").await.unwrap().is_some());
        // Maintenance has a lease of its own.
        let maintenance = Lease::of_maintenance(&location).await.unwrap();
        let busy = Lease::of_maintenance(&location).await.unwrap_err().to_string();
        assert!(busy.contains("try again when it has ended"), "{busy}");
        maintenance.give_back().await;
        Lease::of_maintenance(&location).await.unwrap();
    }

    #[tokio::test]
    async fn a_lease_in_a_store_is_renewed_given_back_and_runs_out() {
        let url = url::Url::parse("memory:///results").unwrap();
        let location = Location::new(Arc::new(InMemory::new()), "results".into(), url);
        let take = async || {
            Lease::take_for(&location, &schedule_lock("c0"), TimeDelta::milliseconds(200), Duration::from_millis(20))
                .await
        };
        let first = take().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(take().await.unwrap().is_none(), "it was renewed beyond its term");
        first.give_back().await;
        let second = take().await.unwrap().unwrap();
        // Like after SIGKILL, it is not renewed.
        drop(second);
        assert!(take().await.unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(300)).await;
        let third = take().await.unwrap().unwrap();
        // A process whose clock is ahead takes it: the holder notices, and does not delete the object.
        let path = location.path_of(&schedule_lock("c0")).unwrap();
        let other = LockObject { location: location.clone(), path, holder: "other".into(), term: TERM };
        other.write(PutMode::Overwrite).await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), third.lost()).await.unwrap();
        third.give_back().await;
        assert!(take().await.unwrap().is_none());
    }
}
