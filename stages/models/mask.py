"""Tissue classes per section: a small 2-D U-Net for neuropil, cell body, vessel and resin.

Axes     tensors are [N, channel, y, x]; image [N, 1, 256, 256], logits [N, 4, 256, 256].
Units    image is normalised grey at 32 x 32 nm (data.normalise over the whole section); logits are unnormalised class scores.
Method   encoder and decoder with skips after Ronneberger et al., "U-Net", MICCAI 2015, arXiv 1505.04597; written from the
         paper's description with padded convolutions, nearest-neighbour upsampling and few channels.
"""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CLASSES = ("neuropil", "cell_body", "vessel", "resin")
TILE = 256


def _pair(before: int, after: int) -> nn.Sequential:
    layers = []
    for width in (before, after):
        convolution = nn.Conv2d(width, after, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]  # the exporter folds the normalisation into the convolution
    return nn.Sequential(*layers)


class MaskNet(nn.Module):
    """Five levels; the coarsest cell covers 512 nm and sees the whole tile, which is what tells soma from dendrite."""

    def __init__(self, widths=(8, 16, 32, 48, 64)):
        super().__init__()
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip((1, *widths), widths))
        self.up = nn.ModuleList(_pair(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1]))
        self.last = nn.Conv2d(widths[0], len(CLASSES), 1)

    def forward(self, image):
        kept, x = [], image
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for level, skip in zip(self.up, kept[-2::-1]):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        return self.last(x)


class Sections:
    """Random tiles of sections, half of them centred on a voxel of a rare class."""

    def __init__(self, images: list[np.ndarray], classes: list[np.ndarray]):
        self.images, self.classes = images, classes
        self.rare = [[np.argwhere(c == k) for k in range(1, len(CLASSES))] for c in classes]
        counts = np.bincount(np.concatenate([c.ravel() for c in classes]), minlength=len(CLASSES))
        self.share = counts / counts.sum()

    def tile(self, rng: np.random.Generator, augment):
        i = int(rng.integers(len(self.images)))
        image, classes = self.images[i], self.classes[i]
        h, w = image.shape
        y, x = int(rng.integers(h)), int(rng.integers(w))
        points = self.rare[i][int(rng.integers(3))]
        if len(points) and rng.random() < 0.5:
            y, x = points[rng.integers(len(points))]
            y, x = y + int(rng.integers(-TILE // 3, TILE // 3)), x + int(rng.integers(-TILE // 3, TILE // 3))
        y, x = np.clip(y - TILE // 2, 0, h - TILE), np.clip(x - TILE // 2, 0, w - TILE)
        image, classes = image[y:y + TILE, x:x + TILE], classes[y:y + TILE, x:x + TILE]
        turn = int(rng.integers(4))
        image, classes = np.rot90(image, turn), np.rot90(classes, turn)
        if rng.random() < 0.5:
            image, classes = image[::-1], classes[::-1]
        image, classes = np.array(image, np.float32), np.array(classes, np.int64)
        return augment(image, classes, rng)


def intersection_over_union(net: nn.Module, images, classes) -> list[float]:
    """Per class, over whole sections cut into tiles (the rest of a section that fills no tile is left out)."""
    net.eval()
    both, either = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for image, truth in zip(images, classes):
        for y in range(0, image.shape[0] - TILE + 1, TILE):
            for x in range(0, image.shape[1] - TILE + 1, TILE):
                tile = torch.from_numpy(np.ascontiguousarray(image[y:y + TILE, x:x + TILE]))[None, None]
                with torch.no_grad():
                    found = net(tile)[0].argmax(0).numpy()
                true = truth[y:y + TILE, x:x + TILE]
                for k in range(len(CLASSES)):
                    both[k] += np.sum((found == k) & (true == k))
                    either[k] += np.sum((found == k) | (true == k))
    return [float(b / max(e, 1)) for b, e in zip(both, either)]


def train(sections: Sections, augment, *, seconds: float, seed: int, batch: int, peak_rate: float, save) -> tuple[MaskNet, int]:
    """Trains for `seconds` of wall time with class weights 1/sqrt(share); returns the averaged net and the step count."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    net, mean = MaskNet(), MaskNet()
    mean.load_state_dict(net.state_dict())
    net = net.to(memory_format=torch.channels_last)
    rule = torch.optim.Adam(net.parameters(), lr=peak_rate)
    weight = torch.tensor(1 / np.sqrt(np.maximum(sections.share, 1e-3)), dtype=torch.float32)
    start, step, losses = time.monotonic(), 0, []
    saved = start
    while (spent := time.monotonic() - start) < seconds:
        for group in rule.param_groups:
            group["lr"] = peak_rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * spent / seconds)) + 1e-6
        tiles = [sections.tile(rng, augment) for _ in range(batch)]
        image = torch.from_numpy(np.stack([t[0] for t in tiles])[:, None])
        truth = torch.from_numpy(np.stack([t[1] for t in tiles]))
        rule.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(image)
        loss = F.cross_entropy(logits.float(), truth, weight=weight)
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
        if time.monotonic() - saved > 150:
            saved = time.monotonic()
            save(mean, step, saved - start)
    save(mean, step, time.monotonic() - start)
    return mean, step
