//! The map that takes a result as a whole onto the truth, by least squares over point pairs. A result is free to lie anywhere:
//! what this map can take away is no error.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::Affine;

/// How much freedom is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freedom {
    /// A turn and a shift.
    Rigid,
    /// Also scale, stretch and shear.
    Affine,
}

/// The best map from the first to the second of each pair. Fewer than two distinct points (three not in a line for an
/// affine map) give the next poorer map.
pub fn fit(pairs: &[(Xy<f64>, Xy<f64>)], freedom: Freedom) -> Affine {
    let n = pairs.len().max(1) as f64;
    let (from, to) = pairs.iter().fold((Xy::default(), Xy::default()), |(a, b), (p, q)| (a + *p, b + *q));
    let (from, to) = (from * (1.0 / n), to * (1.0 / n));
    // Sums of products of the centred coordinates.
    let (mut own, mut cross) = ([[0.0; 2]; 2], [[0.0; 2]; 2]);
    for (p, q) in pairs {
        let (p, q) = (*p - from, *q - to);
        own = add(own, [[p.x * p.x, p.x * p.y], [p.x * p.y, p.y * p.y]]);
        cross = add(cross, [[q.x * p.x, q.x * p.y], [q.y * p.x, q.y * p.y]]);
    }
    let [[a, b], [c, d]] = match freedom {
        Freedom::Affine => regression(own, cross).unwrap_or_else(|| turn(cross)),
        Freedom::Rigid => turn(cross),
    };
    Affine { rows: [[a, b, to.x - a * from.x - b * from.y], [c, d, to.y - c * from.x - d * from.y]] }
}

fn add(a: [[f64; 2]; 2], b: [[f64; 2]; 2]) -> [[f64; 2]; 2] {
    [[a[0][0] + b[0][0], a[0][1] + b[0][1]], [a[1][0] + b[1][0], a[1][1] + b[1][1]]]
}

/// The rotation that fits best (Procrustes in the plane).
fn turn(cross: [[f64; 2]; 2]) -> [[f64; 2]; 2] {
    let (s, c) = (cross[1][0] - cross[0][1], cross[0][0] + cross[1][1]);
    let length = s.hypot(c);
    if length > 0.0 { [[c / length, -s / length], [s / length, c / length]] } else { [[1.0, 0.0], [0.0, 1.0]] }
}

/// `cross * own^-1`, `None` where the points lie in a line.
fn regression(own: [[f64; 2]; 2], cross: [[f64; 2]; 2]) -> Option<[[f64; 2]; 2]> {
    let det = own[0][0] * own[1][1] - own[0][1] * own[1][0];
    let size = own[0][0] + own[1][1];
    if det <= 1e-12 * size * size {
        return None;
    }
    let inverse = [[own[1][1] / det, -own[0][1] / det], [-own[1][0] / det, own[0][0] / det]];
    let product = |r: usize, c: usize| cross[r][0] * inverse[0][c] + cross[r][1] * inverse[1][c];
    Some([[product(0, 0), product(0, 1)], [product(1, 0), product(1, 1)]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_the_allowed_kind_is_found_exactly() {
        let points =
            [(0.0, 0.0), (100.0, 3.0), (-40.0, 70.0), (11.0, -60.0)].map(|(x, y)| Xy::new(x + 5000.0, y - 900.0));
        let rigid = Affine::rotation(0.4, Xy::new(10.0, 20.0));
        let affine = Affine { rows: [[1.1, 0.2, 5.0], [-0.1, 0.9, -7.0]] };
        for (map, freedom) in [(rigid, Freedom::Rigid), (rigid, Freedom::Affine), (affine, Freedom::Affine)] {
            let found = fit(&points.map(|p| (p, map.apply(p))), freedom);
            assert!(points.iter().all(|p| (found.apply(*p) - map.apply(*p)).norm() < 1e-8), "{found:?}");
        }
        let line: Vec<_> = (0..5).map(|i| (Xy::new(f64::from(i), 0.0), Xy::new(2.0, f64::from(i)))).collect();
        assert!(line.iter().all(|(p, q)| (fit(&line, Freedom::Affine).apply(*p) - *q).norm() < 1e-9));
    }
}
