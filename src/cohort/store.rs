//! From what a user types to an object store: `s3://`, `gs://`, `az://`, `http(s)://`, `file://` or a folder.
//!
//! Takes a URL or a local path; gives a [`Location`]: a store, the root path inside it, and a form of the URL
//! that is safe to print. Credentials and endpoints come from the standard environment variables (`AWS_*`,
//! `AZURE_*`, `GOOGLE_*`), never from the URL. Refuses, with what to do next: a scheme that it does not know, a
//! local folder that is not there, a URL with a login, a query or a fragment.
//!
//! Plain `http(s)://` is read as WebDAV. An S3-compatible service (MinIO, Ceph, R2) is `s3://bucket` with its
//! address in `AWS_ENDPOINT_URL`.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::profile;
use crate::error::{Error, Result, Retry};

/// Where a cohort's scans lie, or where its tables are written: a root inside an object store.
#[derive(Clone)]
pub struct Location {
    /// The store that holds the root. Paths handed to it are full: [`Location::path_of`] makes them.
    pub store: Arc<dyn ObjectStore>,
    /// The root inside the store.
    pub root: Path,
    /// The address, without a password. For a local folder a `file://` URL.
    pub url: Url,
    name: String,
}

impl Location {
    /// A root in a store that is already built. The name is the last component of `root`, or the URL's host.
    pub fn new(store: Arc<dyn ObjectStore>, root: Path, url: Url) -> Self {
        // In `abfss://container@account.host/` the container stands where other URLs have a user.
        let container = Some(url.username()).filter(|user| !user.is_empty());
        let bucket = container.or(url.host_str()).unwrap_or("cohort");
        let name = root.filename().unwrap_or(bucket).to_owned();
        Self { store, root, url: without_secrets(url), name }
    }

    /// The last component of the path, or the bucket: a cohort's name where the user gives none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The full path in the store of `uri`, which is relative to the root and separated by `/`.
    pub fn path_of(&self, uri: &str) -> Result<Path> {
        let full = if self.root.is_root() { uri.to_owned() } else { format!("{}/{uri}", self.root) };
        Path::parse(full).map_err(|e| Error::storage(format!("`{uri}` is not a path inside {self}"), e.into()))
    }

    /// The path of an object relative to the root, or `None` for the root itself and for what lies outside.
    pub fn relative<'a>(&self, path: &'a Path) -> Option<&'a str> {
        let rest = path.as_ref().strip_prefix(self.root.as_ref())?;
        let rest = if self.root.is_root() { rest } else { rest.strip_prefix('/')? };
        (!rest.is_empty()).then_some(rest)
    }

    /// Wraps a store's error with what was attempted and, where the cause is a usual one, what to do about it.
    pub fn explain(&self, attempted: &str, source: object_store::Error) -> Error {
        use object_store::Error as S;
        // A failed listing arrives as `Generic` from every cloud store; only its words hold the HTTP status.
        let said = source.to_string();
        let status =
            |code: &str| said.contains(&format!("status code: {code}")) || said.contains(&format!("status {code}"));
        let (hint, source) = match source {
            S::NotFound { .. } => (self.missing_hint(), source),
            S::PermissionDenied { .. } | S::Unauthenticated { .. } => (credentials_hint(self.url.scheme()), source),
            S::Generic { .. } if status("404") => {
                let path = self.root.to_string();
                (self.missing_hint(), S::NotFound { path, source: source.into() })
            }
            S::Generic { .. } if status("401") || status("403") || said.contains("169.254.169.254") => {
                let path = self.root.to_string();
                (credentials_hint(self.url.scheme()), S::PermissionDenied { path, source: source.into() })
            }
            S::Generic { .. } if said.contains("redirect without LOCATION") || status("301") => {
                ("the bucket lies in another region, set AWS_REGION to it", source)
            }
            S::Generic { .. } if self.url.scheme() == "http" && status("405") => {
                ("the server does not speak WebDAV (an S3-compatible service is s3:// with AWS_ENDPOINT_URL)", source)
            }
            S::Generic { .. } if self.url.scheme() == "file" => {
                ("make every folder and file below it readable, or name a folder that is", source)
            }
            other => ("", other),
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

/// The address without a password. Of a local folder it is the absolute path: show it, do not store it.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())
    }
}

/// The same as [`Display`](fmt::Display): a store's own `Debug` may hold credentials.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

/// Opens a place to read. A local folder must be there; a bucket is first asked when it is listed.
pub fn open(url_or_path: &str) -> Result<Location> {
    match classify(url_or_path)? {
        Address::Folder(path) => open_folder(FilePath::new(&path)),
        Address::Remote(url) => open_remote(url),
    }
}

/// Opens a place to write: as [`open`], but a local folder that is not there is made.
pub fn open_or_create(url_or_path: &str) -> Result<Location> {
    if let Address::Folder(path) = classify(url_or_path)? {
        std::fs::create_dir_all(&path).map_err(|e| Error::io(format!("cannot make the folder {path}"), e))?;
    }
    open(url_or_path)
}

enum Address {
    Folder(String),
    Remote(Url),
}

fn classify(url_or_path: &str) -> Result<Address> {
    let given = url_or_path.trim();
    if given.is_empty() {
        return Err(Error::Config("the address is empty: give a folder or a URL such as s3://bucket/cohort".into()));
    }
    if !given.contains("://") {
        return Ok(Address::Folder(given.to_owned()));
    }
    // These errors do not repeat the address: it may hold a password or a signature.
    let url = Url::parse(given).map_err(|e| Error::Config(format!("the address is not a URL ({e})")))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::Config(
            "the address has a part after `?` or `#`, which is never used: leave it out, give credentials by \
             environment variables (AWS_*, AZURE_*, GOOGLE_*), and write these characters in a name as %3F and %23"
                .into(),
        ));
    }
    // Stores repeat the address in their own errors, so a password in it would end up in logs.
    let login = matches!(url.scheme(), "http" | "https") && !url.username().is_empty();
    if login || url.password().is_some() {
        return Err(Error::Config(
            "the address holds a user or a password: leave them out, and give credentials by environment variables \
             (AWS_*, AZURE_*, GOOGLE_*)"
                .into(),
        ));
    }
    if url.scheme() != "file" {
        return Ok(Address::Remote(url));
    }
    let path = url.to_file_path().ok().and_then(|p| p.into_os_string().into_string().ok());
    path.map(Address::Folder).ok_or_else(|| {
        Error::Config("a file:// address needs an absolute path and no host: file:///data/cohort".into())
    })
}

fn open_folder(path: &FilePath) -> Result<Location> {
    let shown = path.display();
    let absolute = std::fs::canonicalize(path).map_err(|e| {
        let what = match e.kind() {
            std::io::ErrorKind::NotFound => "there is no such folder: check the spelling, and that the disk is mounted",
            _ => "cannot open this folder: check that this user may read it and the folders above it",
        };
        Error::io(format!("{shown}: {what}"), e)
    })?;
    if !absolute.is_dir() {
        return Err(Error::Config(format!(
            "{shown} is a file: give the folder that holds it (to take one scan, add --include with its name)"
        )));
    }
    let no_url = || Error::Config(format!("{shown}: the path has characters that cannot stand in a URL; rename it"));
    let url = Url::from_directory_path(&absolute).map_err(|()| no_url())?;
    let root = Path::from_url_path(url.path()).map_err(|_| no_url())?;
    let mut location = Location::new(Arc::new(object_store::local::LocalFileSystem::new()), root, url);
    // A link such as `current` keeps the name it was called by, so that scan ids survive a move of its target.
    if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
        location.name = name.to_owned();
    }
    Ok(location)
}

fn open_remote(url: Url) -> Result<Location> {
    let unsupported = || {
        Error::Config(format!(
            "`{}://` is not supported: use s3://, gs://, az://, abfss://, https:// (WebDAV), file:// or a folder",
            url.scheme()
        ))
    };
    let (scheme, root) = ObjectStoreScheme::parse(&url).map_err(|_| unsupported())?;
    let profile = match scheme {
        ObjectStoreScheme::AmazonS3 => profile::options(|name| std::env::var(name).ok())?,
        _ => Vec::new(),
    };
    let options = options(&url, profile.into_iter().chain(std::env::vars()));
    // Each builder has its own key type, so a macro and not a function; keys of another store do not parse.
    macro_rules! build {
        ($builder:expr) => {
            options
                .iter()
                .fold($builder, |b, (key, value)| match key.parse() {
                    Ok(key) => b.with_config(key, value),
                    Err(_) => b,
                })
                .with_retry(retry())
                .build()
                .map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
        };
    }
    let store = match scheme {
        ObjectStoreScheme::AmazonS3 => build!(object_store::aws::AmazonS3Builder::new().with_url(url.as_str())),
        ObjectStoreScheme::GoogleCloudStorage => {
            build!(object_store::gcp::GoogleCloudStorageBuilder::new().with_url(url.as_str()))
        }
        ObjectStoreScheme::MicrosoftAzure => {
            build!(object_store::azure::MicrosoftAzureBuilder::new().with_url(url.as_str()))
        }
        ObjectStoreScheme::Http => {
            build!(object_store::http::HttpBuilder::new().with_url(&url[..url::Position::BeforePath]))
        }
        _ => return Err(unsupported()),
    };
    let store = store.map_err(|e| {
        let (clean, hint) = (without_secrets(url.clone()), credentials_hint(url.scheme()));
        Error::Config(format!("cannot set up {clean}; {hint}: {e}"))
    })?;
    Ok(Location::new(store, root, url))
}

/// What to set so that a store of this scheme lets the program in.
fn credentials_hint(scheme: &str) -> &'static str {
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

/// Settings for a store's builder: this program's defaults first, so that the environment can change them
/// (`AWS_TIMEOUT=20m`, for example).
fn options(url: &Url, environment: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let environment: Vec<(String, String)> = environment
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
        .filter(|(key, _)| ["aws_", "azure_", "google_"].iter().any(|prefix| key.starts_with(prefix)))
        .collect();
    // The time limit covers a whole object: a 200 MB volume over a slow line needs more than the library's 30 s.
    let mut options =
        vec![("timeout".to_owned(), "300 seconds".to_owned()), ("connect_timeout".to_owned(), "10 seconds".to_owned())];
    // Who writes http:// has chosen to go without TLS; asking for a second switch only puzzles.
    let plain_endpoint = environment.iter().any(|(k, v)| k.contains("endpoint") && v.starts_with("http://"));
    if url.scheme() == "http" || plain_endpoint {
        options.push(("allow_http".to_owned(), "true".to_owned()));
    }
    options.extend(environment);
    options
}

/// Server errors and dropped connections are tried again for about 10 s in sum: enough for a throttled bucket,
/// short enough for somebody who mistyped an endpoint.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 6, retry_timeout: Duration::from_secs(120), ..RetryConfig::default() }
}

/// How often something is tried that a store failed to do for a passing reason, its own client's tries aside.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Does `work` again, up to three times, while it fails for a reason that may pass: a body that broke off, a server that was
/// busy for longer than the client waits. Pauses of a quarter of a second, one and four, each up to twice as long by chance,
/// so that many processes do not come back at once.
pub(crate) async fn with_retries<T, F: Future<Output = Result<T>>>(work: impl Fn() -> F) -> Result<T> {
    let mut tried = 1;
    loop {
        let error = match work().await {
            Err(error) if tried < TRIES && error.retry() == Retry::Backoff && !error.is_about_content() => error,
            outcome => return outcome,
        };
        let pause = FIRST_PAUSE * 4_u32.pow(tried - 1);
        tracing::warn!(tried, kind = error.kind(), "the store failed, trying again");
        tokio::time::sleep(pause.mul_f64(1. + rand::random::<f64>())).await;
        tried += 1;
    }
}

fn without_secrets(mut url: Url) -> Url {
    // These fail only for URLs without a host, which hold neither.
    let _ = url.set_password(None);
    if matches!(url.scheme(), "http" | "https") {
        let _ = url.set_username("");
    }
    url.set_query(None);
    url.set_fragment(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let url = Url::parse(given).unwrap();
            let (_, root) = ObjectStoreScheme::parse(&url).unwrap();
            let location = Location::new(Arc::new(object_store::memory::InMemory::new()), root, url);
            assert_eq!((location.name(), location.to_string().as_str()), (name, shown));
            assert!(!format!("{location:?}").contains("secret"));
        }
    }

    #[test]
    fn only_store_variables_reach_a_builder_and_plain_http_endpoints_work() {
        let url = Url::parse("s3://bucket").unwrap();
        let environment = [("PATH", "/bin"), ("AWS_ENDPOINT_URL", "http://localhost:9000"), ("TIMEOUT", "1s")];
        let options = options(&url, environment.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(options.contains(&("aws_endpoint_url".into(), "http://localhost:9000".into())));
        assert!(options.contains(&("allow_http".into(), "true".into())));
        assert!(options.iter().all(|(key, value)| key != "path" && value != "1s"));
    }

    #[test]
    fn every_cloud_address_builds_its_store() {
        for given in ["s3://bucket/ukb", "s3a://bucket", "https://host.org/dav", "http://localhost:1/dav"] {
            assert!(open(given).is_ok(), "{given}");
        }
    }

    #[test]
    fn a_missing_bucket_and_a_refused_listing_are_not_worth_a_retry() {
        let location = open("s3://bucket/ukb").unwrap();
        let failed = |said: &str| object_store::Error::Generic { store: "S3", source: said.to_owned().into() };
        let missing = location.explain("list", failed("Server returned non-2xx status code: 404 Not Found: "));
        assert_eq!(missing.kind(), "not_found");
        let refused = location.explain("list", failed("Server returned non-2xx status code: 403 Forbidden: "));
        assert_eq!(refused.kind(), "permission");
        assert!(refused.to_string().contains("AWS_SKIP_SIGNATURE"));
        assert_eq!(location.explain("list", failed("status code: 503 Slow Down")).kind(), "storage");
    }

    #[test]
    fn what_cannot_be_opened_says_what_to_do() {
        let said = |given: &str| open(given).unwrap_err().to_string();
        assert!(said("ftp://host/x").contains("s3://"));
        assert!(said("no/such/folder").contains("check the spelling"));
        assert!(said(" ").contains("give a folder"));
        let signed = said("https://account.blob.core.windows.net/c?sig=secret");
        assert!(signed.contains("AZURE_") && !signed.contains("secret"), "{signed}");
        let login = said("https://me:secret@host.org/dav");
        assert!(login.contains("password") && !login.contains("secret"), "{login}");
    }
}
