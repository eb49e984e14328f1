"""Flood-filling network: the net, and training on short floods.

Axes     tensors are [N, 1, z, y, x]; the field of view (FOV) is 17 x 33 x 33 voxels and moves by 4, 8, 8.
Units    image is normalised grey (data.normalise); seed and output are logits, an unexplored voxel is logit(0.05).
Method   Januszewski et al., "High-precision automated reconstruction of neurons with flood-filling networks", Nature
         Methods 2018, doi 10.1038/s41592-018-0049-4. Written from the paper's description. Own choices: one stride of 2 in
         plane inside the net (cheap), the net's own face maxima as the move policy during training, and the rule that a
         voxel below 0.5 may not rise again applied while training, as it is at inference.
"""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FOV = (17, 33, 33)
DELTAS = (4, 8, 8)
REACH = 2  # moves from the centre along each axis
BOX = tuple(f + 2 * REACH * d for f, d in zip(FOV, DELTAS))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


PAD, START, MOVE = logit(0.05), logit(0.95), logit(0.9)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        nn.init.normal_(self.second.weight, std=0.1 / math.sqrt(27 * channels))
        nn.init.zeros_(self.second.bias)

    def forward(self, x):
        return x + self.second(F.relu(self.first(F.relu(x))))


class FloodNet(nn.Module):
    """image, seed -> seed + update. All residual modules work at half resolution in plane; the last convolution gives four
    values per cell, which are the 2 x 2 voxels of the full grid (33 -> 17 -> 34, last row and column cut)."""

    def __init__(self, channels: int = 32, modules: int = 6):
        super().__init__()
        self.stem = nn.Conv3d(2, channels, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2))
        nn.init.kaiming_normal_(self.stem.weight, nonlinearity="linear")
        self.body = nn.Sequential(*[Residual(channels) for _ in range(modules)])
        self.head = nn.Conv3d(channels, 4, 3, padding=1)
        self.border = nn.Conv3d(channels, 4, 1)  # training only: where objects end, a dense task that teaches the features

    def features(self, image, seed):
        return F.relu(self.body(self.stem(torch.cat([image, seed], dim=1))))

    def forward(self, image, seed):
        return seed + self.full_grid(self.head(self.features(image, seed)))

    @staticmethod
    def full_grid(cells):
        z, y, x = FOV
        h, w = (y + 1) // 2, (x + 1) // 2
        full = cells.reshape(-1, 2, 2, z, h, w).permute(0, 3, 4, 1, 5, 2).reshape(-1, 1, z, 2 * h, 2 * w)
        return full[:, :, :, :y, :x]


def edges(labels: np.ndarray) -> np.ndarray:
    """1 on voxels that are unlabelled or have a neighbour of another label in plane."""
    border = labels == 0
    down, right = labels[:, 1:] != labels[:, :-1], labels[:, :, 1:] != labels[:, :, :-1]
    border[:, 1:] |= down
    border[:, :-1] |= down
    border[:, :, 1:] |= right
    border[:, :, :-1] |= right
    return border.astype(np.float32)


class Flood:
    """One training example: a box round a seed, its target, and a walk of the FOV over it."""

    def __init__(self, image: np.ndarray, target: np.ndarray, border: np.ndarray, rng: np.random.Generator, most_moves: int,
                 filled: bool):
        self.image, self.rng, self.left = image, rng, most_moves
        self.border = border
        self.inside = target
        self.target = np.where(target, np.float32(0.95), np.float32(0.05))
        self.canvas = np.full(BOX, PAD, np.float32)
        self.seen = np.zeros(BOX, bool)
        if filled:
            self._fill()
        self.canvas[tuple(b // 2 for b in BOX)] = START
        self.offset = (0, 0, 0)
        self.done = {self.offset}
        self.cold = not filled  # nothing known but the seed voxel
        self.queue: list[tuple[int, int, int]] = []

    def _fill(self):
        """Part of the object is known already, with blurred certainty: one side of a random plane, as in a flood that
        arrives, or a ball round the seed, which leads the net from easy starts to a single voxel."""
        grid = np.ogrid[tuple(slice(-(b // 2), b // 2 + 1) for b in BOX)]
        if self.rng.random() < 0.5:
            normal = self.rng.normal(size=3) / np.array(DELTAS)
            side = sum(g * n for g, n in zip(grid, normal)) > 0.3 * self.rng.normal()
        else:
            radius = math.exp(self.rng.uniform(math.log(0.15), math.log(3.0)))
            side = sum((g / d) ** 2 for g, d in zip(grid, DELTAS)) < radius**2
        low = self.rng.uniform(1.0, 2.2)
        known = np.where(self.inside, low + self.rng.random(BOX, dtype=np.float32), PAD)
        self.canvas[side] = known[side]
        self.seen |= side

    def window(self):
        return tuple(slice(b // 2 + o - f // 2, b // 2 + o + f // 2 + 1) for b, o, f in zip(BOX, self.offset, FOV))

    def update(self, logits: np.ndarray) -> bool:
        """Writes one prediction back and takes the next move. False when the walk has ended."""
        box = self.window()
        old, seen = self.canvas[box], self.seen[box]
        stays = seen & (old < 0) & (logits > old)
        self.canvas[box] = np.where(stays, old, np.clip(logits, -12, 12))
        self.seen[box], self.cold = True, False
        self.left -= 1
        for axis in range(3):
            for sign in (-1, 1):
                step = list(self.offset)
                step[axis] += sign * DELTAS[axis]
                step = tuple(step)
                if step in self.done or abs(step[axis]) > REACH * DELTAS[axis]:
                    continue
                if self._face(axis, sign).max() >= MOVE:
                    self.done.add(step)
                    self.queue.append(step)
        if self.left <= 0 or not self.queue:
            return False
        self.offset = self.queue.pop(int(self.rng.integers(len(self.queue))))
        return True

    def _face(self, axis: int, sign: int) -> np.ndarray:
        """The canvas on the face of the +-delta cuboid round the present position."""
        cut = [slice(b // 2 + o - d, b // 2 + o + d + 1) for b, o, d in zip(BOX, self.offset, DELTAS)]
        at = BOX[axis] // 2 + self.offset[axis] + sign * DELTAS[axis]
        cut[axis] = slice(at, at + 1)
        return self.canvas[tuple(cut)]


def new_flood(volumes, augment, rng: np.random.Generator, shares: dict, most_moves: int) -> Flood:
    """Draws a volume, a seed point, a box and its augmentation."""
    total = np.cumsum([v.weight for v in volumes])
    volume = volumes[min(int(np.searchsorted(total, rng.random() * total[-1])), len(volumes) - 1)]
    label, position = volume.seed_point(rng, shares["rim"], shares["outside"])
    image, labels = volume.crop(position, rng)
    image, labels = augment(image, labels, rng)
    centre = tuple(b // 2 for b in BOX)
    target = (labels == label) if label else np.zeros(BOX, bool)
    if label and not target[centre]:  # section jitter moved the object away from the seed
        label = int(labels[centre])
        target = (labels == label) if label else np.zeros(BOX, bool)
    return Flood(image, target, edges(labels), rng, most_moves, label != 0 and rng.random() < shares["filled"])


def train(volumes, augment, *, seconds: float, seed: int, batch: int, peak_rate: float, shares: dict, save, weights: dict | None = None,
          most_moves: int = 16, save_every: float = 600.0) -> tuple[FloodNet, int]:
    """Trains for `seconds` of wall time; `save(net, steps, seconds)` gets the averaged net now and then and at the end. With
    `weights`, training continues from them."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    net, mean = FloodNet(), FloodNet()
    if weights:  # continue from another model; its file has no border head
        net.load_state_dict({**net.state_dict(), **{k: w for k, w in weights.items() if k in net.state_dict()}})
    mean.load_state_dict(net.state_dict())
    net = net.to(memory_format=torch.channels_last_3d)
    rule = torch.optim.Adam(net.parameters(), lr=peak_rate, betas=(0.9, 0.99))
    filled = {"now": shares["filled"][0]}

    def draw() -> Flood:
        moves = min(most_moves, 1 + int(rng.exponential(3.0)))
        return new_flood(volumes, augment, rng, {**shares, "filled": filled["now"]}, moves)

    pool = [draw() for _ in range(8 * batch)]  # floods take turns, so that the examples of one step have little in common
    start = time.monotonic()
    saved, step, losses, overlaps = start, 0, [], []
    while (spent := time.monotonic() - start) < seconds:
        rate = peak_rate * min(1.0, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * spent / seconds)) + 1e-6
        for group in rule.param_groups:
            group["lr"] = rate
        easy, usual = shares["filled"]
        filled["now"] = usual + (easy - usual) * max(0.0, 1 - 4 * spent / seconds)
        turn = rng.choice(len(pool), batch, replace=False)
        floods = [pool[i] for i in turn]
        image = torch.from_numpy(np.stack([f.image[f.window()] for f in floods])[:, None])
        canvas = torch.from_numpy(np.stack([f.canvas[f.window()] for f in floods])[:, None])
        target = torch.from_numpy(np.stack([f.target[f.window()] for f in floods])[:, None])
        rim = torch.from_numpy(np.stack([f.border[f.window()] for f in floods])[:, None])
        rule.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = net.features(image, canvas)
            logits = canvas + net.full_grid(net.head(features))
            border = net.full_grid(net.border(features))
        loss = F.binary_cross_entropy_with_logits(logits.float(), target)
        shown = loss.item()
        side = F.binary_cross_entropy_with_logits(border.float(), rim)
        loss = loss + 0.5 * side
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        rule.step()
        with torch.no_grad():
            keep = min(0.999, (step + 1) / (step + 10))
            for average, weight in zip(mean.parameters(), net.parameters()):
                average.lerp_(weight, 1 - keep)
            found = ((logits > 0) & (target > 0.5)).sum(dim=(1, 2, 3, 4)).numpy()
            either = ((logits > 0) | (target > 0.5)).sum(dim=(1, 2, 3, 4)).numpy()
            cold = np.array([f.cold for f in floods])
            overlaps += [(f, e, f * c, e * c) for f, e, c in zip(found, either, cold)]
            losses.append((shown, side.item()))
        out = logits.detach().float().numpy()[:, 0]
        for i, values in zip(turn, out):
            if not pool[i].update(values):
                pool[i] = draw()
        step += 1
        if step % 200 == 0:
            flood, border = np.mean(losses, axis=0)
            found, either, found_cold, either_cold = np.sum(overlaps, axis=0)
            losses, overlaps = [], []
            print(f"{time.monotonic() - start:7.0f} s  step {step:6d}  rate {rate:.1e}  loss {flood:.4f}  border {border:.4f}  "
                  f"IoU {found / either:.3f}, from one voxel {found_cold / max(either_cold, 1):.3f}", flush=True)
        if time.monotonic() - saved > save_every:
            saved = time.monotonic()
            save(mean, step, saved - start)
    save(mean, step, time.monotonic() - start)
    return mean, step
