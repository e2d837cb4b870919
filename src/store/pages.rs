//! Listing a bucket, page by page.
//!
//! The store's client refuses a whole page where one key on it has an empty, `.` or `..` part or a control character, and
//! ends the listing. Here the keys before such a key are asked for in smaller pages, the key itself is skipped, and the
//! listing continues after it:
//!
//! ```text
//! full page ─ refused for key K ─► pages of 4096, 2048, … 1 keys: those that are not refused hold the keys before K
//!     ▲                                    │ a page of one key is refused: it is K
//!     └──────────── not refused ── one key after K ── refused: the next K
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListStore};

use super::entry::refused_name;

/// More than half of the largest page that a store gives (Azure: 5000 keys).
const FIRST_STEP: usize = 4096;

/// Refused keys below one folder that are named one by one. What else lies below such a folder is named together.
const NAMED_PER_FOLDER: usize = 100;

/// A key of a bucket, or one that the client refuses.
#[derive(Debug)]
pub(super) enum Key {
    Object(ObjectMeta),
    Refused(String),
}

/// Every key below `prefix`, which ends with `/`.
///
/// # Errors
/// The stream gives the store's errors, and one where the store does not list from a given key on.
pub(super) fn list(
    store: &Arc<dyn PaginatedListStore>,
    prefix: Option<String>,
) -> BoxStream<'static, object_store::Result<Key>> {
    let pages = Pages { store: Arc::clone(store), prefix, at: Some(At::Start), step: Step::Full, folder: (None, 0) };
    let keys = stream::try_unfold((pages, VecDeque::new()), |(mut pages, mut keys)| async move {
        while keys.is_empty() {
            match pages.next().await? {
                Some(page) => keys.extend(page),
                None => return Ok(None),
            }
        }
        Ok(keys.pop_front().map(|key| (key, (pages, keys))))
    });
    keys.into_stream().boxed()
}

/// Where the next page starts.
#[derive(Clone)]
enum At {
    Start,
    Token(String),
    After(String),
}

/// How many keys the next page has at most.
#[derive(Clone, Copy)]
enum Step {
    /// As many as the store gives.
    Full,
    /// A refused key is near.
    Narrow(usize),
    /// A refused key was passed over. Others often follow it.
    AfterRefused,
}

struct Pages {
    store: Arc<dyn PaginatedListStore>,
    prefix: Option<String>,
    at: Option<At>,
    step: Step,
    /// The folder of the last refused key, and the number of keys refused in it.
    folder: (Option<String>, usize),
}

impl Pages {
    /// The next keys; `None` after the last.
    async fn next(&mut self) -> object_store::Result<Option<Vec<Key>>> {
        loop {
            let Some(at) = self.at.clone() else { return Ok(None) };
            let max_keys = match self.step {
                Step::Full => None,
                Step::Narrow(n) => Some(n),
                Step::AfterRefused => Some(1),
            };
            let (offset, page_token) = match &at {
                At::Start => (None, None),
                At::Token(token) => (None, Some(token.clone())),
                At::After(key) => (Some(key.clone()), None),
            };
            let options = PaginatedListOptions { offset, page_token, max_keys, ..PaginatedListOptions::default() };
            let error = match self.store.list_paginated(self.prefix.as_deref(), options).await {
                Ok(page) => {
                    let objects = page.result.objects;
                    if let (At::After(key), Some(first)) = (&at, objects.first())
                        && first.location.as_ref() < key.as_str()
                    {
                        return Err(not_passed(key));
                    }
                    self.step = match self.step {
                        Step::Narrow(n) => Step::Narrow((n / 2).max(1)),
                        Step::Full | Step::AfterRefused => Step::Full,
                    };
                    self.at = page.page_token.map(At::Token);
                    return Ok(Some(objects.into_iter().map(Key::Object).collect()));
                }
                Err(error) => error,
            };
            let Some(key) = refused_name(&error) else { return Err(error) };
            match self.step {
                Step::Full => self.step = Step::Narrow(FIRST_STEP),
                Step::Narrow(n) if n > 1 => self.step = Step::Narrow(n / 2),
                Step::Narrow(_) | Step::AfterRefused => return self.pass(&at, key).map(|key| Some(vec![key])),
            }
        }
    }

    /// Skips a refused key, or its whole folder where too many of its keys were refused.
    fn pass(&mut self, at: &At, key: String) -> object_store::Result<Key> {
        if matches!(at, At::After(last) if *last >= key) {
            return Err(not_passed(&key));
        }
        let folder = refused_folder(&key);
        let n = if folder.is_some() && folder == self.folder.0 { self.folder.1 + 1 } else { 1 };
        self.step = Step::AfterRefused;
        let (after, named) = match &folder {
            // Every key that starts with this folder is refused, and none sorts after its last possible character.
            Some(folder) if n > NAMED_PER_FOLDER => (format!("{folder}{}", char::MAX), format!("{folder}**")),
            _ => (key.clone(), key),
        };
        self.folder = (folder, n);
        self.at = Some(At::After(after));
        Ok(Key::Refused(named))
    }
}

/// The part of a key up to the first folder that no path can hold.
fn refused_folder(key: &str) -> Option<String> {
    let parts: Vec<&str> = key.strip_prefix('/').unwrap_or(key).split('/').collect();
    let is_refused = |part: &&str| matches!(*part, "" | "." | "..") || part.chars().any(|c| c.is_ascii_control());
    let at = parts.iter().position(is_refused)?;
    (at + 1 < parts.len()).then(|| format!("{}/", parts[..=at].join("/")))
}

fn not_passed(key: &str) -> object_store::Error {
    let said = format!("the store does not list from the key after {key:?} on: rename this object");
    object_store::Error::Generic { store: "listing", source: said.into() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use chrono::DateTime;
    use object_store::list::PaginatedListResult;
    use object_store::path::Path;
    use object_store::{ListResult, Result};

    use super::*;

    /// A bucket that answers as S3's client does.
    struct Bucket {
        keys: BTreeSet<String>,
        requests: Mutex<usize>,
        ignores_offset: bool,
    }

    #[async_trait]
    impl PaginatedListStore for Bucket {
        async fn list_paginated(
            &self,
            prefix: Option<&str>,
            options: PaginatedListOptions,
        ) -> Result<PaginatedListResult> {
            *self.requests.lock().unwrap() += 1;
            let offset = options.offset.filter(|_| !self.ignores_offset);
            let after = options.page_token.or(offset).unwrap_or_default();
            let prefix = prefix.unwrap_or_default();
            let below = self.keys.iter().filter(|key| key.starts_with(prefix) && **key > after);
            let n = options.max_keys.unwrap_or(1000).min(1000);
            let page: Vec<&String> = below.take(n + 1).collect();
            let page_token = (page.len() > n).then(|| page[n - 1].clone());
            let meta = |key: &&String| {
                let location = Path::parse(key)?;
                Ok(ObjectMeta { location, last_modified: DateTime::UNIX_EPOCH, size: 1, e_tag: None, version: None })
            };
            let objects = page.iter().take(n).map(meta).collect::<Result<_>>()?;
            Ok(PaginatedListResult { result: ListResult { common_prefixes: Vec::new(), objects }, page_token })
        }
    }

    /// The keys that are listed, those that are refused, and the number of requests.
    async fn listed(keys: BTreeSet<String>, ignores_offset: bool) -> Result<(Vec<String>, Vec<String>, usize)> {
        let bucket = Arc::new(Bucket { keys, requests: Mutex::new(0), ignores_offset });
        let store: Arc<dyn PaginatedListStore> = Arc::<Bucket>::clone(&bucket);
        let (mut objects, mut refused) = (Vec::new(), Vec::new());
        for key in list(&store, Some("a/".to_owned())).try_collect::<Vec<_>>().await? {
            match key {
                Key::Object(meta) => objects.push(meta.location.to_string()),
                Key::Refused(key) => refused.push(key),
            }
        }
        let requests = *bucket.requests.lock().unwrap();
        Ok((objects, refused, requests))
    }

    fn good(n: usize) -> impl Iterator<Item = String> {
        (0..n).map(|i| format!("a/sub-{i:05}.nii"))
    }

    #[tokio::test]
    async fn every_key_that_can_be_read_is_listed_once_and_every_other_is_named() {
        let bad = ["a/old/../x", "a/sub-00000//y.nii", "a/sub-01234/\t", "a/sub-01234/./z", "a/sub-02998\n.nii"];
        let keys = good(3000).chain(bad.map(str::to_owned)).collect();
        let (objects, refused, requests) = listed(keys, false).await.unwrap();
        assert_eq!(objects, good(3000).collect::<Vec<_>>());
        assert_eq!(refused, bad);
        assert!(requests < 100, "{requests}");
    }

    #[tokio::test]
    async fn a_bucket_without_such_keys_takes_a_request_per_page() {
        let (objects, refused, requests) = listed(good(2500).collect(), false).await.unwrap();
        assert_eq!((objects.len(), refused.len(), requests), (2500, 0, 3));
    }

    #[tokio::test]
    async fn a_folder_of_many_such_keys_is_named_once_and_passed_over() {
        let keys = good(10).chain((0..5000).map(|i| format!("a/logs//{i:05}"))).collect();
        let (objects, refused, requests) = listed(keys, false).await.unwrap();
        assert_eq!((objects.len(), refused.len()), (10, NAMED_PER_FOLDER + 1));
        assert_eq!(refused.last().unwrap(), "a/logs//**");
        assert!(requests < 200, "{requests}");
    }

    #[tokio::test]
    async fn a_store_that_starts_again_is_an_error_and_not_a_loop() {
        let keys = || good(5).chain(["a/sub-00002//x".to_owned()]).collect();
        assert_eq!(listed(keys(), false).await.unwrap().0.len(), 5);
        assert!(listed(keys(), true).await.unwrap_err().to_string().contains("rename this object"));
    }
}
