//! The command line: one file per subcommand. The library does the work.

mod bench;
mod cluster;
mod cohort;
mod doctor;
mod eval;
mod executor;
mod export;
mod failures;
mod fit_border;
mod forget;
mod inspect;
mod json_file;
mod metadata;
mod on_cluster;
mod pipeline;
mod report_file;
mod retain;
mod run;
mod schedule;
mod scheduler;
mod sql;
mod synth;
mod tables;
mod train;
mod twin;

use std::io::{BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum as _};
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::error::{Domain, Error, Result};
use crate::flow::{APART_COMMAND, STORE_IS_DOWN, screen_apart, this_is_the_program};
use crate::model::device;
use crate::store;
use crate::terminal::{self, Clock, LogFormat, LogWriter, errln};

/// Screens whole MRI cohorts for anomalies: from NIfTI in object storage to SQL tables.
///
/// A first run:
///
///   neurosieve synth demo/cohort
///   neurosieve run pipelines/screen.toml --cohort demo/cohort --tables demo/tables
///   neurosieve sql --tables demo/tables -c 'SELECT * FROM findings ORDER BY volume_ml DESC'
///
/// Research software. Not a medical device.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How lines of the log look on the standard error: `text` (time, level, text) or `json` (an object per line)
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    #[arg(hide_possible_values = true, env = LOG_FORMAT, hide_env_values = true)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Schedule(schedule::ScheduleArgs),
    Sql(sql::SqlArgs),
    Failures(failures::FailuresArgs),
    Scheduler(scheduler::SchedulerArgs),
    Executor(executor::ExecutorArgs),
    Cluster(cluster::ClusterArgs),
    Tables(tables::TablesArgs),
    Cohort(cohort::CohortArgs),
    Export(export::ExportArgs),
    Train(train::TrainArgs),
    Synth(synth::SynthArgs),
    Inspect(inspect::InspectArgs),
    Eval(eval::EvalArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
    #[command(hide = true)]
    FitBorder(fit_border::FitBorderArgs),
    #[command(hide = true)]
    Twin(twin::TwinArgs),
    /// Screen one scan for a run, which starts this command by itself
    #[command(hide = true, name = APART_COMMAND)]
    ScreenApart,
}

/// Exit codes of the program besides 0.
const FAILED: u8 = 1;
const BAD_SETTINGS: u8 = 2;
const DONE_WITH_FAILURES: u8 = 3;
const STOPPED: u8 = 4;
const GAVE_UP: u8 = 5;

/// What is logged without `NEUROSIEVE_LOG`. Scans that fail are rows in `failures`, and the libraries behind the tables return
/// the errors that they log, which the program prints.
const DEFAULT_LOG: &str = "error,neurosieve=warn,neurosieve::flow::scan=error,buoyant_kernel=off,buoyant_kernel_engine=off,\
                           deltalake_core::kernel=off,deltalake_core::logstore=off";

/// Logs that are shown only where `NEUROSIEVE_LOG` names them. The tables' log errors where two runs commit at the same time and
/// this program tries again: where it gives up, it says so itself. Ballista's log plans, and each poll that fails, of which
/// this program logs the first, executors that the scheduler would call, which it never does, and jobs that it no longer
/// has when it is about to delete them.
const NOISE: &str = "deltalake_core::kernel::transaction=off,ballista_core=warn,ballista_scheduler=warn,ballista_executor=warn,\
                     ballista_executor::execution_loop=error,ballista_scheduler::state::executor_manager=off,\
                     ballista_scheduler::cluster::memory=error";

/// The environment variable with the format of the log.
const LOG_FORMAT: &str = "NEUROSIEVE_LOG_FORMAT";

/// Starts the log in this format.
fn start_log(format: LogFormat) {
    terminal::set_format(format);
    terminal::log_panics();
    device::silence_caught_panics();
    let asked = std::env::var("NEUROSIEVE_LOG").unwrap_or_else(|_| DEFAULT_LOG.to_owned());
    let filter = EnvFilter::try_new(format!("{NOISE},{asked}"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(format!("{NOISE},{DEFAULT_LOG}")));
    // A log line that cannot be written must not panic, as the default remark about it does on a closed pipe.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(LogWriter).log_internal_errors(false);
    let log = log.with_timer(Clock).with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Parses the command line, runs the command and gives its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log_format = cli.log_format.to_possible_value().map_or(String::new(), |format| format.get_name().to_owned());
    this_is_the_program((LOG_FORMAT, log_format));
    start_log(cli.log_format);
    // The names distinguish these threads from the device's in `top -H`. An existing pool is used as it is.
    let _ = rayon::ThreadPoolBuilder::new().thread_name(|number| format!("core-{number}")).build_global();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report_error(&Error::io("cannot start the asynchronous runtime", error)),
    };
    let outcome = runtime.block_on(dispatch(cli.command)).and_then(|code| terminal::failure().map(|()| code));
    terminal::ending();
    drop(runtime);
    match outcome {
        Ok(code) => code,
        Err(error) => report_error(&error),
    }
}

async fn dispatch(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run(args) => args.run().await,
        Command::Schedule(args) => args.run().await,
        Command::Sql(args) => sql::run(args).await,
        Command::Failures(args) => args.run().await.map(done),
        Command::Scheduler(args) => args.run().await,
        Command::Executor(args) => args.run().await,
        Command::Cluster(args) => args.run().await.map(done),
        Command::Tables(args) => args.run().await.map(done),
        Command::Cohort(args) => args.run().await.map(done),
        Command::Export(args) => args.run().await.map(done),
        Command::Train(args) => args.run().await.map(done),
        Command::Synth(args) => args.run().map(done),
        Command::Inspect(args) => args.run().await.map(done),
        Command::Eval(args) => args.run().await,
        Command::Bench(args) => args.run().await.map(done),
        Command::FitBorder(args) => args.run().await.map(done),
        Command::Twin(args) => args.run().map(done),
        Command::Doctor(args) => args.run().await.map(done),
        Command::ScreenApart => match screen_apart(BufReader::new(std::io::stdin()), std::io::stdout()).await {
            Err(error) if error.is_of_store() => {
                report_error(&error);
                Ok(ExitCode::from(STORE_IS_DOWN))
            }
            outcome => outcome.map(done),
        },
    }
}

/// Prints an error and gives its exit code.
fn report_error(error: &Error) -> ExitCode {
    let message = error.text();
    errln!("error: {message}");
    if message.contains("No space left on device") {
        errln!("The disk is full. Free some space and run the same command again: it continues with the rest.");
    }
    ExitCode::from(if error.domain() == Domain::Config { BAD_SETTINGS } else { FAILED })
}

/// Refuses a file or folder that a command would write inside the tables' own folder.
///
/// # Errors
/// [`Error::Config`] for such a place, and [`Error::Io`] where it cannot be found out.
fn outside_tables(path: &Path, tables: &str) -> Result<()> {
    let found = |path: &Path| {
        store::resolved(path).map_err(|e| Error::io(format!("{}: cannot open the folders above it", path.display()), e))
    };
    // Tables at another URL than file:// hold no local file.
    let folder = match tables.contains("://") {
        true => Url::parse(tables).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok()),
        false => Some(PathBuf::from(tables)).filter(|_| !tables.is_empty()),
    };
    match folder {
        Some(tables) if found(path)?.starts_with(found(&tables)?) => Err(Error::Config(format!(
            "{} is inside the folder of the tables, whose files only the tables may write: give a place outside it",
            path.display()
        ))),
        _ => Ok(()),
    }
}
