//! Point matches between sections, each end in its own section's pixels: what maps are solved from again as long as they may move.

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Affine, Map};
use serde::{Deserialize, Serialize};

use super::drift::rounded;
use super::fine::Tied;
use super::fit::{self, Pair};

/// Trusted matches of a section with an earlier one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// The earlier section.
    pub reference: SerialIndex,
    /// Patches that were looked for.
    pub tried: u32,
    /// Weight of all, by how old the reference is.
    pub weight: f64,
    /// Those that were found.
    pub matches: Vec<Link>,
}

/// One patch. Written as `[x, y, u, v, score]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f64; 5]", into = "[f64; 5]")]
pub struct Link {
    /// Pixel (x, y) of the section.
    pub from: Xy<f64>,
    /// Pixel (u, v) of the earlier section that shows the same.
    pub to: Xy<f64>,
    /// Normalised correlation, 0 to 1.
    pub score: f64,
}

impl From<[f64; 5]> for Link {
    fn from([x, y, u, v, score]: [f64; 5]) -> Self {
        Self { from: Xy::new(x, y), to: Xy::new(u, v), score }
    }
}

impl From<Link> for [f64; 5] {
    fn from(l: Link) -> Self {
        [l.from.x, l.from.y, l.to.x, l.to.y, l.score]
    }
}

impl Links {
    /// From patches that were found in an image of `reference` drawn under `drawn_as`.
    pub(super) fn new(reference: SerialIndex, tied: &[Tied], weight: f64, drawn_as: &Map) -> Self {
        let guess = near_inverse(drawn_as);
        let link = |t: &Tied| {
            let to = drawn_as.invert_at(t.found.to, guess.apply(t.found.to))?;
            Some(Link { from: rounded(t.from), to: rounded(to), score: (t.found.score * 1024.0).round() / 1024.0 })
        };
        let matches = tied.iter().filter(|t| t.found.trusted).filter_map(link).collect();
        let tried = tied.iter().filter(|t| !t.second_hand).count() as u32;
        Self { reference, tried, weight, matches }
    }

    /// What the section is pulled to where the earlier one lies under `there`.
    pub(super) fn forward<'a>(&'a self, there: &'a Map) -> impl Iterator<Item = Pair> + 'a {
        self.matches.iter().map(|l| self.pair(l.from, there.apply(l.to), l.score))
    }

    /// What the earlier section is pulled to where this one lies under `here`.
    pub(super) fn backward<'a>(&'a self, here: &'a Map) -> impl Iterator<Item = Pair> + 'a {
        self.matches.iter().map(|l| self.pair(l.to, here.apply(l.from), l.score))
    }

    fn pair(&self, from: Xy<f64>, to: Xy<f64>, score: f64) -> Pair {
        Pair { from, to, weight: self.weight * score, fold: 0 }
    }
}

/// An affine map that takes the image of a section about back: where the search for the exact point begins.
pub(super) fn near_inverse(map: &Map) -> Affine {
    let affine = match map {
        Map::Affine(a) => Some(*a),
        Map::Grid(g) => {
            let (c, r) = (g.xs().len() - 1, g.ys().len() - 1);
            let corner = |c: usize, r: usize| Pair {
                from: Xy::new(g.xs()[c], g.ys()[r]),
                to: g.node(c, r),
                weight: 1.0,
                fold: 0,
            };
            fit::affine(&[corner(0, 0), corner(c, 0), corner(0, r), corner(c, r)])
        }
    };
    affine.and_then(|a| a.inverse()).unwrap_or(Affine::IDENTITY)
}
