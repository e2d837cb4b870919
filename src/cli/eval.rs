//! `neurosieve eval`: figures on held-out scans, beside the bars that the project sets itself.

use std::path::PathBuf;
use std::process::ExitCode;

use super::FAILED;
use crate::error::{Error, Result};
use crate::eval::preprocess::{Settings, evaluate};
use crate::preprocess::PreprocessConfig;

/// Measure on held-out scans how well the program works
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
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
        let What::Preprocess(args) = self.what;
        let report = evaluate(&Settings {
            cohort: args.cohort,
            split: args.split,
            limit: args.limit,
            moves: args.moves,
            preprocess: PreprocessConfig::default(),
        })
        .await?;
        print!("{report}");
        if let Some(path) = args.json {
            let text = serde_json::to_string_pretty(&report).map_err(|e| Error::Bug(format!("the report: {e}")))?;
            std::fs::write(&path, text + "\n").map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        }
        let missed = report.missed();
        if missed > 0 {
            eprintln!("{missed} of {} bars were missed: the lines that begin with MISS", report.bars.len());
            return Ok(ExitCode::from(FAILED));
        }
        Ok(ExitCode::SUCCESS)
    }
}
