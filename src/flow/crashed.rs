//! The row of a scan that ended every process that screened it: written by the process that commits, since none was left to write it.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::order::Order;
use super::rows::{self, Failed};
use crate::cohort::ScanEntry;
use crate::error::{Error, Result};
use crate::store::Location;
use crate::tables::{DataFile, Receipt, Table, scan_rows};

/// Writes a permanent failure of kind `crashed` below `tables`; gives its receipt as a roll.
///
/// # Errors
/// [`Error::Storage`] where the file cannot be written.
pub async fn write_crash(order: &Arc<Order>, entry: ScanEntry, tables: &Location) -> Result<RecordBatch> {
    let error = Error::Crashed(
        "executors of the cluster died each time they screened this scan, at last alone: look at it with `neurosieve inspect` and \
         exclude it, or give the executors more memory; `--retry` tries it again"
            .to_owned(),
    );
    let message = error.text();
    let failed = Failed { stage: "score", error: &error, message, sha256: None, permanent: true };
    let row = rows::failed(order, &entry, failed)?;
    let failures = Table::SCREENED.iter().zip(scan_rows(&row, 0)?).find(|(table, _)| **table == Table::Failures);
    let (_, failure) = failures.ok_or_else(|| Error::Bug("a scan without a row in failures".into()))?;
    let file = DataFile::encode(Table::Failures, &[failure])?;
    let path = file.put(tables, Table::Failures).await?;
    Receipt::to_batch(&[Receipt {
        batch_id: uuid::Uuid::now_v7().to_string(),
        table: Table::Failures,
        path,
        size_bytes: file.bytes.len() as i64,
        num_rows: file.num_rows as i64,
        stats: file.stats,
        n_scans: 0,
        n_failed: 1,
    }])
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use url::Url;

    use super::*;

    #[tokio::test]
    async fn a_crash_is_one_row_with_its_receipt() {
        let tables = Location::new(Arc::new(InMemory::new()), Path::from("t"), Url::parse("memory:///t").unwrap());
        let batch = write_crash(&Arc::new(Order::sample()), ScanEntry::sample("a"), &tables).await.unwrap();
        let receipts = Receipt::from_batch(&batch).unwrap();
        let [receipt] = receipts.as_slice() else { panic!("{receipts:?}") };
        assert_eq!((receipt.table, receipt.num_rows, receipt.n_scans, receipt.n_failed), (Table::Failures, 1, 0, 1));
        assert!(receipt.stats.contains("\"numRecords\":1"), "{}", receipt.stats);
    }
}
