//! Integration tests, one binary: each module is a capability, and `support` is what they share.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

mod azure;
mod cohort;
mod cohort_entries;
mod commit;
mod current;
mod damaged_tables;
mod examples;
mod export;
mod failures;
mod fault;
mod folders_of_others;
mod geometry;
mod gpu;
mod inspect;
mod intensities;
mod kills;
mod log;
mod maintenance;
mod memory;
mod nifti;
mod nifti_refused;
mod outages;
mod parallel;
mod pipelines;
mod pipes;
mod preprocess;
mod report;
mod resample;
mod s3;
mod schedule;
mod screen;
mod settings;
mod sql;
mod sql_permitted;
mod structure;
mod synth;
mod tables;
mod train;
mod webdav;
mod write;
