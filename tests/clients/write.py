"""Writes one volume in the forms that zarr-python and CloudVolume write, for Kinesin to read.

    python write.py DIR

Voxel i (z, y, x order) is 7919 * i modulo 251; the forms are folders of DIR, named by what they are.
"""

import sys
from pathlib import Path

import numcodecs
import numpy as np
import zarr
from cloudvolume import CloudVolume

SHAPE = (5, 23, 41)
CHUNKS = (2, 8, 16)


def main():
    folder = Path(sys.argv[1]).resolve()
    values = (np.arange(np.prod(SHAPE)) * 7919 % 251).reshape(SHAPE)

    def array(name, dtype, **options):
        zarr.create_array(str(folder / name), data=values.astype(dtype), chunks=CHUNKS, **options)

    array("zarr2_blosc_uint8", "uint8", zarr_format=2, compressors=numcodecs.Blosc())
    array("zarr2_zlib_uint16", "uint16", zarr_format=2, compressors=numcodecs.Zlib())
    array("zarr2_big_endian_uint32", ">u4", zarr_format=2, compressors=None)
    array("zarr2_fortran_uint64", "uint64", zarr_format=2, order="F")
    array("zarr3_zstd_uint64", "uint64", zarr_format=3)
    array("zarr3_sharded_uint8", "uint8", zarr_format=3, shards=(4, 16, 32))

    for dtype, encoding, compress in [
        ("uint8", "raw", "gzip"),
        ("uint16", "raw", None),
        ("uint32", "compressed_segmentation", "gzip"),
        ("uint64", "compressed_segmentation", None),
    ]:
        CloudVolume.from_numpy(
            values.astype(dtype).T,
            vol_path=f"precomputed://file://{folder}/precomputed_{encoding}_{dtype}",
            resolution=(4, 4, 30),
            voxel_offset=(10, -20, 30),
            chunk_size=CHUNKS[::-1],
            layer_type="segmentation" if encoding != "raw" else "image",
            encoding=encoding,
            compress=compress,
            progress=False,
        )


main()
