//! Synthetic cohorts: freely usable T1-weighted heads with skull, for the demo, for tests and for evaluation.
//!
//! Every head is the MNI152 2009a template under a random affine and smooth deformation, with tissue intensities,
//! texture, bias field, point spread and Rician noise of its own. The template holds the brain only; fluid, skull,
//! marrow, scalp, neck and face are modelled around it. Some heads get lesions with known outlines.
//!
//! [`write()`] takes a [`CohortSpec`] and an empty folder; gives a BIDS dataset in it, with truth masks under
//! `derivatives/truth/`. The same spec gives the same bytes, and a larger cohort starts with the subjects of a smaller
//! one. Refuses more lesions or damaged files than subjects, voxels below 0.5 or above 4 mm, and a folder that is not
//! empty. [`put_in_head`] makes a head around a bare brain.
//!
//! ```no_run
//! # fn main() -> neurosieve::error::Result<()> {
//! let spec = neurosieve::synth::CohortSpec { subjects: 4, lesions: 2, ..Default::default() };
//! neurosieve::synth::write(&spec, "cohort".as_ref(), false)?;
//! # Ok(())
//! # }
//! ```

mod bids;
mod field;
mod head;
mod lesion;
mod skull;
mod subject;
mod template;

pub use bids::{CohortSpec, Participant, write};
pub use skull::put_in_head;
pub use subject::Subject;
pub use template::HeadTemplate;
