//! `neurosieve tables metadata`: records the subjects' metadata from `participants.tsv`.

use std::path::PathBuf;

use super::pipeline::quoted;
use crate::cohort::Metadata;
use crate::config;
use crate::error::{Error, Result};
use crate::flow::{Pipeline, record_metadata};
use crate::terminal::outln;

/// Record age, sex, site and group of a cohort's subjects, without screening
///
/// Reads participants.tsv at the cohort's root, and adds to the table `participants` what differs from its current rows: those
/// of the subjects whose scans are selected. Every run does the same before its first scan. `cohort.metadata` names other
/// columns.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve tables metadata --cohort s3://bucket/study --tables s3://bucket/results
  neurosieve tables metadata pipelines/nightly.toml
  neurosieve tables metadata --cohort ./study --tables ./results --set cohort.metadata.age=age_at_scan \\
      --set 'cohort.metadata.more=[\"handedness\"]'")]
pub struct MetadataArgs {
    /// The pipeline file whose cohort, tables and selection are used [default: the default selection]
    pipeline: Option<PathBuf>,
    /// Where the scans are [pipeline: cohort.url]
    #[arg(long, value_name = "URL")]
    cohort: Option<String>,
    /// Where the tables are; created if missing [pipeline: tables.url]
    #[arg(long, value_name = "URL")]
    tables: Option<String>,
    /// Override a key of the pipeline file; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl MetadataArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`config::load`] and [`record_metadata`].
    pub(super) async fn run(self) -> Result<()> {
        let mut overrides = self.set;
        overrides.extend(self.cohort.as_ref().map(|url| quoted("cohort.url", url)));
        overrides.extend(self.tables.as_ref().map(|url| quoted("tables.url", url)));
        let pipeline: Pipeline = config::load(self.pipeline.as_deref(), &overrides)?;
        for (url, option) in [(&pipeline.cohort.url, "--cohort"), (&pipeline.tables.url, "--tables")] {
            if url.is_empty() {
                return Err(Error::Config(format!("add `{option} s3://bucket/folder` or `{option} FOLDER`")));
            }
        }
        let (metadata, recorded) = record_metadata(&pipeline).await?;
        outln!("participants: {} new, {} changed, {} as before", recorded.new, recorded.changed, recorded.unchanged);
        if let Some(gaps) = gaps(&metadata) {
            outln!("{gaps}");
        }
        Ok(())
    }
}

/// What is not known of the subjects, in one line; nothing where all is known.
pub(super) fn gaps(metadata: &Metadata) -> Option<String> {
    let n = metadata.participants.len();
    let unknown = metadata.unknown.iter().map(|(column, rows)| format!("{column} in {rows}"));
    let mut said: Vec<String> = unknown.collect();
    if metadata.without_row > 0 {
        said.push(format!("no row of {} subjects with scans", metadata.without_row));
    }
    (!said.is_empty()).then(|| format!("participants.tsv: {n} subjects; unknown or unusable: {}", said.join(", ")))
}
