//! Why a store failed, in words that may be logged and stored.
//!
//! A store's own error repeats what the server sent: addresses, local folders, and in the bodies of refused requests session
//! tokens, key ids and the text that was signed. [`reason`] gives only what is on a list: the kind of the error, the HTTP
//! status, the server's error code, the kind of a transport error and the text of an error of the operating system.

use std::error::Error as StdError;
use std::io;

use delta_kernel::Error as Kernel;
use object_store::Error as Store;
use object_store::client::{HttpError, HttpErrorKind};

/// The longest error code of a server that is taken for one.
const LONGEST_CODE: usize = 40;

/// Why the store failed: `permission denied (HTTP 403, AccessDenied)`, `No space left on device (os error 28)`.
pub(super) fn reason(error: &Store) -> String {
    let kind = match error {
        Store::NotFound { .. } => "not found",
        Store::AlreadyExists { .. } => "exists already",
        Store::Precondition { .. } => "has changed since it was listed or read",
        Store::NotModified { .. } => "has not changed",
        Store::PermissionDenied { .. } => "permission denied",
        Store::Unauthenticated { .. } => "the credentials are missing or not valid",
        Store::InvalidPath { .. } => "not a valid path",
        Store::NotSupported { .. } | Store::NotImplemented { .. } => "the store does not support this",
        Store::UnknownConfigurationKey { .. } => "a setting of the store is not known",
        _ => "",
    };
    let details: Vec<String> = causes(error).filter_map(detail).collect();
    let mut seen: Vec<&str> = Vec::new();
    for text in details.iter().map(String::as_str) {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    match (kind, seen.join(", ")) {
        ("", details) if details.is_empty() => "the store failed".to_owned(),
        ("", details) => details,
        (kind, details) if details.is_empty() => kind.to_owned(),
        (kind, details) => format!("{kind} ({details})"),
    }
}

/// The message of an error, with what it repeats of stores' errors replaced by their [`reason`], and without the bodies of
/// servers' replies and the queries of addresses.
pub(super) fn without_replies(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for store in causes(error).filter_map(|cause| cause.downcast_ref::<Store>()) {
        text = text.replace(&store.to_string(), &reason(store));
    }
    let text = match text.split_once(REQUEST) {
        // Some libraries quote a store's error as text.
        Some((before, quoted)) => {
            format!("{before}{}", of_reply(quoted).unwrap_or_else(|| "the request failed".into()))
        }
        None => text,
    };
    without_queries(without_body(&text))
}

/// How the text of a failed request to a store begins; the address follows.
const REQUEST: &str = "Error performing ";

/// The HTTP status of a store's failed request that an error quotes as text: 0 where there was no answer; none where no
/// request is quoted.
pub(super) fn quoted_status(error: &(dyn StdError + 'static)) -> Option<u16> {
    let text = error.to_string();
    let (_, quoted) = text.split_once(REQUEST)?;
    Some(status(quoted).and_then(|number| number.parse().ok()).unwrap_or(0))
}

/// An error and what caused it, outermost first. The Delta library's errors do not name a store's error as their source.
pub(super) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let of_delta = match error.downcast_ref() {
            Some(Kernel::ObjectStore(store)) => Some(store as &(dyn StdError + 'static)),
            _ => None,
        };
        of_delta.or_else(|| error.source())
    })
}

/// What one cause says that is on the list.
fn detail(cause: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return match error.raw_os_error() {
            Some(number) => Some(io::Error::from_raw_os_error(number).to_string()),
            None if error.kind() == io::ErrorKind::Other => None,
            None => Some(error.kind().to_string()),
        };
    }
    if let Some(error) = cause.downcast_ref::<HttpError>() {
        return match error.kind() {
            HttpErrorKind::Connect => Some("no connection".to_owned()),
            HttpErrorKind::Timeout => Some("no answer in time".to_owned()),
            HttpErrorKind::Request | HttpErrorKind::Interrupted => Some("the connection broke off".to_owned()),
            HttpErrorKind::Decode => Some("the answer cannot be read".to_owned()),
            _ => None,
        };
    }
    if cause.is::<Store>() {
        return None;
    }
    of_reply(&cause.to_string())
}

/// The digits of the HTTP status in the text of a client's error.
fn status(text: &str) -> Option<&str> {
    ["status code: ", "status: "].iter().find_map(|label| {
        let number = text.split_once(label)?.1.get(..3)?;
        number.bytes().all(|b| b.is_ascii_digit()).then_some(number)
    })
}

/// HTTP status and error code in the text of a client's error, which quotes the server's reply.
fn of_reply(text: &str) -> Option<String> {
    let status = status(text).map(|number| format!("HTTP {number}"));
    let code = [("<Code>", "</Code>"), ("\"code\": \"", "\""), ("\"code\":\"", "\"")].iter().find_map(|(from, to)| {
        let code = text.split_once(from)?.1.split_once(to)?.0;
        let is_code = code.len() <= LONGEST_CODE && code.bytes().all(|b| b.is_ascii_alphanumeric());
        (is_code && !code.is_empty()).then(|| code.to_owned())
    });
    match (status, code) {
        (Some(status), Some(code)) => Some(format!("{status}, {code}")),
        (status, code) => status.or(code),
    }
}

/// The text up to the first reply of a server: XML, HTML or a JSON object.
fn without_body(text: &str) -> &str {
    let begins = ["<?xml", "<!DOCTYPE", "<html", "<HTML", "<Error", "{\"error\"", "{ \"error\""];
    let end = begins.iter().filter_map(|begin| text.find(begin)).min().unwrap_or(text.len());
    text[..end].trim_end_matches([' ', ':', '-'])
}

/// The text with every address cut at its `?`: a signed address has its signature there.
fn without_queries(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        match word.split_once("://").and_then(|(_, rest)| rest.find('?').map(|at| word.len() - rest.len() + at)) {
            Some(at) => {
                clean.push_str(&word[..at]);
                clean.push_str(&word[word.trim_end().len()..]);
            }
            None => clean.push_str(word),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Store {
        Store::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn a_servers_reply_is_reduced_to_status_and_code() {
        let reply = "Error performing GET http://host/bucket/x?X-Amz-Signature=SECRET in 2ms - Server returned non-2xx status \
                     code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code>\
                     <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><StringToSign>SECRET</StringToSign></Error>";
        assert_eq!(reason(&generic(reply)), "HTTP 403, InvalidAccessKeyId");
        let denied = Store::PermissionDenied { path: "/home/me/x".into(), source: reply.into() };
        assert_eq!(reason(&denied), "permission denied (HTTP 403, InvalidAccessKeyId)");
        // A code that is no word is a text of the server's.
        assert_eq!(reason(&generic("status code: 500: <Code>token=SECRET==</Code>")), "HTTP 500");
        assert_eq!(reason(&generic("key AKIASECRET")), "the store failed");
        let azure = "status code: 409 Conflict: {\"error\":{\"code\":\"LeaseAlreadyPresent\",\"message\":\"SECRET\"}}";
        assert_eq!(reason(&generic(azure)), "HTTP 409, LeaseAlreadyPresent");
    }

    #[test]
    fn an_error_of_the_system_keeps_its_text_and_loses_its_path() {
        let full = generic(io::Error::from_raw_os_error(28));
        assert!(reason(&full).contains("No space left on device"), "{}", reason(&full));
        let other = generic(io::Error::other("/home/me/x broke"));
        assert_eq!(reason(&other), "the store failed");
        let refused = HttpError::new(HttpErrorKind::Connect, io::Error::other("http://10.0.0.1/secret"));
        assert_eq!(reason(&generic(refused)), "no connection");
    }

    #[test]
    fn an_error_that_repeats_a_stores_error_is_cleaned() {
        let store = generic("status code: 503 Slow Down: <Error><Code>SlowDown</Code><HostId>SECRET</HostId></Error>");
        let outer = datafusion::error::DataFusionError::ObjectStore(Box::new(store));
        let said = without_replies(&outer);
        assert!(said.contains("HTTP 503, SlowDown") && !said.contains("SECRET"), "{said}");
        let quoted = "Failed to fetch a.parquet: Object Store error: Error performing GET http://10.0.0.1/secret in 2ms - Server \
                      returned non-2xx status code: 403 Forbidden";
        let quoted = io::Error::other(quoted);
        assert_eq!(without_replies(&quoted), "Failed to fetch a.parquet: Object Store error: HTTP 403");
        assert_eq!((quoted_status(&quoted), quoted_status(&io::Error::other("x"))), (Some(403), None));
        let text = io::Error::other("cannot get https://host/a?sig=SECRET now: <html>SECRET</html>");
        assert_eq!(without_replies(&text), "cannot get https://host/a now");
    }
}
