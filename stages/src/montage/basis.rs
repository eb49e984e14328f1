//! Products of Legendre polynomials over a tile: mutually orthogonal over its area, so that bending holds no hidden scale.

use kinesin_stream::geometry::Xy;

/// Highest total degree in use.
pub(super) const MAX_DEGREE: usize = 5;
/// Number of terms up to [`MAX_DEGREE`].
pub(super) const MAX_TERMS: usize = terms(MAX_DEGREE);

/// Terms of the start of scan: a row, and the first rows of a tile, begin off their place and settle within these parts of its side.
pub(super) const SETTLING: [f64; 2] = [0.025, 0.08];
/// All values of a point: polynomials, then `exp(-x / settling)` of both lengths along x, then along y.
pub(super) const VALUES: usize = MAX_TERMS + 2 * SETTLING.len();
/// Number of terms `P_a(u) P_b(v)` with `a + b <= degree`.
pub(super) const fn terms(degree: usize) -> usize {
    (degree + 1) * (degree + 2) / 2
}

/// Total degree of term `index`.
pub(super) fn degree_of(index: usize) -> usize {
    (0..=MAX_DEGREE).find(|&d| index < terms(d)).unwrap_or(MAX_DEGREE)
}

/// Where a tile's pixels lie in -1..1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) middle: Xy<f64>,
    pub(super) half: Xy<f64>,
}

impl Frame {
    pub(super) fn of(size: Xy<u32>) -> Self {
        let middle = Xy::new((f64::from(size.x) - 1.0) / 2.0, (f64::from(size.y) - 1.0) / 2.0);
        Self { middle, half: Xy::new(middle.x.max(0.5), middle.y.max(0.5)) }
    }

    /// All terms up to [`MAX_DEGREE`] at pixel `x`, by rising degree, within a degree by falling power of u; then those of the
    /// start of scan.
    pub(super) fn values(&self, x: Xy<f64>) -> [f64; VALUES] {
        let (pu, pv) = (legendre((x.x - self.middle.x) / self.half.x), legendre((x.y - self.middle.y) / self.half.y));
        let mut out = [0.0; VALUES];
        let mut k = 0;
        for d in 0..=MAX_DEGREE {
            for b in 0..=d {
                out[k] = pu[d - b] * pv[b];
                k += 1;
            }
        }
        for (along, half) in [(x.x, self.half.x), (x.y, self.half.y)] {
            for settling in SETTLING {
                out[k] = (-along.max(0.0) / (2.0 * half * settling)).exp();
                k += 1;
            }
        }
        out
    }
}

fn legendre(u: f64) -> [f64; MAX_DEGREE + 1] {
    let mut p = [1.0; MAX_DEGREE + 1];
    p[1] = u;
    for n in 1..MAX_DEGREE {
        let m = n as f64;
        p[n + 1] = ((2.0 * m + 1.0) * u * p[n] - m * p[n - 1]) / (m + 1.0);
    }
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_orthogonal_over_the_tile() {
        let frame = Frame::of(Xy::new(201, 101));
        let n = 200;
        let mut sums = [[0.0; MAX_TERMS]; MAX_TERMS];
        for i in 0..n * n {
            let at = |k: usize| -1.0 + (2.0 * k as f64 + 1.0) / n as f64;
            let (u, v) = (at(i % n), at(i / n));
            let values = frame.values(Xy::new(100.0 + 100.0 * u, 50.0 + 50.0 * v));
            for (row, a) in sums.iter_mut().zip(&values) {
                row.iter_mut().zip(&values[..MAX_TERMS]).for_each(|(s, b)| *s += a * b / (n * n) as f64);
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, s) in row.iter().enumerate() {
                assert!(if i == j { *s > 0.01 } else { s.abs() < 1e-3 }, "{i} {j}: {s}");
            }
        }
        assert_eq!([0, 1, 2, 3, 5, 6, 20].map(degree_of), [0, 1, 1, 2, 2, 3, 5]);
    }
}
