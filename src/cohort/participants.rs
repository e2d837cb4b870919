//! `participants.tsv`: what a BIDS dataset says about its subjects.
//!
//! Takes the table at the dataset's root; gives values by subject and column, by which scans are selected (`split = val`).
//! `n/a` is a null, as in BIDS. Refuses a table without a column `participant_id`, a row with too many or too few cells,
//! and a subject listed twice, because it is unclear which of the two rows is meant.

use std::collections::BTreeMap;

use object_store::ObjectStoreExt;

use crate::error::{Error, Result};
use crate::store::Location;

/// A table of half a million subjects and fifty columns has about 100 MB; a larger file is no participants table.
const MAX_BYTES: u64 = 256 << 20;

/// The table, by subject label without `sub-`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Participants {
    columns: Vec<String>,
    rows: BTreeMap<String, Vec<Option<String>>>,
}

impl Participants {
    /// Reads `participants.tsv` at the root; `None` where it does not exist.
    ///
    /// # Errors
    /// [`Error::Storage`] where it cannot be read; [`Error::Config`] for a file of more than 256 MiB or not in UTF-8, and
    /// those of [`Participants::parse`].
    pub async fn load(location: &Location) -> Result<Option<Self>> {
        let attempted = "read participants.tsv in";
        let found = match location.store.get(&location.path_of("participants.tsv")?).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            other => other.map_err(|e| location.explain(attempted, e))?,
        };
        if found.meta.size > MAX_BYTES {
            let size = found.meta.size;
            return Err(Error::Config(format!(
                "participants.tsv has {size} bytes, the limit is {MAX_BYTES}: remove rows or columns that select no scan"
            )));
        }
        let bytes = found.bytes().await.map_err(|e| location.explain(attempted, e))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            Error::Config("participants.tsv is not UTF-8: save it as UTF-8, with tabs between the columns".into())
        })?;
        Self::parse(text).map(Some)
    }

    /// Parses the table's text.
    ///
    /// # Errors
    /// [`Error::Config`] for a table without `participant_id`, a row with another number of cells than the header, or a
    /// subject listed twice.
    pub fn parse(text: &str) -> Result<Self> {
        // Spreadsheet programs start the file with a byte order mark.
        let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        let header: Vec<&str> =
            lines.next().map(|(_, line)| line.split('\t').map(str::trim).collect()).unwrap_or_default();
        let Some(id_at) = header.iter().position(|name| *name == "participant_id") else {
            return Err(Error::Config(
                "participants.tsv has no column `participant_id`: its first line must name the columns, separated by tabs"
                    .into(),
            ));
        };
        let columns = header.iter().map(|&name| name.to_owned()).collect();
        let mut rows = BTreeMap::new();
        for (i, line) in lines {
            let number = i + 1;
            let cells: Vec<&str> = line.split('\t').map(str::trim).collect();
            if cells.len() != header.len() {
                let (n, expected) = (cells.len(), header.len());
                return Err(Error::Config(format!(
                    "participants.tsv line {number} has {n} cells, the header {expected}: write n/a for an unknown value"
                )));
            }
            let subject = cells[id_at].strip_prefix("sub-").unwrap_or(cells[id_at]).to_owned();
            let values =
                cells.iter().map(|&cell| (cell != "n/a" && !cell.is_empty()).then(|| cell.to_owned())).collect();
            if rows.insert(subject, values).is_some() {
                let id = cells[id_at];
                return Err(Error::Config(format!(
                    "participants.tsv line {number} lists {id} again: keep one row per subject"
                )));
            }
        }
        Ok(Self { columns, rows })
    }

    /// The columns, in the order of the file.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// A subject's value; `None` where subject or column is unknown, or the value is `n/a`.
    pub fn value(&self, subject: &str, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.rows.get(subject)?.get(at)?.as_deref()
    }

    /// True where, for every column of `filter`, the subject's value is among the accepted ones. An accepted
    /// `n/a` stands for an unknown value. A subject that is not in the table is not accepted.
    pub fn accepts(&self, subject: &str, filter: &BTreeMap<String, Vec<String>>) -> bool {
        self.rows.contains_key(subject)
            && filter.iter().all(|(column, accepted)| {
                let value = self.value(subject, column).unwrap_or("n/a");
                accepted.iter().any(|a| a == value)
            })
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
}
