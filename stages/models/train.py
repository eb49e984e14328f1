#!/usr/bin/env python3
"""Trains one of the networks that ship with Kinesin and writes its folder: `python3 stages/models/train.py ffn-cortex`.

Axes     (z, y, x) everywhere.
Units    voxel sizes in nm, times in seconds of wall time on one core.
Method   see ffn.py (flood-filling networks) and mask.py (tissue classes). Seeds are fixed; the number of steps follows from
         the time budget, so a faster machine trains further and the weights are not bit-equal between machines.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import augment
import data
import export
import ffn
import mask
import scene

FFN_RULES = {"deltas": list(ffn.DELTAS), "init_activation": 0.95, "pad_value": 0.05, "move_threshold": 0.9,
             "segment_threshold": 0.6, "min_segment_size": 300, "min_boundary_dist": [0, 1, 1], "disco_seed_threshold": 0.0}


def ffn_manifest(description: str, voxel: list[float], training: dict) -> dict:
    return {"kind": "ffn", "description": description, "axes": "zyx", "voxel_size_nm": voxel, "shape": list(ffn.FOV),
            "normalisation": {"kind": "section"}, "ffn": FFN_RULES, "training": training}


def train_ffn_cortex(args):
    """AC4 sections 0..79 at 12 x 12 x 30 nm; 80..99 are never read here."""
    grey, labels = data.load_ac4(0, 80)
    volumes = [data.Volume(data.normalise(grey), labels, (30, 12, 12), ffn.BOX)]

    def save(net, steps, spent):
        training = {"data": "AC4 (Kasthuri et al. 2015), sections 0..79 of 100, 2 x 2 averaged to 12 nm", "seed": args.seed,
                    "steps": steps, "wall_seconds": round(spent, 1), "scores": args.scores}
        manifest = ffn_manifest("Flood-filling network for mouse cortex, ATUM-SEM at 12 x 12 x 30 nm", [30.0, 12.0, 12.0], training)
        export.write_model("ffn-cortex-12nm", net, {"image": (1, *ffn.FOV), "seed": (1, *ffn.FOV)}, manifest, args.out)

    ffn.train(volumes, augment.cortex, seconds=args.seconds or 4200, seed=args.seed, batch=args.batch or 8,
              peak_rate=args.rate or 1.5e-3, shares={"rim": 0.08, "outside": 0.04, "filled": (0.7, 0.25)}, save=save)


def tissue_volumes(args, seeds, size, voxel, prefix, **settings):
    return [data.tissue(s, size, voxel, args.work / f"{prefix}-{s}", **settings) for s in seeds]


def train_ffn_sim(args):
    """Tissue of seeds 1..3 at 16 x 16 x 30 nm, starting from the weights of ffn-cortex-12nm."""
    volumes = []
    for made in tissue_volumes(args, (1, 2, 3), (48, 640, 640), (30, 16, 16), "ffn"):
        volumes.append(data.Volume(data.normalise(made["image"]), made["labels"].astype("int32"), (30, 16, 16), ffn.BOX))

    def save(net, steps, spent):
        training = {"data": "simulated tissue, seeds 1, 2, 3, 48 x 640 x 640 voxels each, with a simulated scope's faults; started "
                            "from ffn-cortex-12nm", "seed": args.seed, "steps": steps, "wall_seconds": round(spent, 1), "scores": args.scores}
        manifest = ffn_manifest("Flood-filling network for Kinesin's simulated tissue at 16 x 16 x 30 nm", [30.0, 16.0, 16.0], training)
        export.write_model("ffn-sim-16nm", net, {"image": (1, *ffn.FOV), "seed": (1, *ffn.FOV)}, manifest, args.out)

    start = args.start or export.HERE / "ffn-cortex-12nm" / "model.onnx"
    ffn.train(volumes, augment.scope, seconds=args.seconds or 2500, seed=args.seed, batch=args.batch or 8,
              peak_rate=args.rate or 1e-3, shares={"rim": 0.08, "outside": 0.04, "filled": (0.4, 0.25)}, save=save, weights=export.read_weights(start))


def train_mask_sim(args):
    """Sections 180 nm apart, made at 16 nm and averaged to 32 nm, of tissue rich in vessels and of tissue rich in cell
    bodies (a small volume has no room for both). Seeds 12 and 111 choose the threshold, 14 and 112 measure."""
    vessels = {"cell_bodies": 0.12, "vessels": 0.05, "resin": 0.06}
    bodies = {"cell_bodies": 0.3, "vessels": 0, "resin": 0.03}

    def sections(*groups):
        out = []
        for seeds, settings in groups:
            for made in tissue_volumes(args, seeds, (6, 1536, 1536), (180, 16, 16), "mask", **settings):
                classes = data.sample(made["classes"], 2).astype("uint8")
                for grey, truth in zip(data.area_downsample(made["image"], 2), classes):
                    out.append((grey, scene.mark_deep_lumen(truth)))
        return out

    def as_imaged(raw, paint):
        rng = np.random.default_rng(1000)
        return [scene.section(*r, rng, paint, rough=0.4) for r in raw]

    def save(net, steps, spent):
        threshold = mask.choose_threshold([mask.confusion(net, tuning[p]) for p in (False, True)])
        scores = []
        for paint, where in ((False, "as grown"), (True, "with up to 60 % of painted resin, vessels, tile steps, gaps")):
            got = mask.scores(mask.confusion(net, test[paint])[threshold])
            scores.append(where + ": IoU " + ", ".join(f"{k} {got[k]:.3f}" for k in mask.CLASSES) + "; excluded: precision "
                          f"{got['precision']:.3f}, recall {got['recall']:.3f}, {100 * got['neuropil lost']:.2f} % of neuropil lost")
        scores = "held-out tissue (seeds 14, 112) " + "; ".join(scores)
        print(f"threshold {threshold}; {scores}", flush=True)
        manifest = {"kind": "mask", "description": "Vessel, cell body and resin in simulated tissue at 32 x 32 nm", "axes": "zyx",
                    "voxel_size_nm": [30.0, 32.0, 32.0], "shape": [1, mask.TILE, mask.TILE], "normalisation": {"kind": "section"},
                    "mask": {"classes": list(mask.CLASSES), "threshold": threshold},
                    "training": {"data": "simulated tissue, seeds 11, 13, 15, 16, 21, 22, 23, 6 sections each of 24.6 x 24.6 um, with painted "
                                         "resin, vessels, tiles and gaps", "seed": args.seed,
                                 "steps": steps, "wall_seconds": round(spent, 1), "scores": scores}}
        export.write_model("mask-sim-32nm", net, {"image": (1, mask.TILE, mask.TILE)}, manifest, args.out)

    held = {"tuning": sections(((12, 111), vessels)), "test": sections(((14,), vessels), ((112,), bodies))}
    tuning, test = ({p: as_imaged(held[k], p) for p in (False, True)} for k in held)
    mask.train(sections(((11, 13, 15, 16), vessels), ((21, 22, 23), bodies)), seconds=args.seconds or 1000, seed=args.seed,
               batch=args.batch or 6, peak_rate=args.rate or 3e-3, threads=args.threads, save=save)


COMMANDS = {"ffn-cortex": train_ffn_cortex, "ffn-sim": train_ffn_sim, "mask-sim": train_mask_sim}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=COMMANDS)
    parser.add_argument("--seconds", type=float, help="wall time to train (default: the model's own)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, help="examples per step")
    parser.add_argument("--rate", type=float, help="peak learning rate (default: the model's own)")
    parser.add_argument("--threads", type=int, default=1, help="mask-sim: threads of the network")
    parser.add_argument("--out", type=Path, help="folder to write (default: the model's folder here)")
    parser.add_argument("--start", type=Path, help="ffn-sim: the model.onnx to start from")
    parser.add_argument("--scores", default="not measured yet", help="text for the manifest's scores field")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kinesin-train", help="scratch for simulated tissue")
    args = parser.parse_args()
    COMMANDS[args.model](args)


if __name__ == "__main__":
    main()
