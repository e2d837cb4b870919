//! Erasure: a person is removed from every table, from its data files and from its earlier versions.
//!
//! ```text
//! whose scans ─► rows of tokens, masks, findings, failures, reverts ─► participants ─► names in runs.config ─► rows of scans ─► purge.rs
//! ```
//! A scan is the person's where its row in `scans` names the subject, or its path or id does by the rules of BIDS; so scans
//! that only failed, and rows that a killed run left, are found as well. `scans` comes last, so that after an interruption the
//! same command finds the person again. Then the past of every table is deleted (`purge.rs`).
//!
//! Takes opened tables and a [`Person`]; gives [`Forgotten`]. Refuses a person that no row names, and a label that several
//! cohorts have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::array::RecordBatch;
use datafusion::prelude::{Expr, col, lit};
use deltalake_core::protocol::DeltaOperation;

use super::open::Tables;
use super::purge::Purged;
use super::rewrite::Rewrite;
use super::schema::Table;
use super::session::{RAW_SCHEMA, texts};
use crate::cohort::bids;
use crate::error::{Error, Result};

/// The tables with rows of a scan, in the order in which they are rewritten, and the columns that say whose scan it is.
const TABLES: [(Table, &[&str]); 6] = [
    (Table::Tokens, &["scan_id"]),
    (Table::Masks, &["scan_id"]),
    (Table::Findings, &["scan_id"]),
    (Table::Failures, &["scan_id", "cohort", "uri"]),
    (Table::Reverts, &["scan_id", "cohort"]),
    (Table::Scans, &["scan_id", "cohort", "uri", "subject"]),
];

/// What stands in place of a name in the settings of a run.
const FORGOTTEN: &str = "(forgotten)";

/// Who is to be forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Person {
    /// The label of the subject, `01` or `sub-01`.
    pub subject: Option<String>,
    /// Ids of scans, for cohorts whose names do not say the subject.
    pub scans: Vec<String>,
    /// The cohorts to look in; all where it is empty.
    pub cohorts: Vec<String>,
}

/// What was removed, or with `dry_run` would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The person's scans.
    pub scans: BTreeSet<String>,
    /// The person's rows in `participants`: cohort and subject.
    pub participants: BTreeSet<(String, String)>,
    /// Their cohorts.
    pub cohorts: BTreeSet<String>,
    /// By table, the person's rows.
    pub rows: BTreeMap<&'static str, usize>,
    /// Runs whose settings named the person.
    pub settings: usize,
    /// By table, files of earlier versions, and files that no version refers to.
    pub files: BTreeMap<&'static str, Purged>,
}

impl Person {
    /// The label without its key.
    fn label(&self) -> Option<&str> {
        self.subject.as_deref().map(label)
    }

    fn is_theirs(&self, scan: &Scan) -> bool {
        let is_subject = |found: &str| !found.is_empty() && self.label() == Some(label(found));
        let names = |path: &str| bids::entities(path).subject.is_some_and(|found| is_subject(&found));
        self.scans.contains(&scan.scan_id)
            || is_subject(&scan.subject)
            || names(&scan.uri)
            || names(name_of(&scan.scan_id))
    }

    /// The settings of a run without the person's names; `None` where they are not in it.
    fn redacted(&self, config: &str) -> Option<String> {
        let mut names: Vec<String> = self.scans.iter().map(|scan| name_of(scan).to_owned()).collect();
        names.extend(self.label().map(|label| format!("sub-{label}")));
        let mut text = names.iter().fold(config.to_owned(), |text, name| without(&text, name));
        if let Some(label) = self.label() {
            // The label alone is a name where scans are selected; elsewhere it may be any number or word.
            let mut selects = false;
            let line = |line: &str| {
                if line.starts_with('[') {
                    selects = line.starts_with("[cohort.select");
                }
                match selects || line.trim_start().starts_with("subjects") {
                    true => without(line, label),
                    false => line.to_owned(),
                }
            };
            text = text.split('\n').map(line).collect::<Vec<_>>().join("\n");
        }
        (text != config).then_some(text)
    }
}

/// A subject's label without its key.
fn label(subject: &str) -> &str {
    subject.strip_prefix("sub-").unwrap_or(subject)
}

/// The cohort that a scan's id names.
fn cohort_of(scan_id: &str) -> String {
    scan_id.split_once('/').map_or_else(String::new, |(cohort, _)| cohort.to_owned())
}

/// The name of a scan in its cohort.
fn name_of(scan_id: &str) -> &str {
    scan_id.split_once('/').map_or(scan_id, |(_, name)| name)
}

/// A text without a name: `sub-1` stays in `sub-12`.
fn without(text: &str, name: &str) -> String {
    let mut left = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(name).filter(|_| !name.is_empty()) {
        let (before, found) = rest.split_at(at);
        let after = &found[name.len()..];
        let is_whole = !after.starts_with(char::is_alphanumeric) && !before.ends_with(char::is_alphanumeric);
        left += before;
        left += if is_whole { FORGOTTEN } else { name };
        rest = after;
    }
    left + rest
}

/// What a row says about its scan.
struct Scan {
    scan_id: String,
    cohort: String,
    uri: String,
    subject: String,
}

impl Tables {
    /// Removes a person from all tables, their data files and their earlier versions. With `dry_run` nothing is changed.
    /// `even_unknown` deletes the earlier versions also where no row names the person now.
    ///
    /// The caller holds the leases, and knows that no run is active.
    ///
    /// # Errors
    /// [`Error::Config`] for a person that no row names, for a label in several cohorts where none is given, and for a table
    /// that cannot be rewritten; [`Error::Table`], [`Error::Query`] and [`Error::Storage`] where files cannot be read or
    /// written. A repeated call continues.
    pub async fn forget(&mut self, person: &Person, even_unknown: bool, dry_run: bool) -> Result<Forgotten> {
        self.refresh().await?;
        let before = self.before_work()?;
        let mut forgotten = self.find(person).await?;
        if forgotten.scans.is_empty() && forgotten.participants.is_empty() && !even_unknown {
            return Err(unknown(person));
        }
        if person.cohorts.is_empty() && forgotten.cohorts.len() > 1 {
            let cohorts: Vec<&str> = forgotten.cohorts.iter().map(String::as_str).collect();
            return Err(Error::Config(format!(
                "cohorts {} have scans of this name, and may mean different persons: name the cohort with --cohort, several \
                 with several --cohort",
                cohorts.join(", ")
            )));
        }
        let scans = col("scan_id").in_list(forgotten.scans.iter().map(|id| lit(id.as_str())).collect(), false);
        let (present, last) = (self.present().collect::<Vec<_>>(), Table::Scans);
        for (table, _) in TABLES.into_iter().filter(|(table, _)| present.contains(table) && *table != last) {
            self.remove_rows(table, &scans, dry_run, &mut forgotten).await?;
        }
        // A person that no row names may be one of other cohorts, too.
        let cohorts = match forgotten.cohorts.is_empty() {
            true => person.cohorts.iter().cloned().collect(),
            false => forgotten.cohorts.clone(),
        };
        self.forget_participant(dry_run, &mut forgotten).await?;
        forgotten.settings = self.forget_in_settings(person, &cohorts, dry_run).await?;
        self.remove_rows(last, &scans, dry_run, &mut forgotten).await?;
        for table in present {
            let purged = if dry_run { self.past_of(table).await? } else { self.purge(table, &before).await? };
            forgotten.files.insert(table.name(), purged);
        }
        Ok(forgotten)
    }

    /// The person's scans and their cohorts.
    async fn find(&self, person: &Person) -> Result<Forgotten> {
        let context = self.raw_session().await?;
        let present: Vec<Table> = self.present().collect();
        let mut found = Forgotten::default();
        let mut cohorts: HashMap<String, String> = HashMap::new();
        let mut subjects: BTreeSet<(String, String)> = BTreeSet::new();
        // The tables that say the cohort come first.
        for (table, columns) in TABLES.into_iter().rev().filter(|(table, _)| present.contains(table)) {
            let rows = context.table(format!("{RAW_SCHEMA}.{}", table.name())).await?;
            for batch in rows.select_columns(columns)?.distinct()?.collect().await? {
                for scan in scans_in(&batch) {
                    if !person.is_theirs(&scan) {
                        continue;
                    }
                    let cohort = match scan.cohort.is_empty() {
                        // An id begins with the name of its cohort.
                        true => cohorts.get(&scan.scan_id).map_or_else(|| cohort_of(&scan.scan_id), Clone::clone),
                        false => scan.cohort,
                    };
                    if person.cohorts.is_empty() || person.cohorts.contains(&cohort) {
                        let named = bids::entities(name_of(&scan.scan_id)).subject.unwrap_or_default();
                        let subject = if scan.subject.is_empty() { named } else { scan.subject };
                        subjects.insert((cohort.clone(), label(&subject).to_owned()));
                        found.cohorts.insert(cohort.clone());
                        found.scans.insert(scan.scan_id.clone());
                    }
                    cohorts.insert(scan.scan_id, cohort);
                }
            }
        }
        if present.contains(&Table::Participants) {
            let rows = context.table(format!("{RAW_SCHEMA}.{}", Table::Participants.name())).await?;
            for batch in rows.select_columns(&["cohort", "subject"])?.distinct()?.collect().await? {
                let rows = texts(&batch, 0).zip(texts(&batch, 1));
                let is_of_cohort = |cohort: &String| person.cohorts.is_empty() || person.cohorts.contains(cohort);
                found.participants.extend(rows.filter(|row @ (cohort, subject)| {
                    subjects.contains(row) || is_of_cohort(cohort) && person.label() == Some(label(subject))
                }));
            }
            found.cohorts.extend(found.participants.iter().map(|(cohort, _)| cohort.clone()));
        }
        Ok(found)
    }

    /// Removes what `participants` says of the person.
    async fn forget_participant(&mut self, dry_run: bool, into: &mut Forgotten) -> Result<()> {
        let of_one = |(cohort, subject): &(String, String)| {
            col("cohort").eq(lit(cohort.as_str())).and(col("subject").eq(lit(subject.as_str())))
        };
        let Some(which) = into.participants.iter().map(of_one).reduce(Expr::or) else { return Ok(()) };
        let table = Table::Participants;
        let rows =
            if dry_run { self.count_where(table, &which).await? } else { self.delete_counted(table, &which).await? };
        into.rows.insert(table.name(), rows);
        Ok(())
    }

    async fn remove_rows(&mut self, table: Table, which: &Expr, dry_run: bool, into: &mut Forgotten) -> Result<()> {
        if into.scans.is_empty() {
            return Ok(());
        }
        let rows =
            if dry_run { self.count_where(table, which).await? } else { self.delete_counted(table, which).await? };
        if rows > 0 {
            into.rows.insert(table.name(), rows);
        }
        Ok(())
    }

    /// Replaces the person's names in the settings of runs of these cohorts, of all cohorts where none is given; gives the
    /// number of rows.
    async fn forget_in_settings(
        &mut self,
        person: &Person,
        cohorts: &BTreeSet<String>,
        dry_run: bool,
    ) -> Result<usize> {
        let context = self.raw_session().await?;
        let runs = context.table(format!("{RAW_SCHEMA}.{}", Table::Runs.name())).await?;
        let mut settings: BTreeSet<(String, String)> = BTreeSet::new();
        for batch in runs.select_columns(&["cohort", "config"])?.distinct()?.collect().await? {
            settings.extend(texts(&batch, 0).zip(texts(&batch, 1)));
        }
        let mut changed = 0;
        for (cohort, config) in
            settings.into_iter().filter(|(cohort, _)| cohorts.is_empty() || cohorts.contains(cohort))
        {
            let Some(redacted) = person.redacted(&config) else { continue };
            let which = col("cohort").eq(lit(cohort)).and(col("config").eq(lit(config)));
            changed += self.count_where(Table::Runs, &which).await?;
            if !dry_run {
                let operation = DeltaOperation::Update { predicate: None };
                let what = Rewrite { table: Table::Runs, attempted: "redact", operation, removed_rows: 0 };
                let updated = self.rewrite(&what, |copy, commit| {
                    let update = copy.update().with_predicate(which.clone()).with_commit_properties(commit);
                    update.with_update("config", lit(redacted.as_str())).into_future()
                });
                updated.await?;
            }
        }
        Ok(changed)
    }
}

/// The rows of a table with the columns of [`TABLES`].
fn scans_in(batch: &RecordBatch) -> Vec<Scan> {
    let column = |index: usize| -> Vec<String> {
        if index < batch.num_columns() { texts(batch, index).collect() } else { vec![String::new(); batch.num_rows()] }
    };
    let rows = column(0).into_iter().zip(column(1)).zip(column(2)).zip(column(3));
    rows.map(|(((scan_id, cohort), uri), subject)| Scan { scan_id, cohort, uri, subject }).collect()
}

fn unknown(person: &Person) -> Error {
    let whom = match &person.subject {
        Some(subject) => format!("subject {subject}"),
        None => "these scans".to_owned(),
    };
    let among = match person.cohorts.is_empty() {
        true => String::new(),
        false => format!(" of cohort {}", person.cohorts.join(", ")),
    };
    Error::Config(format!(
        "no row names {whom}{among}. `neurosieve sql -c 'SELECT DISTINCT cohort, subject FROM raw.scans'` lists the subjects \
         with results, `neurosieve failures --scans` the scans that failed; name scans without a BIDS name with --scan. Where the \
         rows were removed earlier, --even-unknown deletes the earlier versions, which can still hold them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_of_a_person_is_taken_out_of_settings() {
        let person = Person { subject: Some("sub-03".into()), ..Person::default() };
        let config = "seed = 03\nsubjects = [\"03\", \"031\"]\nexclude = [\"sub-03*\", \"sub-031*\", \"xsub-03\"]\n";
        let expected = "seed = 03\nsubjects = [\"(forgotten)\", \"031\"]\n\
                        exclude = [\"(forgotten)*\", \"sub-031*\", \"xsub-03\"]\n";
        assert_eq!(person.redacted(config).as_deref(), Some(expected));
        assert_eq!(person.redacted(expected), None);
    }

    #[test]
    fn a_scan_is_found_by_subject_path_or_id() {
        let person = Person { subject: Some("03".into()), scans: vec!["c/IXI3".into()], ..Person::default() };
        let scan = |scan_id: &str, uri: &str, subject: &str| {
            person.is_theirs(&Scan {
                scan_id: scan_id.into(),
                cohort: "c".into(),
                uri: uri.into(),
                subject: subject.into(),
            })
        };
        assert!(scan("c/x", "", "03") && scan("c/x", "sub-03/anat/x.nii.gz", "") && scan("c/sub-03_T1w", "", ""));
        assert!(scan("c/IXI3", "", ""));
        assert!(!scan("c/sub-031_T1w", "sub-031/x.nii", "031") && !scan("sub-03/sub-04_T1w", "", ""));
    }
}
