//! Pictures of scans for people.
//!
//! [`picture()`] draws one PNG with a row of three planes for each of several volumes, for example a scan after every step
//! of preprocessing.

mod canvas;
mod picture;

pub use picture::{NOTICE, Panel, picture};
