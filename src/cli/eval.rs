//! `neurosieve eval`: measures accuracy on held-out scans.

use std::path::PathBuf;
use std::process::ExitCode;

use super::json_file::JsonFile;
use super::pipeline::quoted;
use super::{FAILED, outside_tables};
use crate::config;
use crate::error::{Error, Result};
use crate::eval::preprocess::{Settings, evaluate};
use crate::eval::{EvalPipeline, methods};
use crate::preprocess::PreprocessConfig;
use crate::terminal::{errln, out};

/// Measure accuracy on held-out scans
///
/// With a pipeline file: compares methods that find anomalies, on a cohort with lesion masks and a healthy cohort. With
/// `preprocess`: measures preprocessing.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "Examples:
  neurosieve eval pipelines/eval.toml --cohort ./lesions --healthy ./healthy --json methods.json
  neurosieve eval preprocess --cohort ./healthy --split val"
)]
pub struct EvalArgs {
    #[command(subcommand)]
    command: Option<EvalCommand>,
    #[command(flatten)]
    methods: MethodsArgs,
}

/// Options of the comparison of methods.
#[derive(Debug, clap::Args)]
struct MethodsArgs {
    /// The pipeline file (TOML), such as pipelines/eval.toml
    pipeline: Option<PathBuf>,
    /// Where the scans with lesion masks are [pipeline: cohort.url]
    #[arg(long, value_name = "URL")]
    cohort: Option<String>,
    /// Where the healthy scans are [pipeline: healthy.url]
    #[arg(long, value_name = "URL")]
    healthy: Option<String>,
    /// Where the tables are; the figures are added to the table `evaluations` [pipeline: tables.url]
    #[arg(long, value_name = "URL")]
    tables: Option<String>,
    /// Override any key of the pipeline file; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Also write all figures, with those of each scan, to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum EvalCommand {
    Preprocess(PreprocessArgs),
}

/// Measure preprocessing: masks, registration, bias field, intensities, speed
///
/// Reads a BIDS cohort with reference masks under derivatives/brainmask. participants.tsv may have the columns `split`
/// (which subjects are held out), `skull` (yes or no) and `source` (the site). The exit code is 1 if a target is missed.
/// Times are those of one thread; run nothing else at the same time.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve eval preprocess --cohort ./healthy-t1 --split val --json preprocess.json")]
struct PreprocessArgs {
    /// Where the scans are: a folder or a URL
    #[arg(long, value_name = "URL")]
    cohort: String,
    /// Use only subjects with this value in column `split` of participants.tsv [default: all]
    #[arg(long)]
    split: Option<String>,
    /// Use at most N scans, the first by path [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Number of times that every scan is moved and registered again
    #[arg(long, value_name = "N", default_value_t = 4)]
    moves: usize,
    /// Also write all figures, with those of each scan, to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl EvalArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`methods::evaluate`] and [`evaluate`]; [`Error::Io`] where the JSON file cannot be written.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Some(EvalCommand::Preprocess(args)) => args.run().await,
            None => self.methods.run().await,
        }
    }
}

impl MethodsArgs {
    async fn run(self) -> Result<ExitCode> {
        let file = self.pipeline.ok_or_else(|| {
            Error::Config("expected a pipeline file, such as pipelines/eval.toml, or `preprocess`; see --help".into())
        })?;
        let mut overrides = self.set;
        overrides.extend(self.cohort.map(|url| quoted("cohort.url", &url)));
        overrides.extend(self.healthy.map(|url| quoted("healthy.url", &url)));
        overrides.extend(self.tables.map(|url| quoted("tables.url", &url)));
        let pipeline: EvalPipeline = config::load(Some(&file), &overrides)?;
        self.json.as_deref().map_or(Ok(()), |path| outside_tables(path, &pipeline.tables.url))?;
        let json = JsonFile::open(self.json.as_deref())?;
        let report = methods::evaluate(&pipeline).await?;
        out!("{report}");
        json.map_or(Ok(()), |file| file.write(&report))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl PreprocessArgs {
    async fn run(self) -> Result<ExitCode> {
        let json = JsonFile::open(self.json.as_deref())?;
        let report = evaluate(&Settings {
            cohort: self.cohort,
            split: self.split,
            limit: self.limit,
            moves: self.moves,
            preprocess: PreprocessConfig::default(),
        })
        .await?;
        out!("{report}");
        json.map_or(Ok(()), |file| file.write(&report))?;
        let missed = report.missed();
        if missed > 0 {
            errln!("{missed} of {} targets were missed; their lines begin with MISS", report.targets.len());
            return Ok(ExitCode::from(FAILED));
        }
        Ok(ExitCode::SUCCESS)
    }
}
