//! Figures of the run at work for a monitor: an HTTP address that answers in Prometheus' text format.
//!
//! `GET /metrics` gives counts and seconds, of this process alone; no name of a scan, a cohort or a folder. It is for whoever
//! reaches the address: bind to loopback, or to a network that may know them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tiny_http::{Header, Method, Response, Server};

use super::progress::{Progress, Snapshot};
use crate::error::{Error, Result};

/// Where Prometheus says what its text format is.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// A server that ends when it is dropped.
pub struct Monitor {
    server: Arc<Server>,
    address: SocketAddr,
    watched: Arc<Mutex<Option<Watched>>>,
}

/// The run that figures are of.
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
    /// Serves at `address`, any free port where it has port 0.
    ///
    /// # Errors
    /// [`Error::Config`] where the address is not to be had.
    pub fn serve(address: SocketAddr) -> Result<Self> {
        let taken = |said: String| Error::Config(format!("run.metrics: cannot serve at {address}: {said}"));
        let server = Arc::new(Server::http(address).map_err(|e| taken(e.to_string()))?);
        let address = server.server_addr().to_ip().ok_or_else(|| taken("it is no address of a network".into()))?;
        let watched: Arc<Mutex<Option<Watched>>> = Arc::default();
        let (serving, shown) = (Arc::clone(&server), Arc::clone(&watched));
        std::thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || answer(&serving, &shown))
            .map_err(|e| Error::io("cannot start the monitor's thread", e))?;
        Ok(Self { server, address, watched })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows this run from now on, of which so many scans are pending.
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
    // The end of the requests is the end of the monitor.
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
        // A client that went away.
        outcome.unwrap_or_else(|error| tracing::debug!(%error, "an answer was not taken"));
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
    let left = pending.saturating_sub(now.done + now.failed);
    let ended = [("done", now.done), ("failed", now.failed)];
    let ended = ended.map(|(outcome, n)| (format!("{{outcome=\"{outcome}\"}}"), n as f64));
    family("scans_total", "counter", "Scans of the run that ended.", &ended);
    family("scans_pending", "gauge", "Scans of the run that have not ended.", &[(String::new(), left as f64)]);
    family("run_seconds", "gauge", "Time since the run began.", &[(String::new(), now.elapsed.as_secs_f64())]);
    let places = |value: &dyn Fn(usize) -> f64| -> Vec<(String, f64)> {
        let label = |place| format!("{{place=\"{place}\"}}");
        now.places.iter().enumerate().map(|(i, seen)| (label(seen.place), value(i))).collect()
    };
    family("scans_at", "gauge", "Scans at a place of their way.", &places(&|i| now.places[i].scans as f64));
    let passed = places(&|i| now.places[i].passed as f64);
    family("stage_scans_total", "counter", "Scans that went through a place.", &passed);
    let seconds = places(&|i| now.places[i].seconds);
    family("stage_seconds_total", "counter", "Seconds of work at a place, of waiting in queues.", &seconds);
    out
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_monitor_reads_counts_and_nothing_else() {
        let monitor = Monitor::serve("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(get(monitor.address(), "/metrics").starts_with("HTTP/1.1 200"));
        let progress = Arc::new(Progress::new(4, 2, 1));
        let _here = progress.begin();
        progress.end(false);
        monitor.watch(Arc::clone(&progress), 5);
        let said = get(monitor.address(), "/metrics");
        for line in [
            "Content-Type: text/plain; version=0.0.4",
            "neurosieve_scans_total{outcome=\"done\"} 1",
            "neurosieve_scans_pending 4",
            "neurosieve_scans_at{place=\"memory\"} 1",
            "neurosieve_stage_seconds_total{place=\"device\"} 0",
            "# TYPE neurosieve_scans_at gauge",
        ] {
            assert!(said.contains(line), "{line} is not in {said}");
        }
        assert!(get(monitor.address(), "/").starts_with("HTTP/1.1 404"));
        let taken = Monitor::serve(monitor.address()).unwrap_err().to_string();
        assert!(taken.contains("run.metrics"), "{taken}");
    }
}
