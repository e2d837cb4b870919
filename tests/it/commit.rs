//! Commits: each result becomes visible once and whole, also where several runs commit at the same time.

use std::num::NonZeroU64;
use std::sync::Arc;

use neurosieve::query;
use neurosieve::store::Location;
use neurosieve::tables::{Table, Tables};
use object_store::memory::InMemory;

use super::support::results::{DAY_ONE, MINUTE, begin, commit, count, counts, finished, open, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_repeated_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    begin(&mut tables, "r1").await;
    let receipts = write(tables.location(), vec![vec![finished("r1", "sub-01", DAY_ONE, 0.5)]], 64).await;
    let done = tables.commit("r1", 0, &receipts).await.unwrap();
    assert_eq!(done.tables, [Table::Tokens, Table::Masks, Table::Findings, Table::Scans]);
    assert!(tables.commit("r1", 0, &receipts).await.unwrap().tables.is_empty());
    // A new process knows it from the log alone.
    let mut again = open(folder.path()).await;
    assert!(again.commit("r1", 0, &receipts).await.unwrap().tables.is_empty());
    assert_eq!(counts(&again, ["raw.scans", "raw.tokens"]).await, [1, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_interrupted_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    begin(&mut tables, "r1").await;
    let receipts = write(tables.location(), vec![vec![finished("r1", "sub-01", DAY_ONE, 0.5)]], 64).await;
    let tokens: Vec<_> = receipts.iter().filter(|r| r.table == Table::Tokens).cloned().collect();
    tables.commit("r1", 0, &tokens).await.unwrap();
    // The tokens are there, but the views show no scan whose other tables are not committed.
    assert_eq!(counts(&tables, ["raw.tokens", "tokens", "scans"]).await, [4, 0, 0]);

    let rest = tables.commit("r1", 0, &receipts).await.unwrap();
    assert_eq!(rest.tables, [Table::Masks, Table::Findings, Table::Scans]);
    assert_eq!(counts(&tables, ["raw.tokens", "tokens", "scans", "masks"]).await, [4, 4, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_commit_at_the_same_time_all_count() {
    // Atomic conditional writes, as in the clouds; all runs also race to create the tables.
    let url = url::Url::parse("memory:///results").unwrap();
    let location = Location::new(Arc::new(InMemory::new()), "results".into(), url);
    let runs = (0..4).map(|i| {
        let location = location.clone();
        tokio::spawn(async move {
            let mut tables = Tables::open_or_create_at(location).await.unwrap();
            let (run, scan) = (format!("r{i}"), format!("sub-{i}"));
            commit(&mut tables, &run, vec![finished(&run, &scan, DAY_ONE, 0.5)]).await;
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    let tables = Tables::open_at(location).await.unwrap();
    assert_eq!(counts(&tables, ["scans", "tokens", "raw.scans"]).await, [4, 16, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_with_the_same_scans_at_the_same_time_leave_one_result_of_each() {
    let url = url::Url::parse("memory:///results").unwrap();
    let location = Location::new(Arc::new(InMemory::new()), "results".into(), url);
    // All runs open the tables before any of them commits. Each has one scan of its own and two that all have.
    let mut opened = Vec::new();
    for i in 0..4 {
        opened.push((format!("r{i}"), Tables::open_or_create_at(location.clone()).await.unwrap()));
    }
    let runs = opened.into_iter().map(|(run, mut tables)| {
        tokio::spawn(async move {
            let scans = ["sub-1", "sub-2", &format!("sub-{run}")].map(|scan| finished(&run, scan, DAY_ONE, 0.5));
            begin(&mut tables, &run).await;
            let mut superseded = 0;
            for (epoch, scan) in scans.into_iter().enumerate() {
                let receipts = write(tables.location(), vec![vec![scan]], 64).await;
                superseded += tables.commit(&run, epoch as i64, &receipts).await.unwrap().superseded;
            }
            superseded
        })
    });
    let mut superseded = 0;
    for run in runs.collect::<Vec<_>>() {
        superseded += run.await.unwrap();
    }
    let tables = Tables::open_at(location).await.unwrap();
    assert_eq!(counts(&tables, ["raw.scans", "scans", "tokens", "masks"]).await, [6, 6, 24, 6]);
    assert_eq!(superseded, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_takes_only_the_scans_that_no_other_run_has_committed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (open(folder.path()).await, open(folder.path()).await);
    commit(&mut first, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.5)]).await;
    // A commit that only merges files adds no result.
    first.optimize(Table::Scans, NonZeroU64::new(1 << 20).unwrap(), 1 << 28).await.unwrap();
    begin(&mut second, "r2").await;
    let scans = ["sub-1", "sub-2", "sub-3"].map(|scan| finished("r2", scan, DAY_ONE + MINUTE, 0.6));
    let receipts = write(second.location(), vec![scans.to_vec()], 64).await;
    let committed = second.commit("r2", 0, &receipts).await.unwrap();
    assert_eq!((committed.superseded, committed.tables.len()), (1, 4));
    // The second result of that scan left no row in any table.
    assert_eq!(counts(&second, ["raw.scans", "raw.tokens", "raw.masks", "raw.findings"]).await, [3, 12, 3, 3]);
    let context = query::session(&second).await.unwrap();
    assert_eq!(count(&context, "scans WHERE scan_id = 'sub-1' AND run_id = 'r1'").await, 1);
    // Committed again, as after a lost response: nothing is added.
    assert!(second.commit("r2", 0, &receipts).await.unwrap().tables.is_empty());
    assert_eq!(counts(&second, ["raw.scans"]).await, [3]);
}
