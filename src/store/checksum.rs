//! Whether the bytes that were read are those that the store has.
//!
//! Several stores give the MD5 of an object as its ETag (S3 without KMS, for objects that were put in one part). Bytes with
//! another MD5 are read a second time: a bit that was flipped on the way differs then. Where both readings agree, the ETag is
//! no MD5 at this store, and it is not compared again.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use md5::{Digest as _, Md5};

/// What is known of a store's ETags.
#[derive(Debug)]
pub(super) struct Etags {
    may_be_md5: AtomicBool,
}

impl Default for Etags {
    fn default() -> Self {
        Self { may_be_md5: AtomicBool::new(true) }
    }
}

impl Etags {
    /// Whether the bytes have another MD5 than the ETag of their object says.
    pub(super) async fn contradict(&self, etag: Option<&str>, bytes: &Bytes) -> bool {
        let Some(expected) = etag.and_then(md5_of).filter(|_| self.may_be_md5.load(Relaxed)) else { return false };
        let bytes = bytes.clone();
        // Large objects take seconds, which would hold up other reads.
        let digest = tokio::task::spawn_blocking(move || Md5::digest(&bytes).into()).await;
        digest.is_ok_and(|digest: [u8; 16]| digest != expected)
    }

    /// Two readings gave the same bytes and another MD5 than the ETag: it is none.
    pub(super) fn are_no_md5(&self) {
        self.may_be_md5.store(false, Relaxed);
    }
}

/// The digest in an ETag of 32 hexadecimal digits. An object that was put in several parts has a `-` in it.
fn md5_of(etag: &str) -> Option<[u8; 16]> {
    let hex = etag.trim_matches('"');
    if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 16];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_etag_that_is_an_md5_contradicts_other_bytes() {
        let etags = Etags::default();
        let bytes = Bytes::from_static(b"abc");
        assert!(!etags.contradict(Some("\"900150983cd24fb0d6963f7d28e17f72\""), &bytes).await);
        assert!(etags.contradict(Some("\"900150983cd24fb0d6963f7d28e17f73\""), &bytes).await);
        for unknown in [None, Some("\"900150983cd24fb0d6963f7d28e17f73-2\""), Some("1a-2b-3c"), Some("\"é\"")] {
            assert!(!etags.contradict(unknown, &bytes).await, "{unknown:?}");
        }
        etags.are_no_md5();
        assert!(!etags.contradict(Some("\"900150983cd24fb0d6963f7d28e17f73\""), &bytes).await);
    }
}
