//! The object stores of a process of a cluster: any address, opened with the process's own credentials.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store::ObjectStore;
use url::{Position, Url};

use crate::store;

/// Opens a store when a plan first names it. A plan carries addresses and no credentials: those are the process's own.
#[derive(Default)]
pub struct StoreRegistry {
    stores: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl fmt::Debug for StoreRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A store's own `Debug` may hold credentials.
        f.write_str("StoreRegistry")
    }
}

impl ObjectStoreRegistry for StoreRegistry {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).insert(key(url), store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(url);
        if let Some(store) = stores.get(&key) {
            return Ok(Arc::clone(store));
        }
        let store = store::open(&key)?.store;
        stores.insert(key, Arc::clone(&store));
        Ok(store)
    }
}

/// Scheme and authority: a plan's paths are below them.
fn key(url: &Url) -> String {
    format!("{}/", &url[..Position::BeforePath])
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt as _;
    use object_store::path::Path;

    use super::*;

    #[tokio::test]
    async fn stores_open_by_themselves_and_say_what_they_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "text").unwrap();
        let registry = StoreRegistry::default();
        let of_files = Url::parse("file:///").unwrap();
        let path = Path::from_absolute_path(folder.path().join("a")).unwrap();
        let read = registry.get_store(&of_files).unwrap().get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(&read[..], b"text");
        let again = Url::from_directory_path(folder.path()).unwrap();
        assert!(Arc::ptr_eq(&registry.get_store(&of_files).unwrap(), &registry.get_store(&again).unwrap()));
        let unknown = registry.get_store(&Url::parse("ftp://host/x").unwrap()).unwrap_err().to_string();
        assert!(unknown.contains("s3://"), "{unknown}");
    }
}
