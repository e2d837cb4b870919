//! Voxels and affines as values of a column, and back.
//!
//! | column | value |
//! |---|---|
//! | `mask`, `brain` | one bit per voxel, x fastest, least significant bit of a byte first |
//! | `score` | one byte per voxel, x fastest: the anomaly map times 255, cut off at 1.0 |
//! | affines | 3 x 4 numbers row by row ([`Affine::to_row_major`]) |

use crate::volume::Affine;

/// A mask as one bit per voxel; a voxel above 0 is in it.
pub fn pack_bits(mask: &[u8]) -> Vec<u8> {
    mask.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |b, (i, &v)| b | (u8::from(v > 0) << i))).collect()
}

/// The first `n` voxels of a packed mask, each 0 or 1. Bits beyond its end are 0.
pub fn unpack_bits(bits: &[u8], n: usize) -> Vec<u8> {
    (0..n).map(|i| bits.get(i / 8).map_or(0, |b| b >> (i % 8) & 1)).collect()
}

/// An anomaly map as one byte per voxel; values outside 0 to 1 are clamped.
pub fn pack_scores(map: &[f32]) -> Vec<u8> {
    map.iter().map(|s| (s * 255.).round().clamp(0., 255.) as u8).collect()
}

/// An anomaly map from its bytes, 0 to 1.
pub fn unpack_scores(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().map(|&byte| f32::from(byte) / 255.).collect()
}

/// The affine of 12 numbers, row by row; `None` for fewer.
pub fn affine_from_row_major(values: &[f64]) -> Option<Affine> {
    let row = |r: usize| values.get(4 * r..4 * r + 4)?.try_into().ok();
    Some(Affine([row(0)?, row(1)?, row(2)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive_packing() {
        let mask: Vec<u8> = (0..1003).map(|i| u8::from(i * i % 7 < 3)).collect();
        let bits = pack_bits(&mask);
        assert_eq!(bits.len(), 126);
        assert_eq!(bits[0] & 1, mask[0]);
        assert_eq!(unpack_bits(&bits, 1003), mask);
    }

    #[test]
    fn scores_survive_to_a_255th() {
        assert_eq!(pack_scores(&[-0.1, 0., 0.5, 1., 7.]), [0, 0, 128, 255, 255]);
        assert_eq!(unpack_scores(&[0, 51, 255]), [0., 0.2, 1.]);
    }

    #[test]
    fn an_affine_is_twelve_numbers_row_by_row() {
        let affine = Affine::from_rows([[2., 0., 0., 5.], [0., 3., 0., -1.], [0., 0., 4., 0.5]]);
        assert_eq!(affine_from_row_major(&affine.to_row_major()), Some(affine));
        assert_eq!(affine_from_row_major(&[1.; 11]), None);
    }
}
