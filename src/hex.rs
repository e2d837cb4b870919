//! Bytes as hexadecimal digits, for digests that name things.

/// Two lower-case digits per byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
