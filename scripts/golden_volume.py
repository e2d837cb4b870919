#!/usr/bin/env python3
"""Records what nibabel and scipy say about small NIfTI files, for tests/it/volume.rs.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6 nibabel==5.4.2 scipy==1.17.1
    venv/bin/python scripts/golden_volume.py [--odd DIR]

Writes the files it makes (always the same voxels) and volume.json to tests/golden/volume/. With --odd,
the folder of real-world odd files that are too large for the repository, it also records their
shape, affine and a hash of their voxels in odd.json; without it odd.json stays as it is.
"""

import argparse
import gzip
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy.ndimage import map_coordinates

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "volume"
SHAPE = (5, 4, 3)
LAS = np.array([[-2.0, 0, 0, 9], [0, 1.5, 0, -20], [0, 0, 3, 4.5], [0, 0, 0, 1]])


def oblique(degrees, zooms=(1.1, 0.9, 2.0), origin=(-31, 17, 5.5)):
    turn = euler2mat(*np.radians(degrees))
    return from_matvec(turn @ np.diag(zooms), origin)


def voxels(dtype, seed):
    """Random voxels that use much of the type's range."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(0, 1000, SHAPE).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, SHAPE, dtype=dtype, endpoint=True)


def save(name, data, affine=LAS, *, big=False, sform=2, qform=0, edit=None):
    """One file; `edit` changes the header's raw fields after nibabel has filled them."""
    header = nib.Nifti1Header(endianness=">" if big else "<")
    header.set_data_dtype(data.dtype)
    image = nib.Nifti1Image(data, affine, header)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    raw = bytearray(image.to_bytes())
    if edit:
        fields = nib.Nifti1Header(bytes(raw[:348]), check=False)
        for field, value in edit.items():
            fields[field] = value
        raw[:348] = fields.binaryblock
    raw = bytes(raw)
    path = OUT / name
    path.write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)


def make_files():
    real = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
    for i, dtype in enumerate(real):
        save(f"{dtype}_little.nii.gz", voxels(dtype, i), sform=1)
        save(f"{dtype}_big.nii", voxels(dtype, 100 + i), big=True, sform=1)
    int16 = voxels("int16", 7)
    save("scaled.nii.gz", int16, edit={"scl_slope": 0.37, "scl_inter": -12.5})
    save("scaled_big.nii", int16, big=True, edit={"scl_slope": -3.0, "scl_inter": 1e4})
    save("slope_zero.nii.gz", int16, edit={"scl_slope": 0.0, "scl_inter": 55.0})
    save("slope_nan.nii.gz", int16, edit={"scl_slope": np.nan, "scl_inter": np.nan})
    save("one_volume_4d.nii.gz", int16[..., None])

    nonfinite = voxels("float32", 8)
    nonfinite[0, 0, 0], nonfinite[1, 2, 1], nonfinite[4, 3, 2] = np.nan, np.inf, -np.inf
    save("nonfinite.nii.gz", nonfinite)

    # Where the voxels lie.
    save("lpi.nii.gz", int16, np.diag([-1.0, -1.0, -2.0, 1.0]))
    save("permuted.nii.gz", int16, np.array([[0, 0, 1.2, -8], [-0.9, 0, 0, 3], [0, -1.1, 0, 40], [0, 0, 0, 1.0]]))
    save("oblique.nii.gz", int16, oblique((20, -25, 40)))
    sheared = oblique((5, 10, -62))
    sheared[0, 1] += 0.3
    save("oblique_sheared.nii.gz", int16, sheared)
    save("qform_only.nii.gz", int16, oblique((-130, 12, 8)), sform=0, qform=1)
    save("qform_mirrored.nii.gz", int16, oblique((15, 170, 8)) @ np.diag([-1, 1, 1, 1]), sform=0, qform=1)
    save("qform_half_turn.nii.gz", int16, np.diag([-1.0, 1.0, -1.0, 1.0]), sform=0, qform=1)
    no_qfac = {"pixdim": [0, 1.1, 0.9, 2, 0, 0, 0, 0]}
    save("qform_qfac_zero.nii.gz", int16, oblique((15, 20, 8)), sform=0, qform=1, edit=no_qfac)
    save("no_orientation.nii.gz", int16, LAS, sform=0, qform=0)
    save(
        "sform_and_qform_differ.nii.gz",
        int16,
        oblique((3, 4, 5)),
        sform=4,
        qform=1,
        edit={"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 0.6, "qoffset_x": 77.0},
    )
    # Written as `encode` writes: both transforms with code 2, mm, a description.
    mirrored = oblique((15, 170, 8)) @ np.diag([-1, 1, 1, 1])
    as_encode = {"xyzt_units": 2, "descrip": b"neurosieve test"}
    save("as_encode.nii.gz", voxels("float32", 9), mirrored, qform=2, edit=as_encode)
    save("metres.nii.gz", int16, LAS * [[1e-3], [1e-3], [1e-3], [1]], edit={"xyzt_units": 1})
    save("microns.nii.gz", int16, LAS * [[1e3], [1e3], [1e3], [1]], edit={"xyzt_units": 3})


def floats(array):
    return [float(v) for v in np.asarray(array).ravel(order="F")]


def read(path):
    """nibabel's float32 voxels, 3-D and finite, and the world in mm."""
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float64)
    data = data.reshape(data.shape[:3])
    mm = {"meter": 1000.0, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1.0)
    affine = image.affine * [[mm], [mm], [mm], [1]]
    with np.errstate(over="ignore"):
        data = data.astype(np.float32)
    finite = np.isfinite(data)
    return image, np.where(finite, data, np.float32(0)), affine, int((~finite).sum())


def describe(path):
    image, data, affine, n_nonfinite = read(path)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    return {
        "file": path.name,
        "shape": list(data.shape),
        "datatype": image.get_data_dtype().newbyteorder("=").name,
        "affine": affine[:3].ravel().tolist(),
        "orientation": "".join(nib.aff2axcodes(affine)),
        "n_nonfinite": n_nonfinite,
        "voxels": floats(data),
        "canonical": {
            "shape": list(canonical.shape),
            "affine": canonical.affine[:3].ravel().tolist(),
            "voxels": floats(np.asarray(canonical.dataobj)),
        },
    }


def resampled(path, order):
    """The file's voxels on another grid through a world-to-world affine, by scipy.

    The target covers more than the source, so a part is outside; `inside` marks positions clearly
    inside the box of voxel centres or clearly outside it, where rounding cannot decide.
    """
    _, data, affine, _ = read(path)
    shape = (7, 6, 5)
    target = oblique((-10, 35, 15), zooms=(0.8, 0.7, 1.3), origin=(0, 0, 0))
    centre = affine @ [2, 1.5, 1, 1]
    target[:3, 3] = (centre - target @ [3.1, 2.4, 2.2, 0])[:3]
    moved = from_matvec(euler2mat(0.05, -0.1, 0.02) * 1.04, (0.3, -0.2, 0.4))
    target = np.linalg.inv(moved) @ target
    index = np.linalg.inv(affine) @ moved @ target
    grid = np.indices(shape).reshape(3, -1, order="F")
    at = index[:3, :3] @ grid + index[:3, 3:]
    values = map_coordinates(data.astype(np.float64), at, order=order, mode="constant", cval=0.0)
    last = np.array(data.shape)[:, None] - 1
    clear = (np.minimum(np.abs(at), np.abs(at - last)) > 1e-3).all(axis=0)
    if order == 0:
        clear &= (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(axis=0)
    return {
        "file": path.name,
        "shape": list(shape),
        "affine": target[:3].ravel().tolist(),
        "target_to_source": moved[:3].ravel().tolist(),
        "voxels": [float(v) for v in values],
        "clear": [bool(c) for c in clear],
    }


def describe_odd(root):
    """What nibabel reads from each odd file, or that it is no single real 3-D image."""
    rows = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        row = {"file": path.relative_to(root).as_posix()}
        try:
            image = nib.load(path)
            single = isinstance(image, nib.Nifti1Image) and image.header["magic"] == b"n+1"
            real = image.get_data_dtype().kind in "iuf"
            if not (single and real and all(n == 1 for n in image.shape[3:]) and len(image.shape) >= 3):
                raise ValueError(f"shape {image.shape}, {image.get_data_dtype()}, {type(image).__name__}")
            _, data, affine, _ = read(path)
            if data.min() == data.max():
                raise ValueError("constant")
            row |= {
                "shape": list(data.shape),
                "affine": affine[:3].ravel().tolist(),
                "sum": float(data.astype(np.float64).sum()),
                "sha256": hashlib.sha256(data.astype("<f4").tobytes(order="F")).hexdigest(),
            }
        except Exception as error:  # whatever nibabel raises, the file is unusable
            row["refused"] = str(error).replace(str(root), "").strip()[:120]
        rows.append(row)
    return rows


def write(name, value):
    (OUT / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--odd", type=Path, help="folder of odd files to record in odd.json")
    odd = parser.parse_args().odd
    OUT.mkdir(parents=True, exist_ok=True)
    make_files()
    to_resample = [OUT / f for f in ("float32_little.nii.gz", "oblique.nii.gz", "permuted.nii.gz")]
    files = sorted(p for p in OUT.iterdir() if p.name.endswith((".nii", ".nii.gz")))
    write(
        "volume.json",
        {
            "made_with": {"nibabel": nib.__version__, "numpy": np.__version__},
            "files": [describe(p) for p in files],
            "trilinear": [resampled(p, 1) for p in to_resample],
            "nearest": [resampled(p, 0) for p in to_resample],
        },
    )
    if odd:
        write("odd.json", describe_odd(odd))


if __name__ == "__main__":
    main()
