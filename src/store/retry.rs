//! Retries: those of a store's client, for single requests, and those around whole calls.

use std::time::{Duration, Instant};

use object_store::RetryConfig;

use crate::error::{Result, Retry};

/// Attempts at a whole call.
const MAX_ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause between two attempts during an outage.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The client's retries of server errors and dropped connections: about 10 s in total, which is enough for a throttled
/// bucket and short enough for a user who mistyped an endpoint.
pub(super) fn of_client() -> RetryConfig {
    RetryConfig { max_retries: 6, retry_timeout: Duration::from_secs(120), ..RetryConfig::default() }
}

/// The pauses of a call that waits for an outage to end: 1, 2, 4 s and so on up to a minute, each lengthened at random up to
/// half of that.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
    until: Instant,
}

impl Pauses {
    /// Pauses that end `longest` from now.
    pub(crate) fn within(longest: Duration) -> Self {
        Self { next: FIRST_PAUSE * 4, until: Instant::now() + longest }
    }

    /// The next pause; none where the time would be over.
    pub(crate) fn next(&mut self) -> Option<Duration> {
        let pause = self.next.mul_f64(1. + 0.5 * rand::random::<f64>());
        self.next = LONGEST_PAUSE.min(self.next * 2);
        (Instant::now() + pause < self.until).then_some(pause)
    }
}

/// Repeats `call` up to three times while it fails for a reason that may pass: a body that broke off, or a server that was
/// busy for longer than the client waits.
///
/// The pauses are 0.25, 1 and 4 s, each lengthened at random up to twice that, so that many processes do not return at the
/// same moment.
///
/// # Errors
/// The error of the last attempt.
pub(crate) async fn with_retries<T, F: Future<Output = Result<T>>>(call: impl Fn() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        let error = match call().await {
            Err(error) if attempt < MAX_ATTEMPTS && error.retry() == Retry::Backoff && !error.is_about_content() => {
                error
            }
            outcome => return outcome,
        };
        let pause = FIRST_PAUSE * 4_u32.pow(attempt - 1);
        tracing::info!(attempt, "{}; trying again", error.text());
        tokio::time::sleep(pause.mul_f64(1. + rand::random::<f64>())).await;
        attempt += 1;
    }
}
