//! The dataflow: from a manifest of pending scans to committed tables.
//!
//! [`ScreenExec`] and [`WriteExec`] are DataFusion operators, unary and partition-preserving, over a
//! standard leaf; [`Run`] builds the plan, drives it and commits. [`Schedule`] does so night after night.

mod budget;
mod config;
mod driver;
mod limits;
mod monitor;
mod pipeline;
mod progress;
mod rows;
mod schedule;
mod screen;
mod screening;
mod waiting;
mod write;

pub use budget::{Budget, Grant};
pub use config::{RunConfig, ScheduleConfig};
pub use driver::{Outcome, Report, Run};
pub use limits::{FailureLimit, Shard};
pub use monitor::Monitor;
pub use pipeline::Pipeline;
pub use progress::{Place, Progress, Seen, Snapshot, bottleneck};
pub use schedule::{Job, Outcome as ScheduleOutcome, Schedule};
pub use screen::ScreenExec;
pub use screening::Screening;
pub use write::{RollPolicy, WriteExec};
