//! The brain that was found in a scan.

use crate::volume::Volume;

/// The brain of one scan, in the scan's own world.
#[derive(Debug, Clone)]
pub struct Brain {
    /// 1 in the brain, 0 elsewhere, on a world-aligned 2 mm RAS grid that covers the field of view.
    pub mask: Volume<u8>,
    /// True where the input already had no skull.
    pub stripped_input: bool,
    /// True where skull stripping fell back on thresholds, which find less of the brain.
    pub fallback: bool,
}
