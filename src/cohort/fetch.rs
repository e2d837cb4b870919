//! Reading one scan's bytes.

use bytes::Bytes;
use object_store::GetOptions;

use super::Location;
use crate::error::{Error, Result};

/// Reads the object `uri` (relative to the location's root) whole.
///
/// `etag`: what the listing saw; an object replaced since then is refused, so that no result is
/// filed under content that was never read. `limit_bytes`: a larger object is refused unread.
///
/// # Errors
/// [`Error::Storage`], with the store's reason; [`Error::Input`] for an object above the limit.
pub async fn read(location: &Location, uri: &str, etag: Option<&str>, limit_bytes: u64) -> Result<Bytes> {
    let path = location.path_of(uri)?;
    let options = GetOptions { if_match: etag.map(str::to_owned), ..GetOptions::default() };
    // Without the location's address: the message goes into the tables.
    let failed = |e| Error::storage(format!("cannot read {uri}"), e);
    let found = location.store.get_opts(&path, options).await.map_err(failed)?;
    if found.meta.size > limit_bytes {
        return Err(Error::input(
            "too_large",
            format!("{uri} has {} bytes, more than run.max_scan_mib allows ({limit_bytes} bytes)", found.meta.size),
        ));
    }
    found.bytes().await.map_err(failed)
}
