//! A section of overlapping tiles with a known map a tile, for tests and benches of match and montage. Tissue is drawn from a
//! texture, a function of real coordinates, or from recorded images.
//!
//! ```text
//! truth(x) = nominal + stage error + beam pattern + x + A u + lens(u) + start of scan,      u = x scaled to -1..1 over the tile
//! tile(x)  = vignette(u) * tissue(truth(x)) + camera pattern + noise
//! ```

#![allow(dead_code, reason = "benches and tests each use a part")]

mod draw;
mod export;

pub(crate) use draw::Tissue;
#[allow(unused_imports, reason = "benches write files, tests do not")]
pub(crate) use export::export;

use std::collections::{BTreeMap, BTreeSet};

use draw::{Random, draw, hash};
use kinesin_stages::pointmatch::{MatchConfig, Matcher, PairMatches, PointMatch, Verdict, pairs};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, PlannedTile, SectionPlan};

/// What to draw.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// Width and height of a tile, pixels.
    pub(crate) size: (u32, u32),
    /// Rings of beams around the central one: 4 makes 61 beams.
    pub(crate) rings: i32,
    /// Stage stops side by side, 1 to 7.
    pub(crate) mfovs: usize,
    /// Nominal overlap as a part of a tile.
    pub(crate) overlap: f64,
    /// Largest error of a tile's place along each axis, pixels (even spread).
    pub(crate) stage_px: f64,
    /// Largest offset of a beam along each axis that is the same in every exposure and section, pixels.
    pub(crate) pattern_px: f64,
    /// Standard deviation of each entry of the linear part about the identity.
    pub(crate) affine: f64,
    /// Bend of the lens all tiles share at the corner of a tile, pixels.
    pub(crate) lens_px: f64,
    /// Start of scan: how far a row's first pixel is off, pixels, and over how many pixels that falls to a third.
    pub(crate) scan: (f64, f64),
    /// Standard deviation of the noise, grey values.
    pub(crate) noise: f64,
    /// What the corners of a tile are darker by, as a part of one.
    pub(crate) vignette: f64,
    /// Spread of a pattern of single pixels that is the same in every tile, grey values.
    pub(crate) camera: f64,
    /// Tiles drawn without tissue, by stop and beam.
    pub(crate) blank: Vec<(u32, u16)>,
    /// Tiles that never came, by stop and beam.
    pub(crate) lost: Vec<(u32, u16)>,
    /// What lies under the scope.
    pub(crate) tissue: Tissue,
    /// Same seed, same section.
    pub(crate) seed: u64,
    /// Same seed, same lens and camera in every section; the number of the section, for places, noise and tissue.
    pub(crate) z: u32,
}

impl Default for Recipe {
    /// 61 beams of 1024 x 896 with everything that a scope does to them.
    fn default() -> Self {
        Self {
            size: (1024, 896),
            rings: 4,
            mfovs: 1,
            overlap: 0.08,
            stage_px: 15.0,
            pattern_px: 0.0,
            affine: 1e-3,
            lens_px: 2.0,
            scan: (0.0, 50.0),
            noise: 12.0,
            vignette: 0.24,
            camera: 0.0,
            blank: Vec::new(),
            lost: Vec::new(),
            tissue: Tissue::Drawn(40.0),
            seed: 1,
            z: 5,
        }
    }
}

/// A drawn section with its truth.
pub(crate) struct Section {
    /// The promise.
    pub(crate) plan: SectionPlan,
    /// The images of the tiles that came.
    pub(crate) tiles: BTreeMap<TileKey, Pixels>,
    truth: BTreeMap<TileKey, Truth>,
    blank: BTreeSet<TileKey>,
}

/// Where two tiles show the same tissue.
pub(crate) struct Seam {
    pub(crate) p: TileKey,
    pub(crate) q: TileKey,
    /// In p and in q.
    pub(crate) points: Vec<[Xy<f64>; 2]>,
}

#[derive(Clone, Copy)]
struct Truth {
    origin: Xy<f64>,
    half: Xy<f64>,
    linear: [[f64; 2]; 2],
    lens_px: f64,
    scan: (f64, f64),
}

impl Truth {
    fn apply(&self, x: Xy<f64>) -> Xy<f64> {
        let u = Xy::new(x.x / self.half.x - 1.0, x.y / self.half.y - 1.0);
        let from_middle = Xy::new(x.x - self.half.x, x.y - self.half.y);
        let [[a, b], [c, d]] = self.linear;
        // Cubic and a little quadratic: what is left of a lens beyond scale.
        let r2 = (u.x * u.x + u.y * u.y) / 2.0;
        let bend =
            |along: f64, across: f64| self.lens_px * 0.7 * (along * r2 + 0.3 * across * along - 0.2 * across * across);
        let moved = Xy::new(a * from_middle.x + b * from_middle.y, c * from_middle.x + d * from_middle.y);
        let late = if self.scan.0 == 0.0 { 0.0 } else { self.scan.0 * (-x.x / self.scan.1).exp() };
        self.origin + x + moved + Xy::new(bend(u.x, u.y) + late, bend(u.y, u.x))
    }

    /// By iteration: the map is within a few percent of a shift.
    fn invert(&self, at: Xy<f64>) -> Xy<f64> {
        let mut x = at - self.origin;
        for _ in 0..30 {
            x = x + (at - self.apply(x));
        }
        x
    }
}

/// Draws the section.
pub(crate) fn section(recipe: &Recipe) -> Section {
    let mut section = places(recipe);
    let seed = recipe.seed.wrapping_mul(1_000_000).wrapping_add(1000 * u64::from(recipe.z));
    for (i, (&key, map)) in section.truth.iter().enumerate() {
        let blank = section.blank.contains(&key);
        section.tiles.insert(key, draw(recipe, map, blank, seed.wrapping_add(i as u64)));
    }
    section
}

/// The section without its images.
pub(crate) fn places(recipe: &Recipe) -> Section {
    let (w, h) = (f64::from(recipe.size.0), f64::from(recipe.size.1));
    let pitch = Xy::new(w * (1.0 - recipe.overlap), (w * 0.75f64.sqrt()).min(h) * (1.0 - recipe.overlap));
    let mut random = Random(hash(recipe.seed as i64, 3, u64::from(recipe.z)));
    let (mut mfovs, mut truth, mut blank) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    for (stop, (dq, dr)) in stops(recipe.rings).into_iter().take(recipe.mfovs).enumerate() {
        let id = MfovId::new(SectionId(recipe.z), RegionId(0), stop as u32);
        let mut tiles = Vec::new();
        for (beam, (q, r)) in hexagon(recipe.rings).into_iter().enumerate() {
            let key = TileKey { mfov: id, beam: BeamId(beam as u16) };
            let (q, r) = (f64::from(q + dq), f64::from(r + dr));
            let nominal = Xy::new(((q + r / 2.0) * pitch.x).round(), (r * pitch.y).round());
            let mut even = || recipe.stage_px * (2.0 * random.next() - 1.0);
            let mut of_beam = Random(hash(recipe.seed as i64, 7, beam as u64));
            let mut held = || recipe.pattern_px * (2.0 * of_beam.next() - 1.0);
            let origin = nominal + Xy::new(even(), even()) + Xy::new(held(), held());
            let mut normal = || recipe.affine * random.normal();
            let linear = [[normal(), normal()], [normal(), normal()]];
            let half = Xy::new((w - 1.0) / 2.0, (h - 1.0) / 2.0);
            if recipe.blank.contains(&(stop as u32, beam as u16)) {
                blank.insert(key);
            }
            if !recipe.lost.contains(&(stop as u32, beam as u16)) {
                truth.insert(key, Truth { origin, half, linear, lens_px: recipe.lens_px, scan: recipe.scan });
            }
            let size = Xy::new(recipe.size.0, recipe.size.1);
            tiles.push(PlannedTile { key, name: format!("tile_{stop:03}_{beam:03}.png"), nominal, size });
        }
        mfovs.push(MfovPlan { id, revision: 0, tiles });
    }
    let (section, serial) = (SectionId(recipe.z), SerialIndex(0));
    let plan = SectionPlan { section, serial, name: "synthetic".into(), version: 0, mfovs };
    Section { plan, tiles: BTreeMap::new(), truth, blank }
}

impl Section {
    /// Keys of all tiles that came.
    pub(crate) fn present(&self) -> BTreeSet<TileKey> {
        self.truth.keys().copied().collect()
    }

    /// Matches of all pairs, one after the other.
    pub(crate) fn matches(&self, matcher: &mut Matcher) -> Vec<PairMatches> {
        pairs(&self.plan, &self.present(), matcher.config())
            .iter()
            .map(|pair| {
                let rects = matcher.rects(pair);
                let (p, q) = (cut(&self.tiles[&pair.p], &rects.p), cut(&self.tiles[&pair.q], &rects.q));
                matcher.match_pair(pair, &p, &q).expect("strips of the pair")
            })
            .collect()
    }

    /// What matching would give: six points a pair, each off by a normal error of `sd` pixels.
    pub(crate) fn simulated_matches(&self, sd: f64) -> Vec<PairMatches> {
        let mut random = Random(hash(11, 5, self.truth.len() as u64));
        pairs(&self.plan, &self.present(), &MatchConfig::default())
            .iter()
            .map(|pair| {
                let (p, q) = (&self.truth[&pair.p], &self.truth[&pair.q]);
                let common = pair.overlap(pair.shift).expect("a pair overlaps");
                let mut points = Vec::new();
                for k in 0..6 {
                    let t = (f64::from(k) + 0.5) / 6.0;
                    let size = common.size();
                    let (along, across) = if size.x > size.y { (t, 0.5) } else { (0.5, t) };
                    let x = Xy::new(
                        common.min.x as f64 + along * size.x as f64,
                        common.min.y as f64 + across * size.y as f64,
                    );
                    let off = Xy::new(sd * random.normal(), sd * random.normal());
                    points.push(PointMatch { p: x, q: q.invert(p.apply(x)) + off, weight: 0.8 });
                }
                PairMatches { p: pair.p, q: pair.q, points, confidence: 0.9, verdict: Verdict::Matched, rows: None }
            })
            .collect()
    }

    /// Pixels of all tiles, millions.
    pub(crate) fn mpx(&self) -> f64 {
        self.tiles.values().map(|t| t.data().len() as f64 / 1e6).sum()
    }

    /// Errors of the points of one pair: truth of p less truth of q, pixels.
    pub(crate) fn point_errors(&self, m: &PairMatches) -> Vec<f64> {
        let (p, q) = (&self.truth[&m.p], &self.truth[&m.q]);
        m.points.iter().map(|x| (p.apply(x.p) - q.apply(x.q)).norm()).collect()
    }

    /// Seam errors, pair by pair, on a grid over all overlaps of tiles with tissue: how far apart `map` puts one point of tissue
    /// seen in two tiles, pixels.
    pub(crate) fn seams_by_pair(&self, map: impl Fn(TileKey, Xy<f64>) -> Xy<f64>) -> Vec<Vec<f64>> {
        let off = |s: Seam| s.points.iter().map(|[x, y]| (map(s.p, *x) - map(s.q, *y)).norm()).collect();
        self.seam_points().into_iter().map(off).collect()
    }

    /// By pair of tiles with tissue, points of the one and where the same tissue lies in the other, on a grid.
    pub(crate) fn seam_points(&self) -> Vec<Seam> {
        let keys: Vec<TileKey> = self.truth.keys().copied().filter(|k| !self.blank.contains(k)).collect();
        // Of very many tiles fewer places in each do.
        let n = if keys.len() > 1000 { 8 } else { 24 };
        let mut pairs = Vec::new();
        for (i, &a) in keys.iter().enumerate() {
            for &b in &keys[i + 1..] {
                let (ta, tb) = (&self.truth[&a], &self.truth[&b]);
                let away = ta.origin - tb.origin;
                if away.x.abs() > 2.2 * ta.half.x || away.y.abs() > 2.2 * ta.half.y {
                    continue;
                }
                let seen = grid(ta.half, n).filter_map(|x| {
                    let y = tb.invert(ta.apply(x));
                    let inside = y.x >= 0.0 && y.y >= 0.0 && y.x <= 2.0 * tb.half.x && y.y <= 2.0 * tb.half.y;
                    inside.then_some([x, y])
                });
                let points: Vec<[Xy<f64>; 2]> = seen.collect();
                if !points.is_empty() {
                    pairs.push(Seam { p: a, q: b, points });
                }
            }
        }
        pairs
    }

    /// The same without saying which pair.
    pub(crate) fn seams(&self, map: impl Fn(TileKey, Xy<f64>) -> Xy<f64>) -> Vec<f64> {
        self.seams_by_pair(map).concat()
    }

    /// How far off the truth the middle of a tile is put.
    pub(crate) fn place_error(&self, key: TileKey, map: impl Fn(Xy<f64>) -> Xy<f64>) -> Xy<f64> {
        let truth = &self.truth[&key];
        map(truth.half) - truth.apply(truth.half)
    }

    /// Errors of place on a grid over every tile, after the best common shift, pixels.
    pub(crate) fn places(&self, map: impl Fn(TileKey, Xy<f64>) -> Xy<f64>) -> Vec<f64> {
        let off: Vec<Xy<f64>> = self
            .truth
            .iter()
            .flat_map(|(&key, t)| grid(t.half, 8).map(move |x| (key, t, x)))
            .map(|(key, t, x)| map(key, x) - t.apply(x))
            .collect();
        let mean = off.iter().fold(Xy::default(), |s, &o| s + o) * (1.0 / off.len() as f64);
        off.into_iter().map(|o| (o - mean).norm()).collect()
    }
}

/// The nominal place of a tile's point.
pub(crate) fn nominal(plan: &SectionPlan, key: TileKey, x: Xy<f64>) -> Xy<f64> {
    plan.tile(key).expect("promised").nominal + x
}

/// Root of the mean square.
pub(crate) fn rms(errors: &[f64]) -> f64 {
    (errors.iter().map(|e| e * e).sum::<f64>() / errors.len().max(1) as f64).sqrt()
}

/// Largest.
pub(crate) fn max(errors: &[f64]) -> f64 {
    errors.iter().copied().fold(0.0, f64::max)
}

/// A part of an image.
pub(crate) fn cut(pixels: &Pixels, rect: &BoxXy) -> Pixels {
    let (x0, x1) = (rect.min.x as usize, rect.max.x as usize);
    let mut data = Vec::with_capacity(rect.size().x * rect.size().y);
    (rect.min.y..rect.max.y).for_each(|y| data.extend_from_slice(&pixels.row(y as usize)[x0..x1]));
    Pixels::new(rect.size().x, rect.size().y, data)
}

fn grid(half: Xy<f64>, n: usize) -> impl Iterator<Item = Xy<f64>> {
    let at = move |i: usize, half: f64| 2.0 * half * i as f64 / (n - 1) as f64;
    (0..n * n).map(move |i| Xy::new(at(i % n, half.x), at(i / n, half.y)))
}

/// Cells of a hexagon (column along a row, row), from the centre outward.
fn hexagon(rings: i32) -> Vec<(i32, i32)> {
    let mut cells = Vec::new();
    for r in -rings..=rings {
        for q in -rings..=rings {
            let distance = q.abs().max(r.abs()).max((q + r).abs());
            if distance <= rings {
                cells.push((distance, r, q));
            }
        }
    }
    cells.sort_unstable();
    cells.into_iter().map(|(_, r, q)| (q, r)).collect()
}

/// Middles of seven hexagons of so many rings that leave no gap, in cells.
fn stops(n: i32) -> [(i32, i32); 7] {
    let (a, b) = ((n + 1, n), (-n, 2 * n + 1));
    [(0, 0), a, (a.0 + b.0, a.1 + b.1), b, (-a.0, -a.1), (-a.0 - b.0, -a.1 - b.1), (-b.0, -b.1)]
}
