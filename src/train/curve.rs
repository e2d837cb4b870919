//! The training's figures over its steps: `training.parquet` in the bundle's folder.
//!
//! | column | type | what |
//! |---|---|---|
//! | `stage` | text | tokenizer, detector, inpainter, prior |
//! | `step` | int64 | updates made before this figure was taken |
//! | `figure` | text | such as `l1`, `bce`, `nll`, on the step's own batch |
//! | `value` | float64 | |
//!
//! Rows are kept in the work folder with the checkpoints: a training that is killed and continued has the curve of an
//! undisturbed one, each step once.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use super::stage_file;
use crate::error::{Error, Result};

/// Figures are taken every so many steps.
pub(super) const EVERY: i64 = 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    step: i64,
    figure: String,
    value: f64,
}

/// All figures of one stage so far.
#[derive(Debug)]
pub(super) struct Curve {
    path: PathBuf,
    rows: Vec<Row>,
}

impl Curve {
    /// What an earlier training of the stage left in the work folder; nothing where there was none.
    pub fn open(config: &TrainConfig, stage: &str) -> Result<Self> {
        let path = config.work.join(format!("{}.curve.json", stage_file(config, stage)));
        let rows = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::Config(format!("{}: {e}; delete it to start its curve anew", path.display())))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(format!("cannot read {}", path.display()), e)),
        };
        Ok(Self { path, rows })
    }

    /// Forgets what was said from `step` on: the stage continues from there.
    pub fn rewind(&mut self, step: i64) {
        self.rows.retain(|row| row.step < step);
    }

    pub fn push(&mut self, step: i64, figure: &str, value: f64) {
        self.rows.push(Row { step, figure: figure.into(), value });
    }

    /// Writes the rows; to be called before the checkpoint that they lead to.
    pub fn save(&self) -> Result<()> {
        let failed = |e| Error::io("cannot keep the training's figures", e);
        let partial = self.path.with_extension("partial");
        let text = serde_json::to_vec(&self.rows).map_err(|e| Error::Bug(format!("the training's figures: {e}")))?;
        std::fs::write(&partial, text).map_err(failed)?;
        std::fs::rename(&partial, &self.path).map_err(failed)
    }
}

/// Writes the curves of `stages` in the work folder as `training.parquet` of the bundle's folder.
pub(super) fn write_parquet(config: &TrainConfig, stages: &[&str]) -> Result<()> {
    let mut rows: Vec<(&str, Row)> = Vec::new();
    for &stage in stages {
        rows.extend(Curve::open(config, stage)?.rows.into_iter().map(|row| (stage, row)));
    }
    let bug = |e: &dyn std::fmt::Display| Error::Bug(format!("the training's figures: {e}"));
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
