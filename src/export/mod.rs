//! Results back to where the scans came from: masks and maps as NIfTI in each scan's native grid.
//!
//! Takes a session of [`crate::query`]; gives a BIDS-derivatives tree in any object store or folder:
//!
//! ```text
//! dataset_description.json
//! sub-X/[ses-Y/]anat/sub-X…_desc-anomaly_mask.nii.gz    uint8, 1 = anomalous
//! sub-X/[ses-Y/]anat/sub-X…_desc-anomaly_score.nii.gz   float32, 0 to 1, 0 outside the brain
//! sub-X/[ses-Y/]anat/sub-X…_desc-brain_mask.nii.gz      uint8
//! ```
//! Masks are resampled by the nearest voxel and the score linearly, through the inverse of the registration. Scans with
//! another suffix than `T1w` get BIDS's `mod-` entity, so that names stay distinct; tables with several cohorts give one
//! folder per cohort. Refuses scan ids that the tables do not hold, and a folder that an earlier export did not make
//! (`target.rs`).

mod target;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int32Type};
use datafusion::prelude::{SessionContext, col, lit};
use futures::TryStreamExt;

use crate::cohort::bids;
use crate::error::{Error, Result};
use crate::preprocess::mask_to;
use crate::store::Location;
use crate::tables::{affine_from_row_major, unpack_bits, unpack_scores};
use crate::volume::{Affine, Grid, Volume, nifti, resample};

/// Numbers of what was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// Scans.
    pub scans: usize,
    /// NIfTI files.
    pub files: usize,
}

/// Shown in every file's header.
const DESCRIPTION: &str = "neurosieve: research use only";

/// One scan as the tables hold it.
struct Stored {
    uri: String,
    suffix: Option<String>,
    native: Grid,
    to_mni: Affine,
    model: Grid,
    mask: Vec<u8>,
    brain: Vec<u8>,
    score: Vec<u8>,
}

/// Writes masks and maps of the current result of every scan, or of the scans with the given ids. `tables` is where the
/// session's tables are.
///
/// # Errors
/// [`Error::Config`] naming the ids that the tables do not hold, and for a folder with files of others; [`Error::Query`] where
/// the tables cannot be read; [`Error::Storage`] where a file cannot be written.
pub async fn export(
    context: &SessionContext,
    tables: &Location,
    to: &Location,
    scan_ids: &[String],
) -> Result<Exported> {
    let mut scans = context.table("scans").await?;
    if !scan_ids.is_empty() {
        scans = scans.filter(col("scan_id").in_list(scan_ids.iter().map(lit).collect(), false))?;
    }
    let scans = scans.select_columns(&[
        "run_id",
        "scan_id",
        "cohort",
        "suffix",
        "uri",
        "native_shape",
        "native_affine",
        "registration_affine",
    ])?;
    let listed = scans.clone().collect().await?;
    check_ids(&listed, scan_ids)?;
    target::claim(to, tables).await?;
    // By what the tables hold, not by what is exported now: cohorts that are exported one by one must not share names either.
    let several_cohorts = context.table("recipes").await?.select_columns(&["cohort"])?.distinct()?.count().await? > 1;

    let masks = context.table("masks").await?.select(vec![
        col("run_id").alias("mask_run"),
        col("scan_id").alias("mask_scan"),
        col("shape"),
        col("affine"),
        col("mask"),
        col("brain"),
        col("score"),
    ])?;
    let joined = scans.join(
        masks,
        datafusion::common::JoinType::Inner,
        &["run_id", "scan_id"],
        &["mask_run", "mask_scan"],
        None,
    )?;
    let mut rows = joined.execute_stream().await?;
    let mut exported = Exported::default();
    while let Some(batch) = rows.try_next().await? {
        let cohorts = texts(std::slice::from_ref(&batch), "cohort")?;
        for (row, cohort) in cohorts.iter().enumerate() {
            let scan = stored(&batch, row)?;
            let folder = several_cohorts.then_some(cohort.as_str());
            let files = tokio::task::spawn_blocking(move || native_files(&scan))
                .await
                .map_err(|e| Error::Bug(format!("exporting a scan: {e}")))??;
            for (name, bytes) in files {
                let name = folder.map_or_else(|| name.clone(), |folder| format!("{folder}/{name}"));
                target::put(to, &name, bytes).await?;
                exported.files += 1;
            }
            exported.scans += 1;
        }
    }
    Ok(exported)
}

/// Refuses ids that the tables do not hold.
fn check_ids(listed: &[RecordBatch], requested: &[String]) -> Result<()> {
    let found = texts(listed, "scan_id")?;
    let missing: Vec<&str> = requested.iter().filter(|id| !found.contains(id)).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the tables hold no result for {}; `neurosieve sql -c 'SELECT scan_id FROM scans'` lists what they hold, \
         and for pseudonyms `neurosieve cohort --pseudonyms-to FILE` the names behind them",
        missing.join(", ")
    )))
}

/// The three files of one scan: relative names and bytes.
fn native_files(scan: &Stored) -> Result<Vec<(String, Vec<u8>)>> {
    let volume = |data| Volume { grid: scan.model, data };
    let n = scan.model.len();
    let mask = volume(unpack_bits(&scan.mask, n));
    let brain = volume(unpack_bits(&scan.brain, n));
    if scan.score.len() != n {
        return Err(Error::Bug(format!(
            "the stored anomaly map of {} has {} voxels, its grid has {n}",
            scan.uri,
            scan.score.len()
        )));
    }
    let score = Volume { grid: scan.model, data: unpack_scores(&scan.score) };
    let brain = mask_to(&brain, &scan.native, &scan.to_mni);
    let mask = mask_to(&mask, &scan.native, &scan.to_mni);
    let mut score = resample::trilinear(&score, &scan.native, &scan.to_mni);
    score.data.iter_mut().zip(&brain.data).for_each(|(s, &b)| *s *= f32::from(b));
    let stem = derivative_stem(&scan.uri, scan.suffix.as_deref());
    Ok(vec![
        (format!("{stem}_desc-anomaly_mask.nii.gz"), nifti::encode(&mask, DESCRIPTION)),
        (format!("{stem}_desc-anomaly_score.nii.gz"), nifti::encode(&score, DESCRIPTION)),
        (format!("{stem}_desc-brain_mask.nii.gz"), nifti::encode(&brain, DESCRIPTION)),
    ])
}

/// `sub-1/anat/sub-1_run-2` for `sub-1/anat/sub-1_run-2_T1w.nii.gz`; any other suffix is kept as `mod-<suffix>`.
fn derivative_stem(uri: &str, suffix: Option<&str>) -> String {
    let (folder, name) = uri.rsplit_once('/').map_or(("", uri), |(folder, name)| (folder, name));
    let stem = bids::stem(name);
    let stem = match suffix.and_then(|s| Some((s, stem.strip_suffix(s)?.strip_suffix('_')?))) {
        Some(("T1w", entities)) => entities.to_owned(),
        Some((suffix, entities)) => format!("{entities}_mod-{suffix}"),
        None => stem.to_owned(),
    };
    if folder.is_empty() { stem } else { format!("{folder}/{stem}") }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    batch.column_by_name(name).map(AsRef::as_ref).ok_or_else(|| Error::Bug(format!("the tables lack column {name}")))
}

/// A text column as strings, in whichever layout the reader returns them.
fn texts(batches: &[RecordBatch], name: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for batch in batches {
        let text = arrow::compute::cast(column(batch, name)?, &DataType::Utf8)
            .map_err(|e| Error::Bug(format!("column {name}: {e}")))?;
        all.extend(text.as_string::<i32>().iter().map(|v| v.unwrap_or_default().to_owned()));
    }
    Ok(all)
}

fn stored(batch: &RecordBatch, row: usize) -> Result<Stored> {
    let one = batch.slice(row, 1);
    let bug = |name: &str| Error::Bug(format!("column {name} of scan {row} has another type than this version writes"));
    let list = |name: &'static str| -> Result<_> {
        Ok(column(&one, name)?.as_list_opt::<i32>().ok_or_else(|| bug(name))?.value(0))
    };
    let shape = |name| -> Result<[usize; 3]> {
        let values = list(name)?;
        let values = values.as_primitive_opt::<Int32Type>().ok_or_else(|| bug(name))?.values();
        let shape: Vec<usize> = values.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
        shape.try_into().map_err(|_| bug(name))
    };
    let affine = |name| -> Result<Affine> {
        let values = list(name)?;
        affine_from_row_major(values.as_primitive_opt::<Float64Type>().ok_or_else(|| bug(name))?.values())
            .ok_or_else(|| bug(name))
    };
    let bytes = |name| -> Result<Vec<u8>> {
        let binary = arrow::compute::cast(column(&one, name)?, &DataType::Binary).map_err(|_| bug(name))?;
        Ok(binary.as_binary::<i32>().value(0).to_vec())
    };
    let text = |name| -> Result<String> { texts(std::slice::from_ref(&one), name)?.pop().ok_or_else(|| bug(name)) };
    Ok(Stored {
        uri: text("uri")?,
        suffix: Some(text("suffix")?).filter(|s| !s.is_empty()),
        native: Grid { shape: shape("native_shape")?, affine: affine("native_affine")? },
        to_mni: affine("registration_affine")?,
        model: Grid { shape: shape("shape")?, affine: affine("affine")? },
        mask: bytes("mask")?,
        brain: bytes("brain")?,
        score: bytes("score")?,
    })
}

#[cfg(test)]
mod tests {
    use super::derivative_stem;

    #[test]
    fn names_follow_bids_derivatives() {
        let t1w = "sub-01/ses-2/anat/sub-01_ses-2_run-1_T1w.nii.gz";
        assert_eq!(derivative_stem(t1w, Some("T1w")), "sub-01/ses-2/anat/sub-01_ses-2_run-1");
        assert_eq!(derivative_stem("sub-01/anat/sub-01_FLAIR.nii.gz", Some("FLAIR")), "sub-01/anat/sub-01_mod-FLAIR");
        assert_eq!(derivative_stem("site 3/brain 7.nii", None), "site 3/brain 7");
    }
}
