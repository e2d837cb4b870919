//! Arbitrary bytes as a file, and cut in two as a pair. They must be decoded or refused, without a panic and within the
//! memory limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neurosieve_volume::volume::nifti::{decode, decode_pair};
use neurosieve_volume::{LIMIT_BYTES, check};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(decoded) = decode(bytes, LIMIT_BYTES) {
        check(&decoded);
    }
    // The lengths of the two versions' headers.
    for cut in [348, 540] {
        let Some((header, image)) = bytes.split_at_checked(cut) else { continue };
        if let Ok(decoded) = decode_pair(header, image, LIMIT_BYTES) {
            check(&decoded);
        }
    }
});
