//! Points in square cells: whether one lies near is asked of nine cells, however many there are.

use std::collections::BTreeMap;

use kinesin_stream::geometry::Xy;

/// Points in cells of the distance that counts as near, pixels.
pub(super) struct Lattice {
    near: f64,
    cells: BTreeMap<(i64, i64), Vec<Xy<f64>>>,
}

impl Lattice {
    /// Of points; `near` is positive.
    pub(super) fn new(points: impl Iterator<Item = Xy<f64>>, near: f64) -> Self {
        let mut lattice = Self { near, cells: BTreeMap::new() };
        for p in points {
            lattice.cells.entry(lattice.cell(p)).or_default().push(p);
        }
        lattice
    }

    /// Whether none of the points is near.
    pub(super) fn leaves_alone(&self, place: Xy<f64>) -> bool {
        let (x, y) = self.cell(place);
        let around = (y - 1..=y + 1).flat_map(|r| (x - 1..=x + 1).map(move |c| (c, r)));
        let far = |p: &Xy<f64>| {
            let d = *p - place;
            d.x * d.x + d.y * d.y > self.near * self.near
        };
        around.filter_map(|cell| self.cells.get(&cell)).flatten().all(far)
    }

    fn cell(&self, p: Xy<f64>) -> (i64, i64) {
        ((p.x / self.near).floor() as i64, (p.y / self.near).floor() as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_points_are_found_across_the_borders_of_cells() {
        let points = [Xy::new(9.9, 9.9), Xy::new(-25.0, 3.0)];
        let lattice = Lattice::new(points.into_iter(), 10.0);
        for (place, alone) in [((10.1, 10.1), false), ((19.9, 9.9), false), ((20.1, 9.9), true), ((-30.0, -5.0), false)]
        {
            assert_eq!(lattice.leaves_alone(Xy::new(place.0, place.1)), alone, "{place:?}");
        }
    }
}
