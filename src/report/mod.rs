//! What a person looks at: the picture first, then the numbers.
//!
//! [`picture`] draws one PNG of a scan's brain after each step of its way, so that whoever doubts a number can see it.

mod canvas;
mod picture;

pub use picture::{NOTICE, Panel, picture};
