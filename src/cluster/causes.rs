//! What is said about an error of a connection: its own text seldom says anything.

use std::error::Error as StdError;

use tonic::Status;

/// An error with its causes.
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

/// What a server said, with its causes.
pub(super) fn said(status: &Status) -> String {
    let source = status.source().map(|source| format!(": {}", causes(source))).unwrap_or_default();
    format!("{}{source}", status.message())
}
