//! Object stores: from the address that a user types to objects that are read and written.
//!
//! ```text
//! address ── open (open.rs) ──► Location (location.rs) ─┬─ list (list.rs)    every entry, also those that cannot be read
//!   environment, AWS profile ───┘                       ├─ read (read.rs)    one object, whole, of the given version
//!                                                       ├─ store, path_of    everything else, by object_store's own calls
//!                                                       └─ explain           a store's error with the next step
//! ```
//! Takes `s3://`, `gs://`, `az://`, `abfss://`, `https://` (WebDAV), `file://` or a local folder; gives a [`Location`]: a
//! store, the root inside it, and a form of the address that is safe to print. An S3-compatible service (MinIO, Ceph, R2)
//! is `s3://bucket` with its endpoint in `AWS_ENDPOINT_URL`.
//!
//! Credentials come from the environment (`AWS_*`, `AZURE_*`, `GOOGLE_*`), from an AWS profile (`profile.rs`) or from the
//! machine's role, never from the address. Refuses an unknown scheme, a local folder that does not exist, and an address
//! with a login, a query or a fragment.
//!
//! Retries have three layers: the store's client repeats single requests, `with_retries` repeats whole calls (`retry.rs`), and
//! `with_patience` waits for an outage to end (`patience.rs`). `checksum.rs` detects bytes that changed on the way.

mod checksum;
mod entry;
mod folder;
mod list;
mod location;
mod open;
mod pages;
mod patience;
mod place;
mod profile;
mod read;
mod retry;

pub use self::entry::{Entry, Fault, Unusable, printable};
pub use self::location::Location;
pub use self::open::{open, open_new, open_or_create};
pub(crate) use self::patience::{warn_if_slow, with_patience};
pub use self::place::resolved;
pub use self::read::read;
pub(crate) use self::retry::{Pauses, with_retries};
