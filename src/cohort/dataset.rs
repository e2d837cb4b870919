//! What a dataset says about itself: that a pipeline made it (`dataset_description.json`), and which of its files do not
//! belong to it (`.bidsignore`).

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use serde::Deserialize;
use serde_json::Value;

use super::ignore::Ignore;
use crate::error::{Error, Result};
use crate::store::Location;

/// The file that describes a dataset.
pub(super) const DESCRIPTION: &str = "dataset_description.json";

/// The file that excludes paths.
pub(super) const IGNORE: &str = ".bidsignore";

/// A description is a few kilobytes; a larger one is something else, and says nothing.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// Bounds of a `.bidsignore`. Each pattern becomes a state machine of some kilobytes.
const MAX_IGNORE: u64 = 1 << 20;
const MAX_PATTERNS: usize = 4096;

/// Descriptions that are read: that of the root, and those of datasets inside it.
const MAX_DESCRIPTIONS: usize = 256;
const AT_ONCE: usize = 8;

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
    /// Reads the descriptions at these paths, and the root's `.bidsignore` where `has_ignore`. A description that is no JSON,
    /// or too large for one, says nothing.
    ///
    /// # Errors
    /// [`Error::Storage`] where a file cannot be read; [`Error::Config`] for a `.bidsignore` that is too large: without it,
    /// scans would be selected that it excludes.
    pub(super) async fn load(location: &Location, mut descriptions: Vec<String>, has_ignore: bool) -> Result<Self> {
        // Those nearer to the root speak for more images.
        descriptions.sort_by_key(|uri| (uri.matches('/').count(), uri.clone()));
        descriptions.truncate(MAX_DESCRIPTIONS);
        let read = descriptions.into_iter().map(async |uri| {
            let description = read_small(location, &uri, MAX_DESCRIPTION).await?;
            let folder = uri.strip_suffix(DESCRIPTION).unwrap_or_default().to_owned();
            let says_so = matches!(description, Small::Bytes(bytes) if is_derivative(&bytes));
            Ok::<_, Error>(says_so.then_some(folder))
        });
        let found: Vec<Option<String>> = stream::iter(read).buffer_unordered(AT_ONCE).try_collect().await?;
        let ignore = match has_ignore {
            true => read_ignore(location).await?,
            false => Ignore::default(),
        };
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

async fn read_ignore(location: &Location) -> Result<Ignore> {
    let too_large = |what: String, most: String| {
        Error::Config(format!(
            "{IGNORE} has {what}, the most that is read is {most}: name folders (`derivatives/`) or use wildcards instead of one \
             line per file, or read the cohort without it (cohort.select.ignored = true, `neurosieve cohort --ignored`)"
        ))
    };
    let bytes = match read_small(location, IGNORE, MAX_IGNORE).await? {
        Small::Bytes(bytes) => bytes,
        Small::Absent => return Ok(Ignore::default()),
        Small::TooLarge(n) => return Err(too_large(format!("{n} bytes"), format!("{MAX_IGNORE} bytes"))),
    };
    let text = String::from_utf8_lossy(&bytes);
    let n = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
    if n > MAX_PATTERNS {
        return Err(too_large(format!("{n} patterns"), MAX_PATTERNS.to_string()));
    }
    Ok(Ignore::parse(&text))
}

/// A small file.
pub(super) enum Small {
    Bytes(Vec<u8>),
    /// It is not there, or not for this user.
    Absent,
    /// It has more bytes than are read.
    TooLarge(u64),
}

/// Reads a file of at most `limit` bytes. Its size is known before memory is taken, and what the store sends is counted.
///
/// # Errors
/// [`Error::Storage`] where the file is there and cannot be read.
pub(super) async fn read_small(location: &Location, uri: &str, limit: u64) -> Result<Small> {
    let failed = |e| location.explain(&format!("read {uri} in"), e);
    let read = async {
        let found = location.store.get(&location.path_of(uri)?).await.map_err(failed)?;
        if found.meta.size > limit {
            return Ok::<_, Error>(Small::TooLarge(found.meta.size));
        }
        let mut bytes = Vec::new();
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(failed)? {
            let size = (bytes.len() + piece.len()) as u64;
            if size > limit {
                return Ok(Small::TooLarge(size));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Small::Bytes(bytes))
    };
    match read.await {
        Err(e) if matches!(e.kind(), "not_found" | "permission") => Ok(Small::Absent),
        read => read,
    }
}

/// The keys of a description that say what made the dataset; the others are not held.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Description {
    dataset_type: Value,
    pipeline_description: Value,
    generated_by: Value,
}

/// Whether a dataset's description says that a pipeline made it.
fn is_derivative(description: &[u8]) -> bool {
    let description = description.strip_prefix("\u{feff}".as_bytes()).unwrap_or(description);
    let Ok(description) = serde_json::from_slice::<Description>(description) else { return false };
    if let Some(kind) = description.dataset_type.as_str() {
        return kind.eq_ignore_ascii_case("derivative");
    }
    // Before BIDS 1.4, pipelines described themselves by this key.
    if !description.pipeline_description.is_null() {
        return true;
    }
    let by = match &description.generated_by {
        Value::Array(by) => by.iter().collect(),
        by @ Value::Object(_) => vec![by],
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
