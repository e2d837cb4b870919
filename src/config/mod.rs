//! Loads settings from a pipeline file (TOML).
//!
//! ```text
//! file ─► merged ─► table ─► settings ─► T
//!           ▲
//!   --set section.key=value
//! ```
//! This module knows no settings: each type is declared beside the code that it configures, and the caller names the one it
//! wants. Overrides win over the file, the file wins over the defaults of `T`. An unknown key is refused, with the nearest
//! known one, if `T` has `#[serde(deny_unknown_fields)]`; a number out of range, with the range.

mod range;

pub use range::{Section, Validate};

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Reads a pipeline file into `T`. `overrides` are `section.key=value` with TOML values; a bare word is text.
///
/// # Errors
/// [`Error::Config`] where the file cannot be read, an override is malformed, a key is unknown or of the wrong type, or a
/// number is out of range; it names the file, the key, and the nearest known one or the range.
pub fn load<T: DeserializeOwned + Validate>(path: Option<&Path>, overrides: &[String]) -> Result<T> {
    settings(merged(path, overrides)?, path)
}

/// The first half of [`load`]: the file (an empty table without one) with the overrides, for a caller that completes the
/// table before it becomes settings.
///
/// # Errors
/// [`Error::Config`] where the file cannot be read or an override is malformed.
pub fn merged(path: Option<&Path>, overrides: &[String]) -> Result<toml::Table> {
    let name = name(path);
    let mut table = match path {
        None => toml::Table::new(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| {
                Error::Config(format!("cannot read pipeline file `{name}`: {e}; ready ones are in pipelines/"))
            })?
            .parse::<toml::Table>()
            .map_err(|e| Error::Config(format!("{name}: {e}")))?,
    };
    for text in overrides {
        set(&mut table, text)?;
    }
    Ok(table)
}

/// The second half of [`load`]: the table as `T`. `path` is the file that errors name.
///
/// # Errors
/// [`Error::Config`] where a key is unknown or of the wrong type, or a number is out of range.
pub fn settings<T: DeserializeOwned + Validate>(table: toml::Table, path: Option<&Path>) -> Result<T> {
    let settings = T::deserialize(toml::Value::Table(table))
        .map_err(|e| Error::Config(format!("{}: {}", name(path), with_nearest_key(&e))))?;
    settings.validate().map_err(|e| Error::Config(format!("{}: {e}", name(path))))?;
    Ok(settings)
}

/// The source of the settings, for errors.
fn name(path: Option<&Path>) -> String {
    path.map_or_else(|| "the command line".into(), |p| p.display().to_string())
}

/// Applies one `section.key=value`.
fn set(table: &mut toml::Table, text: &str) -> Result<()> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Error::Config(format!("`--set {text}`: expected section.key=value, e.g. run.limit=10")))?;
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut here = table;
    for part in parts {
        here = here
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| Error::Config(format!("`--set {text}`: `{part}` is a value, not a section")))?;
    }
    here.insert(last.to_owned(), value);
    Ok(())
}

/// The parser's message, and for an unknown key the nearest known one.
fn with_nearest_key(error: &toml::de::Error) -> String {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown field") {
        return error.to_string().trim().to_owned();
    }
    let Some(unknown) = quoted.next() else { return message.to_owned() };
    let known: Vec<&str> = quoted.collect();
    let nearest =
        known.iter().max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    match nearest {
        Some(nearest) => {
            format!("unknown key `{unknown}`; did you mean `{nearest}`? Known here: {}", known.join(", "))
        }
        None => format!("unknown key `{unknown}`"),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        source: Source,
        work: Work,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Source {
        url: String,
        subjects: Vec<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Work {
        limit: usize,
        mask_threshold: f64,
    }

    impl Validate for Settings {
        fn validate(&self) -> Result<()> {
            Section("work").within("limit", self.work.limit, 0..=1000)
        }
    }

    impl Default for Work {
        fn default() -> Self {
            Self { limit: 1, mask_threshold: 0.25 }
        }
    }

    fn parse(text: &str, overrides: &[&str]) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        std::fs::write(&path, text).unwrap();
        load(Some(&path), &overrides.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = parse("[work]\nmask_treshold = 0.5\n", &[]).unwrap_err().to_string();
        assert!(error.contains("`mask_treshold`") && error.contains("did you mean `mask_threshold`"), "{error}");
        let error = parse("", &["work.lmit=3"]).unwrap_err().to_string();
        assert!(error.contains("p.toml") && error.contains("did you mean `limit`"), "{error}");
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_default() {
        let settings = parse(
            "[work]\nlimit = 3\n[source]\nurl = 'a'\n",
            &["work.limit=5", "source.url=s3://bucket/x", "source.subjects=[\"01\"]"],
        )
        .unwrap();
        assert_eq!(settings.work, Work { limit: 5, ..Work::default() });
        assert_eq!(settings.source, Source { url: "s3://bucket/x".into(), subjects: vec!["01".into()] });
        assert_eq!(load::<Settings>(None, &[]).unwrap(), Settings::default());
    }

    #[test]
    fn a_value_of_the_wrong_type_says_where() {
        let error = parse("[work]\nlimit = 'many'\n", &[]).unwrap_err().to_string();
        assert!(error.contains("limit") && error.contains("expected"), "{error}");
    }

    #[test]
    fn a_number_out_of_range_is_refused_with_the_file() {
        let error = parse("", &["work.limit=1001"]).unwrap_err().to_string();
        assert!(error.ends_with("p.toml: work.limit is 1001; expected a number from 0 to 1000"), "{error}");
    }

    #[test]
    fn an_override_that_makes_no_sense_is_quoted() {
        for (text, wanted) in [("limit", "expected section.key=value"), ("work.limit.more=1", "`limit` is a value")] {
            let error = parse("[work]\nlimit = 3\n", &[text]).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(wanted), "{error}");
        }
    }
}
