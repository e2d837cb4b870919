//! `neurosieve eval`: figures on held-out scans, beside the bars that the project sets itself.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{FAILED, write_json};
use crate::config;
use crate::error::{Error, Result};
use crate::eval::preprocess::{Settings, evaluate};
use crate::eval::{EvalPipeline, methods};
use crate::preprocess::PreprocessConfig;

/// Measure on held-out scans how well the program works
///
/// With a pipeline file: methods of finding anomalies side by side, on a cohort with lesion masks and a healthy one.
/// `preprocess` measures what comes before them.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "Examples:
  neurosieve eval pipelines/eval.toml --cohort ./lesions --healthy ./healthy --json methods.json
  neurosieve eval preprocess --cohort ./healthy --split val"
)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    methods: MethodsArgs,
}

/// What methods are compared on.
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
    /// Tables to add the figures to, in `evaluations` [pipeline: tables.url]
    #[arg(long, value_name = "URL")]
    tables: Option<String>,
    /// Override any key of the pipeline file; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Also write every figure, scan by scan, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Preprocess(PreprocessArgs),
}

/// Measure preprocessing: masks, registration, bias field, intensities, speed
///
/// Takes a BIDS cohort with reference masks under derivatives/brainmask. participants.tsv may have the columns `split`
/// (which subjects are held out), `skull` (yes or no) and `source` (the site). Ends with exit code 1 where a bar is
/// missed. Times are those of one thread; run nothing else meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve eval preprocess --cohort ./healthy-t1 --split val --json preprocess.json")]
struct PreprocessArgs {
    /// Where the scans are: a folder or a URL
    #[arg(long, value_name = "URL")]
    cohort: String,
    /// Take only subjects with this value in column `split` of participants.tsv
    #[arg(long)]
    split: Option<String>,
    /// Take at most so many scans, the first by path
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How often every scan is moved and registered again
    #[arg(long, value_name = "N", default_value_t = 4)]
    moves: usize,
    /// Also write every figure, scan by scan, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl EvalArgs {
    /// Runs the command.
    pub async fn run(self) -> Result<ExitCode> {
        match self.what {
            Some(What::Preprocess(args)) => args.run().await,
            None => self.methods.run().await,
        }
    }
}

impl MethodsArgs {
    async fn run(self) -> Result<ExitCode> {
        let file = self.pipeline.ok_or_else(|| {
            Error::Config("give a pipeline file, such as pipelines/eval.toml, or `preprocess`; see --help".into())
        })?;
        let url = |key: &str, url: String| format!("{key}.url={}", toml::Value::String(url));
        let mut overrides = self.set;
        overrides.extend(self.cohort.map(|cohort| url("cohort", cohort)));
        overrides.extend(self.healthy.map(|healthy| url("healthy", healthy)));
        overrides.extend(self.tables.map(|tables| url("tables", tables)));
        let pipeline: EvalPipeline = config::load(Some(&file), &overrides)?;
        let report = methods::evaluate(&pipeline).await?;
        print!("{report}");
        write_json(self.json, &report)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl PreprocessArgs {
    async fn run(self) -> Result<ExitCode> {
        let report = evaluate(&Settings {
            cohort: self.cohort,
            split: self.split,
            limit: self.limit,
            moves: self.moves,
            preprocess: PreprocessConfig::default(),
        })
        .await?;
        print!("{report}");
        write_json(self.json, &report)?;
        let missed = report.missed();
        if missed > 0 {
            eprintln!("{missed} of {} bars were missed: the lines that begin with MISS", report.bars.len());
            return Ok(ExitCode::from(FAILED));
        }
        Ok(ExitCode::SUCCESS)
    }
}
