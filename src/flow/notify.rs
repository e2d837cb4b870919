//! Sends reports of runs to a webhook: `schedule.notify`.
//!
//! Takes JSON; sends it by POST in a task of its own, so that no night waits for a server. An answer with status 2xx is
//! success; otherwise it is tried up to three more times, after 2, 10 and 45 s. The address may hold a secret: only its scheme,
//! host and port are printed.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::error::{Error, Result};

/// The environment's name of the address.
const NOTIFY: &str = "NEUROSIEVE_NOTIFY";

/// The pauses between attempts.
const PAUSES: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(45)];

const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);

/// A webhook.
#[derive(Debug)]
pub struct Notifier {
    client: Client,
    url: Url,
    sending: Mutex<JoinSet<()>>,
}

impl Notifier {
    /// The webhook at `given`, else at the address in the environment; none where neither is set.
    ///
    /// # Errors
    /// [`Error::Config`] for an address that is not http or https.
    pub fn new(given: Option<&str>) -> Result<Option<Self>> {
        let given = given.map(str::to_owned).or_else(|| std::env::var(NOTIFY).ok()).filter(|url| !url.is_empty());
        let Some(given) = given else { return Ok(None) };
        let refused = |reason: &str| {
            Error::Config(format!("schedule.notify: {reason}: give an address such as https://monitor.example/hook"))
        };
        let url = Url::parse(&given).map_err(|_| refused("this is not an address"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(refused("the address must begin with http:// or https://"));
        }
        let client = Client::builder()
            .connect_timeout(CONNECTS_WITHIN)
            .timeout(ANSWERS_WITHIN)
            .redirect(Policy::none())
            // A machine without certificates can still call a server in its own network.
            .tls_built_in_root_certs(url.scheme() == "https")
            .build()
            .map_err(|_| {
                refused("no HTTP client can be made, because this machine has no certificates of authorities")
            })?;
        Ok(Some(Self { client, url, sending: Mutex::default() }))
    }

    /// Sends this JSON in the background.
    pub async fn send(&self, json: String) {
        let (client, url) = (self.client.clone(), self.url.clone());
        let mut sending = self.sending.lock().await;
        // Those that have ended are forgotten.
        while sending.try_join_next().is_some() {}
        sending.spawn(deliver(client, url, json));
    }

    /// Waits until what was sent has arrived or was given up, at most this long.
    pub async fn finish(&self, within: Duration) {
        let all = async { while self.sending.lock().await.join_next().await.is_some() {} };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!(
                server = place(&self.url),
                "a report of a run was not delivered before the end of the program"
            );
        }
    }
}

async fn deliver(client: Client, url: Url, json: String) {
    let mut pauses = PAUSES.into_iter();
    loop {
        let Err(reason) = post(&client, &url, json.clone()).await else { return };
        let server = place(&url);
        let Some(pause) = pauses.next() else {
            tracing::warn!(server, reason, "the report of a run was not delivered");
            return;
        };
        tracing::info!(server, reason, "the report of a run was not delivered yet; trying again");
        tokio::time::sleep(pause).await;
    }
}

/// Sends it once; gives the reason where the server does not accept it. The body of the answer is not read.
async fn post(client: &Client, url: &Url, json: String) -> Result<(), String> {
    let request = client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(json);
    match request.send().await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("status {}", StatusCode::as_u16(&answer.status()))),
        Err(error) if error.is_timeout() => Err("no answer in time".to_owned()),
        Err(error) if error.is_connect() => Err("no connection".to_owned()),
        Err(_) => Err("the connection broke".to_owned()),
    }
}

/// The part of an address that is no secret.
fn place(url: &Url) -> String {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_place_of_an_address_is_shown() {
        let url = Url::parse("https://user:key@hooks.example:8443/T0/secret?token=1").unwrap();
        assert_eq!(place(&url), "https://hooks.example:8443");
    }

    #[test]
    fn an_address_that_cannot_be_called_is_refused_and_not_quoted() {
        for wrong in ["s3://bucket/secret", "secret", "http://"] {
            let refused = Notifier::new(Some(wrong)).unwrap_err().to_string();
            assert!(refused.contains("schedule.notify") && !refused.contains("secret"), "{refused}");
        }
    }
}
