"""Sections as a scope shows them, for training the mask network: grown tissue with empty resin, vessels, tile steps and gaps.

Axes     (y, x); one whole section at a time, because the pipeline normalises whole sections and the share of resin shifts
         their mean and sd.
Units    raw grey 1..255, 0 = no data; lengths in pixels of 32 nm; classes as in mask.CLASSES.
Method   what the grown tissue lacks is painted in before normalisation: bare resin over 0 to 60 % of the section (half planes,
         corners, everything outside an outline, cracks), wide vessels, a scope's tiles with their own gain and offset, lost
         tiles, noise, blur.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

import data

EITHER = 4  # deep inside a vessel: without its wall in sight no network can tell it from resin, so both are right
IGNORE = 5  # no data: nothing to be right about
LUMEN_DEPTH = 58  # pixels inside a vessel's outline from where EITHER holds: wall of 10 and 48 of lumen
NOT_TISSUE_SHARE = 0.6  # most of a section that is painted bare


def clouds(shape, pitch: float, rng) -> np.ndarray:
    """Smooth noise of sd about 1 that changes over `pitch` pixels."""
    few = [max(2, int(n / pitch) + 2) for n in shape]
    coarse = torch.from_numpy(rng.standard_normal(few, dtype=np.float32))[None, None]
    return F.interpolate(coarse, size=shape, mode="bicubic", align_corners=True)[0, 0].numpy() * np.float32(1.3)


def along(shape, angle: float) -> np.ndarray:
    """Distance of every pixel from the line through the middle of the section, signed."""
    y, x = (np.arange(n, dtype=np.float32) - n / 2 for n in shape)
    return y[:, None] * np.float32(np.sin(angle)) + x[None, :] * np.float32(np.cos(angle))


def outside(shape, rng) -> np.ndarray:
    """A field in pixels that grows towards where a section has no tissue: sides, a corner, all round an outline, a crack."""
    angle, kind = rng.uniform(0, 2 * np.pi), rng.random()
    if kind < 0.3:
        field = along(shape, angle)
    elif kind < 0.5:
        field = np.minimum(along(shape, angle), along(shape, angle + rng.uniform(0.3, 2.0)))
    elif kind < 0.75:
        turns = angle + np.cumsum(rng.uniform(0.6, 1.8, size=int(rng.integers(3, 6))))
        field = np.max([along(shape, t) + rng.uniform(-100, 100) for t in turns], axis=0)
    elif kind < 0.9:
        field = np.hypot(along(shape, angle) * rng.uniform(0.5, 1.0), along(shape, angle + np.pi / 2)) + rng.uniform(-1, 1) * along(shape, 0) * 0.4
    else:
        field = -np.abs(along(shape, angle) + rng.uniform(-250, 250))
    return (field + clouds(shape, rng.uniform(30, 200), rng) * rng.uniform(0, 15)).astype(np.float32)


def paint_resin(grey, classes, rng):
    """Bare resin over up to NOT_TISSUE_SHARE of the section, with or without a dark line where tissue ends."""
    field = outside(grey.shape, rng)
    share = rng.uniform(0.01, NOT_TISSUE_SHARE)
    field -= np.quantile(field[::8, ::8], 1 - share)
    bare = np.float32(rng.uniform(197, 213)) + np.float32(rng.uniform(0, 2)) * clouds(grey.shape, 40, rng)
    cover = np.clip(field + 0.5, 0, 1)
    grey += (bare - grey) * cover
    if rng.random() < 0.5:
        grey += (62 - grey) * np.clip(1.1 - np.abs(field), 0, 1) * np.float32(rng.uniform(0.3, 0.9))
    classes[field > 0] = 3


def paint_vessel(grey, classes, rng):
    """A vessel of 80 to 450 pixels across: outer membrane, grey wall, dark inner line, empty lumen."""
    shape = grey.shape
    angle, centre = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5, size=2) * np.array(shape)
    round_ = np.hypot(along(shape, angle) + centre[0], (along(shape, angle + np.pi / 2) + centre[1]) * rng.uniform(0.6, 1.0))
    inside = np.float32(rng.uniform(40, 225)) - round_ + clouds(shape, rng.uniform(40, 120), rng) * rng.uniform(0, 12)
    wall = np.float32(rng.uniform(7, 14))
    colour = np.float32(140) + 6 * clouds(shape, 2, rng) + 7 * clouds(shape, 8, rng)
    lumen = np.float32(rng.uniform(202, 216)) + 2 * clouds(shape, 40, rng)
    colour += (lumen - colour) * np.clip(inside - wall + 0.5, 0, 1)
    colour += (62 - colour) * np.clip(1 - np.abs(inside - wall), 0, 1) * np.float32(0.5)
    grey += (colour - grey) * np.clip(inside + 0.5, 0, 1)
    grey += (62 - grey) * np.clip(1 - np.abs(inside), 0, 1) * np.float32(0.7)
    classes[inside > 0] = 2
    classes[inside > LUMEN_DEPTH] = EITHER


def mark_deep_lumen(classes: np.ndarray) -> np.ndarray:
    """Grown classes of a section with EITHER where a vessel is deeper than LUMEN_DEPTH."""
    deep = ndimage.distance_transform_edt(classes == 2) > LUMEN_DEPTH
    return np.where(deep, np.uint8(EITHER), classes)


def paint_tiles(grey, classes, rng):
    """Tiles on a staggered grid: own gain and offset each; some lost, those beyond an outline never taken (returned: valid)."""
    h, w = grey.shape
    th, tw = rng.uniform(40, 260) * np.array([1.0, rng.uniform(0.8, 1.3)])
    lean = rng.uniform(-0.05, 0.05, size=2)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    rows = ((y + lean[0] * x + h) / th + rng.random()).astype(np.int32)
    columns = ((x + lean[1] * y + w) / tw + rng.random() + 0.5 * (rows % 2)).astype(np.int32)
    grid = (rows.max() + 1, columns.max() + 1)
    strength = rng.uniform(0, 1)
    gain, offset = rng.normal(1, 0.05 * strength, grid), rng.normal(0, 5 * strength, grid)
    grey *= gain[rows, columns].astype(np.float32)
    grey += offset[rows, columns].astype(np.float32)
    valid = np.ones((h, w), bool)
    if rng.random() < 0.6:
        far = outside((h, w), rng)
        tile = rows * grid[1] + columns
        mean = np.bincount(tile.ravel(), far.ravel()) / np.maximum(np.bincount(tile.ravel()), 1)
        valid &= (mean < np.quantile(far[::8, ::8], 1 - rng.uniform(0, 0.35)))[tile]
    if rng.random() < 0.2:
        valid &= (rng.random(grid) > 0.04)[rows, columns]
    if rng.random() < 0.1:  # a blank tile that slipped through
        blank = (rng.random(grid) < 0.03)[rows, columns]
        grey[blank], classes[blank] = 12, IGNORE
    return valid


def section(grey, classes, rng, paint: bool = True, rough: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A normalised section (float32, 0 = no data) and its classes (uint8, with EITHER and IGNORE) from grown tissue.

    `paint` adds vessels and resin; `rough` scales noise and blur.
    """
    turn, mirrored = int(rng.integers(4)), rng.random() < 0.5
    grey, classes = (np.rot90(a, turn)[:: -1 if mirrored else 1] for a in (grey, classes))
    grey, classes = np.array(grey, np.float32, order="C"), np.array(classes, np.uint8, order="C")
    valid = np.ones(grey.shape, bool)
    if paint:
        for _ in range(int(rng.choice(3, p=(0.5, 0.4, 0.1)))):
            paint_vessel(grey, classes, rng)
        for _ in range(int(rng.choice(3, p=(0.25, 0.55, 0.2)))):
            paint_resin(grey, classes, rng)
    if rng.random() < 0.5:
        grey = ndimage.gaussian_filter(grey, rng.uniform(0.3, 1.0) * rough)
    if paint:
        valid = paint_tiles(grey, classes, rng)
    if rng.random() < 0.3:
        grey += along(grey.shape, rng.uniform(0, 2 * np.pi)) * np.float32(rng.uniform(0, 12) / len(grey))
    grey += rng.standard_normal(grey.shape, dtype=np.float32) * np.float32(np.exp(rng.uniform(0, np.log(14))) * rough)
    classes[~valid] = IGNORE
    return data.normalise(grey[None], valid[None])[0], classes
