//! The result tables: their columns, data files and commits, and what earlier runs have done.
//!
//! ```text
//! rows ─► DataFile ─► store ─► Receipt ─► Tables::commit ─► log      tokens, masks, findings, failures; then scans
//! ```
//! One Delta table per folder `<root>/<table>`. A commit to a table's log makes rows visible; it is a conditional write,
//! which the object store arbitrates, so no lock service is needed. Rows are never updated in place: a new result of a scan
//! is a new row, and the views show the current one.
//!
//! Takes the address of the tables and rows; gives committed tables, a DataFusion session that reads them, and the scans
//! that are already done. Refuses to open a place without tables (unless asked to create them), a store without
//! conditional writes, tables whose columns this version cannot fill, and to commit the same work twice.
//!
//! Words used here and in `flow/`:
//!
//! | word | meaning |
//! |---|---|
//! | run | one execution of a pipeline; `run_id` is in every row that it wrote |
//! | recipe | all that decides a scan's numbers: settings, bundle, algorithm versions; `recipe_id` is its hash |
//! | key | (`scan_id`, `content_id`, `recipe_id`); a run skips keys that have a result, and no two runs commit the same key |
//! | data file | a Parquet file below a table's folder; it counts only once a commit adds it |
//! | roll | scans that one partition of the writing operator writes together, as at most one data file per table |
//! | receipt | says that a data file is in the store and not yet committed; each roll gives one per file |
//! | commit | an entry in a table's log that adds data files; atomic per table |
//! | outcome | a scan's result or failure with one content and one recipe |
//! | run number | the position of a run in the order of commits to `runs`; decides which of two outcomes is current |
//! | revert | the return of a scan to an earlier content; makes the outcome of that content the current one |
//! | epoch | the number of a commit within its run, from 0; recorded in the log, so that a repeated commit is recognised |
//! | superseded | a scan that was not committed because another run had committed its key first |
//! | lease | the right of one schedule to screen a cohort, or of one command to maintain the tables, while others wait |

mod activity;
mod check;
mod column;
mod columns;
mod commit;
mod concurrent;
mod config;
mod datafile;
mod delta;
mod done;
mod doubles;
mod evaluation;
mod evolve;
mod forget;
mod lease;
mod live;
mod maintenance;
mod open;
mod packing;
mod people;
mod protocol;
mod purge;
mod receipt;
mod retain;
mod rewrite;
mod run;
mod schema;
mod screened;
mod session;

pub use self::activity::RunState;
pub use self::check::CheckReport;
pub use self::column::{Column, Kind};
pub use self::commit::Committed;
pub use self::config::TablesConfig;
pub use self::datafile::DataFile;
pub use self::done::{Done, Outcome};
pub use self::evaluation::EvaluationRow;
pub use self::forget::{Forgotten, Person};
pub use self::lease::Lease;
pub use self::maintenance::{Commit, Optimized, Vacuumed, check_retention};
pub use self::open::Tables;
pub use self::packing::{affine_from_row_major, pack_bits, pack_scores, unpack_bits, unpack_scores};
pub use self::people::{ParticipantRow, Recorded};
pub use self::purge::Purged;
pub use self::receipt::Receipt;
pub use self::retain::{Retained, Retention};
pub use self::run::{RevertRow, RunRow};
pub use self::schema::Table;
pub use self::screened::{scan_rows, screen_row, screen_schema};
pub use self::session::{CATALOG, PUBLIC_SCHEMA, RAW_SCHEMA, register_live, session_config};
