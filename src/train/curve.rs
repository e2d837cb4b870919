//! The learning curves: `training.parquet` in the bundle's folder.
//!
//! | column | type | what |
//! |---|---|---|
//! | `stage` | text | `tokenizer`, `detector`, `inpainter` or `prior` |
//! | `step` | int64 | number of updates before this one |
//! | `figure` | text | such as `l1`, `bce` or `nll`, on the step's own batch |
//! | `value` | float64 | |
//!
//! The rows are kept in the work folder with the checkpoints, so a training that is killed and continued has the same
//! curve as an undisturbed one, with each step once.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use super::work;
use crate::error::{Error, Result};
use crate::model::Network;

/// Steps between two rows of a figure.
pub(super) const EVERY: i64 = 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    step: i64,
    figure: String,
    value: f64,
}

/// The figures of one stage up to now.
#[derive(Debug)]
pub(super) struct Curve {
    path: PathBuf,
    rows: Vec<Row>,
}

impl Curve {
    /// The rows that an earlier training of the stage left in the work folder; none where there was no such training.
    ///
    /// # Errors
    /// [`Error::Config`] where the file holds something else, [`Error::Io`] where it cannot be read.
    pub(super) fn open(config: &TrainConfig, stage: &str) -> Result<Self> {
        let path = work::curve(config, stage);
        let rows = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                Error::Config(format!("{} is not a learning curve: {e}; delete it to start a new one", path.display()))
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(format!("cannot read {}", path.display()), e)),
        };
        Ok(Self { path, rows })
    }

    /// Drops the rows from `step` on, before the stage continues there.
    pub(super) fn rewind(&mut self, step: i64) {
        self.rows.retain(|row| row.step < step);
    }

    /// Adds a row.
    pub(super) fn push(&mut self, step: i64, figure: &str, value: f64) {
        self.rows.push(Row { step, figure: figure.into(), value });
    }

    /// Writes the rows. Call this before the checkpoint of the same step is written, so that no step is missing.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub(super) fn save(&self) -> Result<()> {
        let failed = |e| Error::io("cannot write the learning curve", e);
        let partial = self.path.with_extension("partial");
        let text = serde_json::to_vec(&self.rows).map_err(|e| Error::Bug(format!("the learning curve: {e}")))?;
        std::fs::write(&partial, text).map_err(failed)?;
        std::fs::rename(&partial, &self.path).map_err(failed)
    }
}

/// Writes the curves of networks in the work folder to `training.parquet` in the bundle's folder.
///
/// # Errors
/// [`Error::Config`] where a curve cannot be read, [`Error::Io`] where the file cannot be written.
pub(super) fn write_parquet(config: &TrainConfig, networks: &[Network]) -> Result<()> {
    let mut rows: Vec<(&str, Row)> = Vec::new();
    for network in networks {
        let stage = network.name();
        rows.extend(Curve::open(config, stage)?.rows.into_iter().map(|row| (stage, row)));
    }
    let bug = |e: &dyn std::fmt::Display| Error::Bug(format!("the learning curve: {e}"));
    let columns: [(&str, ArrayRef); 4] = [
        ("stage", Arc::new(StringArray::from_iter_values(rows.iter().map(|(stage, _)| stage)))),
        ("step", Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, row)| row.step)))),
        ("figure", Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, row)| &row.figure)))),
        ("value", Arc::new(Float64Array::from_iter_values(rows.iter().map(|(_, row)| row.value)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| bug(&e))?;
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).map_err(|e| bug(&e))?;
    writer.write(&batch).map_err(|e| bug(&e))?;
    let bytes = writer.into_inner().map_err(|e| bug(&e))?;
    std::fs::write(config.out.join("training.parquet"), bytes)
        .map_err(|e| Error::io("cannot write training.parquet of the bundle", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continued_stage_has_every_step_once() {
        let work = tempfile::tempdir().expect("folder");
        let config = TrainConfig { work: work.path().to_owned(), ..TrainConfig::default() };
        let mut curve = Curve::open(&config, "detector").expect("new");
        for step in [0, 10, 20] {
            curve.push(step, "bce", step as f64);
        }
        curve.save().expect("saved");
        let mut again = Curve::open(&config, "detector").expect("kept");
        again.rewind(15);
        again.push(20, "bce", 2.);
        let steps: Vec<i64> = again.rows.iter().map(|row| row.step).collect();
        assert_eq!(steps, [0, 10, 20]);
        assert_eq!(Curve::open(&config, "tokenizer").expect("new").rows, []);
    }
}
