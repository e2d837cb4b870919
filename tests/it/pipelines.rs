//! The ready pipeline files, and the error of a wrong key.

use std::path::{Path, PathBuf};

use neurosieve::config;
use neurosieve::eval::EvalPipeline;
use neurosieve::flow::{Pipeline, Schedule};
use neurosieve::score::ScoreConfig;
use neurosieve::train;

/// Every file of `pipelines/`.
fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Loads a file as the command that its sections are for.
fn load(path: &Path) -> neurosieve::Result<&'static str> {
    let sections = config::merged(Some(path), &[])?;
    if sections.contains_key("train") {
        train::load(Some(path), &[])?;
        return Ok("train");
    }
    if sections.contains_key("eval") {
        config::load::<EvalPipeline>(Some(path), &[])?;
        return Ok("eval");
    }
    let pipeline: Pipeline = config::load(Some(path), &[])?;
    if pipeline.schedule.is_none() {
        return Ok("run");
    }
    Schedule::new(pipeline)?;
    Ok("schedule")
}

#[test]
fn every_ready_pipeline_is_valid() {
    let mut commands: Vec<&str> = files().iter().map(|path| load(path).unwrap()).collect();
    commands.sort_unstable();
    commands.dedup();
    assert_eq!(commands, ["eval", "run", "schedule", "train"], "each command has a ready pipeline");
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let refused = |key: &str| config::load::<Pipeline>(None, &[format!("{key}=3")]).unwrap_err().to_string();
    for (key, nearest) in [
        ("score.mask_treshold", "mask_threshold"),
        ("run.lmit", "limit"),
        ("cohort.select.subject", "subjects"),
        ("tables.commit_second", "commit_seconds"),
        ("modl.bundle", "model"),
    ] {
        let said = refused(key);
        assert!(said.contains(&format!("did you mean `{nearest}`")), "{key}: {said}");
    }
}

#[test]
fn overrides_reach_nested_settings_and_leave_the_others_at_their_defaults() {
    let overrides = ["run.limit=5", "cohort.url=s3://bucket/x", "cohort.select.subjects=[\"01\"]"].map(String::from);
    let pipeline: Pipeline = config::load(None, &overrides).unwrap();
    assert_eq!((pipeline.run.limit, pipeline.cohort.url.as_str()), (5, "s3://bucket/x"));
    assert_eq!(pipeline.cohort.select.subjects, ["01"]);
    assert_eq!(pipeline.score, ScoreConfig::default());
}
