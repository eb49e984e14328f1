"""Training-time disturbances of an image box.

Axes     (z, y, x), first axis = sections.
Units    `cortex` works on normalised grey (mean 0, sd 1 per section); `scope` works on the same scale, its noise being given
         in grey levels of the raw image and divided by the raw section's sd.
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
