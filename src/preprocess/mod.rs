//! From a scan as the scanner stored it to the model's input.
//!
//! Takes one volume in any orientation, spacing and intensity unit, with or without skull; gives [`Prepared`]: the brain
//! on the model's grid ([`model_grid`]: 80 x 96 x 96 voxels of 2 mm, RAS, MNI152 2009a space), intensities 0..1, 0
//! outside the brain, with its mask and the affine from native world to MNI space.
//!
//! ```text
//! native ─► 2 mm working grid ─► bare brain? ─► skull strip ─► bias field ─► register ─► border ─► model grid ─► normalize ─► qc
//!           (conform)            (stripped)     (skull_strip)  (bias)        (register)  (border)  (conform)    (normalize)  (qc)
//! ```
//!
//! Before the first step, tiny, huge and centred intensities are brought into the range of the others (`intensity.rs`).
//! Every step is a pure function of its input and its part of [`PreprocessConfig`]; [`steps`] runs them in this order.
//! The image is interpolated once: from the native grid, averaged in blocks of at most 2 mm, to the model's grid.
//! Refused as [`Error::Input`](crate::error::Error::Input), by kind: `constant` (all voxels equal), `too_coarse` (voxels
//! above 6 mm), `field_of_view` (too small for a brain, or larger than any head), `not_mri` (computed tomography),
//! `no_brain` (no volume, shape or contrast of a brain).

mod bias;
pub(crate) mod border;
mod brain;
mod check;
mod config;
mod conform;
mod contrast;
mod distance;
mod intensity;
pub(crate) mod linear;
mod locate;
mod mask;
mod morphology;
mod normalize;
mod pipeline;
mod qc;
mod region;
mod register;
mod skull_strip;
mod statistics;
mod stripped;
mod template;
pub(crate) mod template_surface;
mod timer;

pub use bias::{BiasConfig, BiasField, estimate_bias};
pub use brain::Brain;
pub use config::PreprocessConfig;
pub use conform::{mask_to, model_grid};
pub use mask::dice;
pub use normalize::{NormalizeConfig, NormalizeMethod, normalize};
pub use pipeline::{Prepared, Steps, prepare, steps};
pub use qc::{QC_FLAGS, Qc, QcConfig, RefuseConfig};
pub use region::{OUTSIDE, REGIONS, region};
pub use register::{RegisterConfig, Registration, register};
pub use skull_strip::{SkullStripConfig, skull_strip};
pub use stripped::StrippedConfig;
pub use template::{Template, template, template_brain};
pub(crate) use {
    bias::cubic_b_spline, distance::signed_distance, statistics::percentile, stripped::brain_hull,
    template::embedded_map,
};

/// Incremented when the same scan and settings give another result.
pub const VERSION: u32 = 4;
