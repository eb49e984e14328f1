//! Sums of squares over rectangles of a plane: what a score is divided by.

use super::filter::Plane;

/// Sums of squares over any rectangle.
pub(super) struct SummedSquares {
    pub(super) width: usize,
    pub(super) height: usize,
    /// `(width + 1) x (height + 1)`, the first row and column are zero.
    sums: Vec<f64>,
    /// Whether it is asked for in coordinates of the plane turned by half a turn.
    turned: bool,
}

impl SummedSquares {
    /// Of a plane, in `space` that is done with.
    pub(super) fn of(plane: &Plane, space: Vec<f64>) -> Self {
        const ROWS: usize = 4;
        let (width, height) = (plane.width, plane.height);
        let stride = width + 1;
        let mut sums = space;
        sums.clear();
        sums.resize(stride * (height + 1), 0.0);
        // Four rows at a time: their sums do not wait for each other.
        for y in (0..height).step_by(ROWS) {
            let (above, below) = sums.split_at_mut((y + 1) * stride);
            let above = &above[y * stride..];
            if y + ROWS <= height {
                let rows: [&[f32]; ROWS] = std::array::from_fn(|k| &plane.row(y + k)[..width]);
                let mut run = [0.0f64; ROWS];
                for x in 0..width {
                    let mut sum = above[x + 1];
                    for k in 0..ROWS {
                        let v = f64::from(rows[k][x]);
                        run[k] += v * v;
                        sum += run[k];
                        below[k * stride + x + 1] = sum;
                    }
                }
            } else {
                let mut run = vec![0.0f64; width + 1];
                for (k, row) in (y..height).map(|y| plane.row(y)).enumerate() {
                    let mut along = 0.0;
                    for (x, &v) in row.iter().enumerate() {
                        along += f64::from(v) * f64::from(v);
                        run[x + 1] += along;
                        below[k * stride + x + 1] = above[x + 1] + run[x + 1];
                    }
                }
            }
        }
        Self { width, height, sums, turned: false }
    }

    /// The space they took.
    pub(super) fn space(self) -> Vec<f64> {
        self.sums
    }

    /// The same for the plane turned by half a turn.
    pub(super) fn turned(self) -> Self {
        Self { turned: !self.turned, ..self }
    }

    /// Over columns `x0..x1` and rows `y0..y1`.
    pub(super) fn over(&self, x0: usize, x1: usize, y0: usize, y1: usize) -> f64 {
        let back = |from: usize, to: usize, n: usize| if self.turned { (n - to, n - from) } else { (from, to) };
        let ((x0, x1), (y0, y1)) = (back(x0, x1, self.width), back(y0, y1, self.height));
        let w = self.width + 1;
        let s = &self.sums;
        s[y1 * w + x1] - s[y0 * w + x1] - s[y1 * w + x0] + s[y0 * w + x0]
    }
}
