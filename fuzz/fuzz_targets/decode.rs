//! Any bytes as a file, and cut in two as a pair: decoded or refused, never a panic, never more memory than allowed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neurosieve_volume::volume::nifti::{decode, decode_pair};
use neurosieve_volume::{LIMIT_BYTES, check};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(decoded) = decode(bytes, LIMIT_BYTES) {
        check(&decoded);
    }
    // The two lengths that a plain header has.
    for cut in [348, 540] {
        let Some((header, image)) = bytes.split_at_checked(cut) else { continue };
        if let Ok(decoded) = decode_pair(header, image, LIMIT_BYTES) {
            check(&decoded);
        }
    }
});
