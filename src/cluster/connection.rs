//! Connections between the processes of a cluster: addresses, time limits, and what failed ones say.

use std::error::Error as StdError;
use std::time::Duration;

use tonic::Status;
use tonic::transport::Endpoint;
use url::Url;

use super::tls::Tls;
use crate::error::{Error, Result};

/// How long a connection to the scheduler or to an executor may take.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// The address of a scheduler as a URL, of which the scheme says whether TLS is used.
pub(super) fn address(given: &str, tls: bool) -> Result<String> {
    let given = given.trim().trim_end_matches('/');
    let scheme = if tls { "https" } else { "http" };
    let refused = |what: &str| {
        Error::Config(format!("--cluster: {what}; give the scheduler's address, such as {scheme}://host:50050"))
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

/// The error of a scheduler that does not answer, with the next step.
pub(super) fn unreachable(address: &str, tls: bool, why: &str) -> Error {
    let next = match tls {
        true => "check that the certificates of both sides are of the same authority and name the host",
        false => "where it was started with --tls, give --tls here too",
    };
    Error::Cluster(format!(
        "cannot reach a scheduler at {address}: {why}; start one there with `neurosieve scheduler`, or {next}"
    ))
}

/// An error with its causes. That of a connection says nothing by itself.
pub(super) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|earlier| earlier.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

/// What a status says, with its causes.
pub(super) fn said(status: &Status) -> String {
    let source = status.source().map(|source| format!(": {}", causes(source))).unwrap_or_default();
    format!("{}{source}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_its_scheme_from_tls() {
        assert_eq!(address("127.0.0.1:50050", false).unwrap(), "http://127.0.0.1:50050");
        assert_eq!(address("node-1:50050/", true).unwrap(), "https://node-1:50050");
        assert_eq!(address("https://node:443", true).unwrap(), "https://node:443");
        assert_eq!(address("http://[::1]:7", false).unwrap(), "http://[::1]:7");
        for (given, tls, word) in [
            ("http://node:1", true, "https://"),
            ("https://node:1", false, "--tls"),
            ("df://node:1", false, "neither"),
            ("node", false, "no port"),
            ("http://me:secret@node:1", false, "more than"),
            ("http://node:1/path", false, "more than"),
        ] {
            let said = address(given, tls).unwrap_err().to_string();
            assert!(said.contains(word) && !said.contains("secret"), "{given}: {said}");
        }
    }
}
