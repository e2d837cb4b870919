//! Reading one object whole.

use bytes::Bytes;
use object_store::GetOptions;

use super::location::Location;
use super::patience::warn_if_slow;
use super::retry::with_retries;
use crate::error::{Error, Result};

/// Reads the object at `uri`, which is relative to the location's root.
///
/// With `etag`, only that version is read: an object that was replaced since is refused. `check_size` sees the object's
/// size in bytes before its body is read, and may refuse it. Errors name the object without the location's address,
/// because they may be written to the tables. Bytes that contradict an ETag which may be their MD5 are read again.
///
/// # Errors
/// [`Error::Storage`] with the store's reason, also for a body shorter than the store announced and for one whose bytes differ
/// from reading to reading; the error of `check_size`.
pub async fn read(
    location: &Location,
    uri: &str,
    etag: Option<&str>,
    check_size: impl Fn(u64) -> Result<()>,
) -> Result<Bytes> {
    let attempt = async || {
        let first = read_once(location, uri, etag, &check_size).await?;
        if !location.etags.contradict(etag, &first).await {
            return Ok(first);
        }
        let second = read_once(location, uri, etag, &check_size).await?;
        if second == first {
            location.etags.are_no_md5();
            return Ok(first);
        }
        if !location.etags.contradict(etag, &second).await {
            return Ok(second);
        }
        let source = object_store::Error::Generic { store: "body", source: "damaged".into() };
        Err(Error::storage(format!("cannot read {uri}: its bytes differ from reading to reading"), source))
    };
    warn_if_slow("reading from the store", with_retries(attempt)).await
}

async fn read_once(
    location: &Location,
    uri: &str,
    etag: Option<&str>,
    check_size: &impl Fn(u64) -> Result<()>,
) -> Result<Bytes> {
    let path = location.path_of(uri)?;
    let options = GetOptions { if_match: etag.map(str::to_owned), ..GetOptions::default() };
    let failed = |e| Error::storage(format!("cannot read {uri}"), e);
    let found = location.store.get_opts(&path, options).await.map_err(failed)?;
    let announced = found.meta.size;
    check_size(announced)?;
    let bytes = found.bytes().await.map_err(failed)?;
    if bytes.len() as u64 != announced {
        let context = format!("cannot read {uri}: the body has {} bytes, the store announced {announced}", bytes.len());
        let source = object_store::Error::Generic { store: "body", source: "incomplete".into() };
        return Err(Error::storage(context, source));
    }
    Ok(bytes)
}
