//! `participants.tsv`: what a BIDS dataset says about its subjects.
//!
//! Takes the table at the dataset's root; gives values by subject and column, by which scans are selected (`split = val`).
//! Reads it piece by piece and keeps what was asked for alone: a few columns, of the subjects that have images. `n/a` is a
//! null, as in BIDS. An id may lack `sub-`, and leading zeros where it is clear which subject is meant. Refuses a table
//! without a column `participant_id`, a row with too many or too few cells, and a subject with images that is listed twice,
//! because it is unclear which of the two rows is meant.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures::TryStreamExt as _;
use object_store::{GetResult, ObjectStoreExt};

use super::tsv;
use crate::error::{Error, Result};
use crate::store::{Location, printable};
use crate::volume::nifti;

const NAME: &str = "participants.tsv";

/// Names and values that a message lists.
const LISTED: usize = 20;

/// Different names that are held for a message, and the characters of each.
const HELD: usize = 1000;
const HELD_CHARS: usize = 80;

/// Bytes that are parsed at once.
const PIECE: usize = 64 << 10;

/// What is kept of a table.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The columns, each with the values to take, if it filters.
    pub filter: &'a BTreeMap<String, Vec<String>>,
    /// Labels of the subjects, without `sub-`. `None`: every subject.
    pub subjects: Option<BTreeSet<&'a str>>,
    /// A larger file is refused, in MiB.
    pub max_mib: u64,
}

/// The table, by subject label without `sub-`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Participants {
    columns: Vec<String>,
    kept: Vec<Column>,
    rows: BTreeMap<String, Vec<Option<String>>>,
    /// The label of the row with this number, `1` for `01`; `None` where several rows have it.
    numbers: BTreeMap<String, Option<String>>,
    /// The ids of all rows.
    ids: Names,
}

/// A column that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    /// Its place in a row of the file.
    at: usize,
    /// Its values in all rows.
    values: Names,
    /// Whether any row has one of the accepted values.
    has_accepted: bool,
}

/// The first names, in alphabetical order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    first: BTreeSet<String>,
    /// Whether there are more than are held.
    more: bool,
}

impl Participants {
    /// Reads `participants.tsv` at the root; `None` where it does not exist.
    ///
    /// # Errors
    /// [`Error::Storage`] where it cannot be read; [`Error::Config`] for a file above the limit or not in UTF-8, for a link to
    /// an absent file, for a table without `participant_id`, for a row with another number of cells than the header, and for
    /// a subject with images that is listed twice.
    pub async fn load(location: &Location, wanted: &Wanted<'_>) -> Result<Option<Self>> {
        let failed = |e| location.explain("read participants.tsv in", e);
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
        refuse_above(found.meta.size, wanted.max_mib)?;
        Self::read(found, wanted, failed).await.map(Some)
    }

    async fn read(
        found: GetResult,
        wanted: &Wanted<'_>,
        failed: impl Fn(object_store::Error) -> Error,
    ) -> Result<Self> {
        let mut parser = Parser::new(wanted);
        let mut n_bytes = 0;
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(&failed)? {
            if n_bytes == 0
                && let Some(pointer) = nifti::pointer(&piece)
            {
                return Err(Error::Config(format!("participants.tsv: {pointer}")));
            }
            n_bytes += piece.len() as u64;
            // A file may grow, and a server may announce less than it sends.
            refuse_above(n_bytes, wanted.max_mib)?;
            piece.chunks(PIECE).try_for_each(|piece| parser.push(piece))?;
        }
        parser.finish()
    }

    /// The columns, in the order of the file.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// A subject's value; `None` where the subject is unknown, the column was not asked for or does not exist, or the value
    /// is `n/a`.
    pub fn value(&self, subject: &str, column: &str) -> Option<&str> {
        let at = self.kept.iter().position(|kept| kept.name == column)?;
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
        let lacking = self.kept.iter().find(|column| !column.has_accepted && filter.contains_key(&column.name))?;
        let Column { name, values, .. } = lacking;
        Some(format!(
            "no subject in participants.tsv has {name} = {}; its values are {}",
            filter[name].join(" or "),
            values.listed()
        ))
    }

    /// The first ids, for a message.
    pub(super) fn ids(&self) -> String {
        self.ids.listed()
    }
}

fn refuse_above(n_bytes: u64, max_mib: u64) -> Result<()> {
    if n_bytes <= max_mib.saturating_mul(1 << 20) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "participants.tsv has {n_bytes} bytes, more than cohort.select.participants_mib allows ({max_mib} MiB): remove rows and \
         columns that select no scan, or raise the setting (`neurosieve cohort --participants-mib`)"
    )))
}

/// A table that is being read.
struct Parser<'a> {
    wanted: &'a Wanted<'a>,
    /// Numbers of the subjects.
    numbers: HashSet<&'a str>,
    reader: tsv::Reader,
    /// The column `participant_id`; `None` before the header is read.
    id_at: Option<usize>,
    table: Participants,
}

impl<'a> Parser<'a> {
    fn new(wanted: &'a Wanted<'a>) -> Self {
        let numbers = wanted.subjects.iter().flatten().filter_map(|subject| number(subject)).collect();
        Self { wanted, numbers, reader: tsv::Reader::default(), id_at: None, table: Participants::default() }
    }

    fn push(&mut self, piece: &[u8]) -> Result<()> {
        self.reader.push(piece).map_err(wrong)?;
        self.take_rows(false)
    }

    fn finish(mut self) -> Result<Participants> {
        self.take_rows(true)?;
        if self.id_at.is_none() {
            self.header(Vec::new())?;
        }
        Ok(self.table)
    }

    fn take_rows(&mut self, ended: bool) -> Result<()> {
        while let Some(row) = self.reader.next_row(ended).map_err(wrong)? {
            match self.id_at {
                None => self.header(row.cells)?,
                Some(id_at) => self.row(row, id_at)?,
            }
        }
        Ok(())
    }

    fn header(&mut self, mut columns: Vec<String>) -> Result<()> {
        drop_blanks(&mut columns, 0);
        let named = |is: &dyn Fn(&str) -> bool| columns.iter().position(|name| is(name));
        let id_at = named(&|name| name == "participant_id")
            .or_else(|| named(&|name| name.eq_ignore_ascii_case("participant_id")));
        if id_at.is_none() {
            return Err(wrong(
                "has no column `participant_id`: its first line must name the columns, separated by tabs",
            ));
        }
        let kept = |name: &String| {
            let at = columns.iter().position(|column| column == name)?;
            Some(Column { name: name.clone(), at, values: Names::default(), has_accepted: false })
        };
        self.table.kept = self.wanted.filter.keys().filter_map(kept).collect();
        self.table.columns = columns;
        self.id_at = id_at;
        Ok(())
    }

    fn row(&mut self, row: tsv::Row, id_at: usize) -> Result<()> {
        let tsv::Row { line, mut cells } = row;
        let table = &mut self.table;
        drop_blanks(&mut cells, table.columns.len());
        if cells.len() != table.columns.len() {
            let (n, expected) = (cells.len(), table.columns.len());
            return Err(wrong(format!(
                "line {line} has {n} cells, the header {expected}: write n/a for an unknown value"
            )));
        }
        let id = &cells[id_at];
        let subject = label(id);
        table.ids.add(subject);
        for column in &mut table.kept {
            let value = known(&cells[column.at]).unwrap_or("n/a");
            column.values.add(value);
            column.has_accepted |= self.wanted.filter[&column.name].iter().any(|accepted| accepted == value);
        }
        let number = number(subject);
        let is_wanted = self.wanted.subjects.as_ref().is_none_or(|subjects| {
            subjects.contains(subject) || number.is_some_and(|number| self.numbers.contains(number))
        });
        if !is_wanted {
            return Ok(());
        }
        if let Some(number) = number {
            let label = table.numbers.entry(number.to_owned()).or_insert_with(|| Some(subject.to_owned()));
            label.take_if(|label| *label != subject);
        }
        let values = table.kept.iter().map(|column| known(&cells[column.at]).map(str::to_owned)).collect();
        if table.rows.insert(subject.to_owned(), values).is_some() {
            let id = printable(id.as_bytes());
            return Err(wrong(format!("line {line} lists {id} again: keep one row per subject")));
        }
        Ok(())
    }
}

fn wrong(why: impl std::fmt::Display) -> Error {
    Error::Config(format!("participants.tsv {why}"))
}

/// A cell's value, if it has one.
fn known(cell: &str) -> Option<&str> {
    (cell != "n/a" && !cell.is_empty()).then_some(cell)
}

impl Names {
    fn add(&mut self, name: &str) {
        let shown = name.char_indices().nth(HELD_CHARS).map_or(name, |(end, _)| &name[..end]);
        if self.first.contains(shown) {
            return;
        }
        if self.first.len() == HELD {
            self.more = true;
            if self.first.last().is_some_and(|last| last.as_str() < shown) {
                return;
            }
            self.first.pop_last();
        }
        self.first.insert(shown.to_owned());
    }

    fn listed(&self) -> String {
        listed(self.first.iter().map(String::as_str), self.more)
    }
}

/// The first names, and the number of the others; with `more`, there are others that are not among `names`.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>, more: bool) -> String {
    let names: Vec<String> = names.map(|name| printable(name.as_bytes())).collect();
    let mut text = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text += &format!(" and {}{} more", if more { "at least " } else { "" }, names.len() - LISTED);
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

    fn parse(text: &str) -> Result<Participants> {
        let filter = ["split", "age", "sex"].map(|column| (column.to_owned(), Vec::new())).into();
        parse_wanted(text, &Wanted { filter: &filter, subjects: None, max_mib: 1 })
    }

    fn parse_wanted(text: &str, wanted: &Wanted) -> Result<Participants> {
        let mut parser = Parser::new(wanted);
        parser.push(text.as_bytes())?;
        parser.finish()
    }

    fn filter(column: &str, accepted: &[&str]) -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([(column.to_owned(), accepted.iter().map(|&a| a.to_owned()).collect())])
    }

    #[test]
    fn values_by_subject_with_windows_line_ends() {
        let table = parse("\u{feff}participant_id\tsplit\tage\r\nsub-01\tval\tn/a\r\n02\ttrain\t61\r\n").unwrap();
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
        let said = |text: &str| parse(text).unwrap_err().to_string();
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
            let table = parse(text).unwrap();
            assert_eq!((table.value("01", "age"), table.value("02", "age")), (Some("30"), Some("31")), "{text:?}");
        }
    }

    #[test]
    fn an_id_without_leading_zeros_is_the_only_subject_with_that_number() {
        let mut table = parse("participant_id\tsex\n1\tF\n2\tM\n003\tF\n03\tM\n").unwrap();
        assert_eq!((table.value("01", "sex"), table.value("002", "sex")), (Some("F"), Some("M")));
        assert_eq!((table.value("3", "sex"), table.value("03", "sex")), (None, Some("M")));
        table.tell_apart(["1", "01", "02"].into_iter());
        assert_eq!((table.value("1", "sex"), table.value("01", "sex")), (Some("F"), None));
        assert_eq!(table.value("02", "sex"), Some("M"));
    }

    #[test]
    fn a_value_that_nobody_has_is_reported_with_those_that_there_are() {
        let without = |accepted: &[&str]| {
            let filter = filter("sex", accepted);
            let wanted = Wanted { filter: &filter, subjects: None, max_mib: 1 };
            parse_wanted("participant_id\tsex\nsub-01\tF\nsub-02\tn/a\n", &wanted).unwrap().without_value(&filter)
        };
        let said = without(&["f"]).unwrap();
        assert!(said.contains("sex = f; its values are F, n/a"), "{said}");
        assert_eq!(without(&["F", "M"]), None);
        assert_eq!(without(&["n/a"]), None);
    }

    #[test]
    fn subjects_without_images_and_columns_that_select_nothing_are_not_kept() {
        let filter = filter("sex", &["F"]);
        let wanted = Wanted { filter: &filter, subjects: Some(["01", "x"].into()), max_mib: 1 };
        let table = parse_wanted("participant_id\tsex\tage\n1\tF\t30\n2\tM\t31\nx\tM\t9\n2\tF\t1\n", &wanted).unwrap();
        assert_eq!(table.rows.keys().collect::<Vec<_>>(), ["1", "x"]);
        assert_eq!((table.value("01", "sex"), table.value("01", "age")), (Some("F"), None));
        assert_eq!(table.columns(), ["participant_id", "sex", "age"]);
    }
}
