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

import augment
import data
import export
import ffn

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

    ffn.train(volumes, augment.cortex, seconds=args.seconds or 3500, seed=args.seed, batch=args.batch or 8, peak_rate=1e-3,
              shares={"rim": 0.08, "outside": 0.04, "half": 0.15}, save=save)


COMMANDS = {"ffn-cortex": train_ffn_cortex}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=COMMANDS)
    parser.add_argument("--seconds", type=float, help="wall time to train (default: the model's own)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, help="examples per step")
    parser.add_argument("--out", type=Path, help="folder to write (default: the model's folder here)")
    parser.add_argument("--scores", default="not measured yet", help="text for the manifest's scores field")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kinesin-train", help="scratch for simulated tissue")
    args = parser.parse_args()
    COMMANDS[args.model](args)


if __name__ == "__main__":
    main()
