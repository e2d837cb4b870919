//! A root inside an object store: its paths, its address for people, and what its errors mean.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, io};

use object_store::ObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use url::Url;

use super::checksum::Etags;
use crate::error::{Error, Result};

/// A root inside an object store: where a cohort's scans are, or where its tables are written.
#[derive(Clone)]
pub struct Location {
    /// The store that holds the root. It takes full paths, which [`Location::path_of`] makes.
    pub store: Arc<dyn ObjectStore>,
    /// The root inside the store.
    pub root: Path,
    /// The address, without a password. For a local folder a `file://` URL.
    pub url: Url,
    pub(super) name: String,
    /// The same store, listed page by page, where it can be.
    pub(super) pages: Option<Arc<dyn PaginatedListStore>>,
    /// The root as a local folder.
    pub(super) folder: Option<PathBuf>,
    pub(super) etags: Arc<Etags>,
}

/// What was attempted at a location, which decides the next step after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Listing and reading.
    Read,
    /// Writing and deleting.
    Write,
}

impl Location {
    /// A root in a store that is already built. Its name is the last component of `root`, or the URL's host.
    pub fn new(store: Arc<dyn ObjectStore>, root: Path, url: Url) -> Self {
        // In `abfss://container@account.host/` the container is in the place of a user.
        let container = Some(url.username()).filter(|user| !user.is_empty());
        let bucket = container.or(url.host_str()).unwrap_or("cohort");
        let name = root.filename().unwrap_or(bucket).to_owned();
        Self { store, root, url: without_secrets(url), name, pages: None, folder: None, etags: Arc::default() }
    }

    /// The last component of the path, or the bucket. A cohort without a name of its own takes this one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The full path in the store of `uri`, which is relative to the root and separated by `/`.
    ///
    /// # Errors
    /// [`Error::Storage`] where `uri` is no path, for example `a//b` or `..`.
    pub fn path_of(&self, uri: &str) -> Result<Path> {
        let full = if self.root.is_root() { uri.to_owned() } else { format!("{}/{uri}", self.root) };
        Path::parse(full).map_err(|e| Error::storage(format!("`{uri}` is not a path inside {self}"), e.into()))
    }

    /// The path of an object relative to the root, or `None` for the root itself and for objects outside.
    pub fn relative<'a>(&self, path: &'a Path) -> Option<&'a str> {
        let rest = path.as_ref().strip_prefix(self.root.as_ref())?;
        let rest = if self.root.is_root() { rest } else { rest.strip_prefix('/')? };
        (!rest.is_empty()).then_some(rest)
    }

    /// True where `uri` is a link in a local folder to a file that does not exist.
    pub fn is_broken_link(&self, uri: &str) -> bool {
        let Some(path) = self.folder.as_ref().map(|folder| folder.join(uri)) else { return false };
        path.is_symlink() && std::fs::metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    }

    /// Wraps the error of a store that was read with what was attempted (`list`) and, for a usual cause, the next step.
    pub fn explain(&self, attempted: &str, source: object_store::Error) -> Error {
        self.explain_access(Access::Read, attempted, source)
    }

    /// [`explain`](Location::explain) for a store that was written to.
    pub fn explain_write(&self, attempted: &str, source: object_store::Error) -> Error {
        self.explain_access(Access::Write, attempted, source)
    }

    fn explain_access(&self, access: Access, attempted: &str, source: object_store::Error) -> Error {
        use object_store::Error as S;
        // A failed listing arrives as `Generic` from every cloud store; only its message holds the HTTP status.
        let message = source.to_string();
        let status = |code: &str| {
            message.contains(&format!("status code: {code}")) || message.contains(&format!("status {code}"))
        };
        let is_generic = matches!(source, S::Generic { .. });
        let refused_here = self.url.scheme() == "file" && is_refused(&source);
        let (hint, source) = match source {
            S::NotFound { .. } => (self.missing_hint(), source),
            S::PermissionDenied { .. } | S::Unauthenticated { .. } => {
                (credentials_hint(self.url.scheme(), access), source)
            }
            S::Generic { .. } if status("404") => {
                let path = self.root.to_string();
                (self.missing_hint(), S::NotFound { path, source: source.into() })
            }
            // The address of a cloud machine's own credentials: nothing else gave any, and this is no such machine.
            S::Generic { .. }
                if refused_here || status("401") || status("403") || message.contains("169.254.169.254") =>
            {
                let path = self.root.to_string();
                (credentials_hint(self.url.scheme(), access), S::PermissionDenied { path, source: source.into() })
            }
            S::Generic { .. } if message.contains("redirect without LOCATION") || status("301") => {
                ("the bucket is in another region: set AWS_REGION to it", source)
            }
            S::Generic { .. } if self.url.scheme() == "http" && status("405") => {
                ("the server is no WebDAV server; for an S3-compatible service use s3:// and AWS_ENDPOINT_URL", source)
            }
            other if is_generic && self.url.scheme() == "file" => (
                match access {
                    Access::Read => "check that the disk is mounted and works, then try again",
                    Access::Write => "check that the disk is mounted and has space left, then try again",
                },
                other,
            ),
            other if is_generic => {
                ("check the address and that the store can be reached, then run the same command again", other)
            }
            other => ("", other),
        };
        let hint = match message.contains("ExpiredToken") {
            true => "the credentials have expired: renew them, then run the same command again",
            false => hint,
        };
        let separator = if hint.is_empty() { "" } else { "; " };
        Error::storage(format!("cannot {attempted} {self}{separator}{hint}"), source)
    }

    fn missing_hint(&self) -> &'static str {
        match self.url.scheme() {
            "file" => "check the spelling, and that the disk is mounted",
            "http" | "https" => "check the address in a browser",
            _ => "check the spelling of the bucket, and that the credentials belong to its account",
        }
    }
}

/// The address without a password. For a local folder it is the absolute path, which may be shown but not stored.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())
    }
}

/// The same as [`Display`](fmt::Display), because a store's own `Debug` may hold credentials.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

/// Whether the file system refused, because of permissions or because it is mounted read-only.
fn is_refused(error: &object_store::Error) -> bool {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
        }
        source = error.source();
    }
    false
}

/// How to give credentials to a store of this scheme.
pub(super) fn credentials_hint(scheme: &str, access: Access) -> &'static str {
    match (scheme, access) {
        ("file", Access::Write) => {
            "give yourself write permission on this folder and everything below it, or choose another folder (--tables)"
        }
        ("s3" | "s3a", Access::Write) => "give these AWS credentials the right to list, read, write and delete there",
        ("gs", Access::Write) => "give this service account the right to list, read, write and delete there",
        (_, Access::Write) => "give these credentials the right to list, read, write and delete there",
        (scheme, Access::Read) => read_hint(scheme),
    }
}

fn read_hint(scheme: &str) -> &'static str {
    match scheme {
        "s3" | "s3a" => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, with the right to list and read; \
             for a public bucket set AWS_SKIP_SIGNATURE=true"
        }
        "gs" => {
            "set GOOGLE_APPLICATION_CREDENTIALS to a key file with the right to list and read; for a public \
             bucket set GOOGLE_SKIP_SIGNATURE=true"
        }
        "http" | "https" => "the server wants a login, which is not supported: serve the folder by S3, or copy it",
        "file" => "make the folder readable for this user",
        _ => {
            "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_KEY; for a \
             public container set AZURE_SKIP_SIGNATURE=true"
        }
    }
}

/// The URL without user, password, query and fragment, each of which may hold a secret.
pub(super) fn without_secrets(mut url: Url) -> Url {
    // Setting them fails only for a URL without a host, which has neither.
    let _ = url.set_password(None);
    if matches!(url.scheme(), "http" | "https") {
        let _ = url.set_username("");
    }
    url.set_query(None);
    url.set_fragment(None);
    url
}

#[cfg(test)]
pub(super) mod tests {
    use object_store::ObjectStoreScheme;
    use object_store::memory::InMemory;

    use super::*;

    /// An empty location at a remote address.
    pub(in crate::store) fn at(address: &str) -> Location {
        let url = Url::parse(address).unwrap();
        let (_, root) = ObjectStoreScheme::parse(&url).unwrap();
        Location::new(Arc::new(InMemory::new()), root, url)
    }

    #[test]
    fn remote_addresses_name_their_cohort_and_hide_their_secrets() {
        for (given, name, shown) in [
            ("s3://bucket/studies/ukb/", "ukb", "s3://bucket/studies/ukb/"),
            ("s3://bucket", "bucket", "s3://bucket"),
            ("gs://bucket/my%20cohort", "my cohort", "gs://bucket/my%20cohort"),
            ("az://container/ukb", "ukb", "az://container/ukb"),
            ("abfss://scans@account.dfs.core.windows.net/", "scans", "abfss://scans@account.dfs.core.windows.net/"),
            ("https://me:secret@host.org/dav/ukb", "ukb", "https://host.org/dav/ukb"),
        ] {
            let location = at(given);
            assert_eq!((location.name(), location.to_string().as_str()), (name, shown));
            assert!(!format!("{location:?}").contains("secret"));
        }
    }

    #[test]
    fn a_missing_bucket_and_a_refused_listing_are_not_worth_a_retry() {
        let location = at("s3://bucket/ukb");
        let failed = |said: &str| object_store::Error::Generic { store: "S3", source: said.to_owned().into() };
        let missing = location.explain("list", failed("Server returned non-2xx status code: 404 Not Found: "));
        assert_eq!(missing.kind(), "not_found");
        let refused = location.explain("list", failed("Server returned non-2xx status code: 403 Forbidden: "));
        assert_eq!(refused.kind(), "permission");
        assert!(refused.to_string().contains("AWS_SKIP_SIGNATURE"));
        assert_eq!(location.explain("list", failed("status code: 503 Slow Down")).kind(), "storage");
    }

    /// The message for an analyst whose tables belong to another user.
    #[test]
    fn tables_that_cannot_be_written_are_not_called_unreadable() {
        let location = at("file:///data/results");
        let refused = |kind: io::ErrorKind| object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(io::Error::from(kind)),
        };
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
            let error = location.explain_write("write to", refused(kind));
            let said = error.to_string();
            assert!(said.contains("write permission") && said.contains("--tables"), "{said}");
            assert!(!said.contains("readable"), "{said}");
            assert_eq!((error.kind(), error.retry()), ("permission", crate::error::Retry::Never));
            let error = location.explain("list", refused(kind)).to_string();
            assert!(error.contains("readable") && !error.contains("write"), "{error}");
        }
        let refused = object_store::Error::PermissionDenied { path: "x".into(), source: "403".into() };
        assert!(at("s3://bucket/x").explain_write("write to", refused).to_string().contains("read, write"));
    }
}
