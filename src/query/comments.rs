//! What tables, views and their columns mean, with units: for `DESCRIBE`, and for servers whose clients ask.
//!
//! The schema of a table has the texts of its columns, and a view's column of the same name has the same text. The texts of
//! columns that views compute are here.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::common::TableReference;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::views::views;
use crate::error::{Error, Result};
use crate::tables::{CATALOG, Column, PUBLIC_SCHEMA, RAW_SCHEMA, Table};

/// What a column means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comment {
    /// The unit of its values; empty for names and labels.
    pub unit: &'static str,
    /// Its meaning.
    pub text: &'static str,
}

/// A column that a view computes: view, column, unit, meaning.
type Computed = (&'static str, &'static str, &'static str, &'static str);

const COMPUTED: &[Computed] = &[
    ("recipes", "run_id", "", "the run that last asked for the recipe"),
    ("recipes", "run_number", "", "position of that run in the order of commits to the table runs"),
    ("recipes", "started_at", "UTC", "when that run started"),
    ("recipes", "current", "", "true where the views show this recipe of the cohort"),
    ("subjects", "n_scans", "count", "scans with a result"),
    ("subjects", "n_sessions", "count", "sessions with a result; scans without a session are not counted"),
    ("subjects", "n_with_findings", "count", "scans with findings"),
    ("subjects", "n_flagged", "count", "scans with quality flags"),
    ("subjects", "max_anomaly_score", "score", "highest anomaly_score of the subject's scans"),
    ("subjects", "top_scan_id", "", "the scan with max_anomaly_score"),
    ("subjects", "first_acquired_at", "UTC", "when the first scan was acquired"),
    ("subjects", "last_acquired_at", "UTC", "when the last scan was acquired"),
    ("region_scores", "region", "", "the region, as in tokens"),
    ("region_scores", "n_tokens", "count", "tokens of the scan in the region"),
    ("region_scores", "n_anomalous_tokens", "count", "those with p_anomalous above token_threshold; null without one"),
    ("region_scores", "mean_p", "probability", "mean of their p_anomalous"),
    ("region_scores", "max_p", "probability", "highest of their p_anomalous"),
    ("region_scores", "mean_residual", "intensity", "mean of their residual"),
    ("region_norms", "region", "", "the region, as in tokens"),
    ("region_norms", "age_from", "year", "youngest age of the group"),
    ("region_norms", "age_below", "year", "all of the group are younger"),
    ("region_norms", "n_scans", "count", "scans of the group, at least 20"),
    ("region_norms", "n_subjects", "count", "subjects of the group"),
    ("region_norms", "median_p", "probability", "median of the scans' mean_p"),
    ("region_norms", "spread_p", "probability", "1.4826 times the median distance of the scans' mean_p from median_p"),
    ("region_percentiles", "region", "", "the region, as in tokens"),
    ("region_percentiles", "age_from", "year", "youngest age of the group that the scan is compared with"),
    ("region_percentiles", "n_scans", "count", "scans of that group"),
    ("region_percentiles", "mean_p", "probability", "mean of p_anomalous over the scan's tokens in the region"),
    (
        "region_percentiles",
        "z",
        "",
        "distance of mean_p from the group's median, in spreads; null where the spread is 0",
    ),
    ("region_percentiles", "percentile", "%", "share of the group's other scans with a lower mean_p"),
    ("region_percentiles", "p", "probability", "of a z as high or higher in a normal distribution"),
    ("region_percentiles", "q", "probability", "p corrected for the regions of the scan, by Benjamini and Hochberg"),
    ("longitudinal", "previous_scan_id", "", "the subject's scan of the same suffix that was acquired before this one"),
    ("longitudinal", "previous_acquired_at", "UTC", "when that scan was acquired"),
    ("longitudinal", "years", "year", "time between the two, in years of 365.25 days"),
    (
        "longitudinal",
        "same_scanner",
        "",
        "whether manufacturer, model and field strength are the same; null if unknown",
    ),
    ("longitudinal", "brain_volume_ml_per_year", "ml/year", "change of brain_volume_ml per year"),
    ("longitudinal", "anomaly_volume_ml_per_year", "ml/year", "change of anomaly_volume_ml per year"),
    ("longitudinal", "anomaly_score_per_year", "score/year", "change of anomaly_score per year"),
    ("drift", "night", "UTC", "day on which the night began; a night is from noon to noon"),
    ("drift", "scanner", "", "manufacturer and model of the scanner; null where both are unknown"),
    ("drift", "n_scans", "count", "scans that finished in the night"),
    ("drift", "n_scans_before", "count", "scans that finished in the 28 nights before"),
    ("drift", "anomaly_score", "score", "mean of the night's anomaly_score"),
    ("drift", "anomaly_score_shift", "standard error", "its difference from the mean of the 28 nights before"),
    ("drift", "brain_volume_ml", "ml", "mean of the night's brain_volume_ml"),
    ("drift", "brain_volume_shift", "standard error", "its difference from the mean of the 28 nights before"),
    ("drift", "snr", "ratio", "mean of the night's snr"),
    ("drift", "snr_shift", "standard error", "its difference from the mean of the 28 nights before"),
];

/// The tables from which views take columns.
const SOURCES: [Table; 3] = [Table::Scans, Table::Participants, Table::Runs];

/// What a table or a view of a session shows.
pub fn relation_comment(schema: &str, name: &str) -> Option<&'static str> {
    match schema {
        PUBLIC_SCHEMA => views().into_iter().find(|view| view.name == name).map(|view| view.doc),
        RAW_SCHEMA => Table::from_name(name).map(Table::doc),
        _ => None,
    }
}

/// What a column of a table or a view of a session means.
pub fn column_comment(schema: &str, relation: &str, column: &str) -> Option<Comment> {
    relation_comment(schema, relation)?;
    let named = |columns: &'static [Column]| columns.iter().find(|c| c.name == column);
    let of_table = |c: &'static Column| Comment { unit: c.unit, text: c.doc };
    if let Some(table) = Table::from_name(relation) {
        return named(table.columns()).map(of_table);
    }
    let computed = COMPUTED.iter().find(|(view, name, ..)| (*view, *name) == (relation, column));
    match computed {
        Some(&(_, _, unit, text)) => Some(Comment { unit, text }),
        None => SOURCES.iter().find_map(|table| named(table.columns())).map(of_table),
    }
}

/// The comments of all tables and views as rows of `VALUES`: schema, name, comment.
pub(super) fn relation_values() -> String {
    let row = |schema: &str, name: &str, doc: &str| format!("('{schema}', '{name}', '{}')", doc.replace('\'', "''"));
    let views = views().into_iter().map(|view| row(PUBLIC_SCHEMA, view.name, view.doc));
    let tables = Table::ALL.into_iter().map(|table| row(RAW_SCHEMA, table.name(), table.doc()));
    views.chain(tables).collect::<Vec<_>>().join(", ")
}

/// The schema and the name of what a statement describes, where it is `DESCRIBE` and its subject belongs to the session.
pub(super) fn described(context: &SessionContext, statement: &Statement) -> Option<(String, String)> {
    let Statement::Statement(statement) = statement else { return None };
    let ast::Statement::ExplainTable { table_name, .. } = &**statement else { return None };
    let state = context.state();
    let defaults = &state.config_options().catalog;
    let name =
        TableReference::parse_str(&table_name.to_string()).resolve(&defaults.default_catalog, &defaults.default_schema);
    (&*name.catalog == CATALOG).then(|| (name.schema.to_string(), name.table.to_string()))
}

/// The line above a description: what the table or view shows.
pub(super) fn heading(context: &SessionContext, statement: &Statement) -> Option<String> {
    let (schema, name) = described(context, statement)?;
    relation_comment(&schema, &name).map(|doc| format!("{name}: {doc}"))
}

/// The plan of `DESCRIBE` with unit and comment of each column; any other plan as it is.
///
/// # Errors
/// [`Error::Query`] where the rows do not fit their columns.
pub(super) fn with_comments(
    context: &SessionContext,
    described: Option<(String, String)>,
    plan: LogicalPlan,
) -> Result<LogicalPlan> {
    let LogicalPlan::DescribeTable(table) = &plan else { return Ok(plan) };
    let (schema, name) = described.unwrap_or_default();
    let fields = table.schema.fields();
    let comments: Vec<_> = fields.iter().map(|field| column_comment(&schema, &name, field.name())).collect();
    let texts = |text: &dyn Fn(usize) -> Option<String>| -> ArrayRef {
        Arc::new((0..fields.len()).map(text).collect::<StringArray>())
    };
    let unit = |i: usize| comments[i].map(|c| c.unit.to_owned()).filter(|unit| !unit.is_empty());
    let batch = RecordBatch::try_from_iter([
        ("column_name", texts(&|i| Some(fields[i].name().clone()))),
        ("data_type", texts(&|i| Some(fields[i].data_type().to_string()))),
        ("is_nullable", texts(&|i| Some(if fields[i].is_nullable() { "YES" } else { "NO" }.to_owned()))),
        ("unit", texts(&unit)),
        ("comment", texts(&|i| comments[i].map(|c| c.text.to_owned()))),
    ]);
    let batch = batch.map_err(|error| Error::Query(error.into()))?;
    Ok(context.read_batch(batch)?.into_unoptimized_plan())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query;
    use crate::tables::Tables;

    #[tokio::test]
    async fn every_column_of_every_view_has_a_comment() {
        let folder = tempfile::tempdir().unwrap();
        let tables = Tables::open_or_create(folder.path().to_str().unwrap()).await.unwrap();
        let context = query::session(&tables).await.unwrap();
        let mut computed = Vec::new();
        for view in views().into_iter().filter(|view| view.needs.is_none()) {
            for field in context.table(view.name).await.unwrap().schema().fields() {
                assert!(column_comment("public", view.name, field.name()).is_some(), "{}.{}", view.name, field.name());
                computed.push((view.name, field.name().clone()));
            }
        }
        for &(view, column, ..) in COMPUTED {
            assert!(computed.contains(&(view, column.to_owned())), "{view} has no column {column}");
        }
        assert_eq!(column_comment("public", "scans", "brain_volume_ml").unwrap().unit, "ml");
        assert_eq!(column_comment("mine", "scans", "brain_volume_ml"), None);
    }
}
