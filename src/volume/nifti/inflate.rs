//! Inflates gzip in memory, never more of it than the caller allows.
//!
//! A scan is nearly always one gzip member that holds just its header and its voxels. Its size is then known in
//! advance, and libdeflate inflates it in one call. Everything else (several members, bytes after the voxels, damage)
//! goes through a stream, which also finds out what is wrong.

use std::io::{self, Read};

use flate2::bufread::{GzDecoder, MultiGzDecoder};
use libdeflater::Decompressor;

use crate::volume::error::{Error, Result};

const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Deflate's best case is 258 bytes from 2 bits, so no gzip expands by more than this factor.
const MAX_RATIO: u64 = 1032;

/// Whether these bytes start with gzip's magic.
pub(super) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Upper bound on the bytes that `gzip` can hold.
pub(super) fn most_bytes(gzip: &[u8]) -> u64 {
    (gzip.len() as u64).saturating_mul(MAX_RATIO)
}

/// The first `n` bytes. Where the data end or break earlier, the bytes before that, and the error.
pub(super) fn start(gzip: &[u8], n: usize) -> (Vec<u8>, Option<Error>) {
    let mut out = Vec::with_capacity(n);
    let ended = MultiGzDecoder::new(gzip).take(n as u64).read_to_end(&mut out);
    (out, ended.err().map(broken))
}

/// Fills `out` with the first bytes. The rest is only checked, and refused where the total exceeds `limit` bytes.
pub(super) fn inflate(gzip: &[u8], out: &mut [u8], limit: u64) -> Result<()> {
    if let Some((_, [crc @ .., a, b, c, d])) = gzip.split_last_chunk::<8>()
        && u32::from_le_bytes([*a, *b, *c, *d]) as usize == out.len()
        && Decompressor::new().gzip_decompress(gzip, out) == Ok(out.len())
        // libdeflate has checked the first member's own trailer. The same checksum at the end of the file means that
        // there is no other member.
        && libdeflater::crc32(out).to_le_bytes() == *crc
    {
        return Ok(());
    }
    stream(gzip, out, limit)
}

/// Inflates member after member. Zeros between and after them are skipped, like gzip(1) and Python do: tapes and
/// object stores that work in blocks pad with zeros.
fn stream(gzip: &[u8], out: &mut [u8], limit: u64) -> Result<()> {
    let (mut rest, mut n_filled, mut n_after) = (gzip, 0, 0);
    while !rest.is_empty() {
        if !is_gzip(rest) && !MAGIC.starts_with(rest) {
            return Err(damaged("other data follow it"));
        }
        let mut member = GzDecoder::new(rest);
        let mut space = &mut out[n_filled..];
        let room = space.len() as u64;
        n_filled += io::copy(&mut member.by_ref().take(room), &mut space).map_err(broken)? as usize;
        let allowed = limit.saturating_sub(n_filled as u64 + n_after);
        let after = io::copy(&mut member.by_ref().take(allowed.saturating_add(1)), &mut io::sink()).map_err(broken)?;
        if after > allowed {
            return Err(Error::too_long());
        }
        n_after += after;
        rest = member.into_inner();
        rest = &rest[rest.iter().take_while(|&&byte| byte == 0).count()..];
    }
    if n_filled == out.len() { Ok(()) } else { Err(Error::truncated()) }
}

/// What a failed read means. The bytes are in memory, so it is never a failure of storage.
fn broken(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::truncated(),
        _ => damaged(&e.to_string()),
    }
}

fn damaged(why: &str) -> Error {
    Error::new("corrupt_gzip", format!("the gzip data is damaged ({why}); copy the file again from its source"))
}
