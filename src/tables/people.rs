//! The `participants` table: metadata of subjects from `participants.tsv`, one row per subject and change.
//!
//! Rows are compared with the current ones of the cohort, and only those that differ are written. A subject that is no longer
//! in the file keeps its row, as its scans keep theirs.

use std::collections::HashMap;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type};
use datafusion::prelude::{col, lit};
use serde::Serialize;

use super::open::Tables;
use super::schema::Table;
use super::session::{RAW_SCHEMA, texts};
use crate::error::{Error, Result};

/// One row of `participants`; the fields are its columns. Times are microseconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented in tables/columns.rs")]
pub struct ParticipantRow {
    pub cohort: String,
    pub subject: String,
    pub age_years: Option<f32>,
    pub sex: Option<String>,
    pub site: Option<String>,
    pub group: Option<String>,
    pub more: Vec<String>,
    /// Set by [`Tables::record_participants`].
    pub change_number: i64,
    pub recorded_at: i64,
}

/// What was written of the subjects of a cohort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Subjects without an earlier row.
    pub new: usize,
    /// Subjects whose row changed.
    pub changed: usize,
    /// Subjects whose row was there.
    pub unchanged: usize,
}

/// What is compared of a row.
type Said = (Option<u32>, [Option<String>; 3], Vec<String>);

impl ParticipantRow {
    fn said(&self) -> Said {
        let texts = [&self.sex, &self.site, &self.group].map(Clone::clone);
        (self.age_years.map(f32::to_bits), texts, self.more.clone())
    }
}

impl Tables {
    /// Writes and commits the rows of a cohort that differ from the current ones, once per batch. Creates the table where it
    /// does not exist and there is a row.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Storage`] where the table cannot be created, read or written; [`Error::Query`] where it
    /// cannot be read.
    pub async fn record_participants(
        &mut self,
        cohort: &str,
        mut rows: Vec<ParticipantRow>,
        batch_id: &str,
    ) -> Result<Recorded> {
        let current = self.current_participants(cohort).await?;
        let n = rows.len();
        rows.retain(|row| current.get(&row.subject).is_none_or(|(_, said)| *said != row.said()));
        let new = rows.iter().filter(|row| !current.contains_key(&row.subject)).count();
        let recorded = Recorded { new, changed: rows.len() - new, unchanged: n - rows.len() };
        rows.sort_by(|a, b| (&a.cohort, &a.subject).cmp(&(&b.cohort, &b.subject)));
        if !rows.is_empty() {
            self.create_missing(Table::Participants).await?;
            self.append_participants(&mut rows, batch_id).await?;
        }
        Ok(recorded)
    }

    /// By subject of a cohort, the number and the content of its current row.
    async fn current_participants(&self, cohort: &str) -> Result<HashMap<String, (i64, Said)>> {
        let mut current: HashMap<String, (i64, Said)> = HashMap::new();
        if !self.present().any(|table| table == Table::Participants) {
            return Ok(current);
        }
        let context = self.raw_session().await?;
        let rows = context.table(format!("{RAW_SCHEMA}.{}", Table::Participants.name())).await?;
        let columns = ["subject", "change_number", "age_years", "sex", "site", "group", "more"];
        let rows = rows.filter(col("cohort").eq(lit(cohort)))?.select_columns(&columns)?;
        for batch in rows.collect().await? {
            for (i, subject) in texts(&batch, 0).enumerate() {
                let (number, said) = row(&batch, i)?;
                let entry = current.entry(subject).or_insert_with(|| (number, said.clone()));
                if number > entry.0 {
                    *entry = (number, said);
                }
            }
        }
        Ok(current)
    }
}

/// The number and the content of a row.
fn row(batch: &RecordBatch, i: usize) -> Result<(i64, Said)> {
    let unexpected = || Error::Bug("the table participants has other column types than this version writes".into());
    let numbers = batch.column(1).as_primitive_opt::<Int64Type>().ok_or_else(unexpected)?;
    let ages = batch.column(2).as_primitive_opt::<Float32Type>().ok_or_else(unexpected)?;
    let text = |column: usize| -> Result<Option<String>> {
        let texts = batch.column(column).as_string_opt::<i32>().ok_or_else(unexpected)?;
        Ok(texts.is_valid(i).then(|| texts.value(i).to_owned()))
    };
    let lists = batch.column(6).as_list_opt::<i32>().ok_or_else(unexpected)?;
    let more = match lists.is_valid(i) {
        true => {
            lists.value(i).as_string_opt::<i32>().ok_or_else(unexpected)?.iter().flatten().map(str::to_owned).collect()
        }
        false => Vec::new(),
    };
    let age = ages.is_valid(i).then(|| ages.value(i).to_bits());
    Ok((numbers.value(i), (age, [text(3)?, text(4)?, text(5)?], more)))
}
