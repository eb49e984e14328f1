"""Other aligners on the sections of `cargo bench -p kinesin-stages --bench align`, scored as the bench scores.

    KINESIN_CUT=DIR cargo bench -p kinesin-stages --bench align -- fib_next fib_nowarp fib_damage     writes the sections
    python stages/benches/peers/align.py DIR [PEER ...]         none, sift, dis, feabas, feabas_tuned, sofima; what is installed

Prints the distance (px) between the places of one tissue point in neighbouring sections, at least 10 px (then 30) from damage, and
millions of pixels of the sections after the first per CPU-second (user and system time, all threads); reading the images not counted.

sift: affine map of neighbours from keypoints at half resolution, chained. dis: the same and OpenCV's dense flow on top of it, preset
"fast" and finest scale 3, the best of thirteen settings tried on fib_next (presets and finest scale 2 and below: 2.0 to 3.3 px rms).
feabas: its default configuration but for thumbnails at half and matching at full resolution, which suits sections this small; sections
two apart compared too, as it does by default. feabas_tuned: mesh of 150 px, stiffness 0.1, matches every 50 px. Its wheel wants to be
started in a folder with configs/general_configs.yaml: `parallel_framework: process`. sofima: the flow of its EM example (patches of
160 px every 40, at full and half resolution) on top of sift, smoothed by 0.7 of a node, without its mesh, on the first pair only;
compiling is not counted. Its package on PyPI has no modules in it: take its repository.
"""

import json
import os
import resource
import sys
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np  # noqa: E402, reads the number of threads


def cpu():
    used = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


class Case:
    """Sections in order and where each tissue point (row) lies in them: x, y, 1 if far from damage; not a number where not seen."""

    def __init__(self, text):
        import cv2

        self.name = text.stem
        nowhere = [np.nan] * 3
        places = json.loads(text.read_text())["sections"]
        self.places = [np.array([p or nowhere for p in places[n]]) for n in sorted(places)]
        self.images = [cv2.imread(str(text.parent / self.name / f"{n}.png"), cv2.IMREAD_GRAYSCALE) for n in sorted(places)]

    def score(self, maps, seconds):
        """`maps[k]` takes pixels (n, 2) of section k to the volume."""
        off, far, n = [], [], len(maps)
        for k in range(1, n):
            a, b = self.places[k - 1], self.places[k]
            seen = ~np.isnan(a[:, 0] + b[:, 0])
            off.append(np.hypot(*(maps[k](b[seen, :2]) - maps[k - 1](a[seen, :2])).T))
            far.append((a[seen, 2] * b[seen, 2]) > 0)
        off, far = np.concatenate(off), np.concatenate(far)
        said = [row(off)] + ([f"30 px away {row(off[far])}"] if not far.all() else [])
        mpx = sum(i.size for i in self.images[1:n]) / 1e6
        return f"{n - 1} pairs, {'; '.join(said)}; {mpx / seconds if seconds else np.inf:.2f} Mpx per CPU-s"


def row(off):
    e = np.sort(off)
    at = [e[int(len(e) * q)] for q in (0.5, 0.95, 0.99)]
    return "rms {:.2f} median {:.2f} p95 {:.2f} p99 {:.2f} max {:.1f} px".format(np.sqrt((e**2).mean()), *at, e[-1])


def none(case):
    return [lambda p: p] * len(case.images), 0


def keypoints(image):
    import cv2

    cv2.setNumThreads(1)
    return cv2.SIFT_create(4000).detectAndCompute(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), None)


def affine(before, keys):
    """Pixels of an image to pixels of the one before it, (2, 3)."""
    import cv2

    pairs = cv2.FlannBasedMatcher({"algorithm": 1, "trees": 4}, {"checks": 64}).knnMatch(keys[1], before[1], k=2)
    good = [m for m, n in pairs if m.distance < 0.8 * n.distance]
    # Pixel centres are whole numbers, so 0 at half resolution is 0.5 here.
    at = lambda points, ids: np.float32([points[i].pt for i in ids]) * 2 + 0.5
    to = at(before[0], [m.trainIdx for m in good])
    return cv2.estimateAffine2D(at(keys[0], [m.queryIdx for m in good]), to, ransacReprojThreshold=8)[0]


def chain(case, flow=None, sections=None):
    """Each section onto the one before it: affine, then `flow(image, before)`, what to add to a pixel of the image so laid."""
    import cv2

    maps, keys, start = [lambda p: p], None, cpu()
    for k, image in enumerate(case.images[:sections]):
        last, keys = keys, keypoints(image)
        if k == 0:
            continue
        a, before, add = affine(last, keys), case.images[k - 1], lambda q: 0
        if flow:
            size = before.shape[::-1]
            filled = cv2.warpAffine(np.full_like(image, 255), a, size) == 255
            add = flow(np.where(filled, cv2.warpAffine(image, a, size), before), before)
        maps.append(lambda p, a=a, add=add, onto=maps[-1]: onto((q := p @ a[:, :2].T + a[:, 2]) + add(q)))
    return maps, cpu() - start


def sift(case):
    return chain(case)


def dis(case):
    import cv2
    from scipy.ndimage import map_coordinates

    def flow(image, before):
        method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        method.setFinestScale(3)
        field = method.calc(image, before, None)
        return lambda q: np.stack([map_coordinates(field[..., c], q.T[::-1], order=1, mode="nearest") for c in (0, 1)], 1)

    return chain(case, flow)


def sofima(case):
    import cv2
    from scipy.ndimage import gaussian_filter, map_coordinates
    from sofima import flow_field, flow_utils, map_utils

    patch, stride = 160, 40
    # Centre of the first patch; images are padded by half a patch, masked there.
    first = (patch - 1) / 2 - patch // 2
    calculator = flow_field.JAXMaskedXCorrWithStatsCalculator()

    def at(image, before):
        padded = [np.pad(i.astype(np.float32), patch // 2, mode="reflect") for i in (before, image)]
        mask = np.pad(np.zeros(image.shape, bool), patch // 2, constant_values=True)
        f = calculator.flow_field(*padded, patch, stride, pre_mask=mask, post_mask=mask, batch_size=121)
        return flow_utils.clean_flow(f[:, None], min_peak_ratio=1.6, min_peak_sharpness=1.6, max_magnitude=80, max_deviation=20)

    def flow(image, before):
        fine = at(image, before)
        coarse = 2 * at(*(cv2.resize(i, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for i in (image, before)))
        # Patch j at half resolution lies at 2 (40 j + first) + 0.5.
        nodes = [(np.arange(n) * stride - first - 0.5) / (2 * stride) for n in fine.shape[2:]]
        nodes = np.stack(np.meshgrid(*nodes, indexing="ij"))
        coarse = [map_coordinates(c[0], nodes, order=1, mode="nearest") for c in map_utils.fill_missing(coarse, extrapolate=True)]
        both = flow_utils.reconcile_flows((fine, np.stack(coarse)[:, None]), max_gradient=0, max_deviation=20, min_patch_size=0)
        field = [gaussian_filter(c[0], 0.7) for c in map_utils.fill_missing(both, extrapolate=True)]
        return lambda q: np.stack([map_coordinates(c, ((q - first) / stride).T[::-1], order=1, mode="nearest") for c in field], 1)

    flow(case.images[1], case.images[0])
    return chain(case, flow, 2)


def feabas_tuned(case):
    return feabas(case, mesh=150, stiffness=0.1, spacings=[400, 100, 50])


def feabas(case, mesh=600, stiffness=1.0, spacings=(400, 100)):
    import cv2
    import matplotlib.tri as tri
    from feabas import aligner, config, constant, thumbnail
    from feabas.dal import StreamLoader
    from feabas.mesh import Mesh

    features = {
        "affine_only": True,
        "detect_settings": {"sigma": 3.5, "min_spacing": 10, "num_features": 5000},
        "extract_settings": {"proj_num": 6, "beam_num": 8, "beam_wd": 3, "beam_radius": 15},
        "matching_settings": {"exhaustive": True},
        "strain_filter_settings": {"strain_limit": 0.2, "shear_limit": 45, "sample_ratio": 0.05, "inlier_thresh": 0.5},
        "ransac_filter_settings": {"maxiter": 10000, "dis_tol": 4},
    }
    blocks = {"sigma": 3.5, "conf_thresh": 0.35, "pad": True, "distributor": "intersect_triangulation", "min_boundary_distance": 20}
    blocks |= {"spacings": [150, 50], "shrink_factor": 1, "residue_mode": "huber", "residue_len": -3}
    fine = {"sigma": 3.5, "conf_thresh": 0.35, "pad": True, "distributor": "cartesian_region", "min_boundary_distance": 20}
    fine |= {"spacings": list(spacings), "shrink_factor": 0.7, "residue_mode": "huber", "residue_len": -2}
    fine |= {"batch_size": 100, "num_workers": 1}
    window = {"start_loc": "M", "window_size": 64, "buffer_size": 16, "residue_mode": "huber", "residue_len": -3, "num_workers": 1}
    window["elastic_params"] = {"stiffness_lambda": stiffness, "tol": 1e-7, "atol": 1e-3, "precondition": "jacobi"}

    names, full = [f"s{k:03}" for k in range(len(case.images))], config.montage_resolution()
    start = cpu()
    with tempfile.TemporaryDirectory() as work:
        coarse, meshes, matches, placed = (f"{work}/{f}" for f in ("coarse", "mesh", "matches", "placed"))
        for f in (coarse, meshes, matches, placed):
            Path(f).mkdir()
        half = [cv2.resize(i, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for i in case.images]
        half = [thumbnail.prepare_image(i, (i > 0).astype(np.uint8), resolution=2 * full, **features) for i in half]
        for name, image in zip(names, case.images):
            h, w = image.shape
            Mesh.from_bbox((0, 0, w, h), mesh_size=mesh, resolution=full, name=name).save_to_h5(f"{meshes}/{name}.h5")
        for k, j in [(k, k + d) for d in (1, 2) for k in range(len(names) - d)]:
            pair = f"{coarse}/{names[k]}__to__{names[j]}.h5"
            thumbnail.align_two_thumbnails(half[k], half[j], pair, resolution=2 * full, feature_matching=features, block_matching=blocks)
            if Path(pair).exists():
                images = [StreamLoader(case.images[i], resolution=full) for i in (k, j)]
                aligner.match_section_from_initial_matches(pair, meshes, images, matches, {"matcher_config": fine})
        aligner.Aligner(meshes, placed, matches, section_list=names).run(num_workers=1, slide_window=window)
        seconds = cpu() - start
        done = [Mesh.from_h5(f"{placed}/{name}.h5") for name in names]

    def moved(m):
        v, to = m.vertices_w_offset(constant.MESH_GEAR_INITIAL), m.vertices_w_offset(constant.MESH_GEAR_MOVING)
        grid = tri.Triangulation(v[:, 0], v[:, 1], m.triangles)
        inside = lambda p: np.clip(p, v.min(axis=0) + 1e-6, v.max(axis=0) - 1e-6)
        return lambda p: np.stack([tri.LinearTriInterpolator(grid, to[:, c])(*inside(p).T) for c in (0, 1)], 1)

    return [moved(m) for m in done], seconds


for text in sorted(Path(sys.argv[1]).resolve().glob("*.json")):
    case = Case(text)
    for peer in (p for p in (none, sift, dis, feabas, feabas_tuned, sofima) if p.__name__ in (sys.argv[2:] or [p.__name__])):
        try:
            said = case.score(*peer(case))
        except Exception as e:  # that a peer cannot do a case is a result too
            said = repr(e)
        print(f"{case.name} {peer.__name__}: {said}", flush=True)
