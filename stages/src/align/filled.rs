//! What of a plane is filled: sums over any square in four look-ups, and the middle of what two planes have in common. Lengths in
//! pixels of the plane.

use kinesin_stream::geometry::Xy;

use super::plane::Plane;

/// A plane as deviations, with their squares and the filled pixels summed over any square.
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
    pub(super) fn of(&self, Square { x, y, n }: Square) -> (u32, usize) {
        let (a, b) = (y * self.stride + x, (y + n) * self.stride + x);
        let [a, an, b, bn] = [a, a + n, b, b + n].map(|i| self.sums[i]);
        let sum = |k: usize| bn[k].wrapping_add(a[k]).wrapping_sub(b[k]).wrapping_sub(an[k]);
        (sum(0), sum(1) as usize)
    }

    /// Number of pixels that are not filled.
    pub(super) fn holes(&self, part: Square) -> usize {
        part.n * part.n - self.of(part).1
    }
}

/// The pixels of a plane from column `x` and row `y` on, `n` a side.
#[derive(Clone, Copy)]
pub(super) struct Square {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) n: usize,
}

impl Square {
    /// Larger by `by` on each side.
    pub(super) fn wider(&self, by: usize) -> Self {
        Self { x: self.x - by, y: self.y - by, n: self.n + 2 * by }
    }
}

/// Mean place of the pixels that are filled in both; `None` where they are less than a third.
pub(super) fn common_centre(a: &Plane, b: &Plane, square: Square) -> Option<Xy<f64>> {
    let (mut sx, mut sy, mut count) = (0u64, 0u64, 0u64);
    for y in square.y..square.y + square.n {
        let from = y * a.width + square.x;
        let rows = a.grey[from..][..square.n].iter().zip(&b.grey[from..][..square.n]);
        let both = rows.map(|(a, b)| u64::from(*a != 0 && *b != 0)).enumerate();
        let (s, c) = both.fold((0u64, 0u64), |(s, c), (x, f)| (s + x as u64 * f, c + f));
        sx += s;
        sy += y as u64 * c;
        count += c;
    }
    let total = count.max(1) as f64;
    let centre = Xy::new(square.x as f64 + sx as f64 / total, sy as f64 / total);
    (3 * count >= (square.n * square.n) as u64).then_some(centre)
}
