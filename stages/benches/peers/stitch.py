"""Other stitchers on the tiles of `cargo bench -p kinesin-stages --bench stitch`, scored as the bench scores.

    KINESIN_TILES=DIR cargo bench -p kinesin-stages --bench stitch -- msem     writes the tiles
    python stages/benches/peers/stitch.py DIR [PEER ...]                       feabas, opencv, skimage, ashlar; what is installed

Prints seam errors (px), pairs above 1 px, and millions of pixels of all tiles per CPU-second (user and system time) of match and
solve; reading the tiles counts for feabas and ashlar, which do it themselves. FEABAS is given what its default stitching
configuration says; its wheel wants to be started in a folder with configs/general_configs.yaml: `parallel_framework: process`.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np


def cpu():
    used = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


class Case:
    """Tiles, nominal places (x, y) and size of one section."""

    def __init__(self, text):
        self.text, self.name = text, text.stem
        rows = [line.split("\t") for line in text.read_text().splitlines()]
        keys = {r[0]: r[1:] for r in rows if r[0].startswith("{")}
        tiles = [r for r in rows if not r[0].startswith("{")]
        self.folder = text.parent / keys["{ROOT_DIR}"][0]
        self.size = np.array([int(v) for v in keys["{TILE_SIZE}"]][::-1])
        self.names = [r[0] for r in tiles]
        self.places = np.array([[float(r[1]), float(r[2])] for r in tiles])
        self.truth = json.loads(text.with_suffix(".json").read_text())

    def pairs(self):
        """Indexes of tiles whose nominal overlap is 8 px or more wide and a sixth of a side or more long."""
        for i in range(len(self.names)):
            for j in range(i + 1, len(self.names)):
                common = self.size - np.abs(self.places[i] - self.places[j])
                if common.min() >= 8 and (common / self.size).max() >= 0.15:
                    yield i, j

    def score(self, place):
        """Errors at the true seams, where `place(name, points)` gives section pixels."""
        sides = ((p, np.array(p["points"])) for p in self.truth["pairs"])
        pairs = [np.hypot(*(place(p["p"], x[:, :2]) - place(p["q"], x[:, 2:])).T) for p, x in sides]
        e, torn = np.concatenate(pairs), f"{sum(p.max() > 1 for p in pairs)} of {len(pairs)} pairs above 1 px"
        return f"seam rms {np.sqrt((e**2).mean()):.3f} p95 {np.quantile(e, 0.95):.2f} max {e.max():.2f} px, {torn}"


def rigid(case, shift):
    """One shift a pair, least squares with Huber weights, one place a tile."""
    import tifffile

    images = [tifffile.imread(case.folder / n).astype(np.float32) for n in case.names]
    start = cpu()
    links = [(i, j, d) for i, j in case.pairs() if (d := overlap_shift(case, images, i, j, shift)) is not None]
    weights = np.ones(len(links))
    for _ in range(10):
        a, b = np.zeros((len(links) + 1, len(images))), np.zeros((len(links) + 1, 2))
        for k, (i, j, d) in enumerate(links):
            a[k, i], a[k, j], b[k] = -weights[k], weights[k], weights[k] * d
        a[-1] = 1e-3
        moved = np.linalg.lstsq(a, b, rcond=None)[0]
        off = np.array([np.hypot(*(moved[j] - moved[i] - d)) for i, j, d in links])
        weights = np.sqrt(1 / np.maximum(1, off / 1.5))
    at = dict(zip(case.names, case.places + moved))
    return (lambda name, points: points + at[name]), cpu() - start


def overlap_shift(case, images, i, j, shift):
    """How much further than nominal tile j lies from tile i, from the nominal overlap of both."""
    x, y = np.round(case.places[j] - case.places[i]).astype(int)
    w, h = case.size - np.abs([x, y])
    parts = images[i][max(y, 0) :, max(x, 0) :], images[j][max(-y, 0) :, max(-x, 0) :]
    parts = [np.ascontiguousarray(p[:h, :w] - p[:h, :w].mean()) for p in parts]
    return np.array(shift(*parts)) if min(p.std() for p in parts) >= 1 else None


def opencv(case):
    import cv2

    cv2.setNumThreads(1)
    window = lambda a: cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F)
    return rigid(case, lambda a, b: [-v for v in cv2.phaseCorrelate(a, b, window(a))[0]])


def skimage(case):
    from skimage.registration import phase_cross_correlation

    return rigid(case, lambda a, b: phase_cross_correlation(a, b, upsample_factor=10)[0][::-1])


def feabas(case):
    import matplotlib.tri as tri
    from feabas import constant as const
    from feabas.stitcher import Stitcher

    start = cpu()
    s = Stitcher.from_coordinate_file(str(case.text))
    matcher = {"sigma": 2.5, "conf_thresh": 0.33, "residue_mode": "threshold", "pad": True, "coarse_downsample": 0.5}
    s.dispatch_matchers(num_workers=1, margin=100, min_overlap_width=25, matcher_config=matcher, loader_config={"cache_size": 150})
    s.initialize_meshes([75, 150, 300], soft_top=0.2)
    s.optimize_translation(target_gear=const.MESH_GEAR_FIXED, tol=1e-7, residue_threshold=0.5)
    s.optimize_elastic(target_gear=const.MESH_GEAR_MOVING, tol=1e-4, residue_mode="huber", residue_len=5)
    seconds = cpu() - start
    meshes = {Path(str(p)).name: m for p, m in zip(s.imgrelpaths, s.meshes)}

    def place(name, points):
        m = meshes[name]
        v, to = m.vertices_w_offset(const.MESH_GEAR_INITIAL), m.vertices_w_offset(const.MESH_GEAR_MOVING)
        v = v - v.min(axis=0)
        mesh = tri.Triangulation(v[:, 0], v[:, 1], m.triangles)
        inside = np.clip(points, 1e-6, v.max(axis=0) - 1e-6)
        return np.stack([tri.LinearTriInterpolator(mesh, to[:, k])(*inside.T) for k in (0, 1)], axis=1)

    return place, seconds


def ashlar(case):
    import tifffile
    from ashlar import reg

    class Metadata(reg.Metadata):
        _num_images = num_images = len(case.names)
        num_channels, pixel_size, pixel_dtype = 1, 1.0, np.dtype(np.uint8)
        positions, size = case.places[:, ::-1], case.size[::-1]

    class Reader(reg.Reader):
        metadata = Metadata()

        def read(self, series, c):
            return tifffile.imread(case.folder / case.names[series])

    start = cpu()
    aligner = reg.EdgeAligner(Reader(), max_shift=40, filter_sigma=1, do_make_thumbnail=False)
    aligner.run()
    at = dict(zip(case.names, aligner.positions[:, ::-1]))
    return (lambda name, points: points + at[name]), cpu() - start


for text in sorted(Path(sys.argv[1]).resolve().glob("*.txt")):
    case = Case(text)
    for peer in (p for p in (feabas, opencv, skimage, ashlar) if p.__name__ in (sys.argv[2:] or [p.__name__])):
        try:
            place, seconds = peer(case)
            said = f"{case.score(place)}; {case.truth['mpx'] / seconds:.1f} Mpx per CPU-s"
        except Exception as e:  # that a peer cannot do a case is a result too
            said = repr(e)
        print(f"{case.name} {peer.__name__}: {said}", flush=True)
