//! The functions of `neurosieve sql`, against what screening has computed and against numpy.

use std::process::Command;

use serde_json::Value;

use super::support::program::{ok, python, rows};
use super::support::shared::{path, sharded};

#[test]
fn volumes_in_native_space_are_those_of_screening_and_regions_those_of_findings() {
    let volumes = rows(
        sharded(),
        "SELECT scan_id, anomaly_volume_ml AS expected, mask_ml_native(mask, spacing_mm, registration_affine) AS found,
                mask_ml_mni(mask, spacing_mm) AS mni, mask_overlap_ml(mask, brain, spacing_mm) AS inside,
                mask_dice(mask, mask) AS same
         FROM scans JOIN masks USING (run_id, scan_id)",
    );
    assert!(!volumes.is_empty());
    for scan in &volumes {
        let number = |name: &str| scan[name].as_f64().unwrap();
        assert!((number("found") - number("expected")).abs() < 0.01, "{scan}");
        assert!(number("inside") <= number("mni") && number("same") == 1.0, "{scan}");
    }
    let regions = rows(
        sharded(),
        "SELECT count(*) AS n, count(*) FILTER (WHERE region_at(mni_x_mm, mni_y_mm, mni_z_mm) = region) AS same FROM tokens",
    );
    // A centre on the border of two voxels may be rounded to the other one.
    let [n, same] = ["n", "same"].map(|name| regions[0][name].as_f64().unwrap());
    assert!(same >= 0.99 * n, "tokens have the region of their centre: {}", regions[0]);
}

/// Volumes and Dice coefficients of the masks of a Parquet file, one line for each pair of scans.
const NUMPY: &str = r#"
import json, sys
import numpy as np, pyarrow.parquet as pq
rows = pq.read_table(sys.argv[1]).to_pylist()
for row in rows:
    n = np.prod(row["shape"])
    for name in ("mask", "brain"):
        row[name] = np.unpackbits(np.frombuffer(row[name], np.uint8), bitorder="little")[:n].astype(bool)
    row["ml"] = row["mask"].sum() * np.prod(np.array(row["spacing_mm"], float)) / 1000
    row["det"] = abs(np.linalg.det(np.array(row["registration_affine"]).reshape(3, 4)[:, :3]))
print(json.dumps([{
    "a": a["scan_id"], "b": b["scan_id"], "mni": a["ml"], "native": a["ml"] / a["det"],
    "dice": 2 * float((a["brain"] & b["brain"]).sum()) / float(a["brain"].sum() + b["brain"].sum()),
} for a in rows for b in rows]))
"#;

#[test]
fn volumes_and_dice_are_those_of_numpy() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("masks.parquet");
    let masks = "SELECT scan_id, shape, spacing_mm, mask, brain, registration_affine FROM scans JOIN masks USING (run_id, scan_id)";
    ok(&["sql", "--tables", sharded(), "--format", "parquet", "--output", path(&file), "-c", masks]);
    let output = Command::new(python).args(["-c", NUMPY, path(&file)]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let sql = format!(
        "WITH m AS ({masks}) SELECT a.scan_id AS a, b.scan_id AS b, mask_ml_mni(a.mask, a.spacing_mm) AS mni,
             mask_ml_native(a.mask, a.spacing_mm, a.registration_affine) AS native, mask_dice(a.brain, b.brain) AS dice
         FROM m a CROSS JOIN m b"
    );
    let found = rows(sharded(), &sql);
    assert!(found.len() >= 4 && found.len() == expected.len());
    for theirs in &expected {
        let ours = found.iter().find(|ours| ours["a"] == theirs["a"] && ours["b"] == theirs["b"]).unwrap();
        assert_eq!(ours["dice"], theirs["dice"], "{theirs}");
        for volume in ["mni", "native"] {
            assert!(
                (ours[volume].as_f64().unwrap() - theirs[volume].as_f64().unwrap()).abs() < 1e-6,
                "{ours} {theirs}"
            );
        }
    }
}

#[test]
fn functions_are_listed_with_their_meaning() {
    let sql = "SELECT routine_name, description, syntax_example FROM information_schema.routines \
               WHERE routine_name LIKE 'mask_%' OR routine_name = 'region_at' ORDER BY routine_name";
    let listed = rows(sharded(), sql);
    let names: Vec<_> = listed.iter().map(|row| row["routine_name"].as_str().unwrap()).collect();
    assert_eq!(names, ["mask_dice", "mask_ml_mni", "mask_ml_native", "mask_overlap_ml", "region_at"]);
    assert_eq!(listed[2]["syntax_example"], "mask_ml_native(mask, spacing, registration)");
}
