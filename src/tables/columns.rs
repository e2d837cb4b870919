//! The columns of every table: name, type, whether it may be null, unit and meaning.
//!
//! The Arrow schema, the Delta schema and the text of `neurosieve tables describe` are all made from these lists. A column
//! that is added later must be nullable: tables that exist get it when a run next opens them (`evolve.rs`), and its value in
//! their old rows is null.

use super::column::{Column, Kind};
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
    always("content_id", Text, "", "identifies the scan's bytes; changes when the object changes");
const RECIPE_ID: Column = always("recipe_id", Text, "", "hash of settings, bundle and algorithm version");
/// Null in rows of versions that did not number runs; they count as earlier than all others.
const RUN_NUMBER: Column = maybe(
    "run_number",
    Int64,
    "",
    "position of the run in the order of commits to the table runs; of two results of a scan, that of the larger number is \
     the current one",
);
const COHORT: Column = always("cohort", Text, "", "name of the cohort");
const URI: Column = always("uri", Text, "", "path of the scan, relative to the cohort's root");
const REGION: Column = always(
    "region",
    Text,
    "",
    "region at the MNI position: left or right frontal lobe, parietal lobe, temporal lobe, occipital lobe, insula, cingulate, deep \
     grey matter, cerebellum, lateral ventricle; brain stem, third ventricle, fourth ventricle; or outside, more than 10 mm from all",
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
    always(
        "finished_at",
        Timestamp,
        "UTC",
        "when the scan was finished, by the clock of its machine; run_number gives the order of results",
    ),
    always("native_shape", Int32List, "voxel", "shape of the volume as stored, x y z"),
    always("native_spacing_mm", Float32List, "mm", "voxel size as stored, x y z"),
    always("native_affine", Float64List, "mm", "voxel index to native world, RAS+, 3 x 4, row by row"),
    always("orientation", Text, "", "direction in which each stored axis increases, such as LPI"),
    always("datatype", Text, "", "NIfTI data type as stored"),
    always("registration_affine", Float64List, "mm", "native world to MNI152 2009a, 12 parameters, 3 x 4, row by row"),
    always(
        "registration_ncc",
        Float32,
        "correlation",
        "normalised cross-correlation of brain and template after registration, 0 to 1",
    ),
    always("stripped_input", Boolean, "", "true where the scan had no skull before preprocessing"),
    always("brain_volume_ml", Float32, "ml", "volume of the brain mask in native space"),
    always("snr", Float32, "ratio", "signal-to-noise ratio: median intensity of the brain over its noise"),
    always("cnr", Float32, "ratio", "contrast-to-noise ratio: difference of grey and white matter over their noise"),
    always(
        "mask_ratio",
        Float32,
        "ratio",
        "brain volume over the volume of the head in the field of view; 1 for a brain without skull",
    ),
    always("cropped_fraction", Float32, "ratio", "share of the brain outside the field of view or the model's grid"),
    always("entropy_focus", Float32, "ratio", "entropy focus criterion; rises with ghosting and motion blur"),
    always(
        "qc_flags",
        TextList,
        "",
        "quality flags, empty when there are none: small_brain, large_brain, cut_by_field_of_view, outside_model_grid, low_snr, \
         low_cnr, motion, low_registration, implausible_mask, skull_strip_fallback, thick_slices; see docs/preprocessing.md",
    ),
    always("n_tokens", Int32, "count", "tokens in the brain"),
    always(
        "n_anomalous_tokens",
        Int32,
        "count",
        "tokens that were restored: those with p_anomalous above token_threshold, which is not the column threshold",
    ),
    always("max_token_p", Float32, "probability", "highest p_anomalous of the scan"),
    always(
        "anomaly_score",
        Float32,
        "score",
        "mean of the anomaly map over its highest 2 ml, on the model's grid; sort by it to review the most unusual scans first",
    ),
    always(
        "anomaly_volume_ml",
        Float32,
        "ml",
        "volume of the anomaly mask in native space; the mask itself lies on the MNI grid, where its volume is another",
    ),
    always("n_findings", Int32, "count", "connected components of the anomaly mask"),
    always(
        "threshold",
        Float32,
        "score",
        "voxels of the anomaly map above it are in the mask; for tokens see token_threshold",
    ),
    always("fetch_ms", Float32, "ms", "time to read the object"),
    always("decode_ms", Float32, "ms", "time from NIfTI bytes to voxels"),
    always("preprocess_ms", Float32, "ms", "time from native voxels to the model's grid"),
    always("score_ms", Float32, "ms", "time from the model's grid to rows"),
    always("device", Text, "", "device that scored the scan: cpu, cuda:0"),
    always("bundle", Text, "", "name of the model bundle"),
    always("version", Text, "", "version of the program"),
    RUN_NUMBER,
    CONTENT_SHA256,
    maybe(
        "manufacturer",
        Text,
        "",
        "manufacturer of the scanner: Manufacturer of the JSON sidecars, the nearest first",
    ),
    maybe("scanner_model", Text, "", "model of the scanner: ManufacturersModelName of the JSON sidecars"),
    maybe(
        "field_strength_t",
        Float32,
        "T",
        "field strength of the scanner: MagneticFieldStrength of the JSON sidecars; null above 30, which is another unit",
    ),
    maybe(
        "acquired_at",
        Timestamp,
        "UTC",
        "when the scan was acquired: acq_time of *_scans.tsv, else AcquisitionDateTime of the JSON sidecar, else acq_time of \
         *_sessions.tsv; a time without a zone is taken as UTC; null under pseudonyms",
    ),
    maybe(
        "token_threshold",
        Float32,
        "probability",
        "tokens with p_anomalous above it were restored and count in n_anomalous_tokens; null for other methods than mim",
    ),
    maybe(
        "ghosting",
        Float32,
        "ratio",
        "excess brightness of the brightest parts of the air over its rest, relative to the brain's median; null without air",
    ),
    maybe(
        "mask_sphericity",
        Float32,
        "ratio",
        "surface of a ball with the brain mask's volume over the mask's own surface; 1 is a ball",
    ),
    maybe("mask_symmetry", Float32, "Dice", "overlap of the brain mask in MNI space with its mirror image, 0 to 1"),
    maybe("mask_dice", Float32, "Dice", "overlap of the brain mask in MNI space with the template's, 0 to 1"),
];

pub(super) const TOKENS: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    always("z", Int8, "cell", "token grid, inferior to superior"),
    always("y", Int8, "cell", "token grid, posterior to anterior"),
    always("x", Int8, "cell", "token grid, left to right"),
    always("mni_x_mm", Float32, "mm", "centre of the token in MNI space, increasing to the right"),
    always("mni_y_mm", Float32, "mm", "centre of the token in MNI space, increasing to anterior"),
    always("mni_z_mm", Float32, "mm", "centre of the token in MNI space, increasing to superior"),
    REGION,
    always("code", Int16, "", "index into the tokenizer's codebook"),
    always(
        "p_anomalous",
        Float32,
        "probability",
        "probability that the token is anomalous, from the detector; rounded to 8 significant bits",
    ),
    maybe(
        "nll",
        Float32,
        "nat",
        "negative log-likelihood of the code; null where the token was not restored; rounded to 8 significant bits",
    ),
    always(
        "residual",
        Float32,
        "intensity",
        "mean absolute difference from the restored image, intensities 0 to 1; rounded to 8 significant bits",
    ),
];

pub(super) const MASKS: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    always("shape", Int32List, "voxel", "shape of the model's grid, x y z"),
    always("spacing_mm", Float32List, "mm", "voxel size, x y z"),
    always("affine", Float64List, "mm", "voxel index to MNI world, RAS+, 3 x 4, row by row"),
    always("mask", Binary, "bit", "anomaly mask, one bit per voxel, x fastest, least significant bit first"),
    always("brain", Binary, "bit", "brain mask, packed like mask"),
    always("score", Binary, "1/255", "anomaly map, one byte per voxel, x fastest; 255 means 1.0 or more"),
    always("threshold", Float32, "score", "threshold of the anomaly map that made the mask"),
];

pub(super) const FINDINGS: &[Column] = &[
    RUN_ID,
    SCAN_ID,
    always("finding", Int32, "", "rank by volume within the scan, 1 = largest"),
    always("volume_ml", Float32, "ml", "volume in native space"),
    always("mni_x_mm", Float32, "mm", "centroid in MNI space, increasing to the right"),
    always("mni_y_mm", Float32, "mm", "centroid in MNI space, increasing to anterior"),
    always("mni_z_mm", Float32, "mm", "centroid in MNI space, increasing to superior"),
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
    always("kind", Text, "", "stable word to group failures by, such as truncated"),
    always("message", Text, "", "what is wrong and what to do next"),
    always("permanent", Boolean, "", "true where a further attempt cannot succeed until the content changes"),
    always("attempts", Int32, "count", "attempts so far with this content and recipe"),
    always("failed_at", Timestamp, "UTC", "when the scan failed, by the clock of its machine"),
    RUN_NUMBER,
    maybe(
        "needs_bytes",
        Int64,
        "bytes",
        "where the scan exceeds a limit of the run (too_large, too_large_for_memory): what it needs at least",
    ),
    CONTENT_SHA256,
];

const CONTENT_SHA256: Column = maybe(
    "content_sha256",
    Text,
    "",
    "SHA-256 of the bytes that were read, hexadecimal; of a pair, that of the digests of .hdr and .img; null where none were read",
);

pub(super) const RUNS: &[Column] = &[
    RUN_ID,
    COHORT,
    always("started_at", Timestamp, "UTC", "when the run started"),
    maybe("finished_at", Timestamp, "UTC", "when the run ended; null while it is running or after it was killed"),
    always(
        "status",
        Text,
        "",
        "running, finished, stopped, gave_up (too many failures) or failed; failed with an empty recipe_id: before the first scan",
    ),
    always("n_listed", Int64, "count", "scans found in the cohort"),
    always("n_selected", Int64, "count", "listed scans that the selection and the shard leave"),
    always("n_already_done", Int64, "count", "selected scans with an earlier result of the same recipe and content"),
    always("n_done", Int64, "count", "scans that this run finished"),
    always("n_failed", Int64, "count", "scans that failed in this run"),
    always("scans_per_minute", Float32, "1/min", "finished and failed scans per minute of the run"),
    always("device", Text, "", "device that scored: cpu, cuda:0"),
    RECIPE_ID,
    always("bundle", Text, "", "name of the model bundle"),
    always("bundle_digest", Text, "", "SHA-256 of the bundle's content"),
    always("config", Text, "TOML", "the effective pipeline file"),
    always("version", Text, "", "version of the program"),
    always("cores", Int32, "count", "processor cores used"),
    RUN_NUMBER,
    maybe(
        "cohort_root",
        Text,
        "",
        "identifies the address of the cohort without revealing it: the first 32 digits of its SHA-256",
    ),
    maybe("host", Text, "", "label of the machine: the setting run.host_label"),
    maybe("operator", Text, "", "who is responsible for the run: the setting run.operator"),
    maybe("image", Text, "", "image of the container: the setting run.image, else NEUROSIEVE_IMAGE of the environment"),
    maybe("message", Text, "", "why the run failed: the kind of error, and a text without addresses and paths"),
];

/// A row makes an earlier outcome of a scan current again, because the scan has the content of that outcome again.
pub(super) const REVERTS: &[Column] = &[
    RUN_ID,
    always("run_number", Int64, "", "position of the run in the order of commits to the table runs"),
    SCAN_ID,
    CONTENT_ID,
    RECIPE_ID,
    COHORT,
];

/// The highest `change_number` of a subject is its current row.
pub(super) const PARTICIPANTS: &[Column] = &[
    COHORT,
    always("subject", Text, "", "BIDS entity sub, or its pseudonym, as in scans; (cohort, subject) joins with scans"),
    maybe("age_years", Float32, "year", "age; null where it is unknown or no number from 0 to 150"),
    maybe("sex", Text, "", "F, M or O (other); null where it is unknown or another word"),
    maybe("site", Text, "", "where the subject was scanned"),
    maybe("group", Text, "", "such as patient or control; a keyword of SQL, so write it in quotes: \"group\""),
    maybe("more", TextList, "", "the other columns that cohort.metadata names, each as column=value"),
    always(
        "change_number",
        Int64,
        "",
        "position of the row's commit in the order of commits to this table; of two rows of a subject, that of the larger number \
         is the current one",
    ),
    always("recorded_at", Timestamp, "UTC", "when the row was written, by the clock of its machine"),
];

pub(super) const EVALUATIONS: &[Column] = &[
    always("evaluation_id", Text, "", "the evaluation; shared by the rows of its methods"),
    always("evaluated_at", Timestamp, "UTC", "when the evaluation ended"),
    always("method", Text, "", "name of the method in the pipeline file"),
    always("score", Text, "TOML", "settings of the method"),
    always("bundle", Text, "", "name of the model bundle"),
    always("bundle_digest", Text, "", "SHA-256 of the bundle's content"),
    always("device", Text, "", "device that scored: cpu, cuda:0"),
    always("cohort", Text, "", "name of the cohort with truth masks"),
    always("n_lesioned", Int64, "count", "scans with truth masks"),
    always("n_healthy", Int64, "count", "healthy scans that the threshold was fixed on"),
    always("mask_threshold", Float32, "score", "threshold of the anomaly map, fixed on the healthy scans"),
    always("prevalence", Float32, "fraction", "share of lesion voxels; the average precision of a random score"),
    always("average_precision", Float32, "", "average precision over the voxels of all scans together"),
    always("average_precision_low", Float32, "", "2.5th percentile of a bootstrap over scans"),
    always("average_precision_high", Float32, "", "97.5th percentile of a bootstrap over scans"),
    always("best_dice", Float32, "", "Dice over the voxels of all scans together, at the best threshold"),
    always("best_dice_low", Float32, "", "2.5th percentile of a bootstrap over scans"),
    always("best_dice_high", Float32, "", "97.5th percentile of a bootstrap over scans"),
    always("dice", Float32, "", "Dice over the voxels of all scans together, at mask_threshold"),
    always("dice_low", Float32, "", "2.5th percentile of a bootstrap over scans"),
    always("dice_high", Float32, "", "97.5th percentile of a bootstrap over scans"),
    always("scan_dice_q1", Float32, "", "Dice per scan at mask_threshold: lower quartile"),
    always("scan_dice_median", Float32, "", "Dice per scan at mask_threshold: median"),
    always("scan_dice_q3", Float32, "", "Dice per scan at mask_threshold: upper quartile"),
    always("lesion_f1", Float32, "", "F1 of lesions found and findings that touch no lesion, at mask_threshold"),
    always("lesion_f1_low", Float32, "", "2.5th percentile of a bootstrap over scans"),
    always("lesion_f1_high", Float32, "", "97.5th percentile of a bootstrap over scans"),
    always("false_findings_per_scan", Float32, "count", "findings per lesioned scan that touch no lesion"),
    always("scan_auroc", Float32, "", "area under the ROC curve of anomaly_score, lesioned against healthy scans"),
    always("scan_auroc_low", Float32, "", "2.5th percentile of a bootstrap over scans"),
    always("scan_auroc_high", Float32, "", "97.5th percentile of a bootstrap over scans"),
    always("healthy_ml_median", Float32, "ml", "volume called anomalous in healthy scans: median"),
    always("healthy_ml_p90", Float32, "ml", "volume called anomalous in healthy scans: 90th percentile"),
    always("device_seconds", Float32, "s", "median time of a scan on the device"),
    always(
        "reconstruction_l1",
        Float32,
        "intensity",
        "mean |image - decoded tokens| in healthy brains, intensities 0 to 1",
    ),
    always("version", Text, "", "version of the program"),
];
