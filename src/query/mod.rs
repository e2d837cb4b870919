//! SQL over the result tables: a session with documented views, statements from the command line, and a shell.
//!
//! ```text
//! Tables ─► raw.scans, raw.tokens, …   every committed row, history included; read only
//!        ─► scans, tokens, …           the newest result of each scan, and only where it is complete
//! ```
//! Takes opened [`Tables`](crate::tables::Tables); gives a DataFusion session, rows as text or files. A session shows the
//! tables as they were when it was made, or when [`reload`] last brought it to the newest snapshot. `scans` is opened before the
//! others, so each of its rows finds its tokens, mask and findings even while a run commits. Statements of a session with an
//! [`Engine`] run on threads of their own, within its limits of memory and time. [`functions`] read masks and name places.
//! [`show_recipe`] makes the views show another [`Recipe`] than the one last asked for.
//! Statements that would change a table, or reach files outside the tables, are refused (`permit.rs`); [`Access`] says whether
//! `CREATE EXTERNAL TABLE` and `COPY` are allowed.

mod analyses;
mod comments;
mod engine;
mod export;
mod functions;
mod interrupt;
mod permit;
mod recipe;
mod session;
mod shell;
mod view;
mod views;

pub use self::comments::{Comment, column_comment, relation_comment};
pub use self::engine::{Engine, settle};
pub use self::export::{Format, execute};
pub use self::functions::{functions, register_functions};
pub use self::permit::Access;
pub use self::recipe::{Recipe, recipe_note, show_recipe};
pub use self::session::{add_views, reload, session, session_within};
pub use self::shell::{Ended, repl};
pub use self::views::{View, views};
