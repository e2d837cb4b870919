//! Recording the metadata of a cohort's subjects without screening.

use chrono::Utc;

use super::pipeline::Pipeline;
use super::prepare::{Root, refuse_nested};
use crate::cohort::{Metadata, Participant};
use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::store;
use crate::tables::{Lease, ParticipantRow, Recorded, Tables};

/// Reads the metadata of the subjects whose scans the pipeline selects from `participants.tsv`, and records the changes.
///
/// # Errors
/// [`Error::Config`] for a cohort without subjects or without a file that can be used, and for one whose name the tables know
/// from another address; storage and table errors.
pub async fn record_metadata(pipeline: &Pipeline) -> Result<(Metadata, Recorded)> {
    pipeline.cohort.validate()?;
    let (cohort, place) = (store::open(&pipeline.cohort.url)?, store::open_or_create(&pipeline.tables.url)?);
    refuse_nested(&cohort, &place)?;
    let listing = pipeline.cohort.list(&cohort).await?;
    let Some(metadata) = pipeline.cohort.metadata(&cohort, &listing).await? else {
        return Err(Error::Config(format!(
            "nothing to record: the cohort at {cohort} has no participants.tsv with a column age, sex, site or group at its root \
             (cohort.metadata names others), no selected scan of a subject, or cohort.metadata.read is false; `neurosieve cohort` \
             lists what is selected"
        )));
    };
    let mut tables = Tables::open_or_create_at(place).await?;
    Root::of(&cohort, &pipeline.cohort)?
        .refuse_another_cohort(&tables, &cohort, &listing.cohort, &pipeline.cohort)
        .await?;
    let location = tables.location().clone();
    let batch = uuid::Uuid::now_v7().to_string();
    let rows = participant_rows(&metadata, &listing.cohort);
    // Not while a person is being forgotten.
    let recorded = Lease::during(&location, tables.record_participants(&listing.cohort, rows, &batch)).await?;
    Ok((metadata, recorded))
}

/// The subjects as rows of the table.
pub(super) fn participant_rows(metadata: &Metadata, cohort: &str) -> Vec<ParticipantRow> {
    let recorded_at = Utc::now().timestamp_micros();
    let row = |participant: &Participant| {
        let Participant { subject, age_years, sex, site, group, more } = participant.clone();
        let cohort = cohort.to_owned();
        ParticipantRow { cohort, subject, age_years, sex, site, group, more, change_number: 0, recorded_at }
    };
    metadata.participants.iter().map(row).collect()
}
