"""Training-time disturbances of an image box.

Axes     (z, y, x), first axis = sections.
Units    everything works on normalised grey (mean 0, sd 1 per section); where noise is given in grey levels of the raw image
         it is divided by `sd`, that of a raw section.
Method   plain disturbances of the kind a serial-section microscope makes: gain, offset, noise, defocus, jitter, lost sections.
"""

import numpy as np
from scipy import ndimage


def _shift_sections(image, labels, rng, chance: float, most: int):
    """Moves single sections by up to `most` voxels in plane, image and labels alike (what alignment leaves behind)."""
    for z in range(len(image)):
        if rng.random() < chance:
            dy, dx = rng.integers(-most, most + 1, size=2)
            image[z] = np.roll(image[z], (dy, dx), axis=(0, 1))
            labels[z] = np.roll(labels[z], (dy, dx), axis=(0, 1))
    return image, labels


def cortex(image, labels, rng):
    """Mild: contrast and offset per section, noise, rare blur, rare 1-voxel shift, rare lost section."""
    n = len(image)
    if rng.random() < 0.3:
        image, labels = _shift_sections(image, labels, rng, 0.15, 1)
    image *= rng.normal(1.0, 0.08, size=(n, 1, 1)).astype(np.float32) * np.float32(rng.uniform(0.85, 1.15))
    image += rng.normal(0.0, 0.10, size=(n, 1, 1)).astype(np.float32)
    if rng.random() < 0.5:
        image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.05, 0.3))
    if rng.random() < 0.15:
        z = int(rng.integers(n))
        image[z] = ndimage.gaussian_filter(image[z], rng.uniform(0.5, 1.2))
    np.clip(image, -4, 4, out=image)
    if rng.random() < 0.04:
        image[int(rng.integers(n))] = 0
    return image, labels


def scope(image, labels, rng, sd: float = 36.0):
    """What a simulated microscope adds to perfect tissue: jitter of a few voxels, gain and offset per section, a slow
    brightness slope, blur, noise of 5 to 20 grey levels (renormalised, as the pipeline would), a lost section."""
    n, h, w = image.shape
    draw = rng.random(6)
    if draw[0] < 0.35:
        image, labels = _shift_sections(image, labels, rng, 0.3, 1 + int(rng.integers(2)))
    image *= rng.normal(1.0, 0.06, size=(n, 1, 1)).astype(np.float32) * np.float32(rng.uniform(0.8, 1.2))
    image += rng.normal(0.0, 0.12, size=(n, 1, 1)).astype(np.float32) + np.float32(rng.normal(0.0, 0.1))
    if draw[1] < 0.3:
        image += np.linspace(-1, 1, w, dtype=np.float32) * np.float32(rng.normal(0.0, 0.2))
    if draw[2] < 0.3:
        image = ndimage.gaussian_filter(image, (0, *[rng.uniform(0.3, 0.8)] * 2))
    elif draw[2] < 0.45:
        z = int(rng.integers(n))
        image[z] = ndimage.gaussian_filter(image[z], rng.uniform(0.6, 1.5))
    if draw[3] < 0.85:
        noise = np.float32(rng.uniform(5, 20) / sd)
        image += rng.standard_normal(image.shape, dtype=np.float32) * noise
        image /= np.sqrt(1 + noise**2)
    np.clip(image, -4, 4, out=image)
    if draw[4] < 0.08:
        image[int(rng.integers(n))] = 0
    return image, labels
