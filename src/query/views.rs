//! The public views: SQL over `raw`, each with the reason why it differs from its table.

use crate::tables::Table;

/// A view of a session.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub doc: &'static str,
    /// The query behind it.
    pub sql: &'static str,
    /// A table that may be missing; without it, there is no such view.
    pub needs: Option<Table>,
}

/// The views, in the order in which they must be created: the others use `scans`.
pub fn views() -> [View; 7] {
    [SCANS, TOKENS, MASKS, FINDINGS, FAILURES, RUNS, EVALUATIONS]
}

const SCANS: View = View {
    name: "scans",
    doc: "the newest result of each scan; earlier ones stay in raw.scans",
    sql: "SELECT * FROM raw.scans
          QUALIFY row_number() OVER (PARTITION BY scan_id ORDER BY finished_at DESC, run_id DESC) = 1",
    needs: None,
};

// A killed run leaves tokens without their row in `scans`. The semi join hides them, and also the tokens of results that a
// newer one has replaced.
const TOKENS: View = View {
    name: "tokens",
    doc: "the tokens of the scans in scans",
    sql: "SELECT * FROM raw.tokens t
          WHERE EXISTS (SELECT 1 FROM scans s WHERE s.run_id = t.run_id AND s.scan_id = t.scan_id)",
    needs: None,
};

const MASKS: View = View {
    name: "masks",
    doc: "the masks of the scans in scans",
    sql: "SELECT * FROM raw.masks m
          WHERE EXISTS (SELECT 1 FROM scans s WHERE s.run_id = m.run_id AND s.scan_id = m.scan_id)",
    needs: None,
};

const FINDINGS: View = View {
    name: "findings",
    doc: "the findings of the scans in scans",
    sql: "SELECT * FROM raw.findings f
          WHERE EXISTS (SELECT 1 FROM scans s WHERE s.run_id = f.run_id AND s.scan_id = f.scan_id)",
    needs: None,
};

// A later result resolves the failure, also where the content has changed.
const FAILURES: View = View {
    name: "failures",
    doc: "the newest failure of each scan that has no later result",
    sql: "SELECT * FROM raw.failures f
          WHERE NOT EXISTS (SELECT 1 FROM scans s WHERE s.scan_id = f.scan_id AND s.finished_at >= f.failed_at)
          QUALIFY row_number() OVER (PARTITION BY scan_id ORDER BY failed_at DESC, run_id DESC) = 1",
    needs: None,
};

const RUNS: View = View {
    name: "runs",
    doc: "the newest state of each run",
    sql: "SELECT * FROM raw.runs
          QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY finished_at DESC NULLS LAST) = 1",
    needs: None,
};

const EVALUATIONS: View = View {
    name: "evaluations",
    doc: "the methods of all evaluations",
    sql: "SELECT * FROM raw.evaluations",
    needs: Some(Table::Evaluations),
};
