//! `neurosieve cohort`: shows the scans of a cohort before a screening.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::cohort::{self, Pseudonyms, Selection, report};
use crate::error::{Error, Result};
use crate::store;
use crate::terminal::{errln, out};

/// Show which images of a cohort a run would screen, which it would skip, and why
///
/// Lists names and sizes only: no image is read and nothing is written. Use it to find the right selection, then write the
/// same settings into the pipeline file.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve cohort s3://bucket/ukb                         T1w scans of a BIDS dataset
  neurosieve cohort ./ixi --where split=val --where split=test
  neurosieve cohort gs://bucket/old --include 'site-3/**' --json | jq .n_selected

Credentials come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_SKIP_SIGNATURE=true for
a public bucket), GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.
AWS_ENDPOINT_URL is the address of another S3 server, such as MinIO or Ceph.")]
pub struct CohortArgs {
    /// Where the scans are: s3://, gs://, az://, https:// (WebDAV), file:// or a folder
    pub url: String,

    /// Name of the cohort, the first part of every scan id [default: the last part of the address]
    #[arg(long)]
    pub name: Option<String>,

    /// Select images with this BIDS suffix; repeat for more
    #[arg(long, value_name = "SUFFIX", default_value = "T1w")]
    pub suffix: Vec<String>,

    /// Select images of every suffix
    #[arg(long, conflicts_with = "suffix")]
    pub any_suffix: bool,

    /// Select this subject, `01` or `sub-01`; repeat for more [default: all]
    #[arg(long, value_name = "LABEL")]
    pub subject: Vec<String>,

    /// Select this session, `a` or `ses-a`; repeat for more [default: all]
    #[arg(long, value_name = "LABEL")]
    pub session: Vec<String>,

    /// Select only paths, relative to the root, that match this glob; repeat for more
    ///
    /// `*` matches within a folder, `**` across folders: `sub-1*/**`. A pattern without `/` is matched against file names:
    /// `*_acq-mprage_*`. Quote it, or the shell expands it.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Skip paths that match this glob, even if --include matches them; repeat for more
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    /// Select only subjects with this value in a column of participants.tsv
    ///
    /// Repeat it for more values of the same column (one of them must match) or for more columns (all of them must match).
    /// `n/a` means an unknown value.
    #[arg(long = "where", value_name = "COLUMN=VALUE", value_parser = column_value)]
    pub participants: Vec<(String, String)>,

    /// Largest participants.tsv that --where reads, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub participants_mib: u64,

    /// Also select the results of pipelines: below derivatives/, in a derivative dataset, or named space-, desc-, label-
    #[arg(long)]
    pub derivatives: bool,

    /// Also select phase, real and imaginary parts, and echoes after the first
    #[arg(long)]
    pub all_parts: bool,

    /// Also select images that .bidsignore names
    #[arg(long)]
    pub ignored: bool,

    /// Select at most N scans, the first by path [default: all]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// Number of selected scans to print
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "json")]
    pub rows: usize,

    /// Write a table of the selected scans' pseudonyms, and of the names behind them, to this new file, which only you can read
    ///
    /// The key is that of `cohort.pseudonyms`, in NEUROSIEVE_PSEUDONYM_KEY. Give the same --name as the runs.
    #[arg(long, value_name = "FILE")]
    pub pseudonyms_to: Option<PathBuf>,

    /// Print all selected scans and all skipped images as JSON
    #[arg(long)]
    pub json: bool,
}

impl CohortArgs {
    /// Lists the cohort and prints its scans.
    ///
    /// # Errors
    /// As [`cohort::list`]; [`Error::Config`] for a key that is missing and for a file of pseudonyms that cannot be written.
    pub async fn run(self) -> Result<()> {
        let pseudonyms = self.pseudonyms_to.is_some().then(Pseudonyms::from_environment).transpose()?;
        let location = store::open(&self.url)?;
        let mut participants = BTreeMap::<String, Vec<String>>::new();
        for (column, value) in self.participants {
            participants.entry(column).or_default().push(value);
        }
        let selection = Selection {
            suffixes: if self.any_suffix { Vec::new() } else { self.suffix },
            subjects: self.subject,
            sessions: self.session,
            include: self.include,
            exclude: self.exclude,
            participants,
            participants_mib: self.participants_mib,
            derivatives: self.derivatives,
            all_parts: self.all_parts,
            ignored: self.ignored,
            limit: self.limit,
        };
        let name = self.name.as_deref().unwrap_or(location.name());
        let listing = cohort::list(&location, name, &selection).await?;
        if let (Some(path), Some(pseudonyms)) = (&self.pseudonyms_to, pseudonyms) {
            write_private(path, &pseudonyms.mapping(&listing))?;
            errln!("{} pseudonyms written to {}", listing.selected.len(), path.display());
        }
        let text = if self.json {
            format!("{:#}\n", report::to_json(&listing))
        } else {
            report::describe(&listing, self.rows)
        };
        out!("{text}");
        Ok(())
    }
}

/// Writes a file that is new, and that nobody but this user can read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        Error::Config(format!("cannot write {}: {error}; give a new file in a folder that exists", path.display()))
    })
}

fn column_value(given: &str) -> Result<(String, String), String> {
    let pair = given.split_once('=').filter(|(column, _)| !column.is_empty());
    pair.map(|(column, value)| (column.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected COLUMN=VALUE, such as split=val".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CohortArgs,
    }

    fn parse(line: &[&str]) -> Result<CohortArgs, clap::Error> {
        Line::try_parse_from([&["cohort"], line].concat()).map(|line| line.args)
    }

    #[test]
    fn t1w_is_the_default_suffix() {
        assert_eq!(parse(&["ukb"]).unwrap().suffix, ["T1w"]);
        assert_eq!(parse(&["ukb", "--suffix", "FLAIR", "--suffix", "T2w"]).unwrap().suffix, ["FLAIR", "T2w"]);
        assert!(parse(&["ukb", "--any-suffix"]).unwrap().any_suffix);
        assert!(parse(&["ukb", "--any-suffix", "--suffix", "T2w"]).is_err());
    }

    #[test]
    fn a_filter_is_a_column_and_a_value() {
        let args = parse(&["ukb", "--where", "split=val", "--where", "note=a=b"]).unwrap();
        assert_eq!(args.participants, [("split".into(), "val".into()), ("note".into(), "a=b".into())]);
        assert!(parse(&["ukb", "--where", "split"]).is_err());
    }
}
