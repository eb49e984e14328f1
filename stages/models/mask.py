"""Tissue classes per section: a small 2-D U-Net for neuropil, cell body, vessel and resin.

Axes     tensors are [N, channel, y, x]; image [N, 1, 384, 384], logits [N, 4, 384, 384].
Units    image is normalised grey at 32 x 32 nm (data.normalise over the whole section, 0 = no data); logits are unnormalised
         class scores.
Method   encoder and decoder with skips after Ronneberger et al., "U-Net", MICCAI 2015, arXiv 1505.04597; written from the
         paper's description with padded convolutions, nearest-neighbour upsampling and few channels. The first convolution
         halves the resolution and logits are repeated at the end: outlines are good to 64 nm, for a quarter of the time.
"""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import scene

CLASSES = ("neuropil", "cell_body", "vessel", "resin")
TILE = 384
OVERLAP = 0.25  # of neighbouring tiles, as in the pipeline
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


def _pair(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    layers = []
    for first in (True, False):
        k, s = (size, stride) if first else (3, 1)
        convolution = nn.Conv2d(before if first else after, after, k, stride=s, padding=(k - s + 1) // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]  # the exporter folds the normalisation into the convolution
    return nn.Sequential(*layers)


class MaskNet(nn.Module):
    """Six levels from 64 nm on; the coarsest cell covers 2 um and sees the whole tile of 12 um, which tells soma from dendrite."""

    def __init__(self, widths=(16, 24, 32, 48, 64, 64)):
        super().__init__()
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip(widths, widths[1:]))
        self.down.insert(0, _pair(1, widths[0], 4, 2))
        self.up = nn.ModuleList(_pair(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1]))
        self.last = nn.Conv2d(widths[0], len(CLASSES), 1)

    def coarse(self, image):
        """Logits at half the resolution."""
        kept, x = [], image
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for level, skip in zip(self.up, kept[-2::-1]):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        return self.last(x)

    def forward(self, image):
        return F.interpolate(self.coarse(image), scale_factor=2.0, mode="nearest")


class Scenes:
    """Tiles of scene.section; the last few scenes are kept, each gives a tile to several batches."""

    def __init__(self, sections: list[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator, keep: int):
        self.sections, self.rng, self.keep, self.pool = sections, rng, keep, []
        while len(self.pool) < keep:
            self._add()
        counts = np.sum([np.bincount(c.ravel(), minlength=6)[:4] for _, c, _ in self.pool], axis=0) + 1.0
        for _ in range(3 * keep):
            self._add()
            counts += np.bincount(self.pool[-1][1].ravel(), minlength=6)[:4]
        self.share = counts / counts.sum()

    def _add(self):
        image, classes = scene.section(*self.sections[self.rng.integers(len(self.sections))], self.rng)
        rare = [np.argwhere(classes[::8, ::8] == k) * 8 for k in range(1, len(CLASSES))]
        self.pool = [*self.pool[-self.keep + 1:], (image, classes, [r for r in rare if len(r)])]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [keep, 1, y, x] and classes [keep, y / 2, x / 2]; half of the tiles near a pixel of a rare class."""
        self._add()
        images, truths = [], []
        for image, classes, rare in self.pool:
            y, x = (int(self.rng.integers(n)) for n in image.shape)
            if rare and self.rng.random() < 0.5:
                points = rare[self.rng.integers(len(rare))]
                y, x = points[self.rng.integers(len(points))] + self.rng.integers(-TILE // 3, TILE // 3, size=2)
            y, x = (int(np.clip(v - TILE // 2, 0, n - TILE)) for v, n in zip((y, x), image.shape))
            tile = image[y:y + TILE, x:x + TILE]
            no_data = classes[y:y + TILE, x:x + TILE] == scene.IGNORE
            shaken = tile * np.float32(self.rng.uniform(0.85, 1.15)) + np.float32(self.rng.normal(0, 0.12))
            images.append(np.where(no_data & (tile == 0), 0, np.clip(shaken, -4, 4)))
            truths.append(classes[y:y + TILE:2, x:x + TILE:2])
        return torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(np.stack(truths).astype(np.int64))


def loss_of(logits, truth, weight):
    """Weighted cross-entropy; where scene.EITHER holds, the chance of vessel and of resin together counts; IGNORE does not."""
    chance = F.log_softmax(logits.float(), dim=1)
    chance = torch.cat([chance, torch.logaddexp(chance[:, 2:3], chance[:, 3:4]), torch.zeros_like(chance[:, :1])], dim=1)
    share = torch.cat([weight, weight[3:], torch.zeros(1)])[truth]
    return -(chance.gather(1, truth[:, None])[:, 0] * share).sum() / share.sum().clamp(min=1.0)


def _starts(n: int) -> list[int]:
    count = -(-(n - TILE) // int(TILE * (1 - OVERLAP)))
    return [i * (n - TILE) // count for i in range(count + 1)] if count else [0]


def chances(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """Chance of every class [class, y, x] over a section of at least one tile, blended over tiles as the pipeline does."""
    net.eval()
    rise = np.minimum(np.arange(1, TILE + 1), np.arange(TILE, 0, -1)).astype(np.float32)
    pyramid = rise[:, None] * rise
    total, sums = np.zeros(image.shape, np.float32), np.zeros((len(CLASSES), *image.shape), np.float32)
    for y in _starts(image.shape[0]):
        for x in _starts(image.shape[1]):
            box = (slice(y, y + TILE), slice(x, x + TILE))
            with torch.no_grad():
                logits = net(torch.from_numpy(np.ascontiguousarray(image[box]))[None, None])[0].numpy()
            sums[(slice(None), *box)] += logits * pyramid
            total[box] += pyramid
    return torch.softmax(torch.from_numpy(sums / total), dim=0).numpy()


def decide(chance: np.ndarray, threshold: float) -> np.ndarray:
    """The most probable class but the first where it reaches the threshold, else the first."""
    best = chance[1:].argmax(axis=0)
    return np.where(chance[1:].max(axis=0) >= threshold, best + 1, 0)


def confusion(net: nn.Module, sections) -> dict[float, np.ndarray]:
    """Pixels by [true class, found class] for every threshold; EITHER counts as what was found of its two, else as vessel."""
    counts = {t: np.zeros((len(CLASSES), len(CLASSES)), np.int64) for t in THRESHOLDS}
    for image, truth in sections:
        chance, known = chances(net, image), truth != scene.IGNORE
        for t in THRESHOLDS:
            found = decide(chance, t)
            true = np.where(truth == scene.EITHER, np.where(found == 3, 3, 2), truth)
            counts[t] += np.bincount((true * len(CLASSES) + found)[known], minlength=len(CLASSES) ** 2).reshape(counts[t].shape)
    return counts


def scores(counts: np.ndarray) -> dict[str, float]:
    """IoU per class, precision and recall of `excluded` (any class but neuropil), share of neuropil excluded by mistake."""
    found, true, both = counts.sum(axis=0), counts.sum(axis=1), np.diag(counts)
    hit = counts[1:, 1:].sum()
    out = {name: b / max(f + t - b, 1) for name, b, f, t in zip(CLASSES, both, found, true) if t}
    return out | {"precision": hit / max(found[1:].sum(), 1), "recall": hit / max(true[1:].sum(), 1), "neuropil lost": counts[0, 1:].sum() / max(true[0], 1)}


def choose_threshold(measured: list[dict[float, np.ndarray]], precision: float = 0.95) -> float:
    """The lowest threshold at which `excluded` reaches the precision on every set; the highest there is if none does."""
    good = [t for t in THRESHOLDS if all(scores(m[t])["precision"] >= precision for m in measured)]
    return good[0] if good else THRESHOLDS[-1]


def train(sections, *, seconds: float, seed: int, batch: int, peak_rate: float, threads: int, save) -> None:
    """Trains for `seconds` of wall time with class weights 1/sqrt(share); hands the averaged net to `save` now and then."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    scenes = Scenes(sections, np.random.default_rng(seed), batch)
    net, mean = MaskNet(), MaskNet()
    mean.load_state_dict(net.state_dict())
    net = net.to(memory_format=torch.channels_last)
    rule = torch.optim.Adam(net.parameters(), lr=peak_rate)
    weight = torch.tensor(1 / np.sqrt(np.maximum(scenes.share, 1e-3)), dtype=torch.float32)
    print("share of the classes in scenes:", np.round(scenes.share, 3), flush=True)
    start, step, losses = time.monotonic(), 0, []
    saved = start
    while (spent := time.monotonic() - start) < seconds:
        for group in rule.param_groups:
            group["lr"] = peak_rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * spent / seconds)) + 1e-6
        image, truth = scenes.batch()
        rule.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net.coarse(image.to(memory_format=torch.channels_last))
        loss = loss_of(logits, truth, weight)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        rule.step()
        with torch.no_grad():
            keep = min(0.99, (step + 1) / (step + 10))
            for average, value in zip(mean.state_dict().values(), net.state_dict().values()):
                if average.is_floating_point():
                    average.lerp_(value, 1 - keep)
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            print(f"{time.monotonic() - start:7.0f} s  step {step:6d}  loss {np.mean(losses[-50:]):.4f}", flush=True)
        if time.monotonic() - saved > 400:
            saved = time.monotonic()
            save(mean, step, saved - start)
    save(mean, step, time.monotonic() - start)
