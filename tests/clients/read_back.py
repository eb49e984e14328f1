"""Opens a volume that Kinesin wrote with the programs that people use, and compares every voxel.

    python read_back.py DIR

DIR/volume/{image,mask,labels} is the volume; DIR/expected.json names raw files (little-endian, x fastest) of what must
be in it, with shapes in z, y, x, and voxel sizes in nm. Ends with status 1 and the first difference.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorstore
import zarr
from cloudvolume import CloudVolume
from napari_ome_zarr import napari_get_reader


def expected(folder, entry):
    values = np.fromfile(folder / entry["file"], dtype=entry["dtype"])
    return values.reshape(entry["shape"])


def same(who, got, wanted):
    got = np.asarray(got)
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        sys.exit(f"{who}: {got.dtype} {got.shape}, wanted {wanted.dtype} {wanted.shape}")
    if not np.array_equal(got, wanted):
        at = tuple(np.argwhere(got != wanted)[0])
        sys.exit(f"{who}: voxel (z, y, x) {at} is {got[at]}, wanted {wanted[at]}")
    print(f"{who}: {wanted.size} voxels equal", flush=True)


def equal(who, got, wanted):
    if not np.allclose(got, wanted, rtol=1e-12, atol=0):
        sys.exit(f"{who}: {got}, wanted {wanted}")


def labels(folder, entry):
    truth = expected(folder, entry)
    path = folder / "volume" / "labels"
    # Strict on purpose: no chunk may be absent, in range or not.
    volume = CloudVolume(f"precomputed://file://{path}", fill_missing=False, bounded=True, progress=False)
    equal("CloudVolume: resolution", volume.resolution, entry["voxel_size"][::-1])
    equal("CloudVolume: first voxel", volume.voxel_offset, entry["origin"][::-1])
    same("CloudVolume: labels", np.asarray(volume[:])[..., 0].T, truth)

    store = tensorstore.open(
        {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(path)}}, read=True
    ).result()
    equal("TensorStore: first voxel", store.domain.origin[:3], entry["origin"][::-1])
    same("TensorStore: labels", store.read().result()[..., 0].T, truth)


def image(folder, name, levels):
    path = folder / "volume" / name
    group = zarr.open_group(str(path), mode="r")
    multiscale = group.attrs["ome"]["multiscales"][0]
    axes = [(axis["name"], axis["unit"]) for axis in multiscale["axes"]]
    if axes != [(n, "nanometer") for n in "zyx"]:
        sys.exit(f"zarr-python: {name} has the axes {axes}")
    for level, entry in enumerate(levels):
        dataset = multiscale["datasets"][level]
        same(f"zarr-python: {name} level {level}", group[dataset["path"]][:], expected(folder, entry))
        equal(f"zarr-python: {name} level {level} scale", dataset["coordinateTransformations"][0]["scale"], entry["voxel_size"])

    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}}, read=True
    ).result()
    same(f"TensorStore: {name}", store.read().result(), expected(folder, levels[0]))

    reader = napari_get_reader(str(path))
    if reader is None:
        sys.exit(f"napari: no reader for {name}")
    data, metadata = reader(str(path))[0][:2]
    pyramid = data if isinstance(data, (list, tuple)) else [data]
    for level, entry in enumerate(levels):
        same(f"napari: {name} level {level}", pyramid[level], expected(folder, entry))
    scale = metadata.get("scale")
    if scale is None:
        scale = np.diag(metadata["affine"])[:3]
    equal(f"napari: {name} scale", scale, levels[0]["voxel_size"])


def main():
    folder = Path(sys.argv[1]).resolve()
    wanted = json.loads((folder / "expected.json").read_text())
    labels(folder, wanted["labels"])
    for name in ("image", "mask"):
        image(folder, name, wanted[name])


main()
