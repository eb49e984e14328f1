//! A volume that is stored as one image a section: whole sections are decoded, the last few are kept.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array3, ArrayView2, ArrayViewMut2, Zip, s};

use super::{Dtype, VolumeError, VolumeInfo, VolumeSource};
use crate::geometry::BoxZyx;

/// Decoded sections kept, bytes; one section is kept whatever its size.
const KEPT_BYTES: usize = 64 << 20;

/// One decoded section, row by row.
#[derive(Debug)]
pub(super) struct Plane {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) samples: Samples,
}

/// The values of a section in their stored type.
#[derive(Debug)]
pub(super) enum Samples {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
}

impl Samples {
    pub(super) fn dtype(&self) -> Dtype {
        match self {
            Self::U8(_) => Dtype::U8,
            Self::U16(_) => Dtype::U16,
            Self::U32(_) => Dtype::U32,
            Self::U64(_) => Dtype::U64,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::U64(v) => v.len(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len() * 2,
            Self::U32(v) => v.len() * 4,
            Self::U64(v) => v.len() * 8,
        }
    }
}

/// Decodes one section at a time.
pub(super) trait Decode: Send + Sync {
    /// Section `z` with the file it came from.
    fn decode(&self, z: usize) -> Result<Plane, VolumeError>;
    /// The file that holds section `z`.
    fn file(&self, z: usize) -> &Path;
}

/// Sections of one shape and type behind a decoder.
pub(super) struct Planes<D> {
    info: VolumeInfo,
    decoder: D,
    kept: Mutex<VecDeque<(usize, Arc<Plane>)>>,
}

impl<D: Decode> Planes<D> {
    pub(super) fn new(info: VolumeInfo, decoder: D) -> Self {
        Self { info, decoder, kept: Mutex::new(VecDeque::new()) }
    }

    /// The section, from those kept or decoded anew; the least recently used go first.
    fn plane(&self, z: usize) -> Result<Arc<Plane>, VolumeError> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = lock();
            if let Some(at) = kept.iter().position(|(k, _)| *k == z)
                && let Some(found) = kept.remove(at)
            {
                let plane = found.1.clone();
                kept.push_back(found);
                return Ok(plane);
            }
        }
        let plane = Arc::new(self.decoder.decode(z)?);
        self.check(z, &plane)?;
        let mut kept = lock();
        kept.push_back((z, plane.clone()));
        while kept.len() > 1 && kept.iter().map(|(_, p)| p.samples.bytes()).sum::<usize>() > KEPT_BYTES {
            kept.pop_front();
        }
        Ok(plane)
    }

    fn check(&self, z: usize, plane: &Plane) -> Result<(), VolumeError> {
        let (shape, dtype) = (self.info.shape, self.info.dtype);
        if (plane.height, plane.width) == (shape.y, shape.x)
            && plane.samples.dtype() == dtype
            && plane.samples.len() == shape.y * shape.x
        {
            return Ok(());
        }
        Err(VolumeError::format(
            self.decoder.file(z),
            format!(
                "section {z} is {} x {} px of {}, the first one {} x {} px of {dtype}; all sections need one size and depth",
                plane.width,
                plane.height,
                plane.samples.dtype(),
                shape.x,
                shape.y,
            ),
        ))
    }

    fn read<T: Copy + Default>(
        &self,
        bounds: BoxZyx,
        copy: impl Fn(&Plane, (usize, usize), ArrayViewMut2<'_, T>),
    ) -> Result<Array3<T>, VolumeError> {
        let (min, shape) = self.info.place(bounds)?;
        let mut out = Array3::default((shape.z, shape.y, shape.x));
        for (dz, section) in out.outer_iter_mut().enumerate() {
            copy(&*self.plane(min.z + dz)?, (min.y, min.x), section);
        }
        Ok(out)
    }
}

impl<D: Decode> VolumeSource for Planes<D> {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn read_u8(&self, bounds: BoxZyx) -> Result<Array3<u8>, VolumeError> {
        self.info.require_u8()?;
        self.read(bounds, |plane, at, out| {
            if let Samples::U8(v) = &plane.samples {
                crop(v, plane, at, out, |s| s);
            }
        })
    }

    fn read_labels(&self, bounds: BoxZyx) -> Result<Array3<u64>, VolumeError> {
        self.read(bounds, |plane, at, out| match &plane.samples {
            Samples::U8(v) => crop(v, plane, at, out, u64::from),
            Samples::U16(v) => crop(v, plane, at, out, u64::from),
            Samples::U32(v) => crop(v, plane, at, out, u64::from),
            Samples::U64(v) => crop(v, plane, at, out, |s| s),
        })
    }
}

fn crop<S: Copy, T>(
    v: &[S],
    plane: &Plane,
    (y, x): (usize, usize),
    mut out: ArrayViewMut2<'_, T>,
    widen: impl Fn(S) -> T,
) {
    let (height, width) = out.dim();
    let whole = ArrayView2::from_shape((plane.height, plane.width), v).expect("the size was checked on decoding");
    Zip::from(&mut out).and(whole.slice(s![y..y + height, x..x + width])).for_each(|o, &s| *o = widen(s));
}
