"""Training volumes: where they come from and how they are brought to the network's grid.

Axes     every volume is (z, y, x), C order; the first axis counts sections.
Units    voxel sizes in nm in that order; images are grey 0..255, where 0 means "no data"; labels are integers, 0 = membrane
         or extracellular space.
Sources  real cortex: AC4 (Kasthuri et al., Cell 2015, doi 10.1016/j.cell.2015.06.054), found through the environment
         variable KINESIN_DATA, never copied here. Simulated tissue: made on demand by this repository's own generator.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[2]


def data_dir() -> Path:
    """Folder of the public data sets: $KINESIN_DATA, else ../shared/data beside the checkout."""
    return Path(os.environ.get("KINESIN_DATA", ROOT.parent / "shared" / "data"))


def area_downsample(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over factor x factor pixels of every section, as float32 grey."""
    z, y, x = image.shape
    y, x = y // factor * factor, x // factor * factor
    cells = image[:, :y, :x].reshape(z, y // factor, factor, x // factor, factor)
    return cells.mean(axis=(2, 4), dtype=np.float32)


def load_ac4(first: int, stop: int, factor: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Sections first..stop-1 of AC4: grey (float32, averaged) and labels (int32, sampled) at factor x 6 nm in plane."""
    from PIL import Image

    def stack(kind: str) -> np.ndarray:
        files = sorted((data_dir() / "kasthuri_ac4" / kind).glob("*.png"))
        if len(files) < stop:
            raise SystemExit(f"{data_dir()}/kasthuri_ac4/{kind}: {len(files)} sections found, {stop} needed (set KINESIN_DATA)")
        return np.stack([np.asarray(Image.open(f)) for f in files[first:stop]])

    labels = stack("labels")[:, ::factor, ::factor].astype(np.int32)
    return area_downsample(stack("raw"), factor), labels


def tissue(seed: int, size: tuple[int, int, int], voxel: tuple[int, int, int], out: Path, **settings) -> dict[str, np.ndarray]:
    """Simulated tissue of one seed as {image u8, labels u32, classes u8}; made once, then read back from `out`.

    `settings` are shares of the generator's own configuration (cell_bodies, vessels, resin, ...).
    """
    import tifffile

    names = ("image", "labels", "classes")
    if not all((out / f"{n}.tif").exists() for n in names):
        out.mkdir(parents=True, exist_ok=True)
        command = ["cargo", "run", "--release", "-p", "kinesin-sim", "--example", "tissue", "--", "--seed", str(seed)]
        command += ["--size", ",".join(map(str, size)), "--voxel", ",".join(map(str, voxel)), "--out", str(out)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return {n: tifffile.imread(out / f"{n}.tif") for n in names}


def sample(labels: np.ndarray, factor: int) -> np.ndarray:
    """Every factor-th label in plane (labels cannot be averaged), cut like area_downsample."""
    z, y, x = labels.shape
    return labels[:, : y // factor * factor : factor, : x // factor * factor : factor]


def normalise(image: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Per section (v - mean) / sd over voxels with data, clipped at +-4; voxels without data become 0."""
    image = image.astype(np.float32)
    valid = image > 0 if valid is None else valid
    count = np.maximum(valid.sum(axis=(1, 2), keepdims=True), 1)
    mean = np.where(valid, image, 0).sum(axis=(1, 2), keepdims=True) / count
    var = np.where(valid, (image - mean) ** 2, 0).sum(axis=(1, 2), keepdims=True) / count
    scaled = np.clip((image - mean) / np.sqrt(np.maximum(var, 1e-6)), -4, 4)
    return np.where(valid, scaled, 0).astype(np.float32)


def border_distance(labels: np.ndarray, voxel: tuple[float, float, float]) -> np.ndarray:
    """Distance in nm of every labelled voxel to the nearest voxel of another label; 0 outside the labels."""
    border = labels == 0
    for axis in range(3):
        low = [slice(None)] * 3
        high = [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        differs = labels[tuple(low)] != labels[tuple(high)]
        border[tuple(low)] |= differs
        border[tuple(high)] |= differs
    return ndimage.distance_transform_edt(~border, sampling=voxel).astype(np.float32)


class Volume:
    """One labelled volume with a balanced choice of seed points.

    Objects are drawn with weight sqrt(voxels), so thin neurites are not drowned by cell bodies; within an object a voxel is
    drawn with weight min(distance to the border, `cap` nm), so seeds lie where an inference seed would lie.
    """

    def __init__(self, image: np.ndarray, labels: np.ndarray, voxel: tuple[float, float, float], box, cap: float = 120.0,
                 smallest: int = 500, no_data: np.ndarray | None = None):
        self.image, self.labels, self.no_data = image, labels, no_data
        self.half = tuple(b // 2 for b in box)
        inner = tuple(slice(h, n - h) for h, n in zip(self.half, labels.shape))
        distance = border_distance(labels, voxel)[inner]
        flat = labels[inner].ravel()
        ids, counts = np.unique(flat, return_counts=True)
        order = np.argsort(flat, kind="stable")
        ends = np.cumsum(counts)
        self.inner_shape = distance.shape
        distance = distance.ravel()
        self.objects, weights = [], []
        self.background = order[: ends[0]] if ids[0] == 0 else order[:0]
        for label, count, end in zip(ids, counts, ends):
            if label == 0 or count < smallest:
                continue
            members = order[end - count:end]
            weight = np.minimum(distance[members], cap)
            rim = members[weight == 0]
            members, weight = members[weight > 0], weight[weight > 0]
            if len(members) < 50:
                continue
            self.objects.append((label, members, np.cumsum(weight), rim))
            weights.append(np.sqrt(count))
        if not self.objects:
            raise ValueError("no object is large enough to train on")
        self.weight = float(np.sum(weights))
        self.choice = np.cumsum(weights) / np.sum(weights)

    def _position(self, flat_index: int) -> tuple[int, int, int]:
        return tuple(int(p) + h for p, h in zip(np.unravel_index(flat_index, self.inner_shape), self.half))

    def seed_point(self, rng: np.random.Generator, rim: float, outside: float) -> tuple[int, tuple[int, int, int]]:
        """(label, position): an interior point; with chance `rim` one on the object's border; `outside` one on label 0."""
        draw = rng.random()
        if draw < outside and len(self.background):
            return 0, self._position(self.background[rng.integers(len(self.background))])
        pick = min(int(np.searchsorted(self.choice, rng.random())), len(self.objects) - 1)
        label, members, weight, border = self.objects[pick]
        if draw < outside + rim and len(border):
            return int(label), self._position(border[rng.integers(len(border))])
        index = min(int(np.searchsorted(weight, rng.random() * weight[-1])), len(members) - 1)
        return int(label), self._position(members[index])

    def crop(self, position, rng: np.random.Generator):
        """Image and labels of the box round `position`, mirrored and turned at random (copies)."""
        box = tuple(slice(p - h, p + h + 1) for p, h in zip(position, self.half))
        image, labels = self.image[box], self.labels[box]
        flips = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
        image, labels = image[flips], labels[flips]
        if rng.random() < 0.5:
            image, labels = image.transpose(0, 2, 1), labels.transpose(0, 2, 1)
        return np.array(image, np.float32), np.array(labels)
