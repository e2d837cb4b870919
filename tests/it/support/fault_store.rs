//! [`FaultStore`]: an object store in memory with scripted faults: it fails, answers late, or sends too few bytes. Used by `fault.rs`, and by
//! `tests/store-contract`, which checks that without faults it behaves as a store.
#![deny(clippy::missing_trait_methods, reason = "a method left to its default would bypass the script")]

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// A request to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Put,
    Get,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server is busy; nothing is done.
    Busy,
    /// The request is done, and an error comes back.
    DoneButFails,
    /// Half of the body arrives.
    HalfTheBody,
    /// The body arrives in 64 pieces, one every half second.
    Slow,
    /// The condition of a write is ignored.
    NoCondition,
}

type Script = dyn FnMut(Op, &Path) -> Option<Fault> + Send;

/// A store in memory whose faults come from a script.
pub struct FaultStore {
    pub inner: InMemory,
    script: Mutex<Box<Script>>,
    fired: AtomicUsize,
}

impl FaultStore {
    pub fn new(script: impl FnMut(Op, &Path) -> Option<Fault> + Send + 'static) -> Arc<Self> {
        Arc::new(Self { inner: InMemory::new(), script: Mutex::new(Box::new(script)), fired: AtomicUsize::new(0) })
    }

    fn fault(&self, op: Op, path: &Path) -> Option<Fault> {
        let fault = (self.script.lock().unwrap())(op, path);
        self.fired.fetch_add(usize::from(fault.is_some()), Ordering::Relaxed);
        fault
    }

    pub fn fired(&self) -> usize {
        self.fired.load(Ordering::Relaxed)
    }
}

fn busy() -> Error {
    Error::Generic { store: "fault", source: "503 Slow Down".into() }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        match self.fault(Op::Put, location) {
            Some(Fault::Busy) => return Err(busy()),
            Some(Fault::DoneButFails) => {
                self.inner.put_opts(location, payload, opts).await?;
                return Err(busy());
            }
            Some(Fault::NoCondition) => opts.mode = PutMode::Overwrite,
            Some(Fault::HalfTheBody | Fault::Slow) | None => {}
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.fault(Op::Get, location);
        if fault == Some(Fault::Busy) {
            return Err(busy());
        }
        let mut found = self.inner.get_opts(location, options).await?;
        if fault == Some(Fault::HalfTheBody) {
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let whole = found.bytes().await?;
            let half = whole.slice(..whole.len() / 2);
            let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(half) }).boxed());
            found = GetResult { payload, meta, range, attributes };
        }
        if fault == Some(Fault::Slow) {
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let whole = found.bytes().await?;
            let pieces = whole.len().div_ceil(64).max(1);
            let pieces: Vec<Bytes> = whole.chunks(pieces).map(Bytes::copy_from_slice).collect();
            let payload = GetResultPayload::Stream(
                futures::stream::iter(pieces)
                    .then(async |piece| {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                        Ok(piece)
                    })
                    .boxed(),
            );
            found = GetResult { payload, meta, range, attributes };
        }
        Ok(found)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}
