//! The columns of every table: name, kind, whether it may be null, unit and meaning. Defined here once;
//! the Arrow schema, the Delta schema and the `describe` text are all made from these lists. A column that comes later
//! must be one that may be null: tables from before get it (`evolve.rs`), their rows have nothing in it.

use super::schema::{Column, Kind};
use Kind::{
    Binary, Boolean, Float32, Float32List, Float64List, Int8, Int16, Int32, Int32List, Int64, Text, TextList, Timestamp,
};

/// A column that always has a value.
const fn always(name: &'static str, kind: Kind, unit: &'static str, doc: &'static str) -> Column {
    Column { name, kind, nullable: false, unit, doc }
}

/// A column that may be null.
const fn maybe(name: &'static str, kind: Kind, unit: &'static str, doc: &'static str) -> Column {
    Column { name, kind, nullable: true, unit, doc }
}

const RUN_ID: Column = always("run_id", Text, "", "the run that wrote the row");
const SCAN_ID: Column = always("scan_id", Text, "", "the scan; (run_id, scan_id) joins the tables");
const CONTENT_ID: Column =
    always("content_id", Text, "", "what the scan's bytes were: changes when the object changes");
const RECIPE_ID: Column = always("recipe_id", Text, "", "hash of settings, bundle and algorithm version");
const COHORT: Column = always("cohort", Text, "", "name of the cohort");
const URI: Column = always("uri", Text, "", "where the scan is, relative to the cohort's root");
const REGION: Column = always(
    "region",
    Text,
    "",
    "lobe of a side, cerebellum, brain stem, deep grey matter or ventricle at the MNI position; see assets/README.md",
);

pub(super) const SCANS: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    CONTENT_ID,
    RECIPE_ID,
    COHORT,
    maybe("subject", Text, "", "BIDS entity sub"),
    maybe("session", Text, "", "BIDS entity ses"),
    maybe("acquisition", Text, "", "BIDS entity acq"),
    maybe("run", Text, "", "BIDS entity run"),
    maybe("suffix", Text, "", "BIDS suffix, such as T1w"),
    URI,
    always("size_bytes", Int64, "byte", "size of the object"),
    always("last_modified", Timestamp, "UTC", "when the object was last written"),
    always("finished_at", Timestamp, "UTC", "when the scan was finished; the newest row per scan_id counts"),
    always("native_shape", Int32List, "voxel", "size of the volume as stored, x y z"),
    always("native_spacing_mm", Float32List, "mm", "voxel size as stored, x y z"),
    always("native_affine", Float64List, "mm", "voxel index to native world, RAS+, 3 x 4, row by row"),
    always("orientation", Text, "", "direction each stored axis grows to, such as LPI"),
    always("datatype", Text, "", "NIfTI data type as stored"),
    always("registration_affine", Float64List, "mm", "native world to MNI152 2009a, 12 parameters, 3 x 4, row by row"),
    always(
        "registration_ncc",
        Float32,
        "correlation",
        "how well the brain fits the template after registration, 0 to 1",
    ),
    always("stripped_input", Boolean, "", "true where the scan arrived without its skull"),
    always("brain_volume_ml", Float32, "ml", "volume of the brain mask in native space"),
    always("snr", Float32, "ratio", "median intensity of the brain over the noise in it"),
    always("cnr", Float32, "ratio", "contrast of grey and white matter over the noise within them"),
    always(
        "mask_ratio",
        Float32,
        "ratio",
        "brain volume over the volume of the whole head in view; 1 for a bare brain",
    ),
    always(
        "cropped_fraction",
        Float32,
        "ratio",
        "share of the brain that the field of view or the model's grid cuts off",
    ),
    always("entropy_focus", Float32, "ratio", "entropy focus criterion: rises with ghosts and blur from motion"),
    always("qc_flags", TextList, "", "what quality control noticed; empty when nothing"),
    always("n_tokens", Int32, "count", "tokens in the brain"),
    always("n_anomalous_tokens", Int32, "count", "tokens above the threshold"),
    always("max_token_p", Float32, "probability", "highest p_anomalous of the scan"),
    always("anomaly_score", Float32, "score", "the scan's score; sort by it to review the most unusual first"),
    always("anomaly_volume_ml", Float32, "ml", "volume of the anomaly mask in native space"),
    always("n_findings", Int32, "count", "connected components of the anomaly mask"),
    always("threshold", Float32, "score", "anomaly map threshold that made the mask"),
    always("fetch_ms", Float32, "ms", "time to read the object"),
    always("decode_ms", Float32, "ms", "time from NIfTI bytes to voxels"),
    always("preprocess_ms", Float32, "ms", "time from native voxels to the model's grid"),
    always("score_ms", Float32, "ms", "time from the model's grid to rows"),
    always("device", Text, "", "what scored the scan: cpu, cuda:0"),
    always("bundle", Text, "", "name of the model bundle"),
    always("version", Text, "", "version of the program"),
];

pub(super) const TOKENS: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    always("z", Int8, "cell", "token grid, inferior to superior"),
    always("y", Int8, "cell", "token grid, posterior to anterior"),
    always("x", Int8, "cell", "token grid, left to right"),
    always("mni_x_mm", Float32, "mm", "centre of the token in MNI space, R+"),
    always("mni_y_mm", Float32, "mm", "centre of the token in MNI space, A+"),
    always("mni_z_mm", Float32, "mm", "centre of the token in MNI space, S+"),
    REGION,
    always("code", Int16, "", "index into the tokenizer's codebook"),
    always(
        "p_anomalous",
        Float32,
        "probability",
        "the detector's probability that the token is anomalous, to 8 significant bits",
    ),
    maybe(
        "nll",
        Float32,
        "nat",
        "negative log-likelihood of the code where the token was restored, to 8 significant bits",
    ),
    always(
        "residual",
        Float32,
        "intensity",
        "mean absolute difference to the restored image, intensities 0 to 1, to 8 significant bits",
    ),
];

pub(super) const MASKS: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    always("shape", Int32List, "voxel", "size of the masks' grid, x y z"),
    always("spacing_mm", Float32List, "mm", "voxel size, x y z"),
    always("affine", Float64List, "mm", "voxel index to MNI world, RAS+, 3 x 4, row by row"),
    always("mask", Binary, "bit", "anomaly mask, one bit per voxel, x fastest, least significant bit first"),
    always("brain", Binary, "bit", "brain mask, packed likewise"),
    always("score", Binary, "1/255", "anomaly map, one byte per voxel, x fastest; 255 means 1.0 or more"),
    always("threshold", Float32, "score", "anomaly map threshold that made the mask"),
];

pub(super) const FINDINGS: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    always("finding", Int32, "", "rank by volume within the scan, 1 = largest"),
    always("volume_ml", Float32, "ml", "volume in native space"),
    always("mni_x_mm", Float32, "mm", "centroid in MNI space, R+"),
    always("mni_y_mm", Float32, "mm", "centroid in MNI space, A+"),
    always("mni_z_mm", Float32, "mm", "centroid in MNI space, S+"),
    always("bbox_min_mm", Float32List, "mm", "lowest corner of the bounding box in MNI space, x y z"),
    always("bbox_max_mm", Float32List, "mm", "highest corner of the bounding box in MNI space, x y z"),
    REGION,
    always("max_score", Float32, "score", "highest value of the anomaly map inside"),
    always("mean_score", Float32, "score", "mean value of the anomaly map inside"),
];

pub(super) const FAILURES: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    CONTENT_ID,
    RECIPE_ID,
    COHORT,
    URI,
    always("stage", Text, "", "fetch, decode, preprocess or score"),
    always("kind", Text, "", "short stable word for grouping, such as truncated"),
    always("message", Text, "", "what a human should know, with what to do next"),
    always("permanent", Boolean, "", "true where trying again cannot help until the content changes"),
    always("attempts", Int32, "count", "times tried so far with this content and recipe"),
    always("failed_at", Timestamp, "UTC", "when it failed"),
];

pub(super) const RUNS: &[Column] = &[
    RUN_ID,
    COHORT,
    always("started_at", Timestamp, "UTC", "when the run started"),
    maybe("finished_at", Timestamp, "UTC", "when the run ended; null while it is running or after it was killed"),
    always("status", Text, "", "running, finished, stopped, gave_up (too many failures) or failed"),
    always("n_listed", Int64, "count", "scans found in the cohort"),
    always("n_selected", Int64, "count", "of these, left after filters and shard"),
    always("n_already_done", Int64, "count", "of these, skipped as done earlier with the same recipe and content"),
    always("n_done", Int64, "count", "scans finished by this run"),
    always("n_failed", Int64, "count", "scans failed in this run"),
    always("scans_per_minute", Float32, "1/min", "finished and failed scans per minute of the run"),
    always("device", Text, "", "what scored: cpu, cuda:0"),
    RECIPE_ID,
    always("bundle", Text, "", "name of the model bundle"),
    always("bundle_digest", Text, "", "SHA-256 of the bundle's content"),
    always("config", Text, "TOML", "the effective pipeline file"),
    always("version", Text, "", "version of the program"),
    always("cores", Int32, "count", "processor cores used"),
];

pub(super) const EVALUATIONS: &[Column] = &[
    always("evaluation_id", Text, "", "the evaluation; its methods share it"),
    always("evaluated_at", Timestamp, "UTC", "when it ended"),
    always("method", Text, "", "what the method is called in the pipeline file"),
    always("score", Text, "TOML", "the method's settings"),
    always("bundle", Text, "", "name of the model bundle"),
    always("bundle_digest", Text, "", "SHA-256 of the bundle's content"),
    always("device", Text, "", "what scored: cpu, cuda:0"),
    always("cohort", Text, "", "name of the cohort with truth masks"),
    always("n_lesioned", Int64, "count", "scans with truth masks"),
    always("n_healthy", Int64, "count", "healthy scans that the threshold was fixed on"),
    always("mask_threshold", Float32, "score", "threshold of the anomaly map, fixed on the healthy scans"),
    always("prevalence", Float32, "fraction", "share of lesion voxels: the average precision of chance"),
    always("average_precision", Float32, "", "over the voxels of all scans together"),
    always("average_precision_low", Float32, "", "2.5th percentile over scans drawn with replacement"),
    always("average_precision_high", Float32, "", "97.5th percentile"),
    always("best_dice", Float32, "", "over the voxels of all scans together, at the threshold that suits best"),
    always("best_dice_low", Float32, "", "2.5th percentile over scans drawn with replacement"),
    always("best_dice_high", Float32, "", "97.5th percentile"),
    always("dice", Float32, "", "over the voxels of all scans together, at mask_threshold"),
    always("dice_low", Float32, "", "2.5th percentile over scans drawn with replacement"),
    always("dice_high", Float32, "", "97.5th percentile"),
    always("scan_dice_q1", Float32, "", "Dice per scan at mask_threshold: lower quartile"),
    always("scan_dice_median", Float32, "", "Dice per scan at mask_threshold: median"),
    always("scan_dice_q3", Float32, "", "Dice per scan at mask_threshold: upper quartile"),
    always("lesion_f1", Float32, "", "F1 of lesions found and findings that touch none, at mask_threshold"),
    always("lesion_f1_low", Float32, "", "2.5th percentile over scans drawn with replacement"),
    always("lesion_f1_high", Float32, "", "97.5th percentile"),
    always("false_findings_per_scan", Float32, "count", "findings per lesioned scan that touch no lesion"),
    always("scan_auroc", Float32, "", "lesioned against healthy scans by anomaly_score"),
    always("scan_auroc_low", Float32, "", "2.5th percentile over scans drawn with replacement"),
    always("scan_auroc_high", Float32, "", "97.5th percentile"),
    always("healthy_ml_median", Float32, "ml", "called anomalous in healthy scans: median"),
    always("healthy_ml_p90", Float32, "ml", "called anomalous in healthy scans: 90th percentile"),
    always("device_seconds", Float32, "s", "time of a scan on the device: median"),
    always(
        "reconstruction_l1",
        Float32,
        "intensity",
        "mean |image - decoded tokens| in healthy brains, intensities 0 to 1",
    ),
    always("version", Text, "", "version of the program"),
];
