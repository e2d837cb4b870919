//! One Delta table over this program's own store: loading and creating it.

use std::sync::Arc;
use std::time::Duration;

use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, MetadataExt as _, Protocol, StructType, Version, new_metadata};
use deltalake_core::logstore::{StorageConfig, default_logstore};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaResult, DeltaTable, DeltaTableError, TableProperty};
use futures::TryStreamExt as _;
use futures::future::join_all;
use object_store::prefix::PrefixStore;
use object_store::{Error as Store, ObjectStoreExt as _, PutMode};
use serde_json::json;
use url::Url;

use super::schema::Table;
use crate::error::{Error, Result};
use crate::store::{Location, warn_if_slow, with_patience, with_retries};

/// How long the log remembers the commits of a run: longer than any run, but not for ever, because each run adds an entry
/// to every checkpoint.
const TRANSACTION_RETENTION: &str = "interval 30 days";

/// Commits between two checkpoints of a log. The library reads all commits since the last checkpoint at every commit.
const CHECKPOINT_INTERVAL: &str = "10";

/// How many commits before the current version are looked at: more than lie between two checkpoints.
const RECENT_COMMITS: Version = 20;

/// How long a table in a store that fails is read again before that is an error.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits for all, also where one has failed, and gives their results or the first error. The library reads logs on threads
/// that cannot be cancelled: where the program ends while another table is still being read, they panic.
pub(super) async fn all_of<T>(work: impl IntoIterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    join_all(work).await.into_iter().collect()
}

/// Loads a table; `None` where it does not exist.
///
/// # Errors
/// [`Error::Table`] where it exists and cannot be read; [`Error::Config`] for an address that cannot hold tables.
pub(super) async fn load(location: &Location, table: Table) -> Result<Option<DeltaTable>> {
    // A failing local disk does not recover by waiting.
    let patience = if location.url.scheme() == "file" { Duration::ZERO } else { PATIENCE };
    warn_if_slow("opening the tables", with_patience(patience, || load_once(location, table))).await
}

async fn load_once(location: &Location, table: Table) -> Result<Option<DeltaTable>> {
    let unreadable = |e| unreadable(location, table, e);
    let mut delta = handle(location, table)?;
    if !delta.verify_deltatable_existence().await.map_err(unreadable)? {
        return Ok(None);
    }
    delta.load().await.map_err(unreadable)?;
    refuse_empty_commits(location, table, delta.version().unwrap_or_default()).await?;
    Ok(Some(delta))
}

/// The error of a table whose log cannot be read, with the next step.
pub(super) fn unreadable(location: &Location, table: Table, error: DeltaTableError) -> Error {
    let (name, message) = (table.name(), error.to_string());
    let context = format!("cannot read table {name} at {location}");
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let next = if says(&["Permission denied", "PermissionDenied", "Unauthenticated", "403", "401"]) {
        format!("make the folder {name} and its _delta_log readable for this user")
    } else if says(&["Unsupported", "unsupported"]) {
        "another program wrote it with features that this one does not know: read it with that program, or screen into new \
         tables"
            .to_owned()
    } else {
        damaged(name)
    };
    let error = Error::table(format!("{context}; {next}"), error);
    let of_store = error.is_of_store() && location.url.scheme() != "file";
    match error {
        Error::Table { source, .. } if of_store => Error::Table {
            context: format!("{context}; check that the store can be reached, then run the same command again"),
            source,
        },
        error => error,
    }
}

fn damaged(name: &str) -> String {
    format!(
        "its log {name}/_delta_log is damaged or incomplete: restore that folder from a backup, or screen into new tables"
    )
}

/// Refuses a log with empty commits, which a crash of the machine leaves behind. The library reads them as commits without
/// rows, so that results would be missing silently.
async fn refuse_empty_commits(location: &Location, table: Table, version: Version) -> Result<()> {
    let log = location.path_of(&format!("{}/_delta_log", table.name()))?;
    // Earlier commits are in a checkpoint, or soon are.
    let first = version.saturating_sub(RECENT_COMMITS);
    let from = log.clone().join(format!("{first:020}"));
    let mut recent = location.store.list_with_offset(Some(&log), &from);
    while let Some(object) = recent.try_next().await.map_err(|e| location.explain("list", e))? {
        let is_commit = object.location.filename().is_some_and(|name| name.len() == 25 && name.ends_with(".json"));
        if is_commit && object.size == 0 {
            return Err(Error::Config(format!(
                "cannot read table {0} at {location}; {1} ({2} is empty)",
                table.name(),
                damaged(table.name()),
                object.location.filename().unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// Creates a table, or loads it where another process created it meanwhile.
///
/// # Errors
/// [`Error::Table`] where neither succeeds; [`Error::Config`] for an address that cannot hold tables or holds files of
/// others.
pub(super) async fn create(location: &Location, table: Table) -> Result<DeltaTable> {
    refuse_files_of_others(location, table).await?;
    let attempt = async || {
        let created = commit_creation(location, table).await;
        // Where another process has created it meanwhile, or the answer was lost, this commit has failed.
        match (load(location, table).await?, created) {
            (Some(delta), _) => Ok(delta),
            (None, Err(error)) => Err(uncreated(location, table, error)),
            (None, Ok(())) => Err(Error::Bug(format!("table {} is created and not there", table.name()))),
        }
    };
    warn_if_slow("creating the tables", with_retries(attempt)).await
}

/// Commits the first entry of a table's log. Not with the library's builder, which writes the table's address into it: the log
/// must not say in which folder a machine keeps its tables.
async fn commit_creation(location: &Location, table: Table) -> DeltaResult<()> {
    let unusable = |e: Error| DeltaTableError::Generic(e.to_string());
    let schema = StructType::try_new(table.delta_fields().map_err(unusable)?)?;
    let properties = [
        (TableProperty::SetTransactionRetentionDuration, TRANSACTION_RETENTION),
        (TableProperty::CheckpointInterval, CHECKPOINT_INTERVAL),
    ];
    let properties = properties.map(|(key, value)| (key.as_ref().to_owned(), value));
    let metadata = new_metadata(&schema, [] as [&str; 0], properties)?;
    let metadata = metadata.with_name(table.name().to_owned())?.with_description(table.doc().to_owned())?;
    let protocol: Protocol = serde_json::from_value(json!({"minReaderVersion": 1, "minWriterVersion": 2}))?;
    let operation = DeltaOperation::Create {
        mode: SaveMode::ErrorIfExists,
        location: Url::parse(&format!("table:///{}", table.name()))
            .map_err(|e| DeltaTableError::Generic(e.to_string()))?,
        protocol: protocol.clone(),
        metadata: metadata.clone(),
    };
    // With retries, the second of two processes would commit its metadata over that of the first.
    CommitBuilder::from(CommitProperties::default().with_max_retries(0))
        .with_actions(vec![Action::Protocol(protocol), Action::Metadata(metadata)])
        .build(None, handle(location, table).map_err(unusable)?.log_store(), operation)
        .await
        .map(drop)
}

/// Refuses to make a table of a folder with files of others, which `vacuum` would delete, and of a data set's own folder.
async fn refuse_files_of_others(location: &Location, table: Table) -> Result<()> {
    let name = table.name();
    let refuse = |why: String| {
        Err(Error::Config(format!(
            "cannot create tables in {location}: {why}. Give the tables a new folder of their own"
        )))
    };
    if location.store.head(&location.path_of("dataset_description.json")?).await.is_ok() {
        return refuse("it is the folder of a data set".to_owned());
    }
    let root = location.path_of(name)?;
    let found = location.store.list_with_delimiter(Some(&root)).await.map_err(|e| location.explain("list", e))?;
    // Another process may be creating the table.
    if found.common_prefixes.iter().any(|folder| folder.filename() == Some("_delta_log")) {
        return Ok(());
    }
    if found.common_prefixes.is_empty() && found.objects.iter().all(|object| object.location == root) {
        return Ok(());
    }
    refuse(format!("its folder `{name}` holds files that are no table"))
}

/// Writes an object under the condition that it does not exist, twice. A store that accepts the second write cannot
/// arbitrate between two commits.
///
/// # Errors
/// [`Error::Storage`] for such a store, and where the place cannot be written to.
pub(super) async fn refuse_without_conditional_writes(location: &Location) -> Result<()> {
    warn_if_slow("trying to write where the tables are", with_retries(|| probe_conditional_writes(location))).await
}

async fn probe_conditional_writes(location: &Location) -> Result<()> {
    let path = location.path_of(&format!("_conditional_write_{}", uuid::Uuid::now_v7()))?;
    let create = || location.store.put_opts(&path, "probe".into(), PutMode::Create.into());
    let unsupported = |source: object_store::Error| {
        Error::storage(
            format!(
                "{location} has no conditional writes (`If-None-Match: *`), without which two runs could overwrite each \
                 other's commits; put the tables into another store, or on a disk"
            ),
            source,
        )
    };
    let outcome = match create().await {
        Err(error @ (Store::NotImplemented { .. } | Store::NotSupported { .. })) => return Err(unsupported(error)),
        // The name is unique: the answer to the client's first request was lost, and its second one was refused.
        Err(refused @ (Store::AlreadyExists { .. } | Store::Precondition { .. })) => Err(refused),
        Err(error) => return Err(location.explain_write("write to", error)),
        Ok(_) => create().await,
    };
    // An object that cannot be deleted is harmless.
    let _ = location.store.delete(&path).await;
    match outcome {
        Err(Store::AlreadyExists { .. } | Store::Precondition { .. }) => Ok(()),
        Err(error) => Err(location.explain_write("write to", error)),
        Ok(_) => Err(unsupported(Store::NotSupported { source: "the second write was accepted".into() })),
    }
}

/// A table over our own store, not loaded. The Delta library splits a table's URL into store and path; it gets a URL with
/// the path inside the store, which for some Azure addresses is not the one that users write.
fn handle(location: &Location, table: Table) -> Result<DeltaTable> {
    let path = location.path_of(table.name())?;
    let url = table_url(&location.url, path.as_ref())?;
    let prefixed = Arc::new(PrefixStore::new(Arc::clone(&location.store), path));
    let store = Arc::clone(&location.store);
    Ok(DeltaTable::new(default_logstore(prefixed, store, &url, &StorageConfig::default())))
}

fn table_url(base: &Url, path: &str) -> Result<Url> {
    let mut url = base.clone();
    let unusable = |()| Error::Config(format!("{base} cannot hold tables: give a folder or a bucket"));
    url.path_segments_mut().map_err(unusable)?.clear().extend(path.split('/')).push("");
    Ok(url)
}

fn uncreated(location: &Location, table: Table, error: DeltaTableError) -> Error {
    Error::table(format!("cannot create table {} at {location}; check that you may write there", table.name()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_url_decodes_to_its_path_in_the_store() {
        let base = Url::parse("https://account.blob.core.windows.net/container/out").unwrap();
        let path = object_store::path::Path::parse("out/100% done/scans").unwrap();
        let url = table_url(&base, path.as_ref()).unwrap();
        assert_eq!(url.as_str(), "https://account.blob.core.windows.net/out/100%25%20done/scans/");
        assert_eq!(object_store::path::Path::from_url_path(url.path()).unwrap(), path);
    }
}
