#!/usr/bin/env python3
"""Makes the compact MNI152 template in assets/ from the maps that the nilearn wheel carries.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6 nibabel==5.4.2 scipy==1.17.1 nilearn==0.14.1
    venv/bin/python assets/template.py

Takes nilearn's T1 image and its grey- and white-matter maps (ICBM 2009a nonlinear symmetric, 1 mm, brain only).
Gives, as .nii.gz in MNI space:
    mni152_2mm_t1, _gm, _wm        uint8, 0..255, every second voxel of the 1 mm maps after averaging over 2 mm
    mni152_4mm_brain, _cranium     int16, tenths of a mm, on a grid that holds a whole head with its neck: distance
                                   to the surface of the template's brain mask and to that of its closing (the inside
                                   of a skull); negative inside, at most 30 mm either way
The same input gives the same bytes.
"""

import gzip
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
from scipy import ndimage

DATA = Path(nilearn.__file__).parent / "datasets" / "data"
OUT = Path(__file__).resolve().parent
# Gyri and the gap between the hemispheres are narrower than this; a skull follows neither.
CLOSING_MM = 16
# Distances beyond are of no use to anybody and only take room.
REACH_MM = 30
# Added to the 1 mm maps (mm below and above along x, y, z) for the skull, the scalp, the face and the neck.
ROOM = [(26, 26), (34, 34), (118, 34)]


def load(tissue):
    image = nib.load(DATA / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
    return np.asarray(image.dataobj).astype(np.float32), image.affine


def save(name, data, affine):
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"MNI152 ICBM 2009a nonlinear symmetric"
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=4)
    path = OUT / f"{name}.nii.gz"
    path.write_bytes(gzip.compress(image.to_bytes(), 9, mtime=0))
    print(f"{path.name}: {path.stat().st_size} bytes, {data.shape}")


def every(data, affine, step):
    """Every `step`-th voxel."""
    coarse = affine.copy()
    coarse[:3, :3] *= step
    return data[::step, ::step, ::step], coarse


def averaged(data):
    """The mean over a cube of 2 mm around each voxel centre."""
    for axis in range(3):
        data = ndimage.convolve1d(data, [0.25, 0.5, 0.25], axis=axis, mode="constant")
    return data


def signed_distance(mask):
    """mm to the mask's surface, negative inside; voxel centres lie half a voxel from the face between two."""
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    return np.where(mask, 0.5 - inside, outside - 0.5)


def main():
    for tissue in ("t1", "gm", "wm"):
        data, affine = load(tissue)
        coarse, coarse_affine = every(averaged(data), affine, 2)
        save(f"mni152_2mm_{tissue}", np.rint(coarse).astype(np.uint8), coarse_affine)

    t1, affine = load("t1")
    brain = np.pad(t1 > 0, ROOM)
    affine[:3, 3] -= [low for low, _ in ROOM]
    dilated = ndimage.distance_transform_edt(~brain) <= CLOSING_MM
    cranium = ndimage.distance_transform_edt(dilated) > CLOSING_MM
    for name, mask in (("brain", brain), ("cranium", cranium | brain)):
        # Smoothed over the staircase of the mask's voxels.
        distance = ndimage.gaussian_filter(signed_distance(mask), 1.5)
        coarse, coarse_affine = every(distance, affine, 4)
        save(f"mni152_4mm_{name}", np.rint(10 * coarse.clip(-REACH_MM, REACH_MM)).astype(np.int16), coarse_affine)


if __name__ == "__main__":
    main()
