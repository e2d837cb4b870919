//! Listing everything below a location.

use futures::stream::{BoxStream, StreamExt as _};

use super::entry::{Entry, Fault, Unusable, refused_name};
use super::folder;
use super::location::Location;
use super::pages::{self, Key};
use crate::error::Result;

impl Location {
    /// Every entry below the root, in no particular order. One that cannot be read is an [`Entry::Unusable`], and the
    /// listing continues.
    ///
    /// # Errors
    /// The stream gives [`Error::Storage`](crate::Error::Storage) or [`Error::Io`](crate::Error::Io) where the tree cannot
    /// be listed completely.
    pub fn list(&self) -> BoxStream<'static, Result<Entry>> {
        if let Some(path) = &self.folder {
            return folder::list(path, &self.root);
        }
        let location = self.clone();
        if let Some(store) = &self.pages {
            let prefix = (!self.root.is_root()).then(|| format!("{}/", self.root));
            let keys = pages::list(store, prefix);
            return keys.filter_map(move |key| std::future::ready(location.entry(key))).boxed();
        }
        let prefix = (!self.root.is_root()).then_some(&self.root);
        let objects = self.store.list(prefix).map(move |found| match found {
            // WebDAV's client gives the rest after a name that it refuses; others end, and the listing is not complete.
            Err(e) if matches!(location.url.scheme(), "http" | "https") => match refused_name(&e) {
                Some(name) => Ok(Key::Refused(name)),
                None => Err(e),
            },
            found => found.map(Key::Object),
        });
        let location = self.clone();
        objects.filter_map(move |key| std::future::ready(location.entry(key))).boxed()
    }

    /// A key as an entry below the root; `None` for the root itself.
    fn entry(&self, key: object_store::Result<Key>) -> Option<Result<Entry>> {
        match key {
            Ok(Key::Object(meta)) => {
                let uri = self.relative(&meta.location)?.to_owned();
                Some(Ok(Entry::Object { uri, meta }))
            }
            Ok(Key::Refused(key)) => {
                let key = key.strip_prefix('/').unwrap_or(&key);
                let below = key.strip_prefix(self.root.as_ref()).and_then(|rest| rest.strip_prefix('/'));
                let name = below.unwrap_or(key).as_bytes().to_vec();
                Some(Ok(Entry::Unusable(Unusable { name, fault: Fault::Name })))
            }
            Err(e) => Some(Err(self.explain("list", e))),
        }
    }
}
