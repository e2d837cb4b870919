//! SQL over the result tables: a session with documented views, and a shell.
//!
//! ```text
//! Tables ─► raw.scans, raw.tokens, …   every committed row, history and all; read only
//!        ─► scans, tokens, …           what an analyst means: the newest result of each scan, whole or not at all
//! ```
//! A session shows the tables as they were when it was made. `scans` is opened before the others, so each of its
//! rows finds its tokens, mask and findings even while a run is committing.

mod export;
mod remote;
mod session;
mod shell;
mod views;

pub use self::export::{Format, execute};
pub use self::session::{RAW_SCHEMA, raw_session, session};
pub use self::shell::repl;
pub use self::views::{View, views};
