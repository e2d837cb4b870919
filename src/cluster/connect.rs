//! Connections from one process of a cluster to another: addresses, their checks, and what is said where one fails.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Channel, Endpoint};
use url::Url;

use super::board;
use super::causes::causes;
use super::tls::Tls;
use crate::error::{Error, Result};

/// How long a connection to the scheduler or to an executor may take.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// The pause between two attempts to reach a scheduler that may be starting.
const PAUSE: Duration = Duration::from_millis(500);

/// Connects to a scheduler, which may be starting, and asks it for its executors. The connection is made again by itself
/// after it breaks. `option` names where the address was given.
///
/// # Errors
/// [`Error::Cluster`] where no scheduler answers within 10 s; [`Error::Config`] for an address that cannot be used.
pub async fn connect(option: &str, url: &str, tls: Option<&Tls>) -> Result<(Channel, String)> {
    let address = address(option, url, tls.is_some())?;
    let unreachable = |why: &str| unreachable(&address, tls.is_some(), why);
    let to = Endpoint::from_shared(address.clone()).and_then(|to| endpoint(to, tls));
    let to = to.map_err(|e| unreachable(&causes(&e)))?;
    let deadline = Instant::now() + CONNECT;
    let mut why = format!("no answer within {} s", CONNECT.as_secs());
    while Instant::now() < deadline {
        let attempt = async {
            let channel = to.connect().await.map_err(|e| causes(&e))?;
            // Another server may listen there, and a server refuses a certificate only after the client's handshake.
            board::fetch(&channel).await.map_err(|e| e.to_string())?;
            Ok::<_, String>(channel)
        };
        match timeout_at(deadline, attempt).await {
            Ok(Ok(channel)) => return Ok((channel, address)),
            Ok(Err(reason)) => why = reason,
            Err(_) => break,
        }
        sleep(PAUSE).await;
    }
    Err(unreachable(&why))
}

/// The address of a scheduler as a URL, of which the scheme says whether TLS is used.
pub(super) fn address(option: &str, given: &str, tls: bool) -> Result<String> {
    let given = given.trim().trim_end_matches('/');
    let scheme = if tls { "https" } else { "http" };
    let refused = |what: &str| {
        Error::Config(format!("{option}: {what}; give the scheduler's address, such as {scheme}://host:50050"))
    };
    let whole = if given.contains("://") { given.to_owned() } else { format!("{scheme}://{given}") };
    // The messages do not repeat the address, which may hold a password.
    let url = Url::parse(&whole).map_err(|e| refused(&format!("the address is not a URL ({e})")))?;
    match (url.scheme(), tls) {
        ("http", true) => return Err(refused("--tls needs an address with https://")),
        ("https", false) => return Err(refused("an address with https:// needs --tls FOLDER")),
        ("http" | "https", _) => {}
        _ => return Err(refused("the address starts with neither http:// nor https://")),
    }
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.path() == "/";
    // A URL leaves out the usual port of its scheme.
    let port = whole.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    match (url.host_str(), port) {
        (Some(host), Some(port)) if bare => Ok(format!("{scheme}://{host}:{port}")),
        (_, None) if bare => Err(refused("the address has no port")),
        _ => Err(refused("the address has more than host and port")),
    }
}

/// A connection that notices within 30 s that the other end is gone.
pub(super) fn endpoint(endpoint: Endpoint, tls: Option<&Tls>) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    match tls {
        Some(tls) => endpoint.tls_config(tls.client()),
        None => Ok(endpoint),
    }
}

/// No scheduler answers at an address.
pub(super) fn unreachable(address: &str, tls: bool, why: &str) -> Error {
    let next = match tls {
        true => "check that the certificates of both sides are of the same authority and name the host",
        false => "where it was started with --tls, give --tls here too",
    };
    Error::Cluster(format!(
        "cannot reach a scheduler at {address}: {why}; start one there with `neurosieve scheduler`, or {next}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_its_scheme_from_tls() {
        assert_eq!(address("--cluster", "127.0.0.1:50050", false).unwrap(), "http://127.0.0.1:50050");
        assert_eq!(address("--cluster", "node-1:50050/", true).unwrap(), "https://node-1:50050");
        assert_eq!(address("--cluster", "https://node:443", true).unwrap(), "https://node:443");
        assert_eq!(address("--cluster", "http://[::1]:7", false).unwrap(), "http://[::1]:7");
        for (given, tls, word) in [
            ("http://node:1", true, "https://"),
            ("https://node:1", false, "--tls"),
            ("df://node:1", false, "neither"),
            ("node", false, "no port"),
            ("http://me:secret@node:1", false, "more than"),
            ("http://node:1/path", false, "more than"),
        ] {
            let said = address("--cluster", given, tls).unwrap_err().to_string();
            assert!(said.contains(word) && !said.contains("secret"), "{given}: {said}");
        }
    }
}
