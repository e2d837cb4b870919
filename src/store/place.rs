//! Where a place is, whether it exists or not: what lies inside what.

use std::ffi::OsString;
use std::io;
use std::path::{Path as FilePath, PathBuf};

use object_store::ObjectStoreScheme;
use object_store::path::Path;
use url::Url;

use super::location::Location;

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
        let root = |url: &Url| -> Option<(ObjectStoreScheme, String, Path)> {
            let (scheme, root) = ObjectStoreScheme::parse(url).ok()?;
            // In `abfss://container@account.host/` the container is in the place of a user.
            let container = Some(url.username()).filter(|user| !user.is_empty());
            Some((scheme, container.or(url.host_str())?.to_owned(), root))
        };
        match (root(&self.url), root(address)) {
            (Some((scheme, bucket, place)), Some((other, its_bucket, path))) => {
                scheme == other && bucket == its_bucket && path.prefix_matches(&place)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    fn at(address: &str) -> Location {
        let url = Url::parse(address).unwrap();
        let (_, root) = ObjectStoreScheme::parse(&url).unwrap();
        Location::new(Arc::new(InMemory::new()), root, url)
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
