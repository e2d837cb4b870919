//! How good the program is, in figures: held-out scans against bars that the project sets itself.
//!
//! [`preprocess`] takes a cohort with reference masks and gives a [`preprocess::Report`]: every bar of preprocessing
//! with what was reached.

pub mod preprocess;
