//! The flow of a run: from the scans of a cohort to committed tables.
//!
//! ```text
//!  Pipeline        the settings of a run or a schedule               pipeline.rs, config.rs, limits.rs
//!      │
//!      ▼
//!  Run::prepare    list the cohort, skip scans with a result         prepare.rs, pending.rs
//!      │ pending scans
//!      ▼
//!  Run::execute    gives an order to an engine, commits receipts     execute.rs, order.rs, engine.rs
//!      │
//!      ▼
//!  Engine          this process, or a cluster                        local.rs, crate::cluster
//!      │ manifest, one row per scan; what a process has for it        station.rs, setup.rs, stop.rs
//!      │ what processes of a cluster share, and refuse                mark.rs, bundles.rs, fitness.rs, refusal.rs
//!      ▼
//!  ScreenExec      operator                                          screen.rs
//!      │             one scan: fetch ─► decode ─► preprocess ─►      scan.rs
//!      │             score ─► assess
//!      │             its stages and times                            stage.rs, journey.rs, progress.rs
//!      │             its memory                                      budget.rs
//!      │             whose fault it is when it cannot be read         outage.rs
//!      │             what a crash would leave behind                  journal.rs, apart.rs, apart_process.rs
//!      │             its rows                                        rows.rs
//!      ▼
//!  WriteExec       operator; holds scans, writes rolls               write.rs, roll.rs
//!      │ receipts
//!      ▼
//!  Commits         data files become part of the tables              commit.rs
//!      │
//!      ▼
//!  RunReport       what the run did                                  report.rs
//! ```
//! [`Schedule`] (schedule.rs) repeats runs at the times of a cron expression, and [`Monitor`] (monitor.rs) serves the figures of
//! the current one.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | order | the instructions of a run: plain data, the same for every process that works on it ([`Order`]) |
//! | station | the resources with which one process executes orders: device, memory, counters ([`Station`]) |
//! | setup | what a station has for one order: opened stores, networks ([`Setup`]) |
//! | stage | a step of screening a scan, or a wait between two steps ([`Stage`]) |
//! | journey | one scan's passage through the stages |
//! | quarantine | scans whose content was found unusable are not tried again until it changes, or until `--retry` |
//!
//! Roll, receipt, commit, epoch and superseded are words of [`tables`](crate::tables).

mod acquired;
mod apart;
mod apart_process;
mod audit;
mod budget;
mod bundles;
mod commit;
mod config;
mod crashed;
mod engine;
mod execute;
mod fitness;
mod health;
mod journal;
mod journey;
mod limits;
mod local;
mod mark;
mod metadata;
mod monitor;
mod notify;
mod order;
mod outage;
mod pending;
mod pipeline;
mod prepare;
mod progress;
mod refusal;
mod report;
mod roll;
mod rows;
mod scan;
mod schedule;
mod screen;
mod setup;
mod stage;
mod station;
mod stop;
mod work;
mod write;

pub use apart::{Apart, COMMAND as APART_COMMAND, Program, STORE_IS_DOWN, this_is_the_program};
pub use apart_process::serve as screen_apart;
pub use audit::summary;
pub use budget::{Budget, Grant};
pub use bundles::share as share_bundle;
pub use config::{RunConfig, ScheduleConfig};
pub use crashed::write_crash;
pub use engine::{Assignment, Engine, Plan, Screening};
pub use health::Night;
pub use journal::{Journal, delete_journals};
pub use limits::{FailureLimit, Shard};
pub use local::Local;
pub use mark::{clear as clear_mark, set as set_mark};
pub use metadata::record_metadata;
pub use monitor::Monitor;
pub use notify::Notifier;
pub use order::Order;
pub use outage::Outages;
pub use pipeline::Pipeline;
pub use prepare::Run;
pub use progress::{Progress, Snapshot, StageSnapshot, bottleneck};
pub use refusal::{Reason, Refusal};
pub use report::{RunError, RunOutcome, RunReport};
pub use roll::{RollPolicy, RunLimits};
pub use schedule::{Job, JobOutcome, Schedule, Since, Step, TableUpkeep};
pub use screen::ScreenExec;
pub use setup::Setup;
pub use stage::Stage;
pub use station::Station;
pub use stop::StopSwitch;
pub use write::{Target, WriteExec};
