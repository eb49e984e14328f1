//! Part of a volume, reduced in the plane, as a volume of its own.

use kinesin_stream::geometry::{BoxZyx, VoxelSize, Zyx};
use kinesin_stream::volume::{VolumeError, VolumeInfo, VolumeSource};
use ndarray::Array3;

/// A box of another volume, every `reduce` x `reduce` pixels of a section as one: grey by mean (no data, 0, left out), labels
/// by the pixel nearest to the middle.
pub struct Part {
    whole: Box<dyn VolumeSource>,
    bounds: BoxZyx,
    reduce: usize,
    info: VolumeInfo,
}

impl Part {
    /// `bounds` in voxels of the whole; rows and columns beyond a multiple of `reduce` are left out.
    pub fn new(whole: Box<dyn VolumeSource>, bounds: Option<BoxZyx>, reduce: usize) -> Result<Self, String> {
        let all = whole.info().bounds();
        let bounds = bounds.unwrap_or(all);
        if !all.contains(&bounds) {
            let s = all.max;
            return Err(format!(
                "--box {:?} leaves the volume {}, which is 0,0,0,{},{},{}",
                bounds,
                whole.info().path.display(),
                s.z,
                s.y,
                s.x
            ));
        }
        let shape = bounds.shape();
        let shape = Zyx::new(shape.z, shape.y / reduce.max(1), shape.x / reduce.max(1));
        if reduce == 0 || shape.y == 0 || shape.x == 0 {
            return Err(format!("--reduce {reduce} leaves no pixel; use 1 to the side of the volume"));
        }
        let size = |v: VoxelSize| VoxelSize(Zyx::new(v.0.z, v.0.y * reduce as f64, v.0.x * reduce as f64));
        let origin = whole.info().origin;
        let n = reduce as i64;
        let origin = Zyx::new(origin.z + bounds.min.z, (origin.y + bounds.min.y) / n, (origin.x + bounds.min.x) / n);
        let info = VolumeInfo { shape, voxel_size: whole.info().voxel_size.map(size), origin, ..whole.info().clone() };
        Ok(Self { whole, bounds, reduce, info })
    }

    fn source(&self, part: BoxZyx) -> BoxZyx {
        let n = self.reduce as i64;
        let at =
            |p: Zyx<i64>| Zyx::new(self.bounds.min.z + p.z, self.bounds.min.y + n * p.y, self.bounds.min.x + n * p.x);
        BoxZyx { min: at(part.min), max: at(part.max) }
    }
}

impl VolumeSource for Part {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn read_u8(&self, part: BoxZyx) -> Result<Array3<u8>, VolumeError> {
        let full = self.whole.read_u8(self.source(part))?;
        let (n, shape) = (self.reduce, part.shape());
        if n == 1 {
            return Ok(full);
        }
        Ok(Array3::from_shape_fn((shape.z, shape.y, shape.x), |(z, y, x)| {
            let block = full.slice(ndarray::s![z, n * y..n * (y + 1), n * x..n * (x + 1)]);
            let (sum, count) = block.iter().filter(|v| **v > 0).fold((0, 0), |(s, c), &v| (s + u32::from(v), c + 1));
            (sum + count / 2).checked_div(count).unwrap_or(0) as u8
        }))
    }

    fn read_labels(&self, part: BoxZyx) -> Result<Array3<u64>, VolumeError> {
        let full = self.whole.read_labels(self.source(part))?;
        let (n, shape) = (self.reduce, part.shape());
        let middle = (n - 1) / 2;
        Ok(Array3::from_shape_fn((shape.z, shape.y, shape.x), |(z, y, x)| full[[z, n * y + middle, n * x + middle]]))
    }
}
