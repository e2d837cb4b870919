//! `neurosieve run`: screens a cohort, prints progress and a summary.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::metadata::gaps;
use super::on_cluster::OnCluster;
use super::pipeline::{PipelineArgs, asked_to_stop, monitor, quoted};
use super::report_file::ReportFile;
use super::{DONE_WITH_FAILURES, FAILED, GAVE_UP, STOPPED};
use crate::cohort;
use crate::error::Result;
use crate::flow::{Night, Pipeline, Progress, Run, RunOutcome, RunReport, Snapshot, Stage, StageSnapshot, bottleneck};
use crate::terminal::{errln, log_lines, outln};

/// Screen the scans of a cohort that have no result yet
///
/// Reads a pipeline file, lists the cohort, skips scans that have a result for the same content and settings, and screens
/// the others. A scan that cannot be screened becomes a row in `failures`. Ctrl-C commits what is finished, and gives the scans
/// in flight 25 s (run.stop_s; with --cluster as long as they take) to finish; a second Ctrl-C ends at once. The same command then screens the rest.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve run pipelines/screen.toml --cohort s3://bucket/study --tables s3://bucket/results
  neurosieve run pipelines/screen.toml --cohort ./study --tables ./results --limit 10 --device cpu
  neurosieve run pipelines/screen.toml --set score.mask_threshold=0.6 --set 'cohort.select.sessions=[\"1\"]'
  neurosieve run pipelines/screen.toml --cohort ./study --tables ./results --shard 2/8 --max-failures 5%
  neurosieve run pipelines/screen.toml --cohort s3://bucket/study --tables s3://bucket/results --cluster https://host:50050 --tls ./tls

Exit codes: 0 every selected scan has a result, 1 error (also a store that stays down), 2 wrong settings or nothing selected, 3 some
scans failed, now or in an earlier run, 4 stopped early, 5 more scans failed than --max-failures allows.
NEUROSIEVE_LOG=info prints more of the log (debug: every scan); --log-format json prints it as JSON.")]
pub struct RunArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    #[command(flatten)]
    pub on: OnCluster,
    /// Device to compute on: auto, cpu, cuda or cuda:N [pipeline: run.device]
    #[arg(long)]
    pub device: Option<String>,
    /// Screen at most N of the pending scans; 0: all [pipeline: run.limit]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Screen one part of the cohort, so that several processes share the work: 2/8 is the second of eight parts [pipeline:
    /// run.shard]
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Give up if more scans fail than this: a number (25), or a share of the finished scans (5%) [pipeline:
    /// run.max_failures]
    #[arg(long, value_name = "N|P%")]
    pub max_failures: Option<String>,
    /// Also try quarantined scans again: those whose content was found unusable, or that failed too often [pipeline: run.retry]
    #[arg(long)]
    pub retry: bool,
    /// Do nothing, successfully, where no scan of the cohort is selected, instead of ending with an error [pipeline:
    /// run.allow_empty]
    #[arg(long)]
    pub allow_empty: bool,
    /// At the end, print the physical plan with times and counts per operator
    #[arg(long)]
    pub explain: bool,
}

impl RunArgs {
    /// Runs the pipeline.
    ///
    /// # Errors
    /// As [`Run::prepare`] and [`Run::execute`]; [`Error::Config`](crate::Error::Config) where the report cannot be written.
    pub async fn run(self) -> Result<ExitCode> {
        if !std::io::stderr().is_terminal() {
            log_lines(false);
        }
        let text = |key: &str, value: &Option<String>| value.as_ref().map(|value| quoted(key, value));
        let overrides = [
            text("run.device", &self.device),
            text("run.shard", &self.shard),
            text("run.max_failures", &self.max_failures),
            self.limit.map(|n| format!("run.limit={n}")),
            self.retry.then(|| "run.retry=true".to_owned()),
            self.allow_empty.then(|| "run.allow_empty=true".to_owned()),
        ];
        let screening = async |pipeline: Pipeline, report: &ReportFile| {
            report.begin()?;
            self.on.refuse_device(self.device.as_deref())?;
            self.on.warn_of_unused(&pipeline.run);
            screen(pipeline, &self.on, report, self.explain).await
        };
        self.pipeline.reported(overrides.into_iter().flatten(), screening).await
    }
}

/// Screens the pending scans of a pipeline and prints what was done.
async fn screen(pipeline: Pipeline, on: &OnCluster, file: &ReportFile, explain: bool) -> Result<ExitCode> {
    let tables = pipeline.tables.url.clone();
    let monitor = monitor(&pipeline)?;

    let stop = asked_to_stop("stopping: committing what is finished, and finishing the scans in flight")?;
    let preparing = async { Run::prepare_on(pipeline, on.engine().await?).await };
    let run = tokio::select! {
        biased;
        run = preparing => run?,
        () = stop.clone() => {
            outln!("Stopped before the first scan. The same command screens them.");
            file.ended(&RunReport { outcome: RunOutcome::Stopped, ..RunReport::running(0, 0, 0) })?;
            return Ok(ExitCode::from(STOPPED));
        }
    };
    let pending = run.pending() as u64;
    file.prepared(&run);
    if let Some(monitor) = &monitor {
        monitor.watch(run.progress(), pending);
    }
    selection(&run);
    let listing = run.listing();
    let nothing_to_screen = listing.selected.is_empty().then(|| match run.in_other_shards() {
        0 => "Nothing to do: no scan of the cohort is selected.",
        _ => "Nothing to do: none of the selected scans belongs to this shard.",
    });

    let display = tokio::spawn(show(run.progress(), pending, Duration::from_secs(10)));
    let report = run.execute(stop).await;
    display.abort();
    let report = report?;
    if let Some(monitor) = &monitor {
        monitor.ended(Night::of(&report));
    }
    if explain {
        outln!("{}\n{}", report.plan, stages(&report.stages));
    }
    match nothing_to_screen {
        Some(text) => outln!("{text}"),
        None => summary(&report, &tables),
    }
    file.ended(&report)?;
    Ok(match report.outcome {
        RunOutcome::NothingToDo | RunOutcome::Done => ExitCode::SUCCESS,
        RunOutcome::DoneWithFailures => ExitCode::from(DONE_WITH_FAILURES),
        RunOutcome::Stopped => ExitCode::from(STOPPED),
        RunOutcome::GaveUp => ExitCode::from(GAVE_UP),
        RunOutcome::Running | RunOutcome::Failed => ExitCode::from(FAILED),
    })
}

/// Prints which scans a run has selected, and what is left out.
pub(super) fn selection(run: &Run) {
    let listing = run.listing();
    errln!(
        "{}: {} scans selected, {} images left out; {} done already, {} quarantined, {} waiting, {} pending",
        listing.cohort,
        listing.selected.len(),
        listing.skipped.len(),
        run.already_done(),
        run.quarantined(),
        run.waiting(),
        run.pending(),
    );
    for line in cohort::report::faults(listing) {
        errln!("{line}");
    }
    if let Some(gaps) = run.metadata().and_then(gaps) {
        errln!("{gaps}");
    }
    if run.in_other_shards() > 0 {
        errln!("{} more scans belong to other shards of the cohort", run.in_other_shards());
    }
}

/// Shows a progress bar on a terminal, or prints a line from time to time elsewhere.
pub(super) async fn show(progress: Arc<Progress>, pending: u64, every: Duration) {
    let started = Instant::now();
    if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").unwrap_or(ProgressStyle::default_bar());
        let bar = ProgressBar::new(pending).with_style(style);
        loop {
            let now = progress.snapshot();
            bar.set_position(now.ended());
            bar.set_message(line(&now, pending, started));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    loop {
        tokio::time::sleep(every).await;
        let now = progress.snapshot();
        errln!("{}/{pending} {}", now.ended(), line(&now, pending, started));
    }
}

/// The progress as text.
fn line(now: &Snapshot, pending: u64, started: Instant) -> String {
    let ended = now.ended();
    let rate = ended as f64 / started.elapsed().as_secs_f64();
    let left = pending.saturating_sub(ended);
    let eta = if ended == 0 { "unknown".to_owned() } else { duration(left as f64 / rate) };
    let at = |counts: &StageSnapshot| {
        let busy = counts.busy.map_or(String::new(), |share| format!(" ({:.0} %)", 100. * share));
        format!("{} {}{busy}", counts.stage, counts.scans)
    };
    // Other processes say at which stages their scans are only when these have ended.
    let is_here = now.stages.iter().any(|counts| counts.stage != Stage::Commit && counts.busy.is_some());
    let at: Vec<String> = now.stages.iter().filter(|counts| is_here || counts.stage == Stage::Commit).map(at).collect();
    format!(
        "done {}, failed {}, pending {left} ({} in flight), {:.1} scans/min, {eta} left; bottleneck: {}; scans at (busy): {}",
        now.done,
        now.failed,
        now.in_flight(),
        rate * 60.,
        bottleneck(&now.stages).map_or("nothing yet", |slowest| slowest.stage.name()),
        at.join(", "),
    )
}

/// Counts and times of every stage as a table, and the bottleneck.
fn stages(stages: &[StageSnapshot]) -> String {
    let row = |StageSnapshot { stage, scans: _, passed, seconds, busy }: &StageSnapshot| {
        let mean_ms = 1e3 * seconds / (*passed).max(1) as f64;
        let busy = busy.map_or("-".to_owned(), |share| format!("{:.0} %", 100. * share));
        format!("{stage:<12}{passed:>8}{seconds:>12.1}{mean_ms:>12.1}{busy:>8}\n")
    };
    let head = format!("{:<12}{:>8}{:>12}{:>12}{:>8}\n", "stage", "scans", "seconds", "ms/scan", "busy");
    let slowest = bottleneck(stages).map(|slowest| slowest.stage);
    let slowest = slowest.map(|stage| format!("bottleneck: {stage}: {}\n", advice(stage)));
    head + &stages.iter().map(row).collect::<String>() + &slowest.unwrap_or_default()
}

/// How to relieve a bottleneck.
fn advice(stage: Stage) -> &'static str {
    match stage {
        Stage::Memory => "more run.memory_mib, or fewer run.scans_in_flight",
        Stage::Fetch => "more run.scans_in_flight, or a store nearby",
        Stage::Decode | Stage::Preprocess | Stage::Assess => "more cores",
        Stage::Queue | Stage::Device => "a GPU, more cores, or score.precision = \"bf16\" where that is faster",
        Stage::Commit => "more tables.commit_scans and tables.commit_seconds, or a store nearby",
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// The selected scans that have no result from earlier runs and were not pending: why, and when they are tried again.
fn without_result(report: &RunReport) -> Option<String> {
    let n = report.quarantined + report.waiting;
    (n > 0).then(|| {
        format!(
            "Selected scans without a result from earlier runs: {n}. Quarantined, because their content is unusable, exceeds a limit \
             of this run, or failed eight times: {}; they are tried again when the content changes, or under higher limits. Waiting \
             for a later run after repeated failures: {}. With --retry all are tried now. See the reasons with the command below.",
            report.quarantined, report.waiting
        )
    })
}

/// Prints the results of a run and the next steps.
pub(super) fn summary(report: &RunReport, tables: &str) {
    if report.reverted > 0 {
        outln!(
            "{} scans have an earlier content again; the results of that content are the current ones.",
            report.reverted
        );
    }
    let Some(run) = report.run.as_ref().filter(|_| report.pending > 0) else {
        match without_result(report) {
            None => outln!("Nothing to do: every selected scan has a result for its content and these settings."),
            Some(text) => {
                outln!("Nothing to do. {text}");
                outln!("Next:   neurosieve failures --tables {tables}");
            }
        }
        return;
    };
    let ended = report.done + report.failed + report.superseded;
    outln!(
        "{} scans done, {} failed in {} ({:.1} scans/min). Run {}.",
        report.done,
        report.failed,
        duration(report.elapsed.as_secs_f64()),
        ended as f64 / report.elapsed.as_secs_f64() * 60.,
        run.run_id,
    );
    if report.superseded > 0 {
        outln!("{} more were already committed by another run, whose results are kept.", report.superseded);
    }
    if let Some(text) = without_result(report) {
        outln!("{text}");
    }
    let left = report.pending.saturating_sub(ended);
    match report.outcome {
        RunOutcome::Stopped => outln!("Stopped with {left} scans left. The same command screens them."),
        RunOutcome::GaveUp => {
            let rest =
                if left == 0 { String::new() } else { format!(" The same run command screens the other {left}.") };
            errln!(
                "warning: more scans failed than run.max_failures allows. See the reasons with the command below.{rest}"
            );
        }
        _ => {}
    }
    outln!("Tables: {tables}");
    outln!("Next:   neurosieve sql --tables {tables} -f sql/most_anomalous_scans.sql");
    if report.failed + report.quarantined + report.waiting > 0 {
        outln!("        neurosieve failures --tables {tables}");
    }
    outln!("Research use only; not a medical device.");
}
