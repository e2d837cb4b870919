//! The public views: SQL over `raw`, each with the reason why it differs from its table.
//!
//! What is current is decided here, for every reader of the views, by two rules. They depend on the order of commits, not on
//! clocks:
//!
//! 1. A cohort shows one recipe: that of the run last begun on it (`recipes.current`), also where that run had nothing to
//!    screen.
//! 2. A scan shows, of its results with that recipe, the one that the latest run gave or found again: the one with the highest
//!    `run_number` in `raw.scans` or `raw.reverts`. A failure is shown unless a result is as late or later.
//!
//! Rows of versions that did not number runs have no `run_number`; they count as earlier than all others, and are ordered by
//! their times. The same rules for a run that plans are in `tables/done.rs`, and for other readers in `docs/operations.md`.

use super::analyses::{DRIFT, LONGITUDINAL, REGION_NORMS, REGION_PERCENTILES, REGION_SCORES, SUBJECTS};
pub use super::view::View;
use crate::tables::Table;

/// The views, in the order in which they must be created: later ones use earlier ones.
pub fn views() -> [View; 15] {
    [
        RECIPES,
        SCANS,
        TOKENS,
        MASKS,
        FINDINGS,
        FAILURES,
        RUNS,
        PARTICIPANTS,
        EVALUATIONS,
        SUBJECTS,
        REGION_SCORES,
        REGION_NORMS,
        REGION_PERCENTILES,
        LONGITUDINAL,
        DRIFT,
    ]
}

const RECIPES: View = View {
    name: "recipes",
    doc: "the recipes that each cohort was screened with, and the run that last asked for each; the views show the current one",
    sql: "SELECT cohort, recipe_id, run_id, run_number, started_at, bundle, version, config,
              row_number() OVER (PARTITION BY cohort ORDER BY run_number DESC NULLS LAST, started_at DESC, run_id DESC) = 1
                  AS current
          FROM (
              -- A run that failed before its first scan has no recipe.
              SELECT * FROM raw.runs WHERE recipe_id <> ''
              QUALIFY row_number() OVER (
                  PARTITION BY cohort, recipe_id ORDER BY run_number DESC NULLS LAST, started_at DESC, run_id DESC
              ) = 1
          )",
    needs: None,
};

const SCANS: View = View {
    name: "scans",
    doc: "the current result of each scan, with the current recipe of its cohort; all results stay in raw.scans",
    sql: "SELECT s.* FROM raw.scans s
          JOIN recipes c ON c.cohort = s.cohort AND c.recipe_id = s.recipe_id AND c.current
          LEFT JOIN (
              SELECT scan_id, content_id, recipe_id, max(run_number) AS run_number FROM raw.reverts GROUP BY scan_id, content_id, recipe_id
          ) r ON r.scan_id = s.scan_id AND r.content_id = s.content_id AND r.recipe_id = s.recipe_id
          QUALIFY row_number() OVER (
              PARTITION BY s.scan_id
              ORDER BY greatest(s.run_number, r.run_number) DESC NULLS LAST, s.finished_at DESC, s.run_id DESC
          ) = 1",
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

// A result of an older content resolves no failure of the newer one, and a failure that was tried again with success is no
// failure.
const FAILURES: View = View {
    name: "failures",
    doc: "the current failure of each scan, unless it has a result that is as late or later",
    sql: "WITH reverted AS (
              SELECT scan_id, content_id, recipe_id, max(run_number) AS run_number FROM raw.reverts GROUP BY scan_id, content_id, recipe_id
          ),
          results AS (
              SELECT s.scan_id, s.recipe_id, coalesce(greatest(s.run_number, r.run_number), -1) AS n, s.finished_at
              FROM raw.scans s LEFT JOIN reverted r
                  ON r.scan_id = s.scan_id AND r.content_id = s.content_id AND r.recipe_id = s.recipe_id
          )
          SELECT f.* FROM raw.failures f
          JOIN recipes c ON c.cohort = f.cohort AND c.recipe_id = f.recipe_id AND c.current
          LEFT JOIN reverted r
              ON r.scan_id = f.scan_id AND r.content_id = f.content_id AND r.recipe_id = f.recipe_id
          WHERE NOT EXISTS (
              SELECT 1 FROM results s WHERE s.scan_id = f.scan_id AND s.recipe_id = f.recipe_id
                  AND (s.n > coalesce(greatest(f.run_number, r.run_number), -1)
                      OR s.n = coalesce(greatest(f.run_number, r.run_number), -1) AND (s.n >= 0 OR s.finished_at >= f.failed_at))
          )
          QUALIFY row_number() OVER (
              PARTITION BY f.scan_id
              ORDER BY greatest(f.run_number, r.run_number) DESC NULLS LAST, f.failed_at DESC, f.run_id DESC
          ) = 1",
    needs: None,
};

const RUNS: View = View {
    name: "runs",
    doc: "the newest state of each run",
    sql: "SELECT * FROM raw.runs
          QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY finished_at DESC NULLS LAST) = 1",
    needs: None,
};

const PARTICIPANTS: View = View {
    name: "participants",
    doc: "what participants.tsv said last of each subject: age, sex, site, group",
    sql: "SELECT * FROM raw.participants
          QUALIFY row_number() OVER (PARTITION BY cohort, subject ORDER BY change_number DESC) = 1",
    needs: None,
};

const EVALUATIONS: View = View {
    name: "evaluations",
    doc: "the methods of all evaluations",
    sql: "SELECT * FROM raw.evaluations",
    needs: Some(Table::Evaluations),
};
