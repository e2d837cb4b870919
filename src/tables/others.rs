//! What other runs have committed meanwhile: two that work on the same scans leave one result of each.
//!
//! A run plans with the tables as they were opened. Before it commits, it reads in the log of `scans` what came since,
//! and leaves out of its own files the keys (scan_id, content_id, recipe_id) that are there already. `scans` is then
//! committed on top of exactly the version that was read, so nobody can come in between.

use std::collections::HashSet;

use arrow::array::{Array as _, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use deltalake_core::DeltaTable;
use object_store::ObjectStoreExt as _;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::{DataFile, Receipt, Table};
use crate::error::{Error, Result};
use crate::store::{Location, with_retries};

/// A scan with its content and the recipe.
type Key = [String; 3];

/// Results of other runs, as far as the log of `scans` was read.
#[derive(Debug)]
pub(super) struct Others {
    location: Location,
    /// Version of `scans` up to which `keys` is complete; before it lies what the plan knew.
    seen: u64,
    keys: HashSet<Key>,
}

impl Others {
    /// Nothing is known of what comes after version `seen` of the tables at `location`.
    pub(super) fn since(seen: u64, location: Location) -> Self {
        Self { location, seen, keys: HashSet::new() }
    }

    /// Reads what others have added to `scans` since the last call, up to the version that is loaded. `own`: the application
    /// whose entries are not of others.
    pub(super) async fn look(&mut self, scans: &DeltaTable, own: &str) -> Result<()> {
        let now = scans.version().unwrap_or_default();
        let log = scans.log_store();
        let mut files = Vec::new();
        for version in self.seen + 1..=now {
            let read = async || {
                let entry = log.read_commit_entry(version).await;
                entry.map_err(|e| Error::table("cannot read the log of table scans", e))
            };
            let entry = with_retries(read).await?;
            let entry = entry.ok_or_else(|| {
                Error::Config(format!(
                    "the log of table scans lacks version {version}, made while this run was at work: start it again"
                ))
            })?;
            files.extend(added_by_others(&entry, own)?);
        }
        for file in files {
            self.keys.extend(keys(&rows(&self.location, Table::Scans, &file).await?)?);
        }
        self.seen = now;
        Ok(())
    }

    /// Takes scans that others have committed out of a roll's files; gives how many. Files are written anew, those that it
    /// leaves empty are dropped. `compared`: how many keys of others the files were compared with already.
    pub(super) async fn leave_out(&self, receipts: &mut Vec<Receipt>, compared: &mut usize) -> Result<usize> {
        if self.keys.len() == *compared {
            return Ok(0);
        }
        *compared = self.keys.len();
        let mut gone = HashSet::new();
        for receipt in receipts.iter().filter(|r| r.table == Table::Scans) {
            let ours = keys(&rows(&self.location, Table::Scans, &receipt.path).await?)?;
            gone.extend(ours.filter(|key| self.keys.contains(key)).map(|[scan_id, ..]| scan_id));
        }
        if gone.is_empty() {
            return Ok(0);
        }
        let mut kept = Vec::with_capacity(receipts.len());
        for receipt in receipts.drain(..) {
            kept.extend(self.without(receipt, &gone).await?);
        }
        *receipts = kept;
        Ok(gone.len())
    }

    /// The receipt of a file like that of `receipt` without these scans.
    async fn without(&self, receipt: Receipt, gone: &HashSet<String>) -> Result<Option<Receipt>> {
        let table = receipt.table;
        let all = rows(&self.location, table, &receipt.path).await?;
        let scans = text(&all, "scan_id")?;
        let keep: BooleanArray = (0..scans.len()).map(|i| Some(!gone.contains(scans.value(i)))).collect();
        if keep.false_count() == 0 {
            return Ok(Some(receipt));
        }
        let left =
            filter_record_batch(&all, &keep).map_err(|e| Error::Bug(format!("rows of {}: {e}", table.name())))?;
        if left.num_rows() == 0 {
            return Ok(None);
        }
        let encode = move || DataFile::encode(table, &[left]);
        let file = tokio::task::spawn_blocking(encode).await.map_err(|e| Error::Bug(format!("encoding: {e}")))??;
        let path = file.put(&self.location, table).await?;
        let n_gone = if table == Table::Scans { keep.false_count() as i64 } else { 0 };
        Ok(Some(Receipt {
            path,
            size_bytes: file.bytes.len() as i64,
            num_rows: file.num_rows as i64,
            stats: file.stats,
            n_scans: receipt.n_scans - n_gone,
            ..receipt
        }))
    }
}

/// Data files that an entry of the log adds, unless the application `own` made it, or it only puts rows together anew.
fn added_by_others(entry: &[u8], own: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for action in serde_json::Deserializer::from_slice(entry).into_iter::<Value>() {
        let action = action.map_err(|e| Error::Bug(format!("the log of table scans: {e}")))?;
        if action["txn"]["appId"].as_str().is_some_and(|id| id == own) {
            return Ok(Vec::new());
        }
        if action["add"]["dataChange"] == true {
            files.extend(action["add"]["path"].as_str().map(str::to_owned));
        }
    }
    Ok(files)
}

/// All rows of a data file.
async fn rows(location: &Location, table: Table, file: &str) -> Result<RecordBatch> {
    let path = location.path_of(&format!("{}/{file}", table.name()))?;
    let bytes = with_retries(async || {
        let found = location.store.get(&path).await.map_err(|e| location.explain("read a data file under", e))?;
        found.bytes().await.map_err(|e| location.explain("read a data file under", e))
    })
    .await?;
    let unreadable = |e: String| Error::Bug(format!("a data file of {}: {e}", table.name()));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| unreadable(e.to_string()))?;
    let schema = reader.schema().clone();
    let batches: Result<Vec<_>, _> = reader.build().map_err(|e| unreadable(e.to_string()))?.collect();
    concat_batches(&schema, &batches.map_err(|e| unreadable(e.to_string()))?).map_err(|e| unreadable(e.to_string()))
}

fn keys(scans: &RecordBatch) -> Result<impl Iterator<Item = Key> + use<>> {
    let [scan, content, recipe] =
        [text(scans, "scan_id")?, text(scans, "content_id")?, text(scans, "recipe_id")?].map(Clone::clone);
    Ok((0..scan.len()).map(move |i| [&scan, &content, &recipe].map(|column| column.value(i).to_owned())))
}

fn text<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a arrow::array::StringArray> {
    let column = rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    column.ok_or_else(|| Error::Bug(format!("a data file without {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_that_others_add_are_of_interest() {
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
