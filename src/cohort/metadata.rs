//! Metadata of the subjects whose scans are selected, from `participants.tsv`: age, sex, site, group.
//!
//! Takes a listing and the settings that name columns ([`MetadataConfig`](super::MetadataConfig)); gives [`Metadata`], under
//! pseudonyms where the listing has them. A value that cannot be used is null, and counted. Refuses what
//! [`Participants`](super::Participants) refuses, and a table without a column that the settings name.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{CohortConfig, MetadataConfig};
use super::listing::Listing;
use super::manifest::ScanEntry;
use super::participants::{Participants, Wanted};
use super::pseudonym::without_names;
use crate::error::{Error, Result};
use crate::store::Location;

/// Years; a larger number is in another unit.
const MAX_AGE: f32 = 150.;

/// A longer text is no label.
const MAX_CHARS: usize = 200;

/// One subject.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Participant {
    /// Its label or pseudonym, as in the listing.
    pub subject: String,
    /// Its age in years.
    pub age_years: Option<f32>,
    /// `F`, `M` or `O`.
    pub sex: Option<String>,
    /// Where it was scanned.
    pub site: Option<String>,
    /// Its group.
    pub group: Option<String>,
    /// Other columns, each as `column=value`.
    pub more: Vec<String>,
}

/// What is known of the subjects of a listing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    /// The subjects that have a row, by label.
    pub participants: Vec<Participant>,
    /// Subjects with scans and without a row.
    pub without_row: usize,
    /// By column of the table `participants`, the rows whose value is unknown or cannot be used. Columns that the file lacks
    /// are not counted.
    pub unknown: BTreeMap<&'static str, usize>,
}

impl CohortConfig {
    /// Reads the metadata of a listing's subjects from `participants.tsv`; `None` where there is no such file, it has no
    /// column to take, there is no subject, or the settings do not want it.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that cannot be trusted, and for one without a column that the settings name;
    /// [`Error::Storage`] where it cannot be read. Under pseudonyms the message names nobody.
    pub async fn metadata(&self, location: &Location, listing: &Listing) -> Result<Option<Metadata>> {
        let read = self.read_metadata(location, listing).await;
        if self.pseudonyms { read.map_err(|error| without_names(error, |_| None)) } else { read }
    }

    async fn read_metadata(&self, location: &Location, listing: &Listing) -> Result<Option<Metadata>> {
        let mut shown: BTreeMap<&str, &str> = BTreeMap::new();
        shown.extend(listing.selected.iter().filter_map(|scan| Some((real_subject(scan)?, scan.subject.as_deref()?))));
        if shown.is_empty() || !self.metadata.read {
            return Ok(None);
        }
        let columns = self.metadata.wanted();
        let subjects: BTreeSet<&str> = shown.keys().copied().collect();
        let wanted = Wanted { filter: &columns, subjects: Some(subjects), max_mib: self.select.participants_mib };
        let Some(mut table) = Participants::load(location, &wanted).await? else { return Ok(None) };
        table.tell_apart(shown.keys().copied());
        let columns = Columns::of(&self.metadata, &table)?;
        Ok((!columns.is_empty()).then(|| columns.metadata(&table, &shown)))
    }
}

/// The label of the folder.
fn real_subject(scan: &ScanEntry) -> Option<&str> {
    scan.origin.as_ref().map_or(&scan.subject, |origin| &origin.subject).as_deref()
}

/// Ways in which files name a column.
const AGE: [&str; 3] = ["age", "Age", "AGE"];
const SEX: [&str; 6] = ["sex", "Sex", "SEX", "gender", "Gender", "GENDER"];
const SITE: [&str; 3] = ["site", "Site", "SITE"];
const GROUP: [&str; 3] = ["group", "Group", "GROUP"];

impl MetadataConfig {
    /// The columns that may be taken.
    fn wanted(&self) -> BTreeMap<String, Vec<String>> {
        let given = [&self.age, &self.sex, &self.site, &self.group].into_iter().flatten().chain(&self.more).cloned();
        let usual = AGE.iter().chain(&SEX).chain(&SITE).chain(&GROUP).map(|&name| name.to_owned());
        given.chain(usual).map(|name| (name, Vec::new())).collect()
    }
}

/// The columns that are taken of a file.
struct Columns<'a> {
    age: Option<&'a str>,
    sex: Option<&'a str>,
    site: Option<&'a str>,
    group: Option<&'a str>,
    more: &'a [String],
}

impl<'a> Columns<'a> {
    fn of(config: &'a MetadataConfig, table: &Participants) -> Result<Self> {
        let has = |name: &str| table.columns().iter().any(|column| column == name);
        let named = [&config.age, &config.sex, &config.site, &config.group].into_iter().flatten().chain(&config.more);
        if let Some(missing) = named.into_iter().find(|name| !has(name)) {
            return Err(Error::Config(format!(
                "participants.tsv has no column `{missing}`, which cohort.metadata names; it has {}",
                table.columns().join(", ")
            )));
        }
        let column = |given: &'a Option<String>, usual: &[&'static str]| match given {
            Some(name) => Some(name.as_str()),
            None => usual.iter().copied().find(|name| has(name)),
        };
        Ok(Self {
            age: column(&config.age, &AGE),
            sex: column(&config.sex, &SEX),
            site: column(&config.site, &SITE),
            group: column(&config.group, &GROUP),
            more: &config.more,
        })
    }

    fn is_empty(&self) -> bool {
        [self.age, self.sex, self.site, self.group].iter().all(Option::is_none) && self.more.is_empty()
    }

    /// The rows of these subjects, each with the name that is shown.
    fn metadata(&self, table: &Participants, shown: &BTreeMap<&str, &str>) -> Metadata {
        let mut metadata = Metadata::default();
        for (&subject, &shown) in shown {
            if !table.has(subject) {
                metadata.without_row += 1;
                continue;
            }
            let text = |column: Option<&str>| table.value(subject, column?);
            let participant = Participant {
                subject: shown.to_owned(),
                age_years: text(self.age).and_then(age),
                sex: text(self.sex).and_then(sex).map(str::to_owned),
                site: text(self.site).and_then(label),
                group: text(self.group).and_then(label),
                more: self.more.iter().filter_map(|c| Some(format!("{c}={}", label(text(Some(c))?)?))).collect(),
            };
            let unknown = [
                ("age_years", self.age, participant.age_years.is_none()),
                ("sex", self.sex, participant.sex.is_none()),
                ("site", self.site, participant.site.is_none()),
                ("group", self.group, participant.group.is_none()),
            ];
            for (name, ..) in unknown.into_iter().filter(|(_, column, is_null)| column.is_some() && *is_null) {
                *metadata.unknown.entry(name).or_default() += 1;
            }
            metadata.participants.push(participant);
        }
        metadata.participants.sort_by(|a, b| a.subject.cmp(&b.subject));
        metadata
    }
}

fn age(text: &str) -> Option<f32> {
    text.parse().ok().filter(|age| (0. ..=MAX_AGE).contains(age))
}

/// The words that BIDS allows. Numbers mean another sex from file to file.
fn sex(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "f" | "female" => Some("F"),
        "m" | "male" => Some("M"),
        "o" | "other" => Some("O"),
        _ => None,
    }
}

fn label(text: &str) -> Option<String> {
    let is_one = text.chars().count() <= MAX_CHARS && !text.chars().any(char::is_control);
    is_one.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store;

    /// Subjects 01 to 03, with this file.
    async fn read(folder: &Path, config: &MetadataConfig, file: &str) -> Result<Option<Metadata>> {
        for n in 1..=3 {
            let anat = folder.join(format!("sub-0{n}/anat"));
            std::fs::create_dir_all(&anat).unwrap();
            std::fs::write(anat.join(format!("sub-0{n}_T1w.nii.gz")), "x").unwrap();
        }
        std::fs::write(folder.join("participants.tsv"), file).unwrap();
        let cohort = CohortConfig { metadata: config.clone(), ..CohortConfig::default() };
        let location = store::open(folder.to_str().unwrap())?;
        let listing = cohort.list(&location).await?;
        cohort.metadata(&location, &listing).await
    }

    #[tokio::test]
    async fn values_that_cannot_be_used_are_null_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file =
            "participant_id\tage\tgender\thand\nsub-01\t61.5\tFemale\tright\nsub-02\told\t1\tn/a\nsub-09\t7\tM\tleft\n";
        let config = MetadataConfig { more: vec!["hand".into()], ..MetadataConfig::default() };
        let found = read(folder.path(), &config, file).await.unwrap().unwrap();
        let first = Participant {
            subject: "01".into(),
            age_years: Some(61.5),
            sex: Some("F".into()),
            more: vec!["hand=right".into()],
            ..Participant::default()
        };
        assert_eq!(found.participants, [first, Participant { subject: "02".into(), ..Participant::default() }]);
        assert_eq!((found.without_row, found.unknown), (1, BTreeMap::from([("age_years", 1), ("sex", 1)])));
    }

    #[tokio::test]
    async fn a_file_without_a_column_to_take_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = "participant_id\tlesions\nsub-01\t2\n";
        assert_eq!(read(folder.path(), &MetadataConfig::default(), file).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_trusted_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let plain = MetadataConfig::default();
        let named = MetadataConfig { age: Some("age_at_scan".into()), ..MetadataConfig::default() };
        for (config, file, word) in [
            (&plain, "participant_id\tage\nsub-01\t1\nsub-01\t2\n", "again"),
            (&plain, "id\tage\nsub-01\t1\n", "participant_id"),
            (&named, "participant_id\tage\nsub-01\t1\n", "age_at_scan"),
        ] {
            let error = read(folder.path(), config, file).await.unwrap_err().to_string();
            assert!(error.contains("participants.tsv") && error.contains(word), "{error}");
        }
        let unread = MetadataConfig { read: false, ..MetadataConfig::default() };
        assert_eq!(read(folder.path(), &unread, "id\n").await.unwrap(), None);
    }
}
