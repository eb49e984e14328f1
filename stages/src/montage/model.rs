//! Elastic placement: every tile moves by its own polynomial, all tiles (or those of a beam) share a lens, each term is
//! pulled to zero in proportion to how large it is expected to be.
//!
//! ```text
//! map_i(x)  = nominal_i + x + sum_k c_ik P_k(u) + sum_k l_gk L_k(u)           u = x scaled to -1..1 over the tile
//! cost      = sum_points w rho(map_i(p) - map_j(q)) / s^2  +  sum_ik |c_ik|^2 / s_k^2  +  sum_gk |l_gk|^2 / s_lens^2
//! ```
//! `L` are the polynomials up to the third degree but the constant, and the start of scan: what decays from a tile's first
//! columns and rows on. The constant terms are pulled to the beam pattern where one is known. `rho` is Huber's, by reweighting; `s` are the configured spreads. The pull on the constant term is the stage, which with
//! the pull on the linear terms fixes scale, rotation and place of the whole section: overlaps alone cannot.

use std::collections::BTreeSet;

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::BeamId;
use kinesin_stream::plan::PlannedTile;
use serde::{Deserialize, Serialize};

use super::MontageConfig;
use super::basis::{Frame, MAX_TERMS, VALUES, degree_of, terms};
use super::lens::{KnownLens, KnownLenses};
use super::sparse::{Local, Normal, Pattern};

/// Which tiles share a lens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lens {
    /// None.
    None,
    /// All tiles of the section one.
    Common,
    /// One for each beam: of use where beams take more than one tile.
    Beam,
}

/// How a section's tiles may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stiffness {
    /// Degree of a tile's own polynomial: 0 shifts, 1 affine, 3 and 5 bend.
    pub degree: usize,
    /// What is shared.
    pub lens: Lens,
}

/// Degree of a shared lens.
const LENS_DEGREE: usize = 3;
/// Polynomials of a shared lens.
const LENS_TERMS: usize = terms(LENS_DEGREE) - 1;
/// Numbers of a shared lens along each axis: polynomials, then the start of scan.
pub(super) const SHARED: usize = LENS_TERMS + VALUES - MAX_TERMS;

/// The values of a point that a lens weighs.
fn lens_values(values: &[f64; VALUES]) -> [f64; SHARED] {
    let mut out = [0.0; SHARED];
    out[..LENS_TERMS].copy_from_slice(&values[1..=LENS_TERMS]);
    out[LENS_TERMS..].copy_from_slice(&values[MAX_TERMS..]);
    out
}
/// Most tiles times lenses of which sections tell the next ones about their lenses.
const MOST_TO_LEARN: usize = 100_000;
/// How often the weights are taken from the fit before.
const ROUNDS: usize = 4;

impl Stiffness {
    /// From stiff to soft, the order in which they are tried.
    pub(super) const LADDER: [Self; 7] = [
        Self { degree: 0, lens: Lens::None },
        Self { degree: 0, lens: Lens::Common },
        Self { degree: 1, lens: Lens::None },
        Self { degree: 1, lens: Lens::Common },
        Self { degree: 1, lens: Lens::Beam },
        Self { degree: 3, lens: Lens::Common },
        Self { degree: 5, lens: Lens::Common },
    ];

    /// Whether a map of this kind is not affine.
    pub(super) fn bends(&self) -> bool {
        self.degree > 1 || self.lens != Lens::None
    }
}

/// One point match between tiles given by index.
#[derive(Clone, Debug)]
pub(super) struct Point {
    /// Terms at p and at q.
    pub(super) values: Box<[[f64; VALUES]; 2]>,
    /// Nominal place of p less nominal place of q, pixels.
    pub(super) gap: Xy<f64>,
    pub(super) weight: f64,
    /// Which held-out part it belongs to.
    pub(super) fold: usize,
}

/// The points of one pair.
#[derive(Clone, Debug)]
pub(super) struct PairPoints {
    pub(super) tiles: [usize; 2],
    pub(super) points: Vec<Point>,
}

/// All that is fitted.
pub(super) struct Problem {
    pub(super) frames: Vec<Frame>,
    /// Beam of each tile as an index from 0 without gaps.
    pub(super) beams: Vec<usize>,
    pub(super) pairs: Vec<PairPoints>,
    /// Rigid placement, where the reweighting starts.
    pub(super) start: Vec<Xy<f64>>,
    /// What the beam pattern lets expect of each tile's place, pixels off the nominal one.
    pub(super) expected: Vec<Xy<f64>>,
    pub(super) stage_sd: f64,
    /// Width and height of all tiles, pixels; `None` where they differ.
    pub(super) size: Option<Xy<u32>>,
    /// Whose beam each number in `beams` is.
    pub(super) beam_ids: Vec<BeamId>,
    /// Of the sections before.
    pub(super) known: KnownLenses,
}

/// A fitted placement.
pub(super) struct Fit {
    stiffness: Stiffness,
    groups: Vec<Option<usize>>,
    own: Vec<Vec<[f64; 2]>>,
    lens: Vec<Vec<[f64; 2]>>,
}

impl Fit {
    /// How far tile `i` moves the point with these terms, pixels.
    pub(super) fn moved(&self, i: usize, values: &[f64; VALUES]) -> Xy<f64> {
        let mut sum = Xy::default();
        let mut add = |coefficients: &[[f64; 2]], values: &[f64]| {
            for (c, v) in coefficients.iter().zip(values) {
                sum = sum + Xy::new(c[0], c[1]) * *v;
            }
        };
        add(&self.own[i], values);
        if let Some(g) = self.groups[i] {
            add(&self.lens[g], &lens_values(values));
        }
        sum
    }

    /// Distance that is left at a point, pixels.
    pub(super) fn residual(&self, tiles: [usize; 2], point: &Point) -> f64 {
        (point.gap + self.moved(tiles[0], &point.values[0]) - self.moved(tiles[1], &point.values[1])).norm()
    }

    /// Largest part that the start of scan has in any lens, pixels.
    pub(super) fn start_of_scan(&self) -> f64 {
        let sizes = self.lens.iter().flat_map(|l| &l[LENS_TERMS..]).map(|c| c[0].hypot(c[1]));
        sizes.fold(0.0, f64::max)
    }

    /// The stiffness it was fitted with.
    pub(super) fn stiffness(&self) -> Stiffness {
        self.stiffness
    }
}

impl Problem {
    /// The same for the `most` tiles nearest to the middle of the section; `None` where there are not twice as many.
    pub(super) fn middle(&self, tiles: &[&PlannedTile], most: usize) -> Option<Self> {
        if tiles.len() < 2 * most {
            return None;
        }
        let mean = tiles.iter().fold(Xy::default(), |s, t| s + t.nominal) * (1.0 / tiles.len() as f64);
        let mut order: Vec<usize> = (0..tiles.len()).collect();
        let away = |i: usize| (tiles[i].nominal - mean).norm();
        order.sort_by(|&a, &b| away(a).total_cmp(&away(b)).then(a.cmp(&b)));
        order.truncate(most);
        order.sort_unstable();
        let place = |i: usize| order.binary_search(&i).ok();
        let pairs = self.pairs.iter().filter_map(|p| {
            let tiles = [place(p.tiles[0])?, place(p.tiles[1])?];
            Some(PairPoints { tiles, points: p.points.clone() })
        });
        let pairs = pairs.collect();
        let distinct: BTreeSet<usize> = order.iter().map(|&i| self.beams[i]).collect();
        let distinct: Vec<usize> = distinct.into_iter().collect();
        let beam_ids = distinct.iter().map(|&b| self.beam_ids[b]).collect();
        Some(Self {
            frames: order.iter().map(|&i| self.frames[i]).collect(),
            beams: order.iter().map(|&i| distinct.partition_point(|&b| b < self.beams[i])).collect(),
            pairs,
            start: order.iter().map(|&i| self.start[i]).collect(),
            expected: order.iter().map(|&i| self.expected[i]).collect(),
            stage_sd: self.stage_sd,
            size: self.size,
            beam_ids,
            known: self.known.clone(),
        })
    }

    fn groups(&self, lens: Lens) -> Vec<Option<usize>> {
        match lens {
            Lens::None => vec![None; self.frames.len()],
            Lens::Common => vec![Some(0); self.frames.len()],
            Lens::Beam => self.beams.iter().map(|&b| Some(b)).collect(),
        }
    }

    /// What is known of lens `g` of this kind before this section.
    fn known(&self, kind: Lens, g: usize) -> Option<&KnownLens> {
        let beam = self.beam_ids.get(g).copied().unwrap_or(BeamId(0));
        self.known.of(kind, beam, self.size)
    }

    /// What is known of lenses after this section, which `fit` placed.
    pub(super) fn learned(&self, fit: &Fit, config: &MontageConfig) -> KnownLenses {
        let (mut known, kind) = (self.known.clone(), fit.stiffness.lens);
        let Some(size) = self.size else { return known };
        // Where this would take longer than the solve, earlier sections have to do.
        if fit.lens.len() * self.frames.len() > MOST_TO_LEARN {
            return known;
        }
        let normal = self.normal(fit.stiffness, &fit.groups, None, Some(fit), config);
        let mut pattern = Pattern::default();
        let pulls = self.lens_pulls(config);
        for (g, terms) in fit.lens.iter().enumerate() {
            let beam = self.beam_ids.get(g).copied().unwrap_or(BeamId(0));
            let lens = normal
                .variance(&mut pattern, self.frames.len() + g)
                .and_then(|v| KnownLens::after(self.known(kind, g), size, &v, terms, &pulls));
            if let Some(lens) = lens {
                known.put(kind, beam, lens);
            }
        }
        known
    }

    /// How strongly each term of a lens is pulled to zero.
    fn lens_pulls(&self, config: &MontageConfig) -> [f64; SHARED] {
        let half = self.half();
        // The scale of what all share is that of the section: as little known as that of a tile.
        let part = |k: usize| if k < LENS_TERMS && degree_of(k + 1) == 1 { config.affine_sd } else { config.lens_sd };
        std::array::from_fn(|k| (config.point_sd_px / (half * part(k))).powi(2))
    }

    /// Half the side of a tile, mean of both sides and of all tiles, pixels.
    fn half(&self) -> f64 {
        self.frames.iter().map(|f| (f.half.x + f.half.y) / 2.0).sum::<f64>() / self.frames.len().max(1) as f64
    }

    /// Fits all points but those of part `held`. `None` where the equations cannot be solved.
    pub(super) fn fit(&self, stiffness: Stiffness, held: Option<usize>, config: &MontageConfig) -> Option<Fit> {
        let groups = self.groups(stiffness.lens);
        let mut fit: Option<Fit> = None;
        let mut pattern = Pattern::default();
        for _ in 0..ROUNDS {
            let normal = self.normal(stiffness, &groups, held, fit.as_ref(), config);
            let solution = normal.solve(&mut pattern)?;
            let take = |block: usize, n: usize| solution[normal.start(block)..normal.start(block) + n].to_vec();
            let tiles = self.frames.len();
            let lenses = groups.iter().flatten().max().map_or(0, |g| g + 1);
            fit = Some(Fit {
                stiffness,
                groups: groups.clone(),
                own: (0..tiles).map(|i| take(i, terms(stiffness.degree))).collect(),
                lens: (0..lenses).map(|g| take(tiles + g, SHARED)).collect(),
            });
        }
        fit
    }

    fn normal(
        &self,
        stiffness: Stiffness,
        groups: &[Option<usize>],
        held: Option<usize>,
        before: Option<&Fit>,
        config: &MontageConfig,
    ) -> Normal {
        let (tiles, own) = (self.frames.len(), terms(stiffness.degree));
        let lenses = groups.iter().flatten().max().map_or(0, |g| g + 1);
        let mut normal = Normal::new((0..tiles).map(|_| own).chain((0..lenses).map(|_| SHARED)));
        for pair in &self.pairs {
            let mut sums = PairSums::new(pair.tiles, groups, (own, tiles));
            for point in pair.points.iter().filter(|p| Some(p.fold) != held) {
                let off = match before {
                    Some(fit) => fit.residual(pair.tiles, point),
                    // The rigid placement leaves lens and tilt: only what is far beyond them is held back.
                    None => (point.gap + self.start[pair.tiles[0]] - self.start[pair.tiles[1]]).norm() / 4.0,
                };
                sums.add(point, point.weight * config.huber_px / off.max(config.huber_px));
            }
            normal.add(&sums.local);
        }
        let pull = |sd: f64| (config.point_sd_px / sd).powi(2);
        let half = self.half();
        for i in 0..tiles {
            for k in 0..own {
                let weight = match degree_of(k) {
                    0 => pull(self.stage_sd),
                    1 => pull(half * config.affine_sd),
                    _ => pull(half * config.bend_sd),
                };
                let target = if k == 0 { [self.expected[i].x, self.expected[i].y] } else { [0.0; 2] };
                normal.pull(i, k, weight, target);
            }
        }
        let pulls = self.lens_pulls(config);
        for g in 0..lenses {
            (0..SHARED).for_each(|k| normal.pull(tiles + g, k, pulls[k], [0.0; 2]));
            if let Some(known) = self.known(stiffness.lens, g) {
                normal.form(tiles + g, &known.information, &known.weighted);
            }
        }
        normal
    }
}

/// The sums of one pair: its tiles' terms, then those of the lens they share or of both lenses.
struct PairSums {
    local: Local,
    own: usize,
    lenses: Lenses,
    row: Vec<f64>,
}

enum Lenses {
    None,
    One,
    Two,
}

impl PairSums {
    fn new([i, j]: [usize; 2], groups: &[Option<usize>], (own, tiles): (usize, usize)) -> Self {
        let mut parts = vec![(i, own), (j, own)];
        let lenses = match (groups[i], groups[j]) {
            (Some(a), Some(b)) if a == b => {
                parts.push((tiles + a, SHARED));
                Lenses::One
            }
            (Some(a), Some(b)) => {
                parts.extend([(tiles + a, SHARED), (tiles + b, SHARED)]);
                Lenses::Two
            }
            _ => Lenses::None,
        };
        Self { local: Local::new(parts), own, lenses, row: Vec::new() }
    }

    fn add(&mut self, point: &Point, weight: f64) {
        let [p, q] = &*point.values;
        let (p_lens, q_lens) = (lens_values(p), lens_values(q));
        self.row.clear();
        self.row.extend_from_slice(&p[..self.own]);
        self.row.extend(q[..self.own].iter().map(|v| -v));
        match self.lenses {
            Lenses::None => {}
            Lenses::One => self.row.extend(p_lens.iter().zip(&q_lens).map(|(p, q)| p - q)),
            Lenses::Two => {
                self.row.extend_from_slice(&p_lens);
                self.row.extend(q_lens.iter().map(|v| -v));
            }
        }
        self.local.add(&self.row, weight, [-point.gap.x, -point.gap.y]);
    }
}
