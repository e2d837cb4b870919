//! Where a place is, whether it exists or not: what lies inside what.

use std::ffi::OsString;
use std::io;
use std::path::{Path as FilePath, PathBuf};

use object_store::ObjectStoreScheme;
use object_store::path::Path;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::location::Location;
use crate::hex::hexadecimal;

/// The absolute path of a file or folder that need not exist, with the links of what exists followed.
///
/// # Errors
/// The current folder or a folder above the place cannot be read, or `..` follows what does not exist.
pub fn resolved(path: &FilePath) -> io::Result<PathBuf> {
    let mut existing = std::path::absolute(path)?;
    let mut missing: Vec<OsString> = Vec::new();
    loop {
        match existing.canonicalize() {
            Ok(found) => return Ok(found.join(missing.iter().rev().collect::<PathBuf>())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(error) => match existing.file_name() {
                Some(name) => missing.push(name.to_owned()),
                None => return Err(error),
            },
        }
        existing.pop();
    }
}

impl Location {
    /// True where the address is this place or lies below it. Links of a local address are followed.
    pub fn contains(&self, address: &Url) -> bool {
        let path = |url: &Url| url.to_file_path().ok().and_then(|path| resolved(&path).ok());
        if self.url.scheme() == "file" || address.scheme() == "file" {
            return match (path(&self.url), path(address)) {
                (Some(place), Some(path)) => path.starts_with(place),
                _ => false,
            };
        }
        match (place(&self.url), place(address)) {
            (Some((scheme, bucket, place)), Some((other, its_bucket, path))) => {
                scheme == other && bucket == its_bucket && path.prefix_matches(&place)
            }
            _ => false,
        }
    }

    /// Identifies the address without revealing it: the first 32 digits of the SHA-256 of the store, the server or bucket, and
    /// the path. Two ways to write one address give the same: links to a folder, and `s3a://` for `s3://`.
    pub fn root_id(&self) -> String {
        let address = match (self.url.to_file_path(), place(&self.url)) {
            (Ok(folder), _) if self.url.scheme() == "file" => {
                format!("file\0{}", folder.canonicalize().unwrap_or(folder).display())
            }
            (_, Some((store, bucket, path))) => {
                format!("{store:?}\0{bucket}:{}\0{path}", self.url.port().unwrap_or_default())
            }
            _ => self.url.to_string(),
        };
        hexadecimal(&Sha256::digest(address)[..16])
    }
}

/// The store, the server or bucket, and the path of a remote address.
fn place(url: &Url) -> Option<(ObjectStoreScheme, String, Path)> {
    let (scheme, path) = ObjectStoreScheme::parse(url).ok()?;
    // In `abfss://container@account.host/` the container is in the place of a user.
    let container = Some(url.username()).filter(|user| !user.is_empty());
    Some((scheme, container.or(url.host_str())?.to_owned(), path))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::store::location::tests::at;

    #[test]
    fn one_address_has_one_root_id_however_it_is_written() {
        let id = |address: &str| at(address).root_id();
        assert_eq!(id("s3://bucket/site/bids/"), id("s3a://bucket/site/bids"));
        let others = ["s3://bucket/other/bids", "s3://other/site/bids", "gs://bucket/site/bids", "s3://bucket/site"];
        assert!(others.iter().all(|other| id(other) != id("s3://bucket/site/bids")));

        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let id = |path: &std::path::Path| crate::store::open(path.to_str().unwrap()).unwrap().root_id();
        assert_eq!(id(&real), id(&link));
        assert_ne!(id(&real), id(folder.path()));
    }

    #[test]
    fn a_place_contains_what_lies_below_it_by_whole_names() {
        let contains = |place: &str, address: &str| at(place).contains(&Url::parse(address).unwrap());
        assert!(contains("s3://bucket/results", "s3://bucket/results/scans/_delta_log/0.json"));
        assert!(contains("s3://bucket/results/", "s3a://bucket/results"));
        assert!(contains("az://scans/out", "abfss://scans@account.dfs.core.windows.net/out/x"));
        assert!(!contains("s3://bucket/results", "s3://bucket/results-2"));
        assert!(!contains("s3://bucket/results", "s3://other/results"));
        assert!(!contains("s3://bucket/results", "file:///results"));
        assert!(contains("s3://bucket", "s3://bucket/anything"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_what_is_missing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("tables")).unwrap();
        std::os::unix::fs::symlink(root.join("tables"), root.join("link")).unwrap();
        assert_eq!(resolved(&root.join("link/scans/new")).unwrap(), root.join("tables/scans/new"));
        assert!(resolved(&root.join("missing/../tables/x")).is_err());
        let url = |path: &str| Url::from_directory_path(root.join(path)).unwrap();
        assert!(Location::new(Arc::new(InMemory::new()), Path::default(), url("tables")).contains(&url("link/x")));
    }
}
