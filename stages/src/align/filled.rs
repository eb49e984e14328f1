//! What of a plane is filled: sums over any rectangle in four look-ups, and the part of a patch that two planes have in common. Lengths in
//! pixels of the plane.

use kinesin_stream::geometry::Xy;

use super::plane::Plane;

/// A plane as deviations, with their squares and the filled pixels summed over any rectangle.
pub(super) struct Summed<'a> {
    pub(super) plane: &'a Plane,
    pub(super) values: Vec<i16>,
    stride: usize,
    /// Energy and filled pixels, both modulo 2^32: those of a patch are smaller.
    sums: Vec<[u32; 2]>,
}

impl<'a> Summed<'a> {
    pub(super) fn new(plane: &'a Plane) -> Self {
        let values = plane.values();
        let (w, stride) = (plane.width, plane.width + 1);
        let mut sums = vec![[0u32; 2]; stride * (plane.height + 1)];
        for (y, (row, grey)) in values.chunks_exact(w.max(1)).zip(plane.grey.chunks_exact(w.max(1))).enumerate() {
            let (above, own) = sums[y * stride..(y + 2) * stride].split_at_mut(stride);
            let mut line = [0u32; 2];
            for ((own, above), (v, g)) in own[1..].iter_mut().zip(&above[1..]).zip(row.iter().zip(grey)) {
                let v = i32::from(*v);
                line = [line[0].wrapping_add((v * v) as u32), line[1] + u32::from(*g != 0)];
                *own = [above[0].wrapping_add(line[0]), above[1].wrapping_add(line[1])];
            }
        }
        Self { plane, values, stride, sums }
    }

    /// Energy and number of filled pixels.
    pub(super) fn of(&self, Rectangle { x, y, w, h }: Rectangle) -> (u32, usize) {
        let (a, b) = (y * self.stride + x, (y + h) * self.stride + x);
        let [a, an, b, bn] = [a, a + w, b, b + w].map(|i| self.sums[i]);
        let sum = |k: usize| bn[k].wrapping_add(a[k]).wrapping_sub(b[k]).wrapping_sub(an[k]);
        (sum(0), sum(1) as usize)
    }

    /// Number of pixels that are not filled.
    fn holes(&self, part: Rectangle) -> usize {
        part.area() - self.of(part).1
    }
}

/// Pixels of a plane from column `x` and row `y` on.
#[derive(Clone, Copy)]
pub(super) struct Rectangle {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) w: usize,
    pub(super) h: usize,
}

impl Rectangle {
    pub(super) fn area(&self) -> usize {
        self.w * self.h
    }

    /// Larger by `by` on each side.
    fn wider(&self, by: usize) -> Self {
        Self { x: self.x - by, y: self.y - by, w: self.w + 2 * by, h: self.h + 2 * by }
    }

    /// The outermost line at the left, right, top and bottom.
    fn rims(&self) -> [Self; 4] {
        let Self { x, y, w, h } = *self;
        [
            Self { w: 1, ..*self },
            Self { x: x + w - 1, w: 1, ..*self },
            Self { h: 1, ..*self },
            Self { y: y + h - 1, h: 1, ..*self },
        ]
    }

    /// Without one of them.
    fn trimmed(&self, rim: usize) -> Self {
        let Self { x, y, w, h } = *self;
        match rim {
            0 => Self { x: x + 1, w: w - 1, ..*self },
            1 => Self { w: w - 1, ..*self },
            2 => Self { y: y + 1, h: h - 1, ..*self },
            _ => Self { h: h - 1, ..*self },
        }
    }
}

/// The largest part of a square that is filled in both planes, in the fixed one wherever it is looked for; found by taking away the emptiest
/// line again and again, so that `None` is a hole in the middle.
pub(super) fn filled_part(
    moving: &Summed<'_>,
    fixed: &Summed<'_>,
    square: Rectangle,
    reach: usize,
) -> Option<Rectangle> {
    let mut part = square;
    while moving.holes(part) + fixed.holes(part.wider(reach)) > 0 {
        let (own, other) = (part.rims(), part.wider(reach).rims());
        let empty = |k: usize| {
            let (a, b) = (own[k], other[k]);
            moving.holes(a) as f64 / a.area() as f64 + fixed.holes(b) as f64 / b.area() as f64
        };
        let worst = (1..4).fold(0, |worst, k| if empty(k) > empty(worst) { k } else { worst });
        if empty(worst) == 0.0 || part.w.min(part.h) <= 2 {
            return None;
        }
        part = part.trimmed(worst);
    }
    Some(part)
}

/// Mean place of the pixels that are filled in both; `None` where they are less than a third.
pub(super) fn common_centre(a: &Plane, b: &Plane, square: Rectangle) -> Option<Xy<f64>> {
    let (mut sx, mut sy, mut count) = (0u64, 0u64, 0u64);
    for y in square.y..square.y + square.h {
        let from = y * a.width + square.x;
        let rows = a.grey[from..][..square.w].iter().zip(&b.grey[from..][..square.w]);
        let both = rows.map(|(a, b)| u64::from(*a != 0 && *b != 0)).enumerate();
        let (s, c) = both.fold((0u64, 0u64), |(s, c), (x, f)| (s + x as u64 * f, c + f));
        sx += s;
        sy += y as u64 * c;
        count += c;
    }
    let total = count.max(1) as f64;
    let centre = Xy::new(square.x as f64 + sx as f64 / total, sy as f64 / total);
    (3 * count >= square.area() as u64).then_some(centre)
}
