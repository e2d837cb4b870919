//! What `runs` says of a run besides its scans: where it ran, who is responsible for it, and why it failed.
//!
//! Takes the pipeline and an error; gives columns of the row. A run that fails before its first scan has a row as well, with
//! the status `failed` and an empty `recipe_id`, where the tables exist. It has no `run_number`, so that it decides neither
//! which recipe is current nor where the cohort is.

use chrono::{DateTime, Utc};

use super::config::RunConfig;
use super::pipeline::Pipeline;
use crate::error::{Error, Result};
use crate::machine::cores;
use crate::store::Location;
use crate::tables::{RunRow, Tables};

/// The environment's name of the container image.
const IMAGE: &str = "NEUROSIEVE_IMAGE";

/// Most characters of a message.
const LONGEST: usize = 240;

/// The container image that runs this program, as the settings or the environment say.
pub(super) fn image(config: &RunConfig) -> Option<String> {
    let given = config.image.clone().or_else(|| std::env::var(IMAGE).ok());
    given.filter(|image| !image.is_empty())
}

/// Why a run failed, for readers of the tables and for other machines: the kind of the error, and its text up to the first
/// address or path. What a server or a library said is left out, because it may quote requests and credentials.
pub fn summary(error: &Error) -> String {
    let text = match error {
        Error::Storage { context, .. } | Error::Table { context, .. } | Error::Io { context, .. } => context.clone(),
        Error::Query(_) => "a query of the tables failed".to_owned(),
        // Their texts list what the cohort has, and may name subjects.
        Error::NothingSelected(_) => "no scan of the cohort is selected".to_owned(),
        Error::Config(_) => "a setting does not fit; the log of the run has the details".to_owned(),
        other => other.text(),
    };
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        if word.contains(['/', '\\', '@']) {
            words.push("…");
            break;
        }
        words.push(word);
    }
    format!("{}: {}", error.kind(), words.join(" ").chars().take(LONGEST).collect::<String>())
}

/// Records a run that failed before its first scan in the tables at `tables`, if they exist.
///
/// # Errors
/// Those of opening and writing the tables.
pub(super) async fn record_failure(
    pipeline: &Pipeline,
    cohort: Option<&Location>,
    tables: Location,
    started: DateTime<Utc>,
    error: &Error,
) -> Result<()> {
    if Tables::open_if_created(&pipeline.tables.url).await?.is_none() {
        return Ok(());
    }
    let name = cohort.map(|cohort| pipeline.cohort.name_at(cohort)).or(pipeline.cohort.name.as_deref());
    let name = name.unwrap_or("unknown");
    let row = RunRow {
        run_id: uuid::Uuid::now_v7().to_string(),
        cohort: name.to_owned(),
        started_at: started.timestamp_micros(),
        finished_at: Some(Utc::now().timestamp_micros()),
        status: "failed".to_owned(),
        n_listed: 0,
        n_selected: 0,
        n_already_done: 0,
        n_done: 0,
        n_failed: 0,
        scans_per_minute: 0.,
        device: pipeline.run.device.to_string(),
        recipe_id: String::new(),
        bundle: String::new(),
        bundle_digest: String::new(),
        config: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cores: cores() as i32,
        run_number: None,
        cohort_root: None,
        host: pipeline.run.host_label.clone(),
        operator: pipeline.run.operator.clone(),
        image: image(&pipeline.run),
        message: Some(summary(error)),
    };
    // Adds the columns that tables of an earlier version lack.
    Tables::open_or_create_at(tables).await?.end_run(&row).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_an_error_names_no_address_and_quotes_no_server() {
        let source = object_store::Error::Generic { store: "S3", source: "<Token>sekret</Token>".into() };
        let of_store = Error::storage("cannot list s3://bucket/study; check the spelling", source);
        assert_eq!(summary(&of_store), "storage: cannot list …");
        let of_file = Error::io("cannot write /home/jo doe/run.json", std::io::Error::other("jo"));
        assert_eq!(summary(&of_file), "io: cannot write …");
        let nothing = Error::NothingSelected("study: nothing is selected: 3 images, of which 2 are FLAIR".into());
        assert_eq!(summary(&nothing), "nothing_selected: no scan of the cohort is selected");
        let named = Error::Config("participants.tsv: line 3 lists sub-0042 again".into());
        assert!(!summary(&named).contains("0042"));
    }
}
