#!/usr/bin/env python3
"""Puts a stroke-shaped lesion into every held-out healthy scan: a cohort with lesion masks, for choosing settings.

    python3 -m venv peers-venv && peers-venv/bin/pip install -r benches/pipeline/requirements.txt
    peers-venv/bin/python benches/lesions/make.py ./healthy-t1 ./lesion-shapes ./lesions-chosen --seed 1
    neurosieve eval pipelines/eval.toml --cohort ./lesions-chosen --healthy ./healthy-t1

A shape is a lesion mask in MNI-like space. The bounding box of the template's brain is mapped to that of the scan's
brain (its mask under derivatives/brainmask, or the non-zero voxels of a skull-stripped scan), and the shape with it,
mirrored in every other scan. Inside the shape, a fraction `alpha` of the image is replaced by a level, relative to
white matter, with a texture of its own and a soft edge. Three in four lesions are darker than white matter, one is
brighter. The same seed gives the same cohort.
"""

import argparse
import json
import pathlib

import nibabel
import numpy
from scipy import ndimage

# The brain of the MNI152 template: lowest and highest x, y, z in millimetres.
TEMPLATE_MM = numpy.array([[-71.0, -105.0, -65.0], [71.0, 71.0, 81.0]])
# Lesions in the scan, in millilitres.
VOLUME_ML = (3.0, 90.0)
EDGE_MM = 1.5


def box_mm(mask: numpy.ndarray, affine: numpy.ndarray) -> numpy.ndarray:
    """Lowest and highest world coordinates of a mask, [2, 3]."""
    # The opening removes single voxels at the border of a mask.
    points = nibabel.affines.apply_affine(affine, numpy.argwhere(ndimage.binary_opening(mask, iterations=2)))
    return numpy.stack([numpy.percentile(points, q, axis=0) for q in (0.1, 99.9)])


def lesion(shape, box: numpy.ndarray, mirror: bool, grid, affine: numpy.ndarray) -> numpy.ndarray:
    """The shape on a scan's grid, 0..1."""
    world = nibabel.affines.apply_affine(affine, numpy.stack(numpy.indices(grid), -1).reshape(-1, 3))
    place = (world - box[0]) / (box[1] - box[0]) * (TEMPLATE_MM[1] - TEMPLATE_MM[0]) + TEMPLATE_MM[0]
    place[:, 0] *= -1.0 if mirror else 1.0
    voxel = nibabel.affines.apply_affine(numpy.linalg.inv(shape.affine), place)
    inside = (numpy.asanyarray(shape.dataobj) > 0).astype(numpy.float32)
    return ndimage.map_coordinates(inside, voxel.T, order=1).reshape(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("healthy", type=pathlib.Path)
    parser.add_argument("shapes", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    rng = numpy.random.default_rng(arguments.seed)
    shapes = [nibabel.load(path) for path in sorted(arguments.shapes.glob("*.nii*"))]
    table = [line.split("\t") for line in (arguments.healthy / "participants.tsv").read_text().splitlines()]
    column = table[0].index("split")
    subjects = sorted(row[0] for row in table[1:] if row[column] == arguments.split)
    rows = ["\t".join(["participant_id", "lesion_ml", "level", "alpha"])]
    for number, subject in enumerate(subjects):
        path = next((arguments.healthy / subject).rglob("*_T1w.nii*"))
        scan = nibabel.load(path)
        image = scan.get_fdata(dtype=numpy.float32)
        masks = list((arguments.healthy / "derivatives" / "brainmask" / subject).rglob("*.nii*"))
        brain = numpy.asanyarray(nibabel.load(masks[0]).dataobj) > 0 if masks else image > 0
        box = box_mm(brain, scan.affine)
        spacing = numpy.array(scan.header.get_zooms()[:3])
        while True:
            shape = shapes[rng.integers(len(shapes))]
            soft = lesion(shape, box, number % 2 == 1, image.shape, scan.affine)
            truth = (soft > 0.5) & brain
            volume_ml = truth.sum() * spacing.prod() / 1000.0
            if VOLUME_ML[0] <= volume_ml <= VOLUME_ML[1]:
                break
        white = numpy.percentile(image[brain], 80.0)
        dark = rng.random() < 0.75
        level = rng.uniform(0.25, 0.7) if dark else rng.uniform(1.15, 1.4)
        alpha = rng.uniform(0.5, 0.9)
        texture = ndimage.gaussian_filter(rng.standard_normal(image.shape), 2.0 / spacing)
        texture *= 0.06 / texture.std()
        edge = ndimage.gaussian_filter(truth.astype(numpy.float32), EDGE_MM / spacing) * brain
        mixed = image + alpha * edge * (white * (level + texture) - image)
        folder = arguments.out / subject / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        lesioned = nibabel.Nifti1Image(numpy.clip(mixed, 0.0, None).astype(numpy.float32), scan.affine)
        nibabel.save(lesioned, folder / f"{subject}_T1w.nii.gz")
        folder = arguments.out / "derivatives" / "truth" / subject / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(truth.astype(numpy.uint8), scan.affine), folder / f"{subject}_label-lesion_mask.nii.gz")
        rows.append(f"{subject}\t{volume_ml:.1f}\t{level:.2f}\t{alpha:.2f}")
        print(rows[-1], flush=True)
    (arguments.out / "participants.tsv").write_text("\n".join(rows) + "\n")
    description = {"Name": "Healthy scans with lesions put in", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (arguments.out / "dataset_description.json").write_text(json.dumps(description, indent=1) + "\n")


if __name__ == "__main__":
    main()
