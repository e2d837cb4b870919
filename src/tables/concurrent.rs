//! Commits of other runs at the same time: two runs on the same scans leave one result of each scan.
//!
//! A run plans with the tables as it opened them. Before it commits, it reads from the log of `scans` what was added since,
//! and excludes from its own files the keys (scan_id, content_id, recipe_id) that are there. `scans` is then committed on
//! top of exactly the version that was read, so no other commit can come in between.
//!
//! Takes the log of `scans` and the receipts of a commit; gives the receipts without superseded scans. Refuses a log with
//! a gap after the version at which the tables were opened.

use std::collections::HashSet;

use arrow::array::{Array as _, AsArray, BooleanArray, RecordBatch, RecordBatchReader as _};
use arrow::compute::{concat_batches, filter_record_batch};
use bytes::Bytes;
use deltalake_core::DeltaTable;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::datafile::DataFile;
use super::receipt::Receipt;
use super::schema::Table;
use crate::error::{Error, Result};
use crate::store::{self, Location, with_retries};

/// (scan_id, content_id, recipe_id).
type Key = [String; 3];

/// Results of other runs, as far as the log of `scans` was read.
#[derive(Debug)]
pub(super) struct ConcurrentRuns {
    location: Location,
    /// Version of `scans` up to which `keys` is complete. What was there when the tables were opened is not in `keys`: the
    /// plan excludes it.
    read_up_to: u64,
    keys: HashSet<Key>,
}

impl ConcurrentRuns {
    /// Those that commit after version `opened` of `scans` at `location`.
    pub(super) fn since(opened: u64, location: Location) -> Self {
        Self { location, read_up_to: opened, keys: HashSet::new() }
    }

    /// Reads what others have added to `scans` since the last call, up to the version that is loaded. Commits of the
    /// application `own` are not those of others.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Storage`] where log or data files cannot be read; [`Error::Config`] where the log lacks
    /// a version.
    pub(super) async fn read_log(&mut self, scans: &DeltaTable, own: &str) -> Result<()> {
        let newest = scans.version().unwrap_or_default();
        let log = scans.log_store();
        let mut files = Vec::new();
        for version in self.read_up_to + 1..=newest {
            let read = async || {
                let entry = log.read_commit_entry(version).await;
                entry.map_err(|e| Error::table("cannot read the log of table scans", e))
            };
            let entry = with_retries(read).await?.ok_or_else(|| {
                Error::Config(format!(
                    "the log of table scans lacks version {version}, which was committed during this run: start the run \
                     again; results committed so far are kept"
                ))
            })?;
            files.extend(added_by_others(&entry, own)?);
        }
        for file in files {
            self.keys.extend(keys(&self.location, &file).await?);
        }
        self.read_up_to = newest;
        Ok(())
    }

    /// Excludes scans that others have committed from the files of a commit; gives their number. A file with such scans is
    /// written again without them, or dropped where it would be empty. `compared` is the number of keys of others that
    /// the files were compared with before.
    ///
    /// # Errors
    /// [`Error::Storage`] where a data file cannot be read or written.
    pub(super) async fn exclude_committed(&self, receipts: &mut Vec<Receipt>, compared: &mut usize) -> Result<usize> {
        if self.keys.len() == *compared {
            return Ok(0);
        }
        *compared = self.keys.len();
        let mut superseded = HashSet::new();
        for receipt in receipts.iter().filter(|r| r.table == Table::Scans) {
            let ours = keys(&self.location, &receipt.path).await?;
            superseded.extend(ours.into_iter().filter(|key| self.keys.contains(key)).map(|[scan_id, ..]| scan_id));
        }
        if superseded.is_empty() {
            return Ok(0);
        }
        let mut remaining = Vec::with_capacity(receipts.len());
        for receipt in receipts.drain(..) {
            remaining.extend(self.without(&superseded, receipt).await?);
        }
        *receipts = remaining;
        Ok(superseded.len())
    }

    /// The receipt of a file like that of `receipt` without these scans; `None` where no row is left.
    async fn without(&self, scan_ids: &HashSet<String>, receipt: Receipt) -> Result<Option<Receipt>> {
        let table = receipt.table;
        let all = rows(&self.location, table, &receipt.path).await?;
        let scans = text(&all, "scan_id")?;
        let stays: BooleanArray = (0..scans.len()).map(|i| Some(!scan_ids.contains(scans.value(i)))).collect();
        if stays.false_count() == 0 {
            return Ok(Some(receipt));
        }
        let left =
            filter_record_batch(&all, &stays).map_err(|e| Error::Bug(format!("rows of {}: {e}", table.name())))?;
        if left.num_rows() == 0 {
            return Ok(None);
        }
        let encode = move || DataFile::encode(table, &[left]);
        let file = tokio::task::spawn_blocking(encode).await.map_err(|e| Error::Bug(format!("encoding: {e}")))??;
        let path = file.put(&self.location, table).await?;
        let n_superseded = if table == Table::Scans { stays.false_count() as i64 } else { 0 };
        Ok(Some(Receipt {
            path,
            size_bytes: file.bytes.len() as i64,
            num_rows: file.num_rows as i64,
            stats: file.stats,
            n_scans: receipt.n_scans - n_superseded,
            ..receipt
        }))
    }
}

/// Data files that an entry of the log adds; none where the application `own` committed it, or it only compacts files.
fn added_by_others(entry: &[u8], own: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for action in serde_json::Deserializer::from_slice(entry).into_iter::<Value>() {
        let action = action.map_err(|e| Error::Bug(format!("an entry in the log of table scans is not JSON: {e}")))?;
        if action["txn"]["appId"].as_str().is_some_and(|id| id == own) {
            return Ok(Vec::new());
        }
        if action["add"]["dataChange"] == true {
            files.extend(action["add"]["path"].as_str().map(str::to_owned));
        }
    }
    Ok(files)
}

/// The rows of a data file that this run wrote.
async fn rows(location: &Location, table: Table, file: &str) -> Result<RecordBatch> {
    let read = ParquetRecordBatchReaderBuilder::try_new(bytes_of(location, table, file).await?);
    all_rows(read.map_err(|e| unreadable(table, &e))?, table)
}

/// The keys of the scans in a data file. Another version, or a rewrite by the Delta library, may have written it: only columns
/// that every version has are read, and with the types that Parquet gives them, whatever Arrow types the writer had.
async fn keys(location: &Location, file: &str) -> Result<Vec<Key>> {
    const COLUMNS: [&str; 3] = ["scan_id", "content_id", "recipe_id"];
    let bytes = bytes_of(location, Table::Scans, file).await?;
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let read = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options);
    let read = read.map_err(|e| unreadable(Table::Scans, &e))?;
    let wanted = ProjectionMask::columns(read.parquet_schema(), COLUMNS);
    let scans = all_rows(read.with_projection(wanted), Table::Scans)?;
    let [scan, content, recipe] = [text(&scans, COLUMNS[0])?, text(&scans, COLUMNS[1])?, text(&scans, COLUMNS[2])?];
    Ok((0..scan.len()).map(|i| [scan, content, recipe].map(|column| column.value(i).to_owned())).collect())
}

async fn bytes_of(location: &Location, table: Table, file: &str) -> Result<Bytes> {
    store::read(location, &format!("{}/{file}", table.name()), None, |_| Ok(())).await
}

fn all_rows(read: ParquetRecordBatchReaderBuilder<Bytes>, table: Table) -> Result<RecordBatch> {
    let reader = read.build().map_err(|e| unreadable(table, &e))?;
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(|e| unreadable(table, &e))?;
    concat_batches(&schema, &batches).map_err(|e| unreadable(table, &e))
}

fn unreadable(table: Table, error: &dyn std::fmt::Display) -> Error {
    Error::Bug(format!("a data file of {}: {error}", table.name()))
}

fn text<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a arrow::array::StringArray> {
    let column = rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    column.ok_or_else(|| Error::Bug(format!("a data file has no text column {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_that_others_add_count() {
        let entry = |app_id: &str, data_change: bool| {
            format!(
                "{{\"txn\":{{\"appId\":\"{app_id}\",\"version\":3}}}}\n\
                 {{\"add\":{{\"path\":\"part-1.parquet\",\"dataChange\":{data_change}}}}}\n\
                 {{\"commitInfo\":{{\"operation\":\"WRITE\"}}}}"
            )
        };
        let added =
            |app_id: &str, data_change| added_by_others(entry(app_id, data_change).as_bytes(), "run-a/scans").unwrap();
        assert_eq!(added("run-b/scans", true), ["part-1.parquet"]);
        assert!(added("run-a/scans", true).is_empty(), "our own");
        assert!(added("run-b/scans", false).is_empty(), "compaction");
        assert!(added_by_others(b"{\"add\"", "run-a/scans").is_err());
    }
}
