//! Cells as weighted Voronoi cells of curves.
//!
//! A neurite is a chain of tapered capsules. The field of a capsule at `p` is `|p - c| - r`, with `c` the nearest point of its
//! axis and `r` the radius there; a point belongs to the object whose field is least (an additively weighted, or Apollonius,
//! diagram), so the cells fill space and stay connected along their curves. The distance to the border between the two
//! nearest objects is `(f2 - f1) / |n1 - n2|`, with `n` the unit vectors away from the two axes. Lengths in nm, arrays z, y, x.

/// A point or vector, nm.
pub(super) type V3 = [f32; 3];

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Axon,
    Dendrite,
    Body,
    Vessel,
}

/// A tapered capsule of one object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    a: V3,
    d: V3,
    per_length2: f32,
    r: f32,
    dr: f32,
    pub(super) id: u32,
    pub(super) kind: Kind,
}

pub(super) fn sub(a: V3, b: V3) -> V3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

pub(super) fn along(a: V3, d: V3, t: f32) -> V3 {
    [a[0] + d[0] * t, a[1] + d[1] * t, a[2] + d[2] * t]
}

pub(super) fn dot(a: V3, b: V3) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(super) fn norm(a: V3) -> f32 {
    dot(a, a).sqrt()
}

impl Segment {
    /// Of no object and infinitely far.
    pub(super) const NOTHING: Self =
        Self { a: [1e9; 3], d: [0.0; 3], per_length2: 0.0, r: 0.0, dr: 0.0, id: 0, kind: Kind::Axon };

    pub(super) fn new(a: V3, b: V3, ra: f32, rb: f32, id: u32, kind: Kind) -> Self {
        let d = sub(b, a);
        let length2 = dot(d, d);
        Self { a, d, per_length2: if length2 > 0.0 { 1.0 / length2 } else { 0.0 }, r: ra, dr: rb - ra, id, kind }
    }

    #[inline]
    fn nearest(&self, p: V3) -> (V3, f32) {
        let v = sub(p, self.a);
        let t = (dot(v, self.d) * self.per_length2).clamp(0.0, 1.0);
        (along(v, self.d, -t), self.r + self.dr * t)
    }

    /// The field at `p`.
    #[inline]
    pub(super) fn field(&self, p: V3) -> f32 {
        let (v, r) = self.nearest(p);
        norm(v) - r
    }

    /// The field at several points, given as one array an axis.
    #[inline]
    pub(super) fn fields<const N: usize>(&self, p: &[[f32; N]; 3]) -> [f32; N] {
        std::array::from_fn(|k| {
            let (z, y, x) = (p[0][k] - self.a[0], p[1][k] - self.a[1], p[2][k] - self.a[2]);
            let t = (z * self.d[0] + y * self.d[1] + x * self.d[2]) * self.per_length2;
            let t = if t > 0.0 { t } else { 0.0 };
            let t = if t < 1.0 { t } else { 1.0 };
            let (z, y, x) = (z - t * self.d[0], y - t * self.d[1], x - t * self.d[2]);
            (z * z + y * y + x * x).sqrt() - (self.r + self.dr * t)
        })
    }

    /// Unit vector from the axis to `p`, and the radius there.
    pub(super) fn normal(&self, p: V3) -> (V3, f32) {
        let (v, r) = self.nearest(p);
        let n = norm(v).max(1e-3);
        ([v[0] / n, v[1] / n, v[2] / n], r)
    }

    /// Corners of the box around the axis.
    fn bounds(&self) -> (V3, V3) {
        let b = along(self.a, self.d, 1.0);
        (std::array::from_fn(|k| self.a[k].min(b[k])), std::array::from_fn(|k| self.a[k].max(b[k])))
    }

    fn widest(&self) -> f32 {
        self.r.max(self.r + self.dr)
    }
}

/// Side of an index cell.
const CELL: f32 = 500.0;

/// Items found by place: each cell lists, in order of insertion, what comes within a set reach of it.
pub(super) struct Index {
    origin: V3,
    dims: [usize; 3],
    reach: f32,
    cells: Vec<Vec<u32>>,
    items: Vec<Segment>,
}

impl Index {
    /// Over the box from `low` to `high`; look-ups find everything whose field is below `reach`.
    pub(super) fn new(low: V3, high: V3, reach: f32) -> Self {
        let dims: [usize; 3] = std::array::from_fn(|k| ((high[k] - low[k]) / CELL).ceil().max(1.0) as usize);
        Self { origin: low, dims, reach, cells: vec![Vec::new(); dims.iter().product()], items: Vec::new() }
    }

    pub(super) fn insert(&mut self, s: Segment) {
        let number = self.items.len() as u32;
        self.items.push(s);
        let (low, high) = s.bounds();
        let grow = self.reach + s.widest();
        let limit = self.reach + CELL * 0.867;
        let range = |k: usize| {
            let from = ((low[k] - grow - self.origin[k]) / CELL).floor().max(0.0) as usize;
            let to = ((high[k] + grow - self.origin[k]) / CELL).floor() + 1.0;
            from..(to.max(0.0) as usize).min(self.dims[k])
        };
        for z in range(0) {
            for y in range(1) {
                for x in range(2) {
                    let centre = std::array::from_fn(|k| self.origin[k] + ([z, y, x][k] as f32 + 0.5) * CELL);
                    if s.field(centre) <= limit {
                        self.cells[(z * self.dims[1] + y) * self.dims[2] + x].push(number);
                    }
                }
            }
        }
    }

    /// Everything near `p`, as numbers of items.
    pub(super) fn near(&self, p: V3) -> &[u32] {
        let at = |k: usize| (((p[k] - self.origin[k]) / CELL).max(0.0) as usize).min(self.dims[k] - 1);
        &self.cells[(at(0) * self.dims[1] + at(1)) * self.dims[2] + at(2)]
    }

    pub(super) fn items(&self) -> &[Segment] {
        &self.items
    }

    /// The object of least field at `p`, other than `but`: item and field.
    pub(super) fn least(&self, p: V3, but: u32) -> Option<(u32, f32)> {
        let others = self.near(p).iter().filter(|&&i| self.items[i as usize].id != but);
        let fields = others.map(|&i| (i, self.items[i as usize].field(p)));
        fields.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The field of object `id` at `p`; a large number where it is not near.
    pub(super) fn least_of(&self, p: V3, id: u32) -> f32 {
        let own = self.near(p).iter().map(|&i| &self.items[i as usize]).filter(|s| s.id == id);
        own.fold(1e6, |m, s| m.min(s.field(p)))
    }

    /// Half the width that a point of radius `r` would keep at `p` between the objects there, and that they would keep.
    pub(super) fn room(&self, p: V3, r: f32, but: u32) -> f32 {
        let others = self.near(p).iter().map(|&i| &self.items[i as usize]).filter(|s| s.id != but);
        others.fold(f32::MAX, |room, s| {
            let (v, other) = s.nearest(p);
            let distance = norm(v);
            room.min(distance - other + r).min(distance + other - r)
        }) * 0.5
    }
}
