//! `neurosieve export`: writes masks and maps in the scans' native space.

use crate::error::Result;
use crate::export;
use crate::query;
use crate::store;
use crate::tables::Tables;
use crate::terminal::outln;

/// Write masks and anomaly maps as NIfTI, in each scan's native grid
///
/// The result is a BIDS-derivatives tree: sub-X/[ses-Y/]anat/sub-X…_desc-anomaly_mask.nii.gz (uint8),
/// …_desc-anomaly_score.nii.gz (float32, 0 outside the brain) and …_desc-brain_mask.nii.gz (uint8). Any viewer can overlay
/// them on their scan. A folder with files of others, such as the raw data set, is refused; the place for the results inside a
/// BIDS data set is derivatives/neurosieve. Research use only.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve export --tables s3://bucket/results --to ./derivatives/neurosieve --scan study/sub-01_T1w")]
pub struct ExportArgs {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    pub tables: String,
    /// Where the files are written: a folder or a URL that is new, empty or from an earlier export
    #[arg(long, value_name = "DIR")]
    pub to: String,
    /// Scans to export, by scan_id [default: all]
    #[arg(long, value_name = "ID", num_args = 1..)]
    pub scan: Vec<String>,
}

impl ExportArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Tables::open`] and [`export::export`].
    pub async fn run(self) -> Result<()> {
        let tables = Tables::open(&self.tables).await?;
        let context = query::session(&tables).await?;
        let to = store::open_new(&self.to)?;
        let exported = export::export(&context, tables.location(), &to, &self.scan).await?;
        outln!("{} files of {} scans written to {}", exported.files, exported.scans, self.to);
        Ok(())
    }
}
