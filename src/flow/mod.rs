//! The dataflow: from a manifest of pending scans to committed tables.
//!
//! [`ScreenExec`] and [`WriteExec`] are DataFusion operators, unary and partition-preserving, over a
//! standard leaf; [`Run`] builds the plan, drives it and commits.

mod budget;
mod driver;
mod progress;
pub(crate) mod rows;
mod screen;
mod screening;
mod write;

pub use budget::{Budget, Grant};
pub use driver::{Outcome, Report, Run};
pub use progress::{Progress, STAGES, Snapshot};
pub use screen::ScreenExec;
pub use screening::Screening;
pub use write::{RollPolicy, WriteExec};
