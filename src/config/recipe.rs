//! The recipe: everything that decides a scan's numbers, as one short id.

use sha2::{Digest, Sha256};

use super::ScoreConfig;
use crate::model::Bundle;
use crate::preprocess::{self, PreprocessConfig};
use crate::score;

/// Sixteen hex digits over preprocessing, scoring, the bundle's digest and the versions of the
/// algorithms. The same scan with the same recipe on the same type of device gives the same rows.
pub fn recipe_id(preprocess: &PreprocessConfig, score: &ScoreConfig, bundle: &Bundle) -> String {
    let text = serde_json::json!({
        "preprocess": preprocess,
        "preprocess_version": preprocess::VERSION,
        "score": score,
        "score_version": score::VERSION,
        "bundle": bundle.digest,
    })
    .to_string();
    Sha256::digest(text).iter().take(8).map(|b| format!("{b:02x}")).collect()
}
