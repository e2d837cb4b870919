//! A pipeline file of `neurosieve run` and `neurosieve schedule`: the settings of all modules that screening uses.

use serde::{Deserialize, Serialize};

use super::config::{RunConfig, ScheduleConfig};
use crate::cohort::CohortConfig;
use crate::config::Validate;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::preprocess::PreprocessConfig;
use crate::score::ScoreConfig;
use crate::tables::TablesConfig;

/// What `neurosieve run` and `neurosieve schedule` do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pipeline {
    /// Where scans come from and which are selected.
    pub cohort: CohortConfig,
    /// Where results are written, and how often they are committed.
    pub tables: TablesConfig,
    /// Preprocessing. Default: the settings that the bundle was trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<PreprocessConfig>,
    /// Which model scores.
    pub model: ModelConfig,
    /// How it scores.
    pub score: ScoreConfig,
    /// How a run uses the machine, and which of the pending scans it takes.
    pub run: RunConfig,
    /// When `neurosieve schedule` works; `neurosieve run` ignores it and runs at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleConfig>,
}

impl Validate for Pipeline {
    // `model` has no number of which a value makes no sense.
    fn validate(&self) -> Result<()> {
        self.cohort.validate()?;
        self.tables.validate()?;
        self.preprocess.iter().try_for_each(Validate::validate)?;
        self.score.validate()?;
        self.run.validate()?;
        self.schedule.iter().try_for_each(Validate::validate)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::sync::Semaphore;
    use toml::Value;

    use super::super::budget::Budget;
    use super::super::progress::Progress;
    use crate::config;
    use crate::error::Error;

    use super::*;

    /// Every setting with a number, also those that are left out by default.
    fn complete() -> Value {
        let score = ScoreConfig {
            token_threshold: Some(0.5),
            mask_threshold: Some(0.5),
            ar_limit_nats: Some(5.),
            scans_at_once: std::num::NonZeroUsize::new(2),
            ..ScoreConfig::default()
        };
        let run = RunConfig { max_failures: Some("5".parse().unwrap()), ..RunConfig::default() };
        let mut cohort = CohortConfig::default();
        cohort.select.limit = Some(7);
        let (preprocess, schedule) = (Some(PreprocessConfig::default()), Some(ScheduleConfig::default()));
        let pipeline = Pipeline { cohort, preprocess, score, run, schedule, ..Pipeline::default() };
        Value::try_from(pipeline).unwrap()
    }

    /// The keys of all numbers below `value`; elements of an array by their number.
    fn numbers(value: &Value, key: &[String], found: &mut Vec<Vec<String>>) {
        let below = |name: String| [key, &[name]].concat();
        match value {
            Value::Integer(_) | Value::Float(_) => found.push(key.to_vec()),
            Value::Table(table) => table.iter().for_each(|(name, value)| numbers(value, &below(name.clone()), found)),
            Value::Array(values) => {
                values.iter().enumerate().for_each(|(i, value)| numbers(value, &below(i.to_string()), found));
            }
            _ => {}
        }
    }

    fn at<'a>(value: &'a mut Value, key: &[String]) -> &'a mut Value {
        key.iter().fold(value, |here, name| match here {
            Value::Array(values) => &mut values[name.parse::<usize>().unwrap()],
            other => other.get_mut(name.as_str()).unwrap(),
        })
    }

    /// What a run computes from numbers before its first scan.
    fn use_numbers(pipeline: &Pipeline) {
        let Pipeline { run, tables, schedule, .. } = pipeline;
        match Budget::new(run.memory_mib, 2) {
            Ok(budget) => assert!(budget.scans_mib() > 0),
            Err(error) => assert!(matches!(error, Error::Config(_)), "{error}"),
        }
        let _ = (Semaphore::new(run.scans_in_flight), Progress::new(run.scans_in_flight, 2, 2));
        assert!(run.max_scan_mib.checked_mul(1 << 20).is_some_and(|bytes| bytes > 0));
        for seconds in [tables.commit_seconds, run.scan_timeout_s] {
            assert!(Instant::now().checked_add(Duration::from_secs(seconds)).is_some());
        }
        assert!(tables.commit_scans > 0);
        let schedule = schedule.as_ref().unwrap();
        assert!(schedule.target_mib.checked_mul(1 << 20).is_some() && schedule.keep_days.checked_mul(86_400).is_some());
    }

    #[test]
    fn every_number_of_a_pipeline_is_sensible_or_refused_with_its_key() {
        let complete = complete();
        let mut keys = Vec::new();
        numbers(&complete, &[], &mut keys);
        assert!(keys.len() > 80, "{} numbers", keys.len());
        for key in &keys {
            let floats = [0., -1., f64::MAX, f64::MIN_POSITIVE, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
            let values = match at(&mut complete.clone(), key) {
                Value::Integer(_) => [0, -1, i64::MAX, i64::MIN].map(Value::Integer).to_vec(),
                _ => floats.map(Value::Float).to_vec(),
            };
            for value in values {
                let mut changed = complete.clone();
                *at(&mut changed, key) = value.clone();
                let Value::Table(table) = changed else { unreachable!("a pipeline is a table") };
                match config::settings::<Pipeline>(table, None) {
                    Ok(pipeline) => {
                        let huge = value.as_float().is_some_and(|v| !v.is_finite() || v == f64::MAX);
                        assert!(!huge, "{key:?} = {value} is accepted");
                        use_numbers(&pipeline);
                    }
                    Err(error) => {
                        let name = key.iter().rfind(|name| name.parse::<usize>().is_err()).unwrap();
                        let negative = value.as_integer().is_some_and(|v| v < 0);
                        assert!(matches!(error, Error::Config(_)), "{key:?} = {value}: {error}");
                        assert!(negative || error.to_string().contains(name), "{key:?} = {value}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_that_ended_a_run_in_a_panic_or_never_are_refused() {
        for number in [
            "tables.commit_scans=0",
            "tables.commit_seconds=9223372036854775807",
            "run.scans_in_flight=9223372036854775807",
            "run.max_scan_mib=17592186044416",
            "run.memory_mib=9223372036854775807",
            "score.smooth_mm=1e9",
            "score.steps=1000000000000",
            "preprocess.bias.coarse_mm=0.001",
            "preprocess.skull_strip.curvature_radius_min_mm=14",
        ] {
            let key = number.split('=').next().unwrap();
            let refused = config::load::<Pipeline>(None, &[number.to_owned()]).unwrap_err().to_string();
            assert!(refused.contains(&format!("{key} is ")) && refused.contains("expected"), "{refused}");
        }
    }
}
