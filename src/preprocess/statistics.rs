//! Order statistics of intensities.

use crate::volume::Volume;

/// The percentile of a scan's intensities that stands for air (0..1).
const AIR_PERCENTILE: f64 = 0.02;

/// Every seventh voxel is enough for the level of air. A prime stride favours no plane or row.
const AIR_STRIDE: usize = 7;

/// Intensities of the voxels where `mask` is not 0, in storage order. Both lie on one grid.
pub(super) fn values_in(image: &Volume, mask: &Volume<u8>) -> Vec<f32> {
    image.data.iter().zip(&mask.data).filter(|&(_, &m)| m != 0).map(|(&v, _)| v).collect()
}

/// The intensity of air in a scan with air around the head.
pub(super) fn air_level(scan: &Volume) -> f32 {
    let sample: Vec<f32> = scan.data.iter().copied().step_by(AIR_STRIDE).collect();
    percentile(&sample, AIR_PERCENTILE)
}

/// The value below which the fraction `q` (0..1) of `values` lies; 0 for no values.
///
/// Counts the values by their leading bits, then selects among those of the right bucket. That is several times faster
/// than selecting among all values, and leaves `values` as they are.
pub(crate) fn percentile(values: &[f32], q: f64) -> f32 {
    /// Sign, exponent and three bits of the mantissa.
    const BUCKETS: usize = 1 << 12;
    if values.is_empty() {
        return 0.0;
    }
    let bucket = |v: f32| (ordered_bits(v) >> (u32::BITS - BUCKETS.ilog2())) as usize;
    let mut counts = [0u32; BUCKETS];
    values.iter().for_each(|&v| counts[bucket(v)] += 1);
    let mut rank = ((values.len() - 1) as f64 * q).round() as usize;
    let mut held = 0;
    while rank >= counts[held] as usize {
        rank -= counts[held] as usize;
        held += 1;
    }
    let mut near: Vec<f32> = values.iter().copied().filter(|&v| bucket(v) == held).collect();
    *near.select_nth_unstable_by(rank, f32::total_cmp).1
}

/// Bits of `v` that compare as [`f32::total_cmp`] does.
fn ordered_bits(v: f32) -> u32 {
    let bits = v.to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let values: Vec<f32> = (0..1001).map(|i| (i * 7919 % 1001) as f32 - 500.0).collect();
        for (q, want) in [(0.0, -500.0), (0.02, -480.0), (0.5, 0.0), (0.995, 495.0), (1.0, 500.0)] {
            assert_eq!(percentile(&values, q), want, "{q}");
        }
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
