//! Bundles beside the tables: how the processes of a cluster get a bundle that is not built into the program.
//!
//! ```text
//! driver ─► _bundles/<digest>/bundle.toml, *.safetensors ─► executor: a folder by digest, checked against the digest
//! ```

use std::path::Path;

use object_store::{ObjectStoreExt as _, PutPayload};

use super::order::Order;
use crate::error::{Error, Result};
use crate::model::{Bundle, bundle_files};
use crate::store::{self, Location};

/// The folder of bundles.
pub(super) const FOLDER: &str = "_bundles";

/// The description of a bundle, which holds the checksums of the other files.
const DESCRIPTION: &str = "bundle.toml";

/// Larger files belong to no bundle.
const LARGEST: u64 = 4 << 30;

/// Copies the bundle in the folder `name` beside the tables. The built-in one is in every program.
///
/// # Errors
/// [`Error::Io`] where a file cannot be read, [`Error::Storage`] where one cannot be written.
pub async fn share(name: &str, bundle: &Bundle, tables: &Location) -> Result<()> {
    if name == "built-in" {
        return Ok(());
    }
    // The description last: a bundle with a description is complete.
    let files = bundle_files(&bundle.info).chain([DESCRIPTION.to_owned()]);
    for file in files {
        let path = Path::new(name).join(&file);
        let bytes = tokio::fs::read(&path).await;
        let bytes = bytes.map_err(|e| Error::io(format!("cannot read {file} of the bundle"), e))?;
        let target = tables.path_of(&format!("{FOLDER}/{}/{file}", bundle.digest))?;
        let put = tables.store.put(&target, PutPayload::from(bytes)).await;
        put.map_err(|e| tables.explain_write("copy the bundle to", e))?;
    }
    Ok(())
}

/// The bundle of an order, and how `Bundle::open` names it: the built-in one, or that which the driver shared, by way of a folder
/// below `cache`.
///
/// # Errors
/// [`Error::Model`] where there is none with this digest, storage errors, [`Error::Io`] where it cannot be kept.
pub(super) async fn find(order: &Order, tables: &Location, cache: Option<&Path>) -> Result<(Bundle, String)> {
    // A bundle of 20 MB is read and hashed.
    let built_in = off_the_runtime(Bundle::built_in).await?;
    if built_in.digest == order.bundle_digest {
        return Ok((built_in, "built-in".to_owned()));
    }
    let digest = &order.bundle_digest;
    let Some(cache) = cache.filter(|_| is_digest(digest)) else { return Err(absent(order)) };
    let folder = cache.join(digest);
    if !folder.join(DESCRIPTION).is_file() {
        fetch(order, tables, &folder).await?;
    }
    let name = folder.display().to_string();
    let opened = name.clone();
    let bundle = off_the_runtime(move || Bundle::open(&opened)).await?;
    if &bundle.digest == digest { Ok((bundle, name)) } else { Err(absent(order)) }
}

/// Runs what computes for long on a thread for that.
async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::Bug("reading a bundle panicked".into())))
}

/// Copies a shared bundle into `folder`, its description last.
async fn fetch(order: &Order, tables: &Location, folder: &Path) -> Result<()> {
    let digest = &order.bundle_digest;
    let read = async |file: &str| {
        let uri = format!("{FOLDER}/{digest}/{file}");
        let read = store::read(tables, &uri, None, |size| {
            if size <= LARGEST { Ok(()) } else { Err(Error::Model(format!("{file} of a bundle has {size} bytes"))) }
        });
        read.await.map_err(|error| if error.kind() == "not_found" { absent(order) } else { error })
    };
    let kept = |e| Error::io("cannot keep a bundle in the executor's folder", e);
    let description = read(DESCRIPTION).await?;
    let info = Bundle::describe(&String::from_utf8_lossy(&description))?;
    tokio::fs::create_dir_all(folder).await.map_err(kept)?;
    for file in bundle_files(&info) {
        tokio::fs::write(folder.join(&file), read(&file).await?).await.map_err(kept)?;
    }
    tokio::fs::write(folder.join(DESCRIPTION), description).await.map_err(kept)
}

fn absent(order: &Order) -> Error {
    Error::Model(format!(
        "the bundle {} of the run is neither built into this program nor beside the tables: start the same program everywhere, and \
         let the driver write beside the tables",
        order.bundle
    ))
}

/// Whether this is a SHA-256 in hexadecimal digits: it becomes the name of a folder.
fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use url::Url;

    use super::*;

    #[tokio::test]
    async fn a_bundle_is_found_by_its_digest_and_a_damaged_one_is_refused() {
        let tables = Location::new(
            Arc::new(InMemory::new()),
            object_store::path::Path::from("tables"),
            Url::parse("memory:///tables").unwrap(),
        );
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/models/t1w-2mm");
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(source).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let toml = folder.path().join(DESCRIPTION);
        let text = std::fs::read_to_string(&toml).unwrap();
        std::fs::write(&toml, format!("# another bundle\n{text}")).unwrap();
        let name = folder.path().display().to_string();
        let bundle = Bundle::open(&name).unwrap();
        let order = Order { bundle_digest: bundle.digest.clone(), ..Order::sample() };
        let cache = tempfile::tempdir().unwrap();
        let missing = find(&order, &tables, Some(cache.path())).await.unwrap_err();
        assert_eq!(missing.kind(), "model");
        share(&name, &bundle, &tables).await.unwrap();
        let (found, place) = find(&order, &tables, Some(cache.path())).await.unwrap();
        assert_eq!(
            (found.digest, place),
            (bundle.digest.clone(), cache.path().join(&bundle.digest).display().to_string())
        );

        let path = tables.path_of(&format!("{FOLDER}/{}/detector.safetensors", bundle.digest)).unwrap();
        tables.store.put(&path, PutPayload::from_static(b"damaged")).await.unwrap();
        let cache = tempfile::tempdir().unwrap();
        assert!(find(&order, &tables, Some(cache.path())).await.unwrap_err().to_string().contains("damaged"));
        let escaping = Order { bundle_digest: "../../etc".into(), ..order };
        assert_eq!(find(&escaping, &tables, Some(cache.path())).await.unwrap_err().kind(), "model");
    }
}
