#!/usr/bin/env python3
"""A plain Python pipeline for the job of `neurosieve run`, as a careful researcher would write it in an afternoon.

    plain.py BUNDLE OUT SCAN...

nibabel reads, scipy preprocesses, a PyTorch DataLoader with two workers prefetches for the networks (those of
benches/twin, with the bundle's weights, in eager f32), pyarrow writes a row per token and a mask per scan.

It does less than neurosieve, and each omission makes it faster: the skull is removed by a threshold and morphology, the
brain is moved to MNI space by its moments without a registration, no bias field is corrected, no quality is measured,
scores are not compared with healthy scans, and a run that is killed starts from the beginning.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "twin"))
import tomllib  # noqa: E402

import twin  # noqa: E402

# The model's grid: 80 x 96 x 96 voxels of 2 mm, RAS, MNI space.
SHAPE, ORIGIN, SPACING = (80, 96, 96), np.array([-79.0, -112.0, -90.0]), 2.0
# Centre of the MNI152 brain and the standard deviations of its voxels along x, y, z, in mm.
MNI_CENTRE, MNI_SPREAD = np.array([0.0, -20.0, 14.0]), np.array([34.0, 42.0, 36.0])
BATCH = 16
SMOOTH_MM = 4.0
LEAST_VOXELS = 25
ROWS_PER_FILE = 64


def skull_strip(image):
    """The largest connected piece of the head after erosion, grown back and filled."""
    bright = image > ndimage.gaussian_filter(image, 1).mean()
    core = ndimage.binary_erosion(bright, iterations=4)
    labels, n = ndimage.label(core)
    if n == 0:
        raise ValueError("no brain")
    largest = 1 + np.argmax(ndimage.sum_labels(core, labels, range(1, n + 1)))
    grown = ndimage.binary_dilation(labels == largest, iterations=4, mask=bright)
    return ndimage.binary_fill_holes(grown)


def prepare(path):
    scan = nib.as_closest_canonical(nib.load(path))
    image = scan.get_fdata(dtype=np.float32)
    spacing = np.abs(np.linalg.norm(scan.affine[:3, :3], axis=0))
    image = ndimage.zoom(image, spacing / SPACING, order=1)
    mask = image > 0 if (image == 0).mean() > 0.5 else skull_strip(image)
    places = np.argwhere(mask) * SPACING
    centre, spread = places.mean(0), places.std(0)
    # From voxels of the model to voxels of the scan, at 2 mm.
    scale = spread / MNI_SPREAD
    offset = (centre + (ORIGIN - MNI_CENTRE) * scale) / SPACING
    image = ndimage.affine_transform(image, scale, offset, SHAPE, order=1)
    mask = ndimage.affine_transform(mask.astype(np.float32), scale, offset, SHAPE, order=1) > 0.5
    low, high = np.percentile(image[mask], [1, 99])
    image = np.clip((image - low) / (high - low), 0, 1) * mask
    # Slices first, rows along y.
    return image.transpose(2, 1, 0).astype(np.float32), mask.transpose(2, 1, 0)


class Scans(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image, mask = prepare(self.paths[i])
        return self.paths[i], torch.from_numpy(image), torch.from_numpy(mask)


def batches(*tensors):
    return zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)


def score(made, cell, limit, image, mask):
    """Codes, token probabilities, tokens inside and the score map of one scan."""
    tokenizer = made["tokenizer"]
    slices = mask.flatten(1).any(1).nonzero().squeeze(1)
    pixels, z_mm = image[:, None], ORIGIN[2] + SPACING * torch.arange(len(image)).float()
    inside = F.avg_pool2d(mask[slices, None].float(), cell)[:, 0]
    brain = inside > 0
    vectors = torch.cat([tokenizer.encode(*part) for part in batches(pixels, z_mm)])
    table = tokenizer.codebook.vectors
    codes = torch.cdist(vectors.permute(0, 2, 3, 1).reshape(-1, table.shape[1]), table).argmin(-1)
    codes = codes.view(len(image), *inside.shape[1:])
    around = torch.stack([codes[(slices + d).clamp(0, len(image) - 1)] for d in (-2, 0, 2)], 1)
    codes, z_mm = codes[slices], z_mm[slices]
    logits = torch.cat([made["detector"](*part, packed=True) for part in batches(around, brain, z_mm)])
    probability = logits.sigmoid()
    p_token = F.avg_pool2d(probability[:, None], cell)[:, 0]
    anomalous = (p_token > limit) & (inside >= 0.25)
    seen = table[codes]
    for i in range(0, len(slices), BATCH):
        part = slice(i, i + BATCH)
        if anomalous[part].any():
            guess = made["inpainter"](codes[part], brain[part], z_mm[part], anomalous[part], packed=True)
            seen[part][anomalous[part] & brain[part]] = guess.softmax(-1) @ table
    restored = torch.cat([tokenizer.decode(*part) for part in batches(seen.permute(0, 3, 1, 2), z_mm)])[:, 0]
    residual = (image[slices] - restored).abs()
    volume = np.zeros(image.shape, np.float32)
    agrees = 0.5 + 0.5 * (residual / 0.15).clamp(max=1)
    volume[slices] = (probability * agrees).numpy()
    volume = ndimage.gaussian_filter(volume, SMOOTH_MM / SPACING) * mask.numpy()
    return slices, codes, p_token, inside, volume


def main():
    bundle, out, paths = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    info = tomllib.loads((bundle / "bundle.toml").read_text())
    limit, threshold = info["calibration"]["token_threshold"], info["calibration"]["mask_threshold"]
    made, _, cell = twin.networks(bundle)
    for network in made.values():
        network.eval().requires_grad_(False)
    rows, n_files = {"tokens": [], "masks": []}, 0

    def write():
        nonlocal n_files
        for name, tables in rows.items():
            if tables:
                pq.write_table(pa.concat_tables(tables), out / f"{name}-{n_files}.parquet", compression="zstd")
                tables.clear()
        n_files += 1

    loader = DataLoader(Scans(paths), batch_size=None, num_workers=2, prefetch_factor=2)
    with torch.no_grad():
        for n, (path, image, mask) in enumerate(loader, 1):
            slices, codes, p, inside, volume = score(made, cell, limit, image, mask)
            z, y, x = (inside >= 0.25).nonzero(as_tuple=True)
            labels, n_parts = ndimage.label(volume > threshold)
            sizes = ndimage.sum_labels(labels > 0, labels, range(1, n_parts + 1))
            kept = np.isin(labels, 1 + np.flatnonzero(sizes >= LEAST_VOXELS))
            rows["tokens"].append(
                pa.table(
                    {
                        "scan": pa.array([path] * len(z)).dictionary_encode(),
                        "z": slices[z].to(torch.int8).numpy(),
                        "y": y.to(torch.int8).numpy(),
                        "x": x.to(torch.int8).numpy(),
                        "code": codes[z, y, x].to(torch.int16).numpy(),
                        "p_anomalous": p[z, y, x].numpy(),
                    }
                ).unify_dictionaries()
            )
            packed, grey = np.packbits(kept).tobytes(), (255 * volume.clip(0, 1)).astype(np.uint8).tobytes()
            rows["masks"].append(pa.table({"scan": [path], "mask": [packed], "score": [grey]}))
            if n % ROWS_PER_FILE == 0:
                write()
    write()


if __name__ == "__main__":
    main()
