//! Finds the brain in a scan.
//!
//! Takes the native scan and the same scan on the working grid; gives the [`Brain`] on the working grid: the scan itself
//! where it is a bare brain ([`stripped`](super::stripped)), else what skull stripping finds. Refuses, as `no_brain`,
//! what does not have the volume of a brain.

use super::brain::Brain;
use super::config::PreprocessConfig;
use super::mask::volume_ml;
use super::skull_strip::skull_strip;
use super::stripped::stripped_brain;
use crate::error::{Error, Result};
use crate::volume::Volume;

/// Takes a bare brain as it is, or strips the skull.
pub(super) fn locate(scan: &Volume, working: &Volume, cfg: &PreprocessConfig) -> Result<Brain> {
    let bare = stripped_brain(scan, &cfg.stripped);
    let stripped_input = bare.is_some();
    let (mask, by_surface) = match bare {
        Some(mask) => (mask, true),
        None => skull_strip(working, &cfg.skull_strip),
    };
    let found = volume_ml(&mask);
    let [least, most] = cfg.brain_volume_ml;
    if !(least..=most).contains(&found) {
        return Err(Error::input(
            "no_brain",
            format!(
                "found {found:.0} ml that look like a brain, expected {least} to {most} ml: check that this is a \
                 T1-weighted head, or strip the skull beforehand"
            ),
        ));
    }
    Ok(Brain { mask, stripped_input, fallback: !by_surface })
}
