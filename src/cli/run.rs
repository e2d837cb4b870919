//! `neurosieve run`: screens a cohort, with progress and a closing summary.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::pipeline::{PipelineArgs, asked_to_stop, monitor, quoted};
use super::{DONE_WITH_FAILURES, GAVE_UP, STOPPED, write_json};
use crate::error::Result;
use crate::flow::{Outcome, Place, Progress, Report, Run, Seen, Snapshot, bottleneck};

/// Screen the scans of a cohort that have no result yet
///
/// Reads a pipeline file, lists the cohort, leaves out what is done already with the same content and settings, and
/// screens the rest into the tables. A scan that cannot be screened becomes a row in `failures`. Ctrl-C finishes and
/// commits what is in flight; the same command again takes up the rest.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve run pipelines/screen.toml --cohort s3://bucket/study --tables s3://bucket/results
  neurosieve run pipelines/screen.toml --cohort ./study --tables ./results --limit 10 --device cpu
  neurosieve run pipelines/screen.toml --set score.mask_threshold=0.6 --set 'cohort.select.sessions=[\"1\"]'
  neurosieve run pipelines/screen.toml --cohort ./study --tables ./results --shard 2/8 --max-failures 5%

Exit codes: 0 all went through or nothing to do, 1 error, 2 wrong settings, 3 done with failures, 4 stopped early,
5 given up because more scans failed than --max-failures allows.
NEUROSIEVE_LOG=info shows the log (debug: every scan).")]
pub struct RunArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// What computes: auto, cpu, cuda or cuda:N [pipeline: run.device]
    #[arg(long)]
    pub device: Option<String>,
    /// At most this many pending scans [pipeline: run.limit]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// One of several parts of the cohort, for processes side by side: 2/8 is the second of eight [pipeline: run.shard]
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Give the run up when more scans fail: 25, or 5% of those that ended [pipeline: run.max_failures]
    #[arg(long, value_name = "N|P%")]
    pub max_failures: Option<String>,
    /// Also try scans again whose content failed for good [pipeline: run.retry]
    #[arg(long)]
    pub retry: bool,
    /// Print the physical plan with times and counts per operator at the end
    #[arg(long)]
    pub explain: bool,
}

impl RunArgs {
    /// Runs the pipeline.
    pub async fn run(self) -> Result<ExitCode> {
        let text = |key: &str, value: &Option<String>| value.as_ref().map(|value| quoted(key, value));
        let overrides = [
            text("run.device", &self.device),
            text("run.shard", &self.shard),
            text("run.max_failures", &self.max_failures),
            self.limit.map(|n| format!("run.limit={n}")),
            self.retry.then(|| "run.retry=true".to_owned()),
        ];
        let pipeline = self.pipeline.load(overrides.into_iter().flatten())?;
        let tables = pipeline.tables.url.clone();
        let monitor = monitor(&pipeline)?;

        let run = Run::prepare(pipeline).await?;
        let pending = run.pending() as u64;
        if let Some(monitor) = &monitor {
            monitor.watch(run.progress(), pending);
        }
        let listing = run.listing();
        eprintln!(
            "{}: {} scans selected, {} images left out; {} done already, {} quarantined, {pending} pending",
            listing.cohort,
            listing.selected.len(),
            listing.skipped.len(),
            run.already_done(),
            run.quarantined(),
        );
        if run.in_other_shards() > 0 {
            eprintln!("{} more scans are in other parts of the cohort", run.in_other_shards());
        }

        let stopping = asked_to_stop("stopping: finishing and committing what is in flight")?;
        let shown = tokio::spawn(show(run.progress(), pending));
        let report = run.execute(stopping).await;
        shown.abort();
        let report = report?;
        if self.explain {
            println!("{}\n{}", report.plan, stages(&report.places));
        }
        summary(&report, &tables);
        write_json(self.pipeline.report, &report)?;
        Ok(match report.outcome {
            Outcome::NothingToDo | Outcome::Done => ExitCode::SUCCESS,
            Outcome::DoneWithFailures => ExitCode::from(DONE_WITH_FAILURES),
            Outcome::Stopped => ExitCode::from(STOPPED),
            Outcome::GaveUp => ExitCode::from(GAVE_UP),
        })
    }
}

/// A bar on a terminal, a line every ten seconds elsewhere.
async fn show(progress: Arc<Progress>, pending: u64) {
    let started = Instant::now();
    if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").unwrap_or(ProgressStyle::default_bar());
        let bar = ProgressBar::new(pending).with_style(style);
        loop {
            let now = progress.snapshot();
            bar.set_position(now.done + now.failed);
            bar.set_message(line(&now, pending, started));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = progress.snapshot();
        eprintln!("{}/{pending} {}", now.done + now.failed, line(&now, pending, started));
    }
}

fn line(now: &Snapshot, pending: u64, started: Instant) -> String {
    let finished = now.done + now.failed;
    let rate = finished as f64 / started.elapsed().as_secs_f64();
    let left = pending.saturating_sub(finished);
    let eta = if finished == 0 { "unknown".to_owned() } else { duration(left as f64 / rate) };
    let busy = |seen: &Seen| seen.busy.map_or(String::new(), |share| format!(" ({:.0} %)", 100. * share));
    let at: Vec<String> =
        now.places.iter().map(|seen| format!("{} {}{}", seen.place, seen.scans, busy(seen))).collect();
    format!(
        "done {}, failed {}, pending {left} ({} in flight), {:.1} scans/min, {eta} left; bottleneck: {}; scans at (busy): {}",
        now.done,
        now.failed,
        now.in_flight(),
        rate * 60.,
        bottleneck(&now.places).map_or("nothing yet".to_owned(), |seen| seen.place.to_string()),
        at.join(", "),
    )
}

/// Where the time went, stage by stage, as a table.
fn stages(places: &[Seen]) -> String {
    let row = |seen: &Seen| {
        let mean_ms = 1e3 * seen.seconds / seen.passed.max(1) as f64;
        let busy = seen.busy.map_or("-".to_owned(), |share| format!("{:.0} %", 100. * share));
        format!("{:<12}{:>8}{:>12.1}{mean_ms:>12.1}{busy:>8}\n", seen.place.to_string(), seen.passed, seen.seconds)
    };
    let head = format!("{:<12}{:>8}{:>12}{:>12}{:>8}\n", "stage", "scans", "seconds", "ms/scan", "busy");
    let waits_for = bottleneck(places).map(|seen| format!("bottleneck: {}: {}\n", seen.place, advice(seen.place)));
    head + &places.iter().map(row).collect::<String>() + &waits_for.unwrap_or_default()
}

/// What makes a place faster.
fn advice(place: Place) -> &'static str {
    match place {
        Place::Memory => "more run.memory_mib, or fewer run.scans_in_flight",
        Place::Fetch => "more run.scans_in_flight, or a store that is nearer",
        Place::Decode | Place::Preprocess | Place::Assess => "more cores",
        Place::Queue | Place::Device => "a GPU, more cores, or score.precision = \"bf16\" where that is faster",
        Place::Commit => "more tables.commit_scans and tables.commit_seconds, or a store that is nearer",
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

pub(super) fn summary(report: &Report, tables: &str) {
    let Some(run) = &report.run else {
        println!("Nothing to do: every selected scan has a result for its content and these settings.");
        return;
    };
    let finished = report.done + report.failed + report.superseded;
    println!(
        "{} scans done, {} failed in {} ({:.1} scans/min). Run {}.",
        report.done,
        report.failed,
        duration(report.elapsed.as_secs_f64()),
        finished as f64 / report.elapsed.as_secs_f64() * 60.,
        run.run_id,
    );
    if report.superseded > 0 {
        println!("{} more had been committed by another run meanwhile: its results stand.", report.superseded);
    }
    let left = report.pending.saturating_sub(finished);
    match report.outcome {
        Outcome::Stopped => println!("Stopped with {left} scans left: the same command takes them up."),
        Outcome::GaveUp => println!(
            "Given up with {left} scans left: more failed than run.max_failures allows. See why, then the same command \
             takes them up."
        ),
        _ => {}
    }
    println!("Tables: {tables}");
    println!("Next:   neurosieve sql --tables {tables} -f sql/most_anomalous_scans.sql");
    if report.failed > 0 {
        println!("        neurosieve failures --tables {tables}");
    }
    println!("Research use only; not a medical device.");
}
