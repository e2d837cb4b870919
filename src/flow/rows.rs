//! One scan's results as rows of the tables.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, DictionaryArray, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, ListArray,
    RecordBatch, StringArray, StringDictionaryBuilder,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int8Type};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::journey::StageTimes;
use super::order::Order;
use crate::cohort::{Acquisition, ScanEntry};
use crate::error::{Error, Result, TOO_LARGE};
use crate::preprocess::{Prepared, REGIONS, region};
use crate::score::{Assessment, Inference, MIN_TOKEN_BRAIN, Method, Settings};
use crate::tables::{Table, pack_bits, pack_scores, screen_row};
use crate::volume::Affine;

/// Everything known of a scan that finished.
pub(super) struct Finished<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) datatype: &'a str,
    pub(super) inference: &'a Inference,
    pub(super) assessment: &'a Assessment,
    /// How the scan was acquired.
    pub(super) acquisition: &'a Acquisition,
    pub(super) settings: &'a Settings,
    pub(super) device: &'a str,
    pub(super) times: StageTimes,
    /// SHA-256 of the bytes that were read, hexadecimal.
    pub(super) sha256: &'a str,
}

/// Millilitres in the scan's own space per millilitre of MNI space: heads differ in size, and findings are measured in the
/// scan.
fn native_per_mni_ml(to_mni: &Affine) -> f64 {
    1. / to_mni.determinant3().abs()
}

fn microseconds(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

/// A scan that finished, as one row of `screen_schema`.
///
/// # Errors
/// [`Error::Bug`] where the rows do not fit the tables.
pub(super) fn finished(order: &Order, entry: &ScanEntry, scan: &Finished<'_>) -> Result<RecordBatch> {
    screen_row([
        tokens(order, entry, scan)?,
        masks(order, entry, scan)?,
        findings(order, entry, scan)?,
        RecordBatch::new_empty(Table::Failures.held_schema()),
        scans(order, entry, scan)?,
    ])
}

/// One row of `failures`.
#[derive(Serialize)]
struct FailureRow<'a> {
    run_id: &'a str,
    scan_id: &'a str,
    content_id: &'a str,
    recipe_id: &'a str,
    cohort: &'a str,
    uri: &'a str,
    stage: &'a str,
    kind: &'a str,
    message: String,
    permanent: bool,
    attempts: i32,
    failed_at: i64,
    run_number: i64,
    needs_bytes: Option<i64>,
    content_sha256: Option<&'a str>,
}

/// Everything known of a scan that failed.
pub(super) struct Failed<'a> {
    /// The stage that it had reached.
    pub(super) stage: &'a str,
    pub(super) error: &'a Error,
    /// What a reader sees of the error.
    pub(super) message: String,
    /// [`Finished::sha256`], where the scan was read.
    pub(super) sha256: Option<&'a str>,
    /// Whether it must not be tried again, whatever the error.
    pub(super) permanent: bool,
}

/// A scan that failed, as one row of `screen_schema`.
///
/// # Errors
/// [`Error::Bug`] where the row does not fit the table.
pub(super) fn failed(order: &Order, entry: &ScanEntry, scan: Failed<'_>) -> Result<RecordBatch> {
    let Failed { stage, error, message, sha256, permanent } = scan;
    // How much more than the limit it needs is not known: its size may be that of a compressed file.
    let needs = match error {
        Error::NeedsMemory { bytes, .. } => Some(*bytes),
        Error::Input { kind: TOO_LARGE, .. } => Some(order.max_scan_bytes.saturating_add(1)),
        _ => None,
    };
    let row = FailureRow {
        run_id: &order.run_id,
        scan_id: &entry.scan_id,
        content_id: &entry.content_id,
        recipe_id: &order.recipe_id,
        cohort: &entry.cohort,
        uri: &entry.uri,
        stage,
        kind: error.kind(),
        message,
        permanent: permanent || matches!(error, Error::Input { .. } | Error::NeedsMemory { .. }),
        attempts: entry.attempts + 1,
        failed_at: microseconds(Utc::now()),
        run_number: order.run_number,
        needs_bytes: needs.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        content_sha256: sha256,
    };
    let mut tables = Table::SCREENED.map(|t| RecordBatch::new_empty(t.held_schema()));
    for (table, rows) in Table::SCREENED.into_iter().zip(&mut tables) {
        if table == Table::Failures {
            *rows = table.rows(std::slice::from_ref(&row))?;
        }
    }
    screen_row(tables)
}

/// One row of `scans`.
#[derive(Serialize)]
struct ScanRow<'a> {
    run_id: &'a str,
    scan_id: &'a str,
    content_id: &'a str,
    recipe_id: &'a str,
    cohort: &'a str,
    subject: Option<&'a str>,
    session: Option<&'a str>,
    acquisition: Option<&'a str>,
    run: Option<&'a str>,
    suffix: Option<&'a str>,
    uri: &'a str,
    size_bytes: i64,
    last_modified: i64,
    finished_at: i64,
    native_shape: [i32; 3],
    native_spacing_mm: [f32; 3],
    native_affine: [f64; 12],
    orientation: String,
    datatype: &'a str,
    registration_affine: [f64; 12],
    registration_ncc: f32,
    stripped_input: bool,
    brain_volume_ml: f32,
    snr: f32,
    cnr: f32,
    mask_ratio: f32,
    cropped_fraction: f32,
    entropy_focus: f32,
    qc_flags: &'a [&'static str],
    n_tokens: i32,
    n_anomalous_tokens: i32,
    max_token_p: f32,
    anomaly_score: f32,
    anomaly_volume_ml: f32,
    n_findings: i32,
    threshold: f32,
    fetch_ms: f32,
    decode_ms: f32,
    preprocess_ms: f32,
    score_ms: f32,
    device: &'a str,
    bundle: &'a str,
    version: &'a str,
    run_number: i64,
    content_sha256: &'a str,
    manufacturer: Option<&'a str>,
    scanner_model: Option<&'a str>,
    field_strength_t: Option<f32>,
    acquired_at: Option<i64>,
    token_threshold: Option<f32>,
    ghosting: Option<f32>,
    mask_sphericity: f32,
    mask_symmetry: f32,
    mask_dice: f32,
}

fn scans(order: &Order, entry: &ScanEntry, scan: &Finished<'_>) -> Result<RecordBatch> {
    let Finished { prepared, inference, assessment, times, acquisition, settings, .. } = scan;
    let brain_p = || {
        let inside = assessment.token_brain.iter().zip(&inference.p_anomalous);
        inside.filter(|&(&share, _)| share >= MIN_TOKEN_BRAIN).map(|(_, &p)| p)
    };
    let row = ScanRow {
        run_id: &order.run_id,
        scan_id: &entry.scan_id,
        content_id: &entry.content_id,
        recipe_id: &order.recipe_id,
        cohort: &entry.cohort,
        subject: entry.subject.as_deref(),
        session: entry.session.as_deref(),
        acquisition: entry.acquisition.as_deref(),
        run: entry.run.as_deref(),
        suffix: entry.suffix.as_deref(),
        uri: &entry.uri,
        size_bytes: entry.size_bytes,
        last_modified: microseconds(entry.last_modified),
        finished_at: microseconds(Utc::now()),
        native_shape: prepared.native.shape.map(|n| n as i32),
        native_spacing_mm: prepared.native.spacing().map(|mm| mm as f32),
        native_affine: prepared.native.affine.to_row_major(),
        orientation: prepared.native.orientation(),
        datatype: scan.datatype,
        registration_affine: prepared.to_mni.to_row_major(),
        registration_ncc: prepared.qc.registration_ncc,
        stripped_input: prepared.stripped_input,
        brain_volume_ml: prepared.brain_volume_ml as f32,
        snr: prepared.qc.snr,
        cnr: prepared.qc.cnr,
        mask_ratio: prepared.qc.mask_ratio,
        cropped_fraction: prepared.qc.cropped_fraction,
        entropy_focus: prepared.qc.entropy_focus,
        qc_flags: &prepared.qc.flags,
        n_tokens: brain_p().count() as i32,
        n_anomalous_tokens: inference.n_inpainted as i32,
        max_token_p: kept_digits(brain_p().fold(0., f32::max)),
        anomaly_score: assessment.anomaly_score,
        anomaly_volume_ml: (assessment.anomaly_volume_ml * native_per_mni_ml(&prepared.to_mni)) as f32,
        n_findings: assessment.findings.len() as i32,
        threshold: scan.settings.mask_threshold,
        fetch_ms: times.fetch_ms,
        decode_ms: times.decode_ms,
        preprocess_ms: times.preprocess_ms,
        score_ms: times.score_ms,
        device: scan.device,
        bundle: &order.bundle,
        version: &order.version,
        run_number: order.run_number,
        content_sha256: scan.sha256,
        manufacturer: acquisition.manufacturer.as_deref(),
        scanner_model: acquisition.scanner_model.as_deref(),
        field_strength_t: acquisition.field_strength_t,
        acquired_at: acquisition.acquired_at.map(microseconds),
        token_threshold: (settings.config.method == Method::Mim).then_some(settings.token_threshold),
        ghosting: prepared.qc.ghosting,
        mask_sphericity: prepared.qc.mask_sphericity,
        mask_symmetry: prepared.qc.mask_symmetry,
        mask_dice: prepared.qc.mask_dice,
    };
    Table::Scans.rows(&[row])
}

/// One row of `findings`.
#[derive(Serialize)]
struct FindingRow<'a> {
    run_id: &'a str,
    scan_id: &'a str,
    finding: i32,
    volume_ml: f32,
    mni_x_mm: f32,
    mni_y_mm: f32,
    mni_z_mm: f32,
    bbox_min_mm: [f32; 3],
    bbox_max_mm: [f32; 3],
    region: &'a str,
    max_score: f32,
    mean_score: f32,
}

fn findings(order: &Order, entry: &ScanEntry, scan: &Finished<'_>) -> Result<RecordBatch> {
    let native_ml = native_per_mni_ml(&scan.prepared.to_mni);
    let rows: Vec<FindingRow<'_>> = (1..)
        .zip(&scan.assessment.findings)
        .map(|(rank, finding)| {
            let [x, y, z] = finding.centroid_mm.map(|mm| mm as f32);
            let [low, high] = finding.bbox_mm.map(|corner| corner.map(|mm| mm as f32));
            FindingRow {
                run_id: &order.run_id,
                scan_id: &entry.scan_id,
                finding: rank,
                volume_ml: (finding.volume_ml * native_ml) as f32,
                mni_x_mm: x,
                mni_y_mm: y,
                mni_z_mm: z,
                bbox_min_mm: low,
                bbox_max_mm: high,
                region: region(finding.centroid_mm),
                max_score: finding.max_score,
                mean_score: finding.mean_score,
            }
        })
        .collect();
    Table::Findings.rows(&rows)
}

/// A token's figure as the tables hold it: rounded to 8 significant bits, one part in 500. Further bits are noise of the
/// networks, which does not compress: with all 24 a row takes twice the bytes.
fn kept_digits(value: f32) -> f32 {
    half::bf16::from_f32(value).to_f32()
}

fn tokens(order: &Order, entry: &ScanEntry, scan: &Finished<'_>) -> Result<RecordBatch> {
    let Finished { prepared, inference, assessment, .. } = scan;
    let [rows, columns] = inference.tokens;
    let [nx, ny, _] = prepared.image.grid.shape;
    let cell = [nx / columns, ny / rows].map(|n| n as f64);
    let kept: Vec<usize> =
        (0..inference.codes.len()).filter(|&i| assessment.token_brain[i] >= MIN_TOKEN_BRAIN).collect();
    let place = |i: usize| {
        let (s, y, x) = (i / (rows * columns), i / columns % rows, i % columns);
        (inference.slices[s], y, x)
    };
    let centre: Vec<[f64; 3]> = kept
        .iter()
        .map(|&i| {
            let (z, y, x) = place(i);
            let middle = |axis: usize, t: usize| cell[axis] * t as f64 + (cell[axis] - 1.) / 2.;
            prepared.image.grid.affine.apply([middle(0, x), middle(1, y), z as f64])
        })
        .collect();
    let n = kept.len();
    let int8 = |f: &dyn Fn(usize) -> usize| Arc::new(Int8Array::from_iter_values(kept.iter().map(|&i| f(i) as i8)));
    let mm = |axis: usize| Arc::new(Float32Array::from_iter_values(centre.iter().map(|c| c[axis] as f32)));
    let float = |values: &[f32]| Arc::new(Float32Array::from_iter_values(kept.iter().map(|&i| kept_digits(values[i]))));
    let mut regions = StringDictionaryBuilder::<Int8Type>::with_capacity(n, REGIONS.len(), 0);
    for &c in &centre {
        regions.append(region(c)).map_err(|e| Error::Bug(format!("regions of tokens: {e}")))?;
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(repeated(&order.run_id, n)),
        Arc::new(repeated(&entry.scan_id, n)),
        int8(&|i| place(i).0),
        int8(&|i| place(i).1),
        int8(&|i| place(i).2),
        mm(0),
        mm(1),
        mm(2),
        Arc::new(regions.finish()),
        Arc::new(Int16Array::from_iter_values(kept.iter().map(|&i| inference.codes[i]))),
        float(&inference.p_anomalous),
        Arc::new(Float32Array::from_iter(
            kept.iter().map(|&i| Some(kept_digits(inference.nll[i])).filter(|v| v.is_finite())),
        )),
        float(&assessment.token_residual),
    ];
    table(Table::Tokens, columns)
}

/// `n` times the same text.
fn repeated(text: &str, n: usize) -> DictionaryArray<Int8Type> {
    DictionaryArray::new(vec![0; n].into(), Arc::new(StringArray::from(vec![text])))
}

fn masks(order: &Order, entry: &ScanEntry, scan: &Finished<'_>) -> Result<RecordBatch> {
    let Finished { prepared, assessment, .. } = scan;
    let grid = prepared.image.grid;
    let list = |values: ArrayRef, item: DataType| -> Result<ArrayRef> {
        let field = Arc::new(Field::new("element", item, true));
        let offsets = OffsetBuffer::from_lengths([values.len()]);
        let list = ListArray::try_new(field, offsets, values, None);
        Ok(Arc::new(list.map_err(|e| Error::Bug(format!("masks row: {e}")))?))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![order.run_id.as_str()])),
        Arc::new(StringArray::from(vec![entry.scan_id.as_str()])),
        list(Arc::new(Int32Array::from_iter_values(grid.shape.map(|n| n as i32))), DataType::Int32)?,
        list(Arc::new(Float32Array::from_iter_values(grid.spacing().map(|mm| mm as f32))), DataType::Float32)?,
        list(Arc::new(Float64Array::from_iter_values(grid.affine.to_row_major())), DataType::Float64)?,
        Arc::new(BinaryArray::from_iter_values([pack_bits(&assessment.mask.data)])),
        Arc::new(BinaryArray::from_iter_values([pack_bits(&prepared.brain.data)])),
        Arc::new(BinaryArray::from_iter_values([pack_scores(&assessment.score.data)])),
        Arc::new(Float32Array::from(vec![scan.settings.mask_threshold])),
    ];
    table(Table::Masks, columns)
}

fn table(table: Table, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(table.held_schema(), columns).map_err(|e| Error::Bug(format!("rows of {}: {e}", table.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_head_that_registration_enlarges_keeps_its_own_millilitres() {
        let twice = Affine::from_rows([[2., 0., 0., 5.], [0., 2., 0., 0.], [0., 0., 2., 0.]]);
        assert_eq!(native_per_mni_ml(&twice), 0.125);
        assert_eq!(native_per_mni_ml(&Affine::translation([3., 4., 5.])), 1.);
    }

    #[test]
    fn every_region_is_in_the_description_of_the_column() {
        let columns = Table::Findings.columns();
        let described = columns.iter().find(|column| column.name == "region").unwrap().doc;
        for name in REGIONS.iter().chain([&crate::preprocess::OUTSIDE]) {
            let structure = name.trim_start_matches("left ").trim_start_matches("right ");
            assert!(described.contains(structure), "{name}");
        }
    }
}
