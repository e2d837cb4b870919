//! Figures of the current run for a monitor: an HTTP server in Prometheus' text format.
//!
//! `GET /metrics` gives counts and seconds of this process; no name of a scan, a cohort or a folder. There is no login: bind
//! to loopback, or to a network whose members may read these figures.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tiny_http::{Header, Method, Response, Server};

use super::progress::{Progress, Snapshot, StageSnapshot};
use crate::error::{Error, Result};

/// Prometheus' text exposition format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The server. It ends when it is dropped.
pub struct Monitor {
    server: Arc<Server>,
    address: SocketAddr,
    watched: Arc<Mutex<Option<Watched>>>,
}

/// The run whose figures are served.
#[derive(Debug)]
struct Watched {
    progress: Arc<Progress>,
    pending: u64,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { server: _, address, watched } = self;
        f.debug_struct("Monitor").field("address", address).field("watched", watched).finish()
    }
}

impl Monitor {
    /// Serves at `address`; port 0 takes any free port.
    ///
    /// # Errors
    /// [`Error::Config`] where the address cannot be bound; [`Error::Io`] where no thread can be started.
    pub fn serve(address: SocketAddr) -> Result<Self> {
        let refused = |reason: String| Error::Config(format!("run.metrics: cannot serve at {address}: {reason}"));
        let server = Arc::new(Server::http(address).map_err(|e| refused(e.to_string()))?);
        let bound = server.server_addr().to_ip();
        let address = bound.ok_or_else(|| refused("it is not a network address".into()))?;
        let watched: Arc<Mutex<Option<Watched>>> = Arc::default();
        let (requests, shown) = (Arc::clone(&server), Arc::clone(&watched));
        std::thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || answer(&requests, &shown))
            .map_err(|e| Error::io("cannot start the monitor's thread", e))?;
        Ok(Self { server, address, watched })
    }

    /// The address that it serves at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the figures of this run from now on; `pending` is its number of scans at the start.
    pub fn watch(&self, progress: Arc<Progress>, pending: u64) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(Watched { progress, pending });
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.server.unblock();
    }
}

fn answer(server: &Server, watched: &Mutex<Option<Watched>>) {
    let header = Header::from_bytes("Content-Type", CONTENT_TYPE).ok();
    // `recv` fails once the monitor is dropped.
    while let Ok(request) = server.recv() {
        let outcome = if (request.method(), request.url()) == (&Method::Get, "/metrics") {
            let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
            let text = watched.as_ref().map_or_else(String::new, |run| text(&run.progress.snapshot(), run.pending));
            let mut response = Response::from_string(text);
            header.iter().for_each(|header| response.add_header(header.clone()));
            request.respond(response)
        } else {
            request.respond(Response::from_string("GET /metrics\n").with_status_code(404))
        };
        // Fails where the client has closed the connection.
        outcome.unwrap_or_else(|error| tracing::debug!(%error, "a client closed its connection before the answer"));
    }
}

/// The figures in Prometheus' text format.
fn text(now: &Snapshot, pending: u64) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: &[(String, f64)]| {
        // Writing to a string cannot fail.
        let _ = write!(out, "# HELP neurosieve_{name} {help}\n# TYPE neurosieve_{name} {kind}\n");
        for (labels, value) in rows {
            let _ = writeln!(out, "neurosieve_{name}{labels} {value}");
        }
    };
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
