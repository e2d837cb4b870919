#!/usr/bin/env python3
"""Draws the largest finding of a scan: three planes through it, the brain alone and with what was found.

    pip install deltalake matplotlib nibabel pyarrow
    neurosieve inspect sub-01_T1w.nii.gz --nifti steps
    plot_finding.py --tables results --scan study/sub-01_T1w --brain steps/sub-01_T1w_step-6mni.nii.gz finding.png

--brain is the preprocessed brain that `neurosieve inspect --nifti` writes: stripped, in MNI space, on the grid of the
table `masks`. Nothing outside the brain is drawn. For research use only; not a medical device.
"""

import argparse

import matplotlib
import nibabel
import numpy as np
from deltalake import DeltaTable

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Plane: axis through it, axes to the right and up, letters at its left, right, bottom and top edges.
PLANES = {
    "axial": (2, 0, 1, "L R P A"),
    "coronal": (1, 0, 2, "L R I S"),
    "sagittal": (0, 1, 2, "P A I S"),
}


def rows(folder, table, column, value):
    """The rows of a table with this value in a column."""
    return DeltaTable(f"{folder}/{table}").to_pyarrow_table(filters=[(column, "=", value)]).to_pylist()


def current_run(folder, scan):
    """The run that gave a scan's current result: "Which result is current" in docs/operations.md."""
    results = rows(folder, "scans", "scan_id", scan)
    if not results:
        raise SystemExit(f"{folder} has no result for {scan}")
    runs = rows(folder, "runs", "cohort", results[0]["cohort"])
    reverts = rows(folder, "reverts", "scan_id", scan)
    asked = max(runs, key=lambda run: (run["run_number"] or 0, run["started_at"], run["run_id"]))

    def order(result):
        key = (result["content_id"], result["recipe_id"])
        again = [revert["run_number"] for revert in reverts if (revert["content_id"], revert["recipe_id"]) == key]
        return max([result["run_number"] or 0, *again]), result["finished_at"], result["run_id"]

    results = [result for result in results if result["recipe_id"] == asked["recipe_id"]]
    if not results:
        raise SystemExit(f"{scan} was not screened with the settings that were asked for last")
    return max(results, key=order)["run_id"]


def bits(packed, shape):
    """A bit-packed mask as an array [x, y, z]."""
    flat = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[: np.prod(shape)]
    return flat.reshape(shape, order="F").astype(bool)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", required=True)
    parser.add_argument("--scan", required=True, help="scan_id")
    parser.add_argument("--brain", required=True, help="NIfTI of `neurosieve inspect --nifti`, step 6mni")
    parser.add_argument("picture")
    args = parser.parse_args()

    run = current_run(args.tables, args.scan)
    stored, findings = (
        [row for row in rows(args.tables, table, "scan_id", args.scan) if row["run_id"] == run]
        for table in ("masks", "findings")
    )
    if not findings:
        raise SystemExit(f"{args.scan} has no finding")
    stored, finding = stored[0], min(findings, key=lambda row: row["finding"])
    shape, affine = stored["shape"], np.vstack([np.reshape(stored["affine"], (3, 4)), [0, 0, 0, 1]])
    image = nibabel.load(args.brain)
    if list(image.shape) != list(shape) or not np.allclose(image.affine, affine):
        raise SystemExit(f"{args.brain} is not on the grid of the table: take the file *_step-6mni.nii.gz")
    found, inside = bits(stored["mask"], shape), bits(stored["brain"], shape)
    brain = np.where(inside, image.get_fdata(), np.nan)
    score = np.frombuffer(stored["score"], np.uint8).reshape(shape, order="F") / 255
    score = np.where(inside & (score > stored["threshold"] / 2), score, np.nan)
    centre_mm = [finding["mni_x_mm"], finding["mni_y_mm"], finding["mni_z_mm"]]
    centre = np.rint(np.linalg.inv(affine) @ [*centre_mm, 1])[:3].astype(int)

    figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), facecolor="black", layout="constrained")
    for column, (name, (through, right, up, letters)) in enumerate(PLANES.items()):
        plane = [slice(None)] * 3
        plane[through] = centre[through]

        def cut(volume, plane=tuple(plane)):
            return volume[plane].T

        for row, ax in enumerate(axes[:, column]):
            ax.imshow(cut(brain), cmap="gray", origin="lower", vmin=0, vmax=1)
            ax.set_axis_off()
            for letter, (x, y) in zip(letters.split(), [(0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98)]):
                ax.text(x, y, letter, color="0.7", ha="center", va="center", transform=ax.transAxes, fontsize=9)
            if row == 1:
                heat = ax.imshow(cut(score), cmap="inferno", origin="lower", vmin=0, vmax=1, alpha=0.6)
                ax.contour(cut(found), levels=[0.5], colors="cyan", linewidths=1.2)
        axes[0, column].set_title(f"{name}, {'xyz'[through]} = {centre_mm[through]:.0f} mm", color="0.85", fontsize=10)
    bar = figure.colorbar(heat, ax=axes, shrink=0.55, pad=0.02)
    bar.set_label("anomaly score", color="0.85")
    bar.ax.tick_params(colors="0.85")
    text = f"{args.scan}: {finding['volume_ml']:.1f} ml, {finding['region']}; cyan: the mask"
    figure.suptitle(text, color="white", fontsize=11)
    figure.supxlabel("Research use only; not a medical device.", color="0.6", fontsize=8)
    figure.savefig(args.picture, dpi=110, facecolor="black")


if __name__ == "__main__":
    main()
