//! Figures and health of the program for a monitor: an HTTP server.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | figures of the current run and of the last one, in Prometheus' text format |
//! | `/healthz` | 200, or 503 with the reason: a night failed or is overdue (`health.rs`) |
//! | `/livez` | 200, or 503 where the schedule's loop no longer works |
//!
//! They are counts and seconds of this process; no name of a scan, a cohort or a folder. There is no login: bind to
//! loopback, or to a network whose members may read these figures.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tiny_http::{Header, Method, Response, Server};

use super::health::{Health, Night};
use super::progress::{Progress, Snapshot, StageSnapshot};
use crate::error::{Error, Result};

/// Prometheus' text exposition format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The server. It ends when it is dropped.
pub struct Monitor {
    server: Arc<Server>,
    address: SocketAddr,
    shown: Arc<Shown>,
}

/// What the server answers with.
#[derive(Debug, Default)]
struct Shown {
    run: Mutex<Option<Watched>>,
    health: Mutex<Health>,
}

impl Shown {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status and the text of the answer for a path; none for an unknown one.
    fn answer(&self, path: &str) -> Option<(u16, String)> {
        let checked = |fault: Option<String>| match fault {
            None => (200, "ok\n".to_owned()),
            Some(reason) => (503, reason + "\n"),
        };
        let now = Utc::now();
        match path {
            "/metrics" => {
                let run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
                let of_run = run.as_ref().map_or_else(String::new, |run| text(&run.progress.snapshot(), run.pending));
                Some((200, of_run + &of_nights(&self.health())))
            }
            "/healthz" => Some(checked(self.health().fault(now))),
            "/livez" => Some(checked(self.health().lifeless(now))),
            _ => None,
        }
    }
}

/// The run whose figures are served.
#[derive(Debug)]
struct Watched {
    progress: Arc<Progress>,
    pending: u64,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { server: _, address, shown } = self;
        f.debug_struct("Monitor").field("address", address).field("shown", shown).finish()
    }
}

impl Monitor {
    /// Serves at `address`; port 0 takes any free port.
    ///
    /// # Errors
    /// [`Error::Config`] where the address cannot be bound; [`Error::Io`] where no thread can be started.
    pub fn serve(address: SocketAddr) -> Result<Self> {
        let refused = |reason: String| {
            Error::Config(format!(
                "run.metrics: cannot serve at {address}: {reason}; choose another port, or 0 for a free one"
            ))
        };
        let server = Arc::new(Server::http(address).map_err(|e| refused(e.to_string()))?);
        let bound = server.server_addr().to_ip();
        let address = bound.ok_or_else(|| refused("it is not a network address".into()))?;
        let shown: Arc<Shown> = Arc::default();
        let (requests, shown_there) = (Arc::clone(&server), Arc::clone(&shown));
        std::thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || answer(&requests, &shown_there))
            .map_err(|e| Error::io("cannot start the monitor's thread", e))?;
        Ok(Self { server, address, shown })
    }

    /// The address that it serves at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the figures of this run from now on; `pending` is its number of scans at the start.
    pub fn watch(&self, progress: Arc<Progress>, pending: u64) {
        *self.shown.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(Watched { progress, pending });
    }

    /// The schedule's loop works, and its next run is due at this time.
    pub fn alive(&self, next_run: Option<DateTime<Utc>>) {
        self.shown.health().alive(Utc::now(), next_run);
    }

    /// A run, or a night that failed before its run, ended.
    pub fn ended(&self, night: Night) {
        self.shown.health().ended(Utc::now(), night);
    }

    /// The tables say that the last successful run began then.
    pub fn succeeded_before(&self, time: DateTime<Utc>) {
        self.shown.health().succeeded_before(time);
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.server.unblock();
    }
}

fn answer(server: &Server, shown: &Shown) {
    let header = Header::from_bytes("Content-Type", CONTENT_TYPE).ok();
    // `recv` fails once the monitor is dropped.
    while let Ok(request) = server.recv() {
        let known = Some(request.url()).filter(|_| *request.method() == Method::Get);
        let (status, text) = known
            .and_then(|path| shown.answer(path))
            .unwrap_or_else(|| (404, "GET /metrics, /healthz or /livez\n".to_owned()));
        let mut response = Response::from_string(text).with_status_code(status);
        header.iter().for_each(|header| response.add_header(header.clone()));
        // Fails where the client has closed the connection.
        let outcome = request.respond(response);
        outcome.unwrap_or_else(|error| tracing::debug!(%error, "a client closed its connection before the answer"));
    }
}

/// Rows of a metric: labels and values.
type Rows<'a> = &'a [(String, f64)];

/// Adds a metric in Prometheus' text format.
fn family(out: &mut String, [name, kind, help]: [&str; 3], rows: Rows<'_>) {
    // Writing to a string cannot fail.
    let _ = write!(out, "# HELP neurosieve_{name} {help}\n# TYPE neurosieve_{name} {kind}\n");
    for (labels, value) in rows {
        let _ = writeln!(out, "neurosieve_{name}{labels} {value}");
    }
}

/// What is known of the runs that ended.
fn of_nights(health: &Health) -> String {
    let mut out = String::new();
    let mut gauge = |name, help, value: Option<f64>| {
        if let Some(value) = value {
            family(&mut out, [name, "gauge", help], &[(String::new(), value)]);
        }
    };
    let seconds = |time: DateTime<Utc>| time.timestamp() as f64;
    gauge(
        "last_success_timestamp_seconds",
        "When the last successful run ended, in seconds since 1970.",
        health.last_success.map(seconds),
    );
    gauge(
        "next_run_timestamp_seconds",
        "When the next run is due, in seconds since 1970.",
        health.next_run.map(seconds),
    );
    let Some((ended, night)) = &health.last else { return out };
    gauge("last_run_timestamp_seconds", "When the last run ended, in seconds since 1970.", Some(seconds(*ended)));
    gauge(
        "cohort_empty",
        "1 where the last run found no scan to select.",
        Some(f64::from(u8::from(night.cohort_empty))),
    );
    gauge("all_failed", "1 where no scan of the last run has a result.", Some(f64::from(u8::from(night.all_failed))));
    let outcome = (format!("{{outcome=\"{}\"}}", night.outcome.name()), 1.);
    family(&mut out, ["last_run_outcome", "gauge", "1 for the outcome of the last run."], &[outcome]);
    out
}

/// The figures in Prometheus' text format.
fn text(now: &Snapshot, pending: u64) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: Rows<'_>| family(&mut out, [name, kind, help], rows);
    let left = pending.saturating_sub(now.ended());
    let ended = [("done", now.done), ("failed", now.failed)];
    let ended = ended.map(|(outcome, n)| (format!("{{outcome=\"{outcome}\"}}"), n as f64));
    family("scans_total", "counter", "Scans of the run that ended.", &ended);
    family("scans_pending", "gauge", "Scans of the run that have not ended.", &[(String::new(), left as f64)]);
    family("run_seconds", "gauge", "Time since the run began.", &[(String::new(), now.elapsed.as_secs_f64())]);
    let by_stage = |value: fn(&StageSnapshot) -> f64| -> Vec<(String, f64)> {
        let label = |stage| format!("{{place=\"{stage}\"}}");
        now.stages.iter().map(|counts| (label(counts.stage), value(counts))).collect()
    };
    let at = by_stage(|counts| counts.scans as f64);
    family("scans_at", "gauge", "Scans at each stage of their way.", &at);
    let passed = by_stage(|counts| counts.passed as f64);
    family("stage_scans_total", "counter", "Scans that have passed each stage.", &passed);
    let seconds = by_stage(|counts| counts.seconds);
    family("stage_seconds_total", "counter", "Seconds of work at each stage, of waiting where scans wait.", &seconds);
    out
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::super::stage::Stage;
    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_monitor_reads_counts_of_the_current_run() {
        let monitor = Monitor::serve("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(get(monitor.address(), "/metrics").starts_with("HTTP/1.1 200"));
        let progress = Arc::new(Progress::new(4, 2, 1));
        progress.arrive(Stage::Memory);
        progress.count_done();
        monitor.watch(Arc::clone(&progress), 5);
        let answer = get(monitor.address(), "/metrics");
        for line in [
            "Content-Type: text/plain; version=0.0.4",
            "neurosieve_scans_total{outcome=\"done\"} 1",
            "neurosieve_scans_pending 4",
            "neurosieve_scans_at{place=\"memory\"} 1",
            "neurosieve_stage_seconds_total{place=\"device\"} 0",
            "# TYPE neurosieve_scans_at gauge",
        ] {
            assert!(answer.contains(line), "{line} is not in {answer}");
        }
        assert!(get(monitor.address(), "/").starts_with("HTTP/1.1 404"));
        let refused = Monitor::serve(monitor.address()).unwrap_err().to_string();
        assert!(refused.contains("run.metrics"), "{refused}");
    }
}
