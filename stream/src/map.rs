//! The transforms that are stored and exchanged, in one form for placements, alignments and truth.
//!
//! ```json
//! {"affine": [[a, b, tx], [c, d, ty]]}                        x' = a x + b y + tx,  y' = c x + d y + ty
//! {"xs": [..], "ys": [..], "X": [[..]], "Y": [[..]]}          X[r][c], Y[r][c] is the image of (xs[c], ys[r]),
//! ```
//! bilinear between the nodes of a grid and linear beyond its rim. Direction is in the name of the wrapping type.

use serde::{Deserialize, Serialize};

use crate::geometry::Xy;

/// `p -> A p + t`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Affine {
    /// Rows `[a, b, tx]` and `[c, d, ty]`.
    #[serde(rename = "affine")]
    pub rows: [[f64; 3]; 2],
}

/// A map given at the nodes of a rectangular grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "GridFields", into = "GridFields")]
pub struct Grid {
    xs: Vec<f64>,
    ys: Vec<f64>,
    /// Images of the nodes, row by row.
    nodes: Vec<Xy<f64>>,
}

/// Any stored transform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Map {
    /// Stiff.
    Affine(Affine),
    /// Bending.
    Grid(Grid),
}

/// Tile pixel to section pixel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TileToSection(pub Map);

/// Section pixel to volume pixel (full resolution, within one z).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SectionToVolume(pub Map);

impl Affine {
    /// Leaves every point where it is.
    pub const IDENTITY: Self = Self { rows: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] };

    /// Moves by `t`.
    pub const fn translation(t: Xy<f64>) -> Self {
        Self { rows: [[1.0, 0.0, t.x], [0.0, 1.0, t.y]] }
    }

    /// Turns by `radians` (x towards y) about `centre`.
    pub fn rotation(radians: f64, centre: Xy<f64>) -> Self {
        let (s, c) = radians.sin_cos();
        let t = Xy::new(centre.x - c * centre.x + s * centre.y, centre.y - s * centre.x - c * centre.y);
        Self { rows: [[c, -s, t.x], [s, c, t.y]] }
    }

    /// The image of `p`.
    #[inline]
    pub fn apply(&self, p: Xy<f64>) -> Xy<f64> {
        let [[a, b, tx], [c, d, ty]] = self.rows;
        Xy::new(a * p.x + b * p.y + tx, c * p.x + d * p.y + ty)
    }

    /// First this, then `next`.
    pub fn then(&self, next: &Self) -> Self {
        let [[a, b, tx], [c, d, ty]] = self.rows;
        let [[e, f, ux], [g, h, uy]] = next.rows;
        Self {
            rows: [
                [e * a + f * c, e * b + f * d, e * tx + f * ty + ux],
                [g * a + h * c, g * b + h * d, g * tx + h * ty + uy],
            ],
        }
    }

    /// Signed area of the image of the unit square; negative where mirrored.
    pub fn determinant(&self) -> f64 {
        let [[a, b, _], [c, d, _]] = self.rows;
        a * d - b * c
    }

    /// The way back, `None` where the map flattens the plane.
    pub fn inverse(&self) -> Option<Self> {
        let det = self.determinant();
        if !det.is_finite() || det.abs() < 1e-12 {
            return None;
        }
        let [[a, b, tx], [c, d, ty]] = self.rows;
        let (a, b, c, d) = (d / det, -b / det, -c / det, a / det);
        Some(Self { rows: [[a, b, -(a * tx + b * ty)], [c, d, -(c * tx + d * ty)]] })
    }
}

impl Grid {
    /// A grid over the strictly increasing `xs` and `ys` (two or more each); `image(p)` gives the image of each node.
    pub fn from_fn(xs: Vec<f64>, ys: Vec<f64>, mut image: impl FnMut(Xy<f64>) -> Xy<f64>) -> Result<Self, MapError> {
        let nodes = ys.iter().flat_map(|&y| xs.iter().map(move |&x| Xy::new(x, y))).map(&mut image).collect();
        Self::new(xs, ys, nodes)
    }

    /// A grid from the images of its nodes, row by row.
    pub fn new(xs: Vec<f64>, ys: Vec<f64>, nodes: Vec<Xy<f64>>) -> Result<Self, MapError> {
        for (name, v) in [("xs", &xs), ("ys", &ys)] {
            if v.len() < 2 || v.windows(2).any(|w| w[0].partial_cmp(&w[1]) != Some(std::cmp::Ordering::Less)) {
                return Err(MapError::Axis { name });
            }
        }
        if nodes.len() != xs.len() * ys.len() {
            return Err(MapError::Nodes { got: nodes.len(), wanted: xs.len() * ys.len() });
        }
        if nodes.iter().any(|n| !n.x.is_finite() || !n.y.is_finite()) {
            return Err(MapError::NotFinite);
        }
        Ok(Self { xs, ys, nodes })
    }

    /// Node columns.
    pub fn xs(&self) -> &[f64] {
        &self.xs
    }

    /// Node rows.
    pub fn ys(&self) -> &[f64] {
        &self.ys
    }

    /// The image of node (column, row).
    #[inline]
    pub fn node(&self, column: usize, row: usize) -> Xy<f64> {
        self.nodes[row * self.xs.len() + column]
    }

    /// The image of `p`: bilinear inside, the rim cell's bilinear form continued outside.
    #[inline]
    pub fn apply(&self, p: Xy<f64>) -> Xy<f64> {
        let (c, u) = cell(&self.xs, p.x);
        let (r, v) = cell(&self.ys, p.y);
        let top = self.node(c, r) * (1.0 - u) + self.node(c + 1, r) * u;
        let bottom = self.node(c, r + 1) * (1.0 - u) + self.node(c + 1, r + 1) * u;
        top * (1.0 - v) + bottom * v
    }
}

impl Grid {
    /// The point of the grid whose image is `q`; of several, one that is not turned over beside the whole, then the first.
    fn find(&self, q: Xy<f64>) -> Option<Xy<f64>> {
        let (nx, ny) = (self.xs.len(), self.ys.len());
        let [a, b, c] = [(0, 0), (nx - 1, 0), (0, ny - 1)].map(|(c, r)| self.node(c, r));
        let upright = cross(b - a, c - a).signum();
        let mut turned = None;
        for (r, c) in (0..ny - 1).flat_map(|r| (0..nx - 1).map(move |c| (r, c))) {
            let corners = [self.node(c, r), self.node(c + 1, r), self.node(c, r + 1), self.node(c + 1, r + 1)];
            let Some((u, v)) = within(corners, q) else { continue };
            let along = |axis: &[f64], i: usize, t: f64| axis[i] + t * (axis[i + 1] - axis[i]);
            let p = Xy::new(along(&self.xs, c, u), along(&self.ys, r, v));
            if cross(corners[1] - corners[0], corners[2] - corners[0]) * upright > 0.0 {
                return Some(p);
            }
            turned = turned.or(Some(p));
        }
        turned
    }
}

fn cross(a: Xy<f64>, b: Xy<f64>) -> f64 {
    a.x * b.y - a.y * b.x
}

/// Where `q` lies in a bilinear cell, both from 0 to 1; `None` where it lies outside. The cell is
/// `a + u e + v f + u v g`; without `u` that is a quadratic for `v`.
fn within([a, b, c, d]: [Xy<f64>; 4], q: Xy<f64>) -> Option<(f64, f64)> {
    let outside = |of: fn(Xy<f64>) -> f64| {
        let v = [a, b, c, d].map(of);
        v.iter().all(|v| *v < of(q)) || v.iter().all(|v| *v > of(q))
    };
    if outside(|p| p.x) || outside(|p| p.y) {
        return None;
    }
    let (e, f, g, h) = (b - a, c - a, a - b - c + d, q - a);
    let (k2, k1, k0) = (cross(g, f), cross(e, f) + cross(h, g), cross(h, e));
    let root = (k1 * k1 - 4.0 * k0 * k2).max(0.0).sqrt();
    // Of both forms of a root the one that does not cancel.
    let half = -0.5 * (k1 + if k1 < 0.0 { -root } else { root });
    let across = |v: f64| {
        let step = e + g * v;
        let left = h - f * v;
        if step.x.abs() > step.y.abs() { left.x / step.x } else { left.y / step.y }
    };
    const SLACK: f64 = 1e-9;
    let fits = |t: f64| (-SLACK..=1.0 + SLACK).contains(&t);
    [k0 / half, half / k2].into_iter().map(|v| (across(v), v)).find(|(u, v)| fits(*u) && fits(*v))
}

/// Index of the cell that holds `v` and the place within it, 0 to 1 inside.
#[inline]
fn cell(axis: &[f64], v: f64) -> (usize, f64) {
    let i = axis.partition_point(|&a| a <= v).clamp(1, axis.len() - 1) - 1;
    (i, (v - axis[i]) / (axis[i + 1] - axis[i]))
}

impl Map {
    /// Leaves every point where it is.
    pub const IDENTITY: Self = Self::Affine(Affine::IDENTITY);

    /// The image of `p`.
    #[inline]
    pub fn apply(&self, p: Xy<f64>) -> Xy<f64> {
        match self {
            Self::Affine(a) => a.apply(p),
            Self::Grid(g) => g.apply(p),
        }
    }

    /// Linear part at `p`, by central differences over one pixel: columns are the images of the unit vectors.
    pub fn jacobian(&self, p: Xy<f64>) -> [[f64; 2]; 2] {
        let dx = self.apply(p + Xy::new(0.5, 0.0)) - self.apply(p - Xy::new(0.5, 0.0));
        let dy = self.apply(p + Xy::new(0.0, 0.5)) - self.apply(p - Xy::new(0.0, 0.5));
        [[dx.x, dy.x], [dx.y, dy.y]]
    }

    /// The point whose image is `q`, by Newton's method from `guess` to 1e-6 px. Where that does not settle, beside sharp bends, the cell that
    /// holds `q` is looked for; `None` where there is none.
    pub fn invert_at(&self, q: Xy<f64>, guess: Xy<f64>) -> Option<Xy<f64>> {
        match self {
            Self::Affine(a) => a.inverse().map(|i| i.apply(q)),
            Self::Grid(g) => self.newton(q, guess).or_else(|| g.find(q)),
        }
    }

    fn newton(&self, q: Xy<f64>, guess: Xy<f64>) -> Option<Xy<f64>> {
        let mut p = guess;
        for _ in 0..50 {
            let e = self.apply(p) - q;
            if e.norm() < 1e-6 {
                return Some(p);
            }
            let [[a, b], [c, d]] = self.jacobian(p);
            let det = a * d - b * c;
            if !det.is_finite() || det.abs() < 1e-9 {
                return None;
            }
            p = p - Xy::new((d * e.x - b * e.y) / det, (a * e.y - c * e.x) / det);
        }
        None
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case, reason = "the keys of the exchanged JSON")]
struct GridFields {
    xs: Vec<f64>,
    ys: Vec<f64>,
    X: Vec<Vec<f64>>,
    Y: Vec<Vec<f64>>,
}

impl TryFrom<GridFields> for Grid {
    type Error = MapError;
    fn try_from(f: GridFields) -> Result<Self, MapError> {
        let wanted = f.xs.len() * f.ys.len();
        let shaped = |m: &Vec<Vec<f64>>| m.len() == f.ys.len() && m.iter().all(|r| r.len() == f.xs.len());
        if !shaped(&f.X) || !shaped(&f.Y) {
            return Err(MapError::Nodes { got: f.X.iter().map(Vec::len).sum(), wanted });
        }
        let nodes = f.X.iter().flatten().zip(f.Y.iter().flatten()).map(|(&x, &y)| Xy::new(x, y)).collect();
        Self::new(f.xs, f.ys, nodes)
    }
}

impl From<Grid> for GridFields {
    fn from(g: Grid) -> Self {
        let rows =
            |value: fn(&Xy<f64>) -> f64| g.nodes.chunks(g.xs.len()).map(|r| r.iter().map(value).collect()).collect();
        let (x, y) = (rows(|p| p.x), rows(|p| p.y));
        Self { xs: g.xs, ys: g.ys, X: x, Y: y }
    }
}

/// A transform that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Fewer than two nodes, or not increasing.
    #[error("grid map: {name} needs two or more strictly increasing values")]
    Axis {
        /// Which axis.
        name: &'static str,
    },
    /// The number of node images does not fit the axes.
    #[error(
        "grid map: {got} node images for axes of {wanted}; X and Y need one row a value of ys, one column a value of xs"
    )]
    Nodes {
        /// Node images found.
        got: usize,
        /// Node images needed.
        wanted: usize,
    },
    /// NaN or infinite.
    #[error("grid map: a node image is not a finite number")]
    NotFinite,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_of_an_affine_map_equals_it_inside_and_outside() {
        let a = Affine { rows: [[1.01, 0.02, 3.0], [-0.03, 0.98, -7.0]] };
        let g = Grid::from_fn(vec![0.0, 10.0, 40.0], vec![-5.0, 5.0], |p| a.apply(p)).expect("valid axes");
        for p in [Xy::new(3.0, 1.0), Xy::new(-20.0, 30.0), Xy::new(100.0, -9.0)] {
            assert!((g.apply(p) - a.apply(p)).norm() < 1e-9);
            let back = Map::Grid(g.clone()).invert_at(a.apply(p), Xy::default()).expect("invertible");
            assert!((back - p).norm() < 1e-5);
        }
        assert!((a.then(&a.inverse().expect("regular")).apply(Xy::new(2.0, 3.0)) - Xy::new(2.0, 3.0)).norm() < 1e-9);
    }

    #[test]
    fn a_grid_with_a_gap_all_but_closed_is_inverted_everywhere() {
        // From column 30 to 60 everything is squeezed to a twentieth: Newton's steps leap over it.
        let axis: Vec<f64> = (0..=12).map(|i| f64::from(i) * 10.0).collect();
        let squeezed = |x: f64| if x < 30.0 { x } else { 30.0 + (x - 30.0).min(30.0) / 20.0 + (x - 60.0).max(0.0) };
        let lean = |p: Xy<f64>| Xy::new(squeezed(p.x) + 0.3 * p.y, p.y + 0.1 * squeezed(p.x));
        let map = Map::Grid(Grid::from_fn(axis.clone(), axis, lean).expect("increasing"));
        for (i, j) in (0..60).flat_map(|i| (0..60).map(move |j| (i, j))) {
            let p = Xy::new(f64::from(i) * 2.0 + 0.3, f64::from(j) * 2.0 + 0.7);
            let back = map.invert_at(map.apply(p), Xy::new(-300.0, 500.0)).expect("one place");
            assert!((back - p).norm() < 1e-4, "{p:?} {back:?}");
        }
    }

    #[test]
    fn json_has_the_form_of_the_contract() {
        let a = serde_json::to_value(Map::IDENTITY).expect("plain numbers");
        assert_eq!(a, serde_json::json!({"affine": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]}));
        let text = r#"{"xs":[0.0,1.0],"ys":[0.0,2.0],"X":[[0.0,1.0],[0.5,1.5]],"Y":[[0.0,0.0],[2.0,2.0]]}"#;
        let g: Map = serde_json::from_str(text).expect("valid");
        assert_eq!(g.apply(Xy::new(0.5, 1.0)), Xy::new(0.75, 1.0));
        assert_eq!(serde_json::to_string(&g).expect("plain numbers"), text);
        assert!(serde_json::from_str::<Map>(&text.replace("[0.0,2.0]", "[2.0,0.0]")).is_err());
    }
}
