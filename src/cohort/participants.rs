//! `participants.tsv`: what a BIDS dataset says about its subjects.
//!
//! Takes the table at the dataset's root; gives values by subject and column, by which scans are selected (`split = val`).
//! `n/a` is a null, as in BIDS. An id may lack `sub-`, and leading zeros where it is clear which subject is meant. Refuses a
//! table without a column `participant_id`, a row with too many or too few cells, and a subject listed twice, because it is
//! unclear which of the two rows is meant.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use object_store::ObjectStoreExt;

use super::tsv;
use crate::error::{Error, Result};
use crate::store::{Location, printable};
use crate::volume::nifti;

/// A table of half a million subjects and fifty columns has about 100 MB; a larger file is no participants table.
const MAX_BYTES: u64 = 256 << 20;

/// Names and values that a message lists.
const LISTED: usize = 20;

/// The table, by subject label without `sub-`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Participants {
    columns: Vec<String>,
    rows: BTreeMap<String, Vec<Option<String>>>,
    /// The label of the row with this number, `1` for `01`; `None` where several rows have it.
    numbers: BTreeMap<String, Option<String>>,
}

impl Participants {
    /// Reads `participants.tsv` at the root; `None` where it does not exist.
    ///
    /// # Errors
    /// [`Error::Storage`] where it cannot be read; [`Error::Config`] for a file of more than 256 MiB or not in UTF-8, for a
    /// link to an absent file, and those of [`Participants::parse`].
    pub async fn load(location: &Location) -> Result<Option<Self>> {
        const NAME: &str = "participants.tsv";
        let attempted = "read participants.tsv in";
        let failed = |e| location.explain(attempted, e);
        let found = match location.store.get(&location.path_of(NAME)?).await {
            Err(object_store::Error::NotFound { .. }) if location.is_broken_link(NAME) => {
                return Err(Error::Config(
                    "participants.tsv is a link to a file that is not here: fetch it with `datalad get participants.tsv`"
                        .into(),
                ));
            }
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            other => other.map_err(failed)?,
        };
        if found.meta.size > MAX_BYTES {
            let size = found.meta.size;
            return Err(Error::Config(format!(
                "participants.tsv has {size} bytes, the limit is {MAX_BYTES}: remove rows or columns that select no scan"
            )));
        }
        let bytes = found.bytes().await.map_err(failed)?;
        if let Some(pointer) = nifti::pointer(&bytes) {
            return Err(Error::Config(format!("participants.tsv: {pointer}")));
        }
        let text = tsv::text(&bytes).map_err(|why| Error::Config(format!("participants.tsv {why}")))?;
        Self::parse(text).map(Some)
    }

    /// Parses the table's text.
    ///
    /// # Errors
    /// [`Error::Config`] for a table without `participant_id`, a row with another number of cells than the header, or a
    /// subject listed twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines = tsv::rows(text).into_iter();
        let mut columns = lines.next().map(|row| row.cells).unwrap_or_default();
        drop_blanks(&mut columns, 0);
        let named = |is: &dyn Fn(&str) -> bool| columns.iter().position(|name| is(name));
        let id_at = named(&|name| name == "participant_id")
            .or_else(|| named(&|name| name.eq_ignore_ascii_case("participant_id")));
        let Some(id_at) = id_at else {
            return Err(Error::Config(
                "participants.tsv has no column `participant_id`: its first line must name the columns, separated by tabs"
                    .into(),
            ));
        };
        let mut rows = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for tsv::Row { line, mut cells } in lines {
            drop_blanks(&mut cells, columns.len());
            if cells.len() != columns.len() {
                let (n, expected) = (cells.len(), columns.len());
                return Err(Error::Config(format!(
                    "participants.tsv line {line} has {n} cells, the header {expected}: write n/a for an unknown value"
                )));
            }
            let subject = label(&cells[id_at]).to_owned();
            let id = cells[id_at].clone();
            let values = cells.into_iter().map(|cell| (cell != "n/a" && !cell.is_empty()).then_some(cell)).collect();
            if let Some(number) = number(&subject) {
                let label = numbers.entry(number.to_owned()).or_insert_with(|| Some(subject.clone()));
                label.take_if(|label| *label != subject);
            }
            if rows.insert(subject, values).is_some() {
                return Err(Error::Config(format!(
                    "participants.tsv line {line} lists {} again: keep one row per subject",
                    printable(id.as_bytes())
                )));
            }
        }
        Ok(Self { columns, rows, numbers })
    }

    /// The columns, in the order of the file.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// A subject's value; `None` where subject or column is unknown, or the value is `n/a`.
    pub fn value(&self, subject: &str, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.row(subject)?.get(at)?.as_deref()
    }

    /// True where the table has a row of the subject.
    pub fn has(&self, subject: &str) -> bool {
        self.row(subject).is_some()
    }

    /// True where, for every column of `filter`, the subject's value is among the accepted ones. An accepted
    /// `n/a` stands for an unknown value. A subject that is not in the table is not accepted.
    pub fn accepts(&self, subject: &str, filter: &BTreeMap<String, Vec<String>>) -> bool {
        self.has(subject)
            && filter.iter().all(|(column, accepted)| {
                let value = self.value(subject, column).unwrap_or("n/a");
                accepted.iter().any(|a| a == value)
            })
    }

    /// The row with this label, else the only one with this number.
    fn row(&self, subject: &str) -> Option<&Vec<Option<String>>> {
        self.rows.get(subject).or_else(|| {
            let label = self.numbers.get(number(subject)?)?.as_ref()?;
            self.rows.get(label)
        })
    }

    /// From now on, a row of another label belongs to one of these subjects only if no other of them has the same number:
    /// `1` is `sub-01`, unless there is a `sub-1` or a `sub-001` as well.
    pub(super) fn tell_apart<'a>(&mut self, subjects: impl Iterator<Item = &'a str>) {
        let mut first: HashMap<&str, &str> = HashMap::new();
        for subject in subjects {
            let Some(number) = number(subject) else { continue };
            if *first.entry(number).or_insert(subject) != subject {
                self.numbers.insert(number.to_owned(), None);
            }
        }
    }

    /// A column of `filter` of whose accepted values the table has none, as a message with the values that it has.
    pub(super) fn without_value(&self, filter: &BTreeMap<String, Vec<String>>) -> Option<String> {
        filter.iter().find_map(|(column, accepted)| {
            let at = self.columns.iter().position(|name| name == column)?;
            let values: BTreeSet<&str> =
                self.rows.values().map(|row| row.get(at).and_then(Option::as_deref).unwrap_or("n/a")).collect();
            (!accepted.iter().any(|value| values.contains(value.as_str()))).then(|| {
                format!(
                    "no subject in participants.tsv has {column} = {}; its values are {}",
                    accepted.join(" or "),
                    listed(values.into_iter())
                )
            })
        })
    }

    /// The first ids, for a message.
    pub(super) fn ids(&self) -> String {
        listed(self.rows.keys().map(String::as_str))
    }
}

/// The first names, and the number of the others.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| printable(name.as_bytes())).collect();
    let mut text = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    text
}

/// An id without `sub-`.
fn label(id: &str) -> &str {
    id.get(..4).filter(|key| key.eq_ignore_ascii_case("sub-")).map_or(id, |key| &id[key.len()..])
}

/// The digits of a label of digits, without leading zeros.
fn number(label: &str) -> Option<&str> {
    let is_number = !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| label.trim_start_matches('0'))
}

/// Drops blank cells at the end of a row while it has more than `expected` cells. Spreadsheets write them.
fn drop_blanks(cells: &mut Vec<String>, expected: usize) {
    while cells.len() > expected && cells.last().is_some_and(String::is_empty) {
        cells.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(column: &str, accepted: &[&str]) -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([(column.to_owned(), accepted.iter().map(|&a| a.to_owned()).collect())])
    }

    #[test]
    fn values_by_subject_with_windows_line_ends() {
        let table =
            Participants::parse("\u{feff}participant_id\tsplit\tage\r\nsub-01\tval\tn/a\r\n02\ttrain\t61\r\n").unwrap();
        assert_eq!(table.columns(), ["participant_id", "split", "age"]);
        assert_eq!(table.value("01", "split"), Some("val"));
        assert_eq!(table.value("01", "age"), None);
        assert_eq!(table.value("02", "age"), Some("61"));
        assert!(table.accepts("01", &filter("split", &["test", "val"])));
        assert!(!table.accepts("02", &filter("split", &["val"])));
        assert!(table.accepts("01", &filter("age", &["n/a"])));
        assert!(!table.accepts("03", &filter("age", &["n/a"])));
    }

    #[test]
    fn tables_that_cannot_be_trusted_are_refused() {
        let said = |text: &str| Participants::parse(text).unwrap_err().to_string();
        assert!(said("").contains("participant_id"));
        assert!(said("participant_id,split\nsub-01,val\n").contains("tabs"));
        assert!(said("participant_id\tsplit\nsub-01\n").contains("line 2 has 1 cells"));
        assert!(said("participant_id\nsub-01\n\nsub-01\n").contains("line 4 lists sub-01 again"));
    }

    #[test]
    fn a_table_from_an_old_mac_with_quoted_cells_is_read() {
        for text in [
            "participant_id\tage\tsite\rsub-01\t30\tA\rsub-02\t31\tB\r",
            "\"participant_id\"\t\"age\"\n\"sub-01\"\t\"30\"\n\"sub-02\"\t\"31\"\n",
            "Participant_ID\tage\t\nSUB-01\t30\t\n02\t31\t\t\n",
            "participant_id\tage\tnote\nsub-01\t30\t\"line one\nline two\"\nsub-02\t31\tok\n",
        ] {
            let table = Participants::parse(text).unwrap();
            assert_eq!((table.value("01", "age"), table.value("02", "age")), (Some("30"), Some("31")), "{text:?}");
        }
    }

    #[test]
    fn an_id_without_leading_zeros_is_the_only_subject_with_that_number() {
        let mut table = Participants::parse("participant_id\tsex\n1\tF\n2\tM\n003\tF\n03\tM\n").unwrap();
        assert_eq!((table.value("01", "sex"), table.value("002", "sex")), (Some("F"), Some("M")));
        assert_eq!((table.value("3", "sex"), table.value("03", "sex")), (None, Some("M")));
        table.tell_apart(["1", "01", "02"].into_iter());
        assert_eq!((table.value("1", "sex"), table.value("01", "sex")), (Some("F"), None));
        assert_eq!(table.value("02", "sex"), Some("M"));
    }

    #[test]
    fn a_value_that_nobody_has_is_reported_with_those_that_there_are() {
        let table = Participants::parse("participant_id\tsex\nsub-01\tF\nsub-02\tn/a\n").unwrap();
        let said = table.without_value(&filter("sex", &["f"])).unwrap();
        assert!(said.contains("sex = f; its values are F, n/a"), "{said}");
        assert_eq!(table.without_value(&filter("sex", &["F", "M"])), None);
        assert_eq!(table.without_value(&filter("sex", &["n/a"])), None);
    }
}
