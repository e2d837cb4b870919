//! Waiting for a store: slow calls are logged, and an outage is waited for.

use std::time::Duration;

use tracing::warn;

use super::retry::Pauses;
use crate::error::Result;

/// How long a store may take before a warning: below the half minute after which a user takes the program for dead.
const SILENCE: Duration = Duration::from_secs(20);

/// Waits for `work`, and logs a warning every 20 s until it has ended. `what` says what is being done, without address.
pub(crate) async fn warn_if_slow<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut waited = Duration::ZERO;
    loop {
        match tokio::time::timeout(SILENCE, &mut work).await {
            Ok(result) => return result,
            Err(_) => {
                waited += SILENCE;
                warn!("still {what} after {} s: the store is slow, or does not answer", waited.as_secs());
            }
        }
    }
}

/// Repeats `call`, with growing pauses, while it fails because of the store and less than `patience` has passed.
///
/// # Errors
/// The error of the last attempt.
pub(crate) async fn with_patience<T, F: Future<Output = Result<T>>>(
    patience: Duration,
    call: impl Fn() -> F,
) -> Result<T> {
    let mut pauses = Pauses::within(patience);
    loop {
        let error = match call().await {
            Err(error) if error.is_of_store() => error,
            outcome => return outcome,
        };
        let Some(pause) = pauses.next() else { return Err(error) };
        warn!("{}; trying again in {} s", error.text(), pause.as_secs());
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;
    use crate::error::Error;

    fn down() -> Error {
        Error::storage("cannot read x", object_store::Error::Generic { store: "S3", source: "503".into() })
    }

    #[tokio::test]
    async fn an_outage_is_waited_for_as_long_as_patience_lasts() {
        let calls = AtomicU32::new(0);
        let fails = |n: u32, error: fn() -> Error| {
            let calls = calls.fetch_add(1, Relaxed) + 1;
            async move { if calls <= n { Err(error()) } else { Ok(calls) } }
        };
        let minute = Duration::from_secs(60);
        assert_eq!(with_patience(minute, || fails(1, down)).await.unwrap(), 2);
        calls.store(0, Relaxed);
        // The first pause alone is longer.
        assert!(with_patience(Duration::from_millis(900), || fails(1, down)).await.is_err());
        calls.store(0, Relaxed);
        assert!(with_patience(minute, || fails(1, || Error::input("no_brain", "none"))).await.is_err());
        assert_eq!(calls.load(Relaxed), 1, "a scan's own fault is not repeated");
    }
}
