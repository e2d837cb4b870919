//! Where scans come from: a cohort in object storage, listed, selected and made a manifest.
//!
//! ```text
//! Location ── list ──► Listing ─┬─ manifest::to_batch ──► record batch, the leaf of a screening plan
//!               ▲               ├─ report::describe ────► text for people
//!           Selection           └─ read ────────────────► ScanBytes ── decode ──► volume
//! ```
//! A **cohort** is a folder, or a prefix of a bucket, that holds NIfTI images: `.nii`, `.nii.gz`, or pairs of `.hdr` and
//! `.img`. A tree with a `dataset_description.json` or `sub-*` folders at its root is read as BIDS, and file names give
//! subject, session and the kind of image. In any other tree every image is a scan.
//!
//! [`list`] takes a [`Location`](crate::store::Location), the cohort's name and a [`Selection`], and opens no image. It
//! gives a [`Listing`]: the scans to screen, and every other image with the [`Reason`] why it is skipped. An entry that
//! cannot be read, such as a link to an absent file, is left out with its reason, and the listing continues. It refuses a name that
//! cannot be part of a scan id, and a tree that the store cannot list completely. [`find`] gives one scan by its path.
//!
//! Words used here and in the tables:
//!
//! | word | meaning |
//! |---|---|
//! | scan | one image of a cohort, which becomes one row of `scans` or of `failures` |
//! | `scan_id` | the scan's name in every table: the cohort's name and the file name or path, without extension (`identity.rs`) |
//! | `content_id` | a digest of the object's version and size; changes when the object does ([`manifest::content_id`]) |
//! | manifest | the selected scans as one Arrow record batch ([`manifest`]) |
//! | sidecar | the JSON file that describes an image, beside it or further up the tree |
//! | entity | a `key-label` pair of a BIDS file name, such as `ses-01` |

mod acquisition;
pub mod bids;
mod config;
mod dataset;
mod fetch;
mod find;
mod identity;
mod ignore;
mod image;
mod listing;
pub mod manifest;
mod metadata;
mod pair;
mod participants;
mod pseudonym;
pub mod report;
mod select;
mod sidecar;
mod tsv;

pub use self::acquisition::{Acquisition, read_acquisition};
pub use self::config::{CohortConfig, MetadataConfig};
pub use self::fetch::{MAX_SCAN_BYTES, ScanBytes, read};
pub use self::find::find;
pub use self::listing::{Listing, Skipped, list};
pub use self::manifest::{DescribedBy, Origin, ScanEntry};
pub use self::metadata::{Metadata, Participant};
pub use self::participants::{Participants, Wanted};
pub use self::pseudonym::Pseudonyms;
pub use self::select::{Reason, Selection};
