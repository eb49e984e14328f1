//! Coordinates with their axes in the type.
//!
//! In a plane a point is [`Xy`], in a volume [`Zyx`] (the order of the array axes). Pixel and voxel *centres* lie at whole
//! numbers: pixel `i` covers `[i - 0.5, i + 0.5)`. A pixel `i` of an image reduced `s` times therefore has its centre at
//! `s * i + (s - 1) / 2` of the full image ([`reduced_to_full`]). Boxes are half-open.

use serde::{Deserialize, Serialize};

/// A pair along x (columns) and y (rows).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Xy<T> {
    /// Along a row, to the right.
    pub x: T,
    /// Along a column, downward.
    pub y: T,
}

/// A triple along z (sections), y (rows), x (columns); serialised as `[z, y, x]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "[T; 3]", into = "[T; 3]")]
#[serde(bound(serialize = "T: Copy + Serialize", deserialize = "T: Deserialize<'de>"))]
pub struct Zyx<T> {
    /// Section axis.
    pub z: T,
    /// Row axis.
    pub y: T,
    /// Column axis.
    pub x: T,
}

impl<T> Xy<T> {
    /// A pair; x comes first.
    pub const fn new(x: T, y: T) -> Self {
        Self { x, y }
    }
}

impl<T> Zyx<T> {
    /// A triple in array order.
    pub const fn new(z: T, y: T, x: T) -> Self {
        Self { z, y, x }
    }
}

impl<T> From<[T; 3]> for Zyx<T> {
    fn from([z, y, x]: [T; 3]) -> Self {
        Self { z, y, x }
    }
}

impl<T> From<Zyx<T>> for [T; 3] {
    fn from(p: Zyx<T>) -> Self {
        [p.z, p.y, p.x]
    }
}

impl std::ops::Add for Xy<f64> {
    type Output = Self;
    #[inline]
    fn add(self, o: Self) -> Self {
        Self::new(self.x + o.x, self.y + o.y)
    }
}

impl std::ops::Sub for Xy<f64> {
    type Output = Self;
    #[inline]
    fn sub(self, o: Self) -> Self {
        Self::new(self.x - o.x, self.y - o.y)
    }
}

impl std::ops::Mul<f64> for Xy<f64> {
    type Output = Self;
    #[inline]
    fn mul(self, s: f64) -> Self {
        Self::new(self.x * s, self.y * s)
    }
}

impl Xy<f64> {
    /// Euclidean length.
    #[inline]
    pub fn norm(self) -> f64 {
        self.x.hypot(self.y)
    }
}

impl Zyx<usize> {
    /// Number of voxels of a box of this shape.
    pub const fn voxels(self) -> usize {
        self.z * self.y * self.x
    }
}

/// Size of a voxel in nanometres.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VoxelSize(pub Zyx<f64>);

/// A half-open rectangle of whole pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BoxXy {
    /// First pixel inside.
    pub min: Xy<i64>,
    /// First pixel outside.
    pub max: Xy<i64>,
}

impl BoxXy {
    /// Width and height; zero where empty.
    pub fn size(&self) -> Xy<usize> {
        Xy::new((self.max.x - self.min.x).max(0) as usize, (self.max.y - self.min.y).max(0) as usize)
    }

    /// The common part, `None` where there is none.
    pub fn intersect(&self, o: &Self) -> Option<Self> {
        let min = Xy::new(self.min.x.max(o.min.x), self.min.y.max(o.min.y));
        let max = Xy::new(self.max.x.min(o.max.x), self.max.y.min(o.max.y));
        (min.x < max.x && min.y < max.y).then_some(Self { min, max })
    }

    /// The smallest rectangle that holds both.
    pub fn union(&self, o: &Self) -> Self {
        Self {
            min: Xy::new(self.min.x.min(o.min.x), self.min.y.min(o.min.y)),
            max: Xy::new(self.max.x.max(o.max.x), self.max.y.max(o.max.y)),
        }
    }
}

/// A half-open cuboid of whole voxels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BoxZyx {
    /// First voxel inside.
    pub min: Zyx<i64>,
    /// First voxel outside.
    pub max: Zyx<i64>,
}

impl BoxZyx {
    /// The box from the origin with this shape.
    pub fn from_shape(shape: Zyx<usize>) -> Self {
        Self { min: Zyx::new(0, 0, 0), max: Zyx::new(shape.z as i64, shape.y as i64, shape.x as i64) }
    }

    /// Depth, height, width; zero where empty.
    pub fn shape(&self) -> Zyx<usize> {
        let side = |a: i64, b: i64| (b - a).max(0) as usize;
        Zyx::new(side(self.min.z, self.max.z), side(self.min.y, self.max.y), side(self.min.x, self.max.x))
    }

    /// The common part, `None` where there is none.
    pub fn intersect(&self, o: &Self) -> Option<Self> {
        let min = Zyx::new(self.min.z.max(o.min.z), self.min.y.max(o.min.y), self.min.x.max(o.min.x));
        let max = Zyx::new(self.max.z.min(o.max.z), self.max.y.min(o.max.y), self.max.x.min(o.max.x));
        (min.z < max.z && min.y < max.y && min.x < max.x).then_some(Self { min, max })
    }

    /// Whether every voxel of `o` lies inside.
    pub fn contains(&self, o: &Self) -> bool {
        self.intersect(o) == Some(*o)
    }
}

/// Centre of pixel `i` of an image reduced `s` times, in pixels of the full image.
pub fn reduced_to_full(i: f64, s: f64) -> f64 {
    s * i + (s - 1.0) / 2.0
}

/// Inverse of [`reduced_to_full`].
pub fn full_to_reduced(i: f64, s: f64) -> f64 {
    (i - (s - 1.0) / 2.0) / s
}
