//! What the executors of a cluster report of themselves to its scheduler, for drivers and for `neurosieve cluster status`.
//!
//! ```text
//! executor ── POST /stations, every 2 s ──► board ◄── GET /stations ── driver, `cluster status`
//! ```
//! The board lives in the scheduler's memory and listens on the scheduler's own port. It forgets what has not been repeated
//! for a while, and measures that time by a clock that nobody sets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic::codegen::{Service as _, http};
use tonic::transport::Channel;

use super::causes::causes;
use crate::error::{Error, Result};

/// Where the scheduler takes and gives reports.
pub const PATH: &str = "/stations";

/// The most that an answer may hold, bytes: tens of thousands of reports.
const MOST_BYTES: usize = 16 << 20;

/// The most that one report may hold, bytes.
const MOST_REPORT_BYTES: usize = 16 << 10;

/// The most reports that a board keeps.
const MOST_REPORTS: usize = 10_000;

/// The longest id, device or version, bytes.
const MOST_NAME_BYTES: usize = 256;

/// More chunks at the same time than any machine works on.
pub(super) const MOST_SLOTS: usize = 1024;

/// More scans than any process screens.
const MOST_SCANS: u64 = 1 << 40;

/// How long the report of an unfit executor is kept, so that an operator finds out why it ended.
const UNFIT_FOR: Duration = Duration::from_secs(600);

/// One executor, as it reported itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StationReport {
    /// Its id among the executors.
    pub executor_id: String,
    /// What it computes on: `cpu`, `cuda:0`.
    pub device: String,
    /// Tasks that it runs at the same time; 0 where it is ending and takes no more.
    pub slots: usize,
    /// The version of its program.
    pub version: String,
    /// Scans that it has finished since its start.
    pub done: u64,
    /// Scans that failed there.
    pub failed: u64,
    /// Scans that it works on now.
    pub in_flight: u64,
    /// Its rate over the last minute.
    pub scans_per_minute: f64,
    /// Why it cannot work any more.
    pub unfit: Option<String>,
}

impl StationReport {
    /// False for a report that no executor of this program sends. Sums of the numbers of all reports stay exact.
    fn is_plausible(&self) -> bool {
        let names = [&self.executor_id, &self.device, &self.version];
        names.iter().all(|name| (1..=MOST_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control))
            && self.slots <= MOST_SLOTS
            && [self.done, self.failed, self.in_flight].iter().all(|&scans| scans <= MOST_SCANS)
            && (0. ..=MOST_SCANS as f64).contains(&self.scans_per_minute)
    }
}

/// The latest report of each executor.
#[derive(Debug)]
pub struct Board {
    silence: Duration,
    reports: Mutex<BTreeMap<String, (Instant, StationReport)>>,
}

impl Board {
    /// An empty board that forgets an executor after this time of silence.
    pub fn new(silence: Duration) -> Arc<Self> {
        Arc::new(Self { silence, reports: Mutex::default() })
    }

    /// Keeps a report instead of the executor's earlier one. False where the board is full of others.
    fn keep(&self, report: StationReport, now: Instant) -> bool {
        let mut reports = self.current(now);
        let is_full = reports.len() >= MOST_REPORTS && !reports.contains_key(&report.executor_id);
        if !is_full {
            reports.insert(report.executor_id.clone(), (now, report));
        }
        !is_full
    }

    /// The reports of executors that are not silent, in the order of their ids.
    fn list(&self, now: Instant) -> Vec<StationReport> {
        self.current(now).values().map(|(_, report)| report.clone()).collect()
    }

    fn current(&self, now: Instant) -> impl std::ops::DerefMut<Target = BTreeMap<String, (Instant, StationReport)>> {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.retain(|_, (at, report)| {
            let kept = if report.unfit.is_some() { UNFIT_FOR } else { self.silence };
            now.saturating_duration_since(*at) < kept
        });
        reports
    }
}

/// The routes of a board: [`PATH`] takes and gives reports.
pub fn routes(board: Arc<Board>) -> axum::Router {
    let take = |State(board): State<Arc<Board>>, Json(report): Json<StationReport>| async move {
        match report.is_plausible() {
            false => http::StatusCode::UNPROCESSABLE_ENTITY,
            true if board.keep(report, Instant::now()) => http::StatusCode::NO_CONTENT,
            true => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    };
    let give = |State(board): State<Arc<Board>>| async move { Json(board.list(Instant::now())) };
    let limit = DefaultBodyLimit::max(MOST_REPORT_BYTES);
    axum::Router::new().route(PATH, post(take).get(give)).layer(limit).with_state(board)
}

/// The kinds of devices that executors compute on. The number of a GPU says nothing about its digits.
pub(super) fn device_kinds(stations: &[StationReport]) -> impl Iterator<Item = String> {
    let fit = stations.iter().filter(|station| station.unfit.is_none());
    fit.map(|station| station.device.split(':').next().unwrap_or_default().to_owned())
}

/// The reports that the scheduler at the other end of a channel holds.
///
/// # Errors
/// [`Error::Cluster`] where it does not answer, or is not a scheduler of this program.
pub async fn fetch(channel: &Channel) -> Result<Vec<StationReport>> {
    let what = "cannot read the scheduler's list of executors";
    let bytes = call(channel, what, http::Request::get(PATH).body(tonic::body::Body::empty())).await?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Cluster(format!("{what}: {e}; use one version of this program")))
}

/// Reports an executor to the scheduler at the other end of a channel.
///
/// # Errors
/// [`Error::Cluster`] where it does not take the report.
pub async fn send(channel: &Channel, report: &StationReport) -> Result<()> {
    let what = "cannot report to the scheduler";
    let json = serde_json::to_vec(report).map_err(|e| Error::Bug(format!("{what}: {e}")))?;
    let request = http::Request::post(PATH).header(http::header::CONTENT_TYPE, "application/json");
    let body = tonic::body::Body::new(axum::body::Body::from(json));
    call(channel, what, request.body(body)).await.map(drop)
}

/// One request to the scheduler, other than Ballista's own, and its answer. `what` begins the message of an error.
pub(super) async fn call(
    channel: &Channel,
    what: &str,
    request: http::Result<http::Request<tonic::body::Body>>,
) -> Result<Bytes> {
    let failed = |why: &str| Error::Cluster(format!("{what}: {why}"));
    let request = request.map_err(|e| failed(&e.to_string()))?;
    let mut channel = channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(|e| failed(&causes(&e)))?;
    let response = channel.call(request).await.map_err(|e| failed(&causes(&e)))?;
    let status = response.status();
    if !status.is_success() {
        return Err(failed(&format!("it answered {status}; start it with `neurosieve scheduler` of this version")));
    }
    let body = axum::body::Body::new(response.into_body());
    axum::body::to_bytes(body, MOST_BYTES).await.map_err(|e| failed(&causes(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(30);

    fn report(id: &str) -> StationReport {
        StationReport {
            executor_id: id.into(),
            device: "cpu".into(),
            slots: 2,
            version: "1".into(),
            done: 5,
            failed: 1,
            in_flight: 3,
            scans_per_minute: 12.5,
            unfit: None,
        }
    }

    fn ids(board: &Board, now: Instant) -> Vec<String> {
        board.list(now).into_iter().map(|report| report.executor_id).collect()
    }

    #[test]
    fn a_silent_executor_is_forgotten_and_an_unfit_one_keeps_its_message_for_ten_minutes() {
        let (board, start) = (Board::new(SILENCE), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(board.keep(report("b"), start));
        assert!(board.keep(report("a"), after(20)));
        assert!(board.keep(StationReport { unfit: Some("disk full".into()), ..report("c") }, start));
        assert_eq!(ids(&board, after(29)), ["a", "b", "c"]);
        assert_eq!(ids(&board, after(30)), ["a", "c"]);
        assert_eq!(ids(&board, after(599)), ["c"]);
        assert_eq!(ids(&board, after(600)), [""; 0]);
    }

    #[test]
    fn an_executors_later_report_replaces_its_earlier_one() {
        let (board, now) = (Board::new(SILENCE), Instant::now());
        assert!(board.keep(report("a"), now));
        assert!(board.keep(StationReport { done: 6, ..report("a") }, now));
        assert_eq!(board.list(now), [StationReport { done: 6, ..report("a") }]);
    }

    #[test]
    fn a_report_that_no_executor_sends_is_not_plausible() {
        assert!(report("a").is_plausible());
        let unfit = StationReport { slots: 0, unfit: Some("disk full".into()), scans_per_minute: 0., ..report("a") };
        assert!(unfit.is_plausible());
        for wrong in [
            report(""),
            report(&"a".repeat(MOST_NAME_BYTES + 1)),
            report("a\u{1b}[2J"),
            StationReport { slots: usize::MAX, ..report("a") },
            StationReport { done: u64::MAX, ..report("a") },
            StationReport { scans_per_minute: 1e308, ..report("a") },
            StationReport { scans_per_minute: -1., ..report("a") },
            StationReport { scans_per_minute: f64::NAN, ..report("a") },
        ] {
            assert!(!wrong.is_plausible(), "{wrong:?}");
        }
    }

    #[test]
    fn a_full_board_takes_no_strangers_until_others_are_silent() {
        let (board, now) = (Board::new(SILENCE), Instant::now());
        assert!((0..MOST_REPORTS).all(|number| board.keep(report(&number.to_string()), now)));
        assert!(!board.keep(report("one more"), now));
        assert!(board.keep(report("7"), now));
        assert!(board.keep(report("one more"), now + SILENCE));
        assert_eq!(board.list(now + SILENCE).len(), 1);
    }
}
