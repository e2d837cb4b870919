//! What a dataset says about itself: that a pipeline made it (`dataset_description.json`), and which of its files do not
//! belong to it (`.bidsignore`).

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use serde_json::Value;

use super::ignore::Ignore;
use crate::error::Result;
use crate::store::Location;

/// The file that describes a dataset.
pub(super) const DESCRIPTION: &str = "dataset_description.json";

/// The file that excludes paths.
pub(super) const IGNORE: &str = ".bidsignore";

/// Either file is a few kilobytes; a larger one is something else.
const MAX_BYTES: u64 = 16 << 20;

/// Descriptions that are read: that of the root, and those of datasets inside it.
const MAX_DESCRIPTIONS: usize = 256;
const AT_ONCE: usize = 16;

/// Programs that convert a scanner's files. They name themselves in raw datasets as pipelines do in theirs.
const CONVERTERS: [&str; 8] =
    ["dcm2niix", "heudiconv", "dcm2bids", "bidscoin", "bidskit", "ezbids", "bidsify", "reproin"];

/// What the dataset at a cohort's root, and those inside it, say.
#[derive(Debug, Default)]
pub(super) struct Dataset {
    /// Folders whose images a pipeline made, each empty or with a `/` at the end.
    derivatives: Vec<String>,
    ignore: Ignore,
}

impl Dataset {
    /// Reads the descriptions at these paths, and the root's `.bidsignore` where `has_ignore`. A file that is no JSON says
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Storage`](crate::Error::Storage) where a file cannot be read.
    pub(super) async fn load(location: &Location, mut descriptions: Vec<String>, has_ignore: bool) -> Result<Self> {
        // Those nearer to the root speak for more images.
        descriptions.sort_by_key(|uri| (uri.matches('/').count(), uri.clone()));
        descriptions.truncate(MAX_DESCRIPTIONS);
        let read = descriptions.into_iter().map(async |uri| {
            let bytes = read_small(location, &uri).await?;
            let folder = uri.strip_suffix(DESCRIPTION).unwrap_or_default().to_owned();
            Ok::<_, crate::Error>(bytes.is_some_and(|bytes| is_derivative(&bytes)).then_some(folder))
        });
        let found: Vec<Option<String>> = stream::iter(read).buffer_unordered(AT_ONCE).try_collect().await?;
        let ignore = match has_ignore {
            true => read_small(location, IGNORE).await?.unwrap_or_default(),
            false => Vec::new(),
        };
        let ignore = Ignore::parse(&String::from_utf8_lossy(&ignore));
        Ok(Self { derivatives: found.into_iter().flatten().collect(), ignore })
    }

    /// Whether the image at `uri` belongs to a dataset that a pipeline made.
    pub(super) fn is_derivative(&self, uri: &str) -> bool {
        self.derivatives.iter().any(|folder| uri.starts_with(folder.as_str()))
    }

    /// Whether `.bidsignore` names the path.
    pub(super) fn ignores(&self, uri: &str) -> bool {
        self.ignore.ignores(uri)
    }
}

/// The bytes of a small file; `None` where it is absent, too large, or not for this user.
async fn read_small(location: &Location, uri: &str) -> Result<Option<Vec<u8>>> {
    let failed = |e| location.explain(&format!("read {uri} in"), e);
    let read = async {
        let found = location.store.get(&location.path_of(uri)?).await.map_err(failed)?;
        if found.meta.size > MAX_BYTES {
            return Ok(None);
        }
        found.bytes().await.map(|bytes| Some(bytes.to_vec())).map_err(failed)
    };
    match read.await {
        Err(e) if matches!(e.kind(), "not_found" | "permission") => Ok(None),
        read => read,
    }
}

/// Whether a dataset's description says that a pipeline made it.
fn is_derivative(description: &[u8]) -> bool {
    let description = description.strip_prefix("\u{feff}".as_bytes()).unwrap_or(description);
    let Ok(description) = serde_json::from_slice::<Value>(description) else { return false };
    if let Some(kind) = description.get("DatasetType").and_then(Value::as_str) {
        return kind.eq_ignore_ascii_case("derivative");
    }
    // Before BIDS 1.4, pipelines described themselves by this key.
    if description.get("PipelineDescription").is_some_and(|pipeline| !pipeline.is_null()) {
        return true;
    }
    let by = match description.get("GeneratedBy") {
        Some(Value::Array(by)) => by.iter().collect(),
        Some(by @ Value::Object(_)) => vec![by],
        _ => Vec::new(),
    };
    let converts = |by: &&Value| {
        let name = by.get("Name").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        name == "manual" || CONVERTERS.iter().any(|converter| name.contains(converter))
    };
    by.iter().any(|by| !converts(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_says_whether_a_pipeline_made_the_dataset() {
        for (description, derivative) in [
            (r#"{"Name":"x","BIDSVersion":"1.9.0"}"#, false),
            (r#"{"DatasetType":"derivative"}"#, true),
            (r#"{"DatasetType":"raw","GeneratedBy":[{"Name":"fMRIPrep"}]}"#, false),
            (r#"{"GeneratedBy":[{"Name":"fMRIPrep","Version":"23.1.3"}]}"#, true),
            (r#"{"GeneratedBy":[{"Name":"heudiconv"},{"Name":"dcm2niix"}]}"#, false),
            (r#"{"GeneratedBy":[{"Name":"BIDScoin"}]}"#, false),
            (r#"{"PipelineDescription":{"Name":"fMRIPrep"}}"#, true),
            ("\u{feff}{\"DatasetType\":\"Derivative\"}", true),
            ("[1]", false),
            ("not JSON", false),
        ] {
            assert_eq!(is_derivative(description.as_bytes()), derivative, "{description}");
        }
    }
}
