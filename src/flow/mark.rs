//! The mark of a run beside the tables: `_runs/<run id>`.
//!
//! The driver of a cluster writes it before the first chunk, and deletes it at the end. An executor that does not see it looks at
//! another place than the driver, such as a folder of its own machine, and refuses the run before a scan is read.

use object_store::{ObjectStoreExt as _, PutPayload};

use crate::error::{Error, Result};
use crate::store::Location;

/// The folder of the marks.
pub(super) const FOLDER: &str = "_runs";

fn path(tables: &Location, run_id: &str) -> Result<object_store::path::Path> {
    // The id comes from another process: `path_of` refuses what would lead out of the folder.
    tables.path_of(&format!("{FOLDER}/{run_id}"))
}

/// Writes the mark of a run.
///
/// # Errors
/// [`Error::Storage`] where that is not possible.
pub async fn set(tables: &Location, run_id: &str) -> Result<()> {
    let put = tables.store.put(&path(tables, run_id)?, PutPayload::from_static(b"running\n")).await;
    put.map_err(|e| tables.explain_write("write the mark of the run at", e))?;
    Ok(())
}

/// Whether the mark of a run is there.
///
/// # Errors
/// [`Error::Storage`] where the store does not say.
pub(super) async fn is_seen(tables: &Location, run_id: &str) -> Result<bool> {
    match tables.store.head(&path(tables, run_id)?).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(Error::storage("cannot read the mark of the run", error)),
    }
}

/// Deletes the mark of a run. One that stays says nothing wrong, and upkeep deletes it.
pub async fn clear(tables: &Location, run_id: &str) {
    let Ok(path) = path(tables, run_id) else { return };
    if let Err(error) = tables.store.delete(&path).await {
        tracing::info!("the mark of the run stays: {}", Error::storage("cannot delete it", error));
    }
}
