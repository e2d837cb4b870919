//! The right to look after tables alone, which a crash gives back.
//!
//! | tables | what is held | after a crash |
//! |---|---|---|
//! | in a folder | a lock of the operating system on `_schedule.lock` | it is gone with the process |
//! | in a store | an object of that name, written under a condition and renewed every minute | it runs out after five minutes |
//!
//! Nothing that is written depends on it: commits are exactly once without. It keeps two schedules from doing the same work.

use std::fs::{File, TryLockError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use object_store::{Error as Store, ObjectStoreExt as _, PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::store::Location;

const NAME: &str = "_schedule.lock";

/// How long a lease in a store holds unless it is renewed: longer than clocks of two machines differ.
const TERM: TimeDelta = TimeDelta::minutes(5);
const RENEWED_EVERY: Duration = Duration::from_secs(60);

/// The right, as long as this lives and [`Lease::lost`] does not say otherwise.
#[derive(Debug)]
pub struct Lease {
    held: Held,
    lost: watch::Receiver<bool>,
}

#[derive(Debug)]
enum Held {
    /// Closing the file gives the lock back.
    Folder {
        _file: File,
    },
    Store(Box<InStore>),
}

#[derive(Debug)]
struct InStore {
    location: Location,
    path: Path,
    holder: String,
    renewing: JoinSet<()>,
}

/// What the object says.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    holder: String,
    until: DateTime<Utc>,
}

impl Lease {
    /// Takes the lease of the tables at `location`; none where another has it.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Io`] where nobody can tell.
    pub async fn take(location: &Location) -> Result<Option<Self>> {
        Self::take_for(location, TERM, RENEWED_EVERY).await
    }

    async fn take_for(location: &Location, term: TimeDelta, renewed_every: Duration) -> Result<Option<Self>> {
        let (losing, lost) = watch::channel(false);
        if location.url.scheme() == "file"
            && let Ok(folder) = location.url.to_file_path()
        {
            let open = File::options().create(true).write(true).truncate(false).open(folder.join(NAME));
            let file = open.map_err(|e| Error::io(format!("cannot open {NAME} of the tables"), e))?;
            return match file.try_lock() {
                Ok(()) => Ok(Some(Self { held: Held::Folder { _file: file }, lost })),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(e)) => Err(Error::io(format!("cannot lock {NAME} of the tables"), e)),
            };
        }
        let path = location.path_of(NAME)?;
        let holder = uuid::Uuid::now_v7().to_string();
        let mode = match location.store.get(&path).await {
            Err(Store::NotFound { .. }) => PutMode::Create,
            Err(error) => return Err(location.explain("read the lock of the tables at", error)),
            Ok(found) => {
                let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
                let bytes = found.bytes().await.map_err(|e| location.explain("read the lock of the tables at", e))?;
                // One that nobody can read is nobody's.
                let until = serde_json::from_slice(&bytes).map_or(DateTime::UNIX_EPOCH, |claim: Claim| claim.until);
                if until > Utc::now() {
                    return Ok(None);
                }
                PutMode::Update(version)
            }
        };
        let version = match write(location, &path, &holder, term, mode).await {
            Ok(version) => version,
            Err(error) if error.is_about_content() => return Ok(None),
            Err(error) => return Err(error),
        };
        // Dropped, it ends the task.
        let mut renewing = JoinSet::new();
        renewing.spawn(renew(location.clone(), path.clone(), holder.clone(), term, renewed_every, version, losing));
        let held = InStore { location: location.clone(), path, holder, renewing };
        Ok(Some(Self { held: Held::Store(Box::new(held)), lost }))
    }

    /// Resolves when the lease is another's: the store was out of reach for too long.
    pub async fn lost(&self) {
        if self.lost.clone().wait_for(|&lost| lost).await.is_err() {
            // A lock of the operating system is never lost.
            std::future::pending::<()>().await;
        }
    }

    /// Gives it back at once. One that is dropped instead runs out.
    pub async fn give_back(self) {
        if let Held::Store(held) = self.held {
            let InStore { location, path, holder, mut renewing } = *held;
            renewing.shutdown().await;
            // Whatever fails here, the lease runs out. Only one's own is deleted: it may have passed to another.
            let own = async {
                let bytes = location.store.get(&path).await?.bytes().await?;
                Ok::<_, Store>(serde_json::from_slice(&bytes).is_ok_and(|claim: Claim| claim.holder == holder))
            };
            if own.await.unwrap_or(false) {
                let _ = location.store.delete(&path).await;
            }
        }
    }
}

async fn write(
    location: &Location,
    path: &Path,
    holder: &str,
    term: TimeDelta,
    mode: PutMode,
) -> Result<UpdateVersion> {
    let claim = Claim { holder: holder.to_owned(), until: Utc::now() + term };
    let bytes = serde_json::to_vec(&claim).map_err(|e| Error::Bug(format!("a lease: {e}")))?;
    let put = location.store.put_opts(path, bytes.into(), mode.into()).await;
    put.map(Into::into).map_err(|e| location.explain("write the lock of the tables at", e))
}

/// Renews the lease until it is another's, or could not be renewed for its whole term.
async fn renew(
    location: Location,
    path: Path,
    holder: String,
    term: TimeDelta,
    every: Duration,
    mut version: UpdateVersion,
    losing: watch::Sender<bool>,
) {
    let mut until = Utc::now() + term;
    while Utc::now() < until {
        tokio::time::sleep(every).await;
        match write(&location, &path, &holder, term, PutMode::Update(version.clone())).await {
            Ok(renewed) => (version, until) = (renewed, Utc::now() + term),
            Err(error) if error.is_about_content() => break,
            Err(error) => tracing::warn!(%error, "the lease of the tables was not renewed, trying again"),
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
        let first = Lease::take(&location).await.unwrap().unwrap();
        assert!(Lease::take(&location).await.unwrap().is_none());
        first.give_back().await;
        assert!(Lease::take(&location).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_lease_in_a_store_is_renewed_given_back_and_runs_out() {
        let url = url::Url::parse("memory:///results").unwrap();
        let location = Location::new(Arc::new(InMemory::new()), "results".into(), url);
        let take = async || Lease::take_for(&location, TimeDelta::milliseconds(200), Duration::from_millis(20)).await;
        let first = take().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(take().await.unwrap().is_none(), "it was renewed beyond its term");
        first.give_back().await;
        let second = take().await.unwrap().unwrap();
        // As by SIGKILL: nobody renews it.
        drop(second);
        assert!(take().await.unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(300)).await;
        let third = take().await.unwrap().unwrap();
        // Somebody whose clock is ahead took it: the holder hears of it, and leaves it alone.
        let path = location.path_of(NAME).unwrap();
        write(&location, &path, "other", TERM, PutMode::Overwrite).await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), third.lost()).await.unwrap();
        third.give_back().await;
        assert!(take().await.unwrap().is_none());
    }
}
