#!/usr/bin/env python3
"""Compares decoding and preprocessing of neurosieve with the programs that are commonly used for them.

    peers.py --binary target/release/neurosieve [--check] [--json FILE] [--rounds 3] [--repeat 3] SCAN...

Takes T1-weighted scans (.nii.gz). The brain mask of a scan is the BIDS derivative derivatives/brainmask/... of its data
set, or the voxels above 0 of a bare brain. A scan with neither is refused, because SimpleITK needs a mask. Prints a
table and, with --json, writes every number behind it.

Each round runs neurosieve, then each peer, on the same scan with one thread. The time of a scan is the median of its
rounds, and within a round the median of --repeat runs (one run for SimpleITK, which takes seconds). For peers the CPU
time counts, for neurosieve the elapsed time that it reports: other work on the machine can only make neurosieve look
slower. A row shows the medians over scans and the median of the scans' ratios. --check exits with 1 if a ratio is below
its limit or SimpleITK's overlap is better.

    decode     bytes in the page cache to scaled float32 voxels: nibabel's get_fdata
    conform    voxels to the model's grid, 0..1: TorchIO's ToCanonical, Resample(2 mm), CropOrPad, RescaleIntensity;
               ours is conform + resample + normalize
    register   bias field and affine registration to MNI152 on the 2 mm image: SimpleITK's N4 (4 levels of 50
               iterations), then affine by Mattes mutual information (50 bins, a fifth of the voxels, shrink 4, 2, 1).
               N4 runs on the image shrunk to 4 mm, as is common, and in the first round also at 2 mm
    overlap    Dice of the scan's brain mask, mapped to MNI152, with the template's brain
"""

import os

# Set before the libraries are loaded, which read these once.
for variable in ("OMP", "MKL", "OPENBLAS", "RAYON", "ITK_GLOBAL_DEFAULT"):
    os.environ[f"{variable}_{'NUMBER_OF' if 'ITK' in variable else 'NUM'}_THREADS"] = "1"

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from scipy import ndimage

TEMPLATE = Path(__file__).resolve().parents[2] / "assets" / "mni152_2mm_t1.nii.gz"
MODEL_SHAPE = (80, 96, 96)
SPACING_MM = 2.0
SEED = 1
# The steps of neurosieve that do what a peer does, and the lower limits of theirs / ours.
OURS = {"decode": ["decode"], "conform": ["conform", "resample", "normalize"], "register": ["bias", "register"]}
BARS = {"decode": 1.5, "conform": 5, "register": 10}
# RAS, which NIfTI and neurosieve use, to ITK's LPS and back.
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ours(binary, scan, repeat):
    command = [binary, "inspect", str(scan), "--json", "--repeat", str(repeat)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"peers: {' '.join(command)} failed:\n{run.stderr}")
    report = json.loads(run.stdout)
    missing = {step for steps in OURS.values() for step in steps} - set(report["timings_ms"])
    if missing:
        sys.exit(f"peers: {binary} gives no timing of {', '.join(sorted(missing))}; build it from this checkout")
    return report


def brain_mask(scan):
    """The brain mask of the scan, as an image on its grid."""
    image = nib.load(scan)
    for root in scan.parents:
        folder = root / "derivatives" / "brainmask"
        if folder.is_dir():
            masks = sorted((folder / scan.parent.relative_to(root)).glob("*_mask.nii*"))
            if masks:
                return nib.load(masks[0])
    voxels = np.asarray(image.dataobj)
    if np.mean(voxels == 0) < 0.4:
        sys.exit(f"peers: {scan} has no derivatives/brainmask and is not a bare brain")
    return nib.Nifti1Image((voxels > 0).astype(np.uint8), image.affine)


def timed(repeat, action):
    """Median milliseconds of CPU time, and the result of the last run."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        result = action()
        times.append(1000 * (time.process_time() - start))
    return median(times), result


def conform():
    return tio.Compose(
        [
            tio.ToCanonical(),
            tio.Resample(SPACING_MM),
            tio.CropOrPad(MODEL_SHAPE),
            tio.RescaleIntensity((0, 1), percentiles=(0.5, 99.5)),
        ]
    )


def at_2mm(image, interpolator):
    """`image` in its own orientation with voxels of 2 mm."""
    size = [max(1, round(n * s / SPACING_MM)) for n, s in zip(image.GetSize(), image.GetSpacing())]
    spacing = [SPACING_MM] * 3
    return sitk.Resample(image, size, sitk.Transform(), interpolator, image.GetOrigin(), spacing, image.GetDirection())


def n4(image, mask, shrink):
    """`image` divided by the field that N4 finds on the shrunken one."""
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([50] * 4)
    corrector.Execute(sitk.Shrink(image, [shrink] * 3), sitk.Shrink(mask, [shrink] * 3))
    return sitk.Cast(image / sitk.Exp(corrector.GetLogBiasFieldAsImage(image)), sitk.sitkFloat32)


def affine_to(template, brain):
    """The map from native world mm to MNI mm (RAS, 4 x 4)."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(1.0, 200, convergenceMinimumValue=1e-6, convergenceWindowSize=10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    start = sitk.CenteredTransformInitializer(template, brain, sitk.AffineTransform(3), moments)
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(template, brain)
    # ITK maps points of the fixed image to the moving one: x -> A (x - c) + c + t.
    matrix, centre = np.reshape(start.GetMatrix(), (3, 3)), np.array(start.GetCenter())
    from_mni = np.eye(4)
    from_mni[:3, :3] = matrix
    from_mni[:3, 3] = centre + np.array(start.GetTranslation()) - matrix @ centre
    return np.linalg.inv(RAS_LPS @ from_mni @ RAS_LPS)


def overlap(mask, to_mni):
    """Dice of the mask, mapped by `to_mni`, with the template's brain."""
    template = nib.load(TEMPLATE)
    brain = np.asarray(template.dataobj) > 0
    index = np.linalg.inv(mask.affine) @ np.linalg.inv(to_mni) @ template.affine
    share = np.asarray(mask.dataobj).astype(np.float32)
    mapped = ndimage.affine_transform(share, index[:3, :3], index[:3, 3], brain.shape, order=1) >= 0.5
    return 2 * np.count_nonzero(mapped & brain) / (np.count_nonzero(mapped) + np.count_nonzero(brain))


def measure(scan, options):
    """Milliseconds of every row and the overlaps of one scan, ours and the peer's."""
    mask = brain_mask(scan)
    decoded = nib.load(scan).get_fdata(dtype=np.float32)
    subject = tio.ScalarImage(tensor=decoded[None], affine=nib.load(scan).affine)
    pipeline = conform()
    template = sitk.ReadImage(str(TEMPLATE), sitk.sitkFloat32)
    head = sitk.ReadImage(str(scan), sitk.sitkFloat32)
    # Through the same reader, so that both lie at the same place.
    mask_file = options.scratch / "mask.nii.gz"
    nib.save(mask, mask_file)
    mask_2mm = at_2mm(sitk.ReadImage(str(mask_file), sitk.sitkUInt8) > 0, sitk.sitkNearestNeighbor)
    head_2mm = at_2mm(head, sitk.sitkLinear)

    rounds = []
    for _ in range(options.rounds):
        report = ours(options.binary, scan, options.repeat)
        mine = {row: sum(report["timings_ms"][step] for step in steps) for row, steps in OURS.items()}
        decode, _ = timed(options.repeat, lambda: nib.load(scan).get_fdata(dtype=np.float32))
        conformed, _ = timed(options.repeat, lambda: pipeline(subject))
        if not rounds:
            n4_full, _ = timed(1, lambda: n4(head_2mm, mask_2mm, 1))
        n4_fast, corrected = timed(1, lambda: n4(head_2mm, mask_2mm, 2))
        affine, to_mni = timed(1, lambda: affine_to(template, sitk.Mask(corrected, mask_2mm)))
        rounds.append(
            {
                "decode": (mine["decode"], decode),
                "conform": (mine["conform"], conformed),
                "register": (mine["register"], n4_fast + affine),
                "register, N4 at 2 mm": (mine["register"], n4_full + affine),
            }
        )
    times = {row: [median(r[row][side] for r in rounds) for side in (0, 1)] for row in rounds[0]}
    our_map = np.vstack([np.reshape(report["to_mni"], (3, 4)), [0, 0, 0, 1]])
    return {
        "scan": scan.name,
        "ms": {row: {"ours": a, "peer": b} for row, (a, b) in times.items()},
        "overlap": {"ours": overlap(mask, our_map), "peer": overlap(mask, to_mni)},
    }


def table(scans):
    """The rows of the result, and those that miss their target."""
    peers = {"decode": "nibabel", "conform": "TorchIO", "register": "SimpleITK", "register, N4 at 2 mm": "SimpleITK"}
    rows, misses = [], []
    for row, peer in peers.items():
        pairs = [(scan["ms"][row]["ours"], scan["ms"][row]["peer"]) for scan in scans]
        ratio = median(b / a for a, b in pairs)
        bar = BARS[row.split(",")[0]]
        rows.append((row, peer, *(f"{median(side):.1f}" for side in zip(*pairs)), f"{ratio:.1f}x", f"{bar}x"))
        if ratio < bar:
            misses.append(f"{row}: {ratio:.2f}x is below {bar}x")
    mine, theirs = (median(scan["overlap"][side] for scan in scans) for side in ("ours", "peer"))
    rows.append(("overlap (Dice)", "SimpleITK", f"{mine:.3f}", f"{theirs:.3f}", "", ">= theirs"))
    if mine < theirs:
        misses.append(f"overlap: {mine:.3f} is below SimpleITK's {theirs:.3f}")
    return rows, misses


def main():
    parser = argparse.ArgumentParser(description="neurosieve side by side with nibabel, TorchIO and SimpleITK")
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN")
    parser.add_argument("--binary", required=True, help="the neurosieve program, a release build")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; each runs neurosieve and every peer once (3)")
    parser.add_argument("--repeat", type=int, default=3, help="runs within a round (3)")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    options = parser.parse_args()

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    results = []
    with TemporaryDirectory() as folder:
        options.scratch = Path(folder)
        for scan in options.scans:
            results.append(measure(scan.resolve(), options))
            print(f"{len(results)} of {len(options.scans)} scans", file=sys.stderr)

    rows, misses = table(results)
    header = ("step", "peer", "ours ms", "theirs ms", "theirs/ours", "bar")
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    for line in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(f"medians of {len(results)} scans, rounds: {options.rounds}, one thread, {platform.machine()}")
    if options.json:
        versions = {m.__name__: m.__version__ for m in (nib, np, sitk, torch, tio)}
        options.json.write_text(json.dumps({"versions": versions, "scans": results}, indent=1) + "\n")
    for miss in misses:
        print(f"peers: {miss}", file=sys.stderr)
    if options.check and misses:
        sys.exit(1)


if __name__ == "__main__":
    main()
