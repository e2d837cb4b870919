//! Executing a run: from pending scans to committed tables.
//!
//! ```text
//! pending scans ─► Engine (local.rs, or a cluster) ─► receipts ─► Commits ─► tokens, masks, findings, failures, scans
//! ```
//! The row of the run in `runs` is written before the first scan and again at the end. A run that is stopped finishes the
//! scans in flight and commits them; started again, it screens the rest.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use tracing::warn;

use super::audit;
use super::commit::Commits;
use super::engine::{Assignment, Screening};
use super::metadata::participant_rows;
use super::order::Order;
use super::outage::Outages;
use super::prepare::Run;
use super::progress::{Progress, Snapshot, bottleneck};
use super::report::{RunOutcome, RunReport};
use super::roll::{RollPolicy, RunLimits};
use super::stop::StopSwitch;
use crate::cohort::ScanEntry;
use crate::error::{Error, Result};
use crate::machine::cores;
use crate::store::Location;
use crate::tables::{RevertRow, RunRow};

/// What the plan of a run did.
struct Screened {
    /// The plan with its metrics.
    plan: String,
    gave_up: bool,
    superseded: u64,
}

impl Run {
    /// Screens the pending scans and commits their results.
    ///
    /// When `stop` completes, the run begins no further scan, finishes those in flight, commits them and ends. Give
    /// [`std::future::pending()`] for a run that ends only by itself.
    ///
    /// # Errors
    /// Storage, table, model and device errors of the run as a whole. A scan's own failure is a row in `failures`.
    pub async fn execute(mut self, stop: impl Future<Output = ()>) -> Result<RunReport> {
        let started = Instant::now();
        let pending = self.pending() as u64;
        let mut report = RunReport {
            outcome: if self.without_result() == 0 { RunOutcome::NothingToDo } else { RunOutcome::DoneWithFailures },
            reverted: self.pending.reverted.len() as u64,
            stages: self.progress.snapshot().stages.to_vec(),
            ..RunReport::running(pending, self.quarantined() as u64, self.waiting() as u64)
        };
        let mut row = self.run_row()?;
        if pending == 0 {
            row.finished_at = Some(row.started_at);
            row.status = report.outcome.status().to_owned();
        }
        // A run that has nothing to screen is recorded too: it says which recipe was asked for last.
        self.tables.begin_run(&mut row).await?;
        self.tables.record_reverts(&self.reverts(&row)).await?;
        if let Some(metadata) = &self.metadata {
            let rows = participant_rows(metadata, &row.cohort);
            self.tables.record_participants(&row.cohort, rows, &row.run_id).await?;
        }
        if pending == 0 {
            report.run = Some(row);
            report.elapsed = started.elapsed();
            return Ok(report);
        }
        let screened = self.screen(&row, stop).await;

        let counts = self.progress.snapshot();
        let (gave_up, superseded) = screened.as_ref().map_or((false, 0), |done| (done.gave_up, done.superseded));
        let limit = self.pipeline.run.max_failures;
        // A run that was stopped is not judged by the few scans that had ended.
        let all_ended = counts.ended() >= pending;
        let passed = limit.is_some_and(|limit| limit.was_passed(counts.done, counts.failed));
        let gave_up = gave_up || all_ended && passed;
        report.outcome = outcome(pending, self.without_result(), &counts, gave_up);
        row.finished_at = Some(Utc::now().timestamp_micros());
        // Which devices a cluster has is known at the end.
        row.device = self.engine.device();
        row.status = if screened.is_ok() { report.outcome.status() } else { "failed" }.to_owned();
        row.message = screened.as_ref().err().map(audit::summary);
        row.n_done = (counts.done - superseded) as i64;
        row.n_failed = counts.failed as i64;
        row.scans_per_minute = (counts.ended() as f64 / started.elapsed().as_secs_f64() * 60.) as f32;
        // The row comes first: a run that failed has an end in `runs` as well.
        let recorded = self.tables.end_run(&row).await;
        report.plan = screened?.plan;
        recorded?;
        report.run = Some(row);
        report.done = counts.done - superseded;
        report.failed = counts.failed;
        report.superseded = superseded;
        report.stages = counts.stages.to_vec();
        report.bottleneck = bottleneck(&counts.stages).map(|slowest| slowest.stage);
        report.elapsed = started.elapsed();
        Ok(report)
    }

    /// Selected scans that have no result and are not pending.
    fn without_result(&self) -> u64 {
        (self.pending.quarantined + self.pending.waiting) as u64
    }

    /// Has the engine screen the pending scans, and commits the receipts.
    async fn screen(&mut self, row: &RunRow, stop: impl Future<Output = ()>) -> Result<Screened> {
        let switch = Arc::<StopSwitch>::default();
        let longest_outage = Duration::from_secs(self.pipeline.run.outage_s);
        let limits = RunLimits { stop: Arc::clone(&switch), longest_outage };
        let screening = Arc::clone(&self.engine).start(self.assignment(row, &switch)?);
        let mut commits = Commits::new(&mut self.tables, &self.pipeline.tables, &row.run_id, &self.progress, limits);
        let committing = async {
            let Screening { receipts, plan } = screening.await?;
            Ok::<_, Error>((commits.take_all(receipts).await, plan))
        };
        let time_to_finish = self.engine.time_to_finish(Duration::from_secs(self.pipeline.run.stop_s));
        // In this order: a run that is to stop before it starts begins no scan.
        let committed = tokio::select! {
            biased;
            never = stopping(&switch, &self.progress, stop, time_to_finish) => match never {},
            committed = committing => committed,
        };
        self.engine.end().await;
        let (superseded, plan) = committed?;
        let superseded = superseded?;
        if let Some(error) = switch.take_failure() {
            return Err(error);
        }
        Ok(Screened { plan: plan.shown(), gave_up: switch.gave_up(), superseded })
    }

    fn assignment(&self, row: &RunRow, switch: &Arc<StopSwitch>) -> Result<Assignment> {
        Ok(Assignment {
            order: self.order(row)?,
            scans: self.pending.scans.clone(),
            cohort: self.cohort.clone(),
            cohort_root: self.cohort_root.clone(),
            tables: self.tables.location().clone(),
            bundle: Arc::clone(&self.bundle),
            bundle_name: self.pipeline.model.bundle.clone(),
            policy: RollPolicy::within(&self.pipeline.tables),
            stop: Arc::clone(switch),
            progress: Arc::clone(&self.progress),
        })
    }

    fn order(&self, row: &RunRow) -> Result<Order> {
        let config = &self.pipeline.run;
        Ok(Order {
            run_id: row.run_id.clone(),
            run_number: row.run_number.ok_or_else(|| Error::Bug("the run has no number".into()))?,
            recipe_id: self.recipe_id.clone(),
            cohort: self.cohort.to_string(),
            samples: Outages::samples(&self.listing.selected),
            tables: self.tables.location().to_string(),
            preprocess: self.preprocess.clone(),
            score: self.pipeline.score.clone(),
            bundle: self.bundle.label(),
            bundle_digest: self.bundle.digest.clone(),
            max_scan_bytes: config.max_scan_bytes(),
            scan_timeout: Some(Duration::from_secs(config.scan_timeout_s)).filter(|limit| !limit.is_zero()),
            longest_outage: Duration::from_secs(config.outage_s),
            max_failures: config.max_failures,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// The row in `runs` at the start of the run.
    fn run_row(&self) -> Result<RunRow> {
        Ok(RunRow {
            run_id: uuid::Uuid::now_v7().to_string(),
            cohort: self.listing.cohort.clone(),
            started_at: Utc::now().timestamp_micros(),
            finished_at: None,
            status: "running".to_owned(),
            n_listed: (self.listing.selected.len() + self.listing.skipped.len()) as i64,
            n_selected: self.listing.selected.len() as i64,
            n_already_done: self.already_done() as i64,
            n_done: 0,
            n_failed: 0,
            scans_per_minute: 0.,
            device: self.engine.device(),
            recipe_id: self.recipe_id.clone(),
            bundle: self.bundle.label(),
            bundle_digest: self.bundle.digest.clone(),
            config: self.portable_config()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cores: cores() as i32,
            run_number: None,
            cohort_root: Some(self.cohort_root.clone()),
            host: self.pipeline.run.host_label.clone(),
            operator: self.pipeline.run.operator.clone(),
            image: audit::image(&self.pipeline.run),
            message: None,
        })
    }

    /// Scans that have an earlier content again, whose outcome becomes the current one.
    fn reverts(&self, row: &RunRow) -> Vec<RevertRow> {
        let revert = |entry: &ScanEntry| {
            Some(RevertRow {
                run_id: row.run_id.clone(),
                run_number: row.run_number?,
                scan_id: entry.scan_id.clone(),
                content_id: entry.content_id.clone(),
                recipe_id: row.recipe_id.clone(),
                cohort: entry.cohort.clone(),
            })
        };
        self.pending.reverted.iter().filter_map(revert).collect()
    }

    /// The effective pipeline for the table `runs`, with local folders reduced to their names, and without the subjects that
    /// are excluded: a table must not say where its host keeps its files, nor name a person that it has forgotten.
    fn portable_config(&self) -> Result<String> {
        let mut pipeline = self.pipeline.clone();
        pipeline.preprocess = Some(self.preprocess.clone());
        let portable = |location: &Location| match location.url.scheme() {
            "file" => location.name().to_owned(),
            _ => location.url.to_string(),
        };
        pipeline.cohort.url = portable(&self.cohort);
        pipeline.tables.url = portable(self.tables.location());
        // Who is left out may be a person that the tables have forgotten (`tables forget`).
        for pattern in pipeline.cohort.select.exclude.iter_mut().filter(|pattern| pattern.contains("sub-")) {
            *pattern = "(names a subject)".to_owned();
        }
        if pipeline.model.bundle != "built-in" {
            pipeline.model.bundle = self.bundle.label();
        }
        toml::to_string(&pipeline).map_err(|e| Error::Bug(format!("the pipeline as TOML: {e}")))
    }
}

/// Has the run stop when `stop` completes or something else presses the switch, and abandons the scans that are then not
/// finished in time.
async fn stopping(
    switch: &StopSwitch,
    progress: &Progress,
    stop: impl Future<Output = ()>,
    time_to_finish: Duration,
) -> Infallible {
    tokio::select! {
        biased;
        () = stop => switch.press(),
        () = switch.pressed() => {}
    }
    tokio::time::sleep(time_to_finish).await;
    let left = progress.snapshot().in_flight();
    if left > 0 {
        let seconds = time_to_finish.as_secs();
        warn!("{left} scans are not finished {seconds} s after the run was to stop; the next run screens them");
    }
    switch.abandon();
    std::future::pending().await
}

/// How a run with `pending` scans ended, whether or not its plan succeeded; `without_result` is the number of the other selected
/// scans that have no result.
fn outcome(pending: u64, without_result: u64, counts: &Snapshot, gave_up: bool) -> RunOutcome {
    match (pending.saturating_sub(counts.ended()), counts.failed + without_result) {
        _ if gave_up => RunOutcome::GaveUp,
        (0, 0) => RunOutcome::Done,
        (0, _) => RunOutcome::DoneWithFailures,
        _ => RunOutcome::Stopped,
    }
}
