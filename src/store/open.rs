//! Opening an address: which store it means, with which credentials and settings.

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

use super::location::{Access, Location, credentials_hint, without_secrets};
use super::{profile, retry};
use crate::error::{Error, Result};

/// Opens a place to read. A local folder must exist; a bucket is first contacted when it is listed or read.
///
/// # Errors
/// [`Error::Config`] for an address that cannot be used, with what to write instead, and for credentials that the store's
/// client cannot use; [`Error::Io`] for a local folder that cannot be opened.
pub fn open(url_or_path: &str) -> Result<Location> {
    match classify(url_or_path)? {
        Address::Folder(path) => open_folder(FilePath::new(&path)),
        Address::Remote(url) => open_remote(url),
    }
}

/// Opens a place to write, like [`open`]; creates a local folder that does not exist.
///
/// # Errors
/// Those of [`open`], and [`Error::Io`] where the folder cannot be created.
pub fn open_or_create(url_or_path: &str) -> Result<Location> {
    if let Address::Folder(path) = classify(url_or_path)? {
        std::fs::create_dir_all(&path).map_err(|e| {
            let hint = match e.kind() {
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    "; give yourself write permission on the folder above it, or choose another folder"
                }
                _ => "",
            };
            Error::io(format!("cannot create the folder {path}{hint}"), e)
        })?;
    }
    open(url_or_path)
}

/// Opens a place to write, like [`open`], and creates nothing: a local folder that does not exist appears with its first file.
///
/// # Errors
/// Those of [`open`], except for a folder that does not exist.
pub fn open_new(url_or_path: &str) -> Result<Location> {
    match classify(url_or_path)? {
        Address::Folder(path) if !FilePath::new(&path).exists() => {
            let absolute = super::place::resolved(FilePath::new(&path))
                .map_err(|e| Error::io(format!("{path}: cannot open the folders above this one"), e))?;
            folder_at(FilePath::new(&path), &absolute)
        }
        Address::Folder(path) => open_folder(FilePath::new(&path)),
        Address::Remote(url) => open_remote(url),
    }
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
    // The errors below do not repeat the address: it may hold a password or a signature.
    let url = Url::parse(given).map_err(|e| Error::Config(format!("the address is not a URL: {e}")))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::Config(
            "the address has a part after `?` or `#`, which no store uses: remove it. Give credentials in environment \
             variables (AWS_*, AZURE_*, GOOGLE_*); write these characters in a name as %3F and %23"
                .into(),
        ));
    }
    // A store repeats the address in its own errors, so a password in it would reach the logs.
    let login = matches!(url.scheme(), "http" | "https") && !url.username().is_empty();
    if login || url.password().is_some() {
        return Err(Error::Config(
            "the address holds a user or a password: remove them, and give credentials in environment variables (AWS_*, \
             AZURE_*, GOOGLE_*)"
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
            std::io::ErrorKind::NotFound => {
                "this folder does not exist: check the spelling, and that the disk is mounted"
            }
            _ => "cannot open this folder: check that this user may read it and the folders above it",
        };
        Error::io(format!("{shown}: {what}"), e)
    })?;
    if !absolute.is_dir() {
        return Err(Error::Config(format!(
            "{shown} is a file: give its folder (and, to select this scan alone, --include with its name)"
        )));
    }
    folder_at(path, &absolute)
}

/// The folder whose absolute path is given; `path` is what the user wrote.
fn folder_at(path: &FilePath, absolute: &FilePath) -> Result<Location> {
    let shown = path.display();
    let no_url = || Error::Config(format!("{shown}: the path has characters that a URL cannot hold: rename it"));
    let url = Url::from_directory_path(absolute).map_err(|()| no_url())?;
    let root = Path::from_url_path(url.path()).map_err(|_| no_url())?;
    let mut location = Location::new(Arc::new(object_store::local::LocalFileSystem::new()), root, url);
    location.folder = Some(absolute.to_owned());
    // A link such as `current` keeps its own name, so that scan ids stay the same when its target changes.
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
    // A macro and not a function, because each builder has its own key type. Keys of another store do not parse.
    macro_rules! build {
        ($builder:expr) => {
            options
                .iter()
                .fold($builder, |b, (key, value)| match key.parse() {
                    Ok(key) => b.with_config(key, value),
                    Err(_) => b,
                })
                .with_retry(retry::of_client())
                .build()
                .map(Arc::new)
        };
    }
    let built = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            build!(object_store::aws::AmazonS3Builder::new().with_url(url.as_str())).map(with_pages)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            build!(object_store::gcp::GoogleCloudStorageBuilder::new().with_url(url.as_str())).map(with_pages)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            build!(object_store::azure::MicrosoftAzureBuilder::new().with_url(url.as_str())).map(with_pages)
        }
        ObjectStoreScheme::Http => {
            build!(object_store::http::HttpBuilder::new().with_url(&url[..url::Position::BeforePath]))
                .map(|store| (store as Arc<dyn ObjectStore>, None))
        }
        _ => return Err(unsupported()),
    };
    let (store, pages) = built.map_err(|e| {
        let (clean, hint) = (without_secrets(url.clone()), credentials_hint(url.scheme(), Access::Read));
        Error::Config(format!("cannot open {clean}; {hint}: {e}"))
    })?;
    Ok(Location { pages, ..Location::new(store, root, url) })
}

/// A store, and the same store listed page by page.
fn with_pages<S: ObjectStore + PaginatedListStore>(
    store: Arc<S>,
) -> (Arc<dyn ObjectStore>, Option<Arc<dyn PaginatedListStore>>) {
    (Arc::clone(&store) as Arc<dyn ObjectStore>, Some(store))
}

/// Settings for a store's builder. This program's defaults come first, so that the environment can change them
/// (`AWS_TIMEOUT=20m`, for example).
fn options(url: &Url, environment: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let environment: Vec<(String, String)> = environment
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
        .filter(|(key, _)| ["aws_", "azure_", "google_"].iter().any(|prefix| key.starts_with(prefix)))
        .collect();
    // The time limit is for a whole object: a volume of 200 MB over a slow line needs more than the library's 30 s.
    let mut options =
        vec![("timeout".to_owned(), "300 seconds".to_owned()), ("connect_timeout".to_owned(), "10 seconds".to_owned())];
    // An address with http:// is a decision against TLS; the library would ask for a second switch.
    let plain_endpoint = environment.iter().any(|(k, v)| k.contains("endpoint") && v.starts_with("http://"));
    if url.scheme() == "http" || plain_endpoint {
        options.push(("allow_http".to_owned(), "true".to_owned()));
    }
    options.extend(environment);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

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
