//! A section of overlapping tiles drawn from a procedural texture with a known map a tile, for tests and benches of match
//! and montage. The texture is a function of real coordinates, so warped tiles need no resampling.
//!
//! ```text
//! truth(x) = nominal + stage error + x + A u + lens(u),   u = x scaled to -1..1 over the tile
//! tile(x)  = gain(u) * texture(truth(x)) + camera pattern + noise
//! ```

#![allow(dead_code, reason = "benches and tests each use a part")]

use std::collections::{BTreeMap, BTreeSet};

use kinesin_stages::pointmatch::{Matcher, PairMatches, pairs};
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
    /// Nominal overlap as a part of a tile.
    pub(crate) overlap: f64,
    /// Largest error of the stage along each axis, pixels (even spread).
    pub(crate) stage_px: f64,
    /// Standard deviation of each entry of the linear part about the identity.
    pub(crate) affine: f64,
    /// Bend of the lens all tiles share at the corner of a tile, pixels.
    pub(crate) lens_px: f64,
    /// Standard deviation of the noise, grey values.
    pub(crate) noise: f64,
    /// Tiles drawn without tissue, by beam.
    pub(crate) blank: Vec<u16>,
    /// Distance between the membranes of the texture, pixels.
    pub(crate) cell_px: f64,
    /// Same seed, same section.
    pub(crate) seed: u64,
}

impl Default for Recipe {
    /// 61 beams of 1024 x 896 with everything that a scope does to them.
    fn default() -> Self {
        let size = (1024, 896);
        let (rings, overlap, stage_px, affine, lens_px, noise) = (4, 0.08, 15.0, 1e-3, 2.0, 12.0);
        Self { size, rings, overlap, stage_px, affine, lens_px, noise, blank: Vec::new(), cell_px: 40.0, seed: 1 }
    }
}

/// A drawn section with its truth.
pub(crate) struct Section {
    /// The promise.
    pub(crate) plan: SectionPlan,
    /// The images.
    pub(crate) tiles: BTreeMap<TileKey, Pixels>,
    truth: BTreeMap<TileKey, Truth>,
    blank: BTreeSet<TileKey>,
}

#[derive(Clone, Copy)]
struct Truth {
    origin: Xy<f64>,
    half: Xy<f64>,
    linear: [[f64; 2]; 2],
    lens_px: f64,
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
        self.origin + x + moved + Xy::new(bend(u.x, u.y), bend(u.y, u.x))
    }

    /// By iteration: the map is within a percent of a shift.
    fn invert(&self, at: Xy<f64>) -> Xy<f64> {
        let mut x = at - self.origin;
        for _ in 0..20 {
            x = x + (at - self.apply(x));
        }
        x
    }
}

/// Draws the section.
pub(crate) fn section(recipe: &Recipe) -> Section {
    let id = MfovId::new(SectionId(5), RegionId(0), 0);
    let (w, h) = (f64::from(recipe.size.0), f64::from(recipe.size.1));
    let pitch = Xy::new(w * (1.0 - recipe.overlap), (w * 0.75f64.sqrt()).min(h) * (1.0 - recipe.overlap));
    let mut random = Random(hash(recipe.seed as i64, 3, 0));
    let (mut tiles, mut images, mut truth) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (beam, (column, row)) in hexagon(recipe.rings).into_iter().enumerate() {
        let key = TileKey { mfov: id, beam: BeamId(beam as u16) };
        let nominal = Xy::new((column * pitch.x).round(), (row * pitch.y).round());
        let mut even = || recipe.stage_px * (2.0 * random.next() - 1.0);
        let origin = nominal + Xy::new(even(), even());
        let mut normal = || recipe.affine * random.normal();
        let linear = [[normal(), normal()], [normal(), normal()]];
        let half = Xy::new((w - 1.0) / 2.0, (h - 1.0) / 2.0);
        let map = Truth { origin, half, linear, lens_px: recipe.lens_px };
        let seed = recipe.seed.wrapping_mul(1000).wrapping_add(beam as u64);
        images.insert(key, draw(recipe, &map, recipe.blank.contains(&(beam as u16)), seed));
        truth.insert(key, map);
        let size = Xy::new(recipe.size.0, recipe.size.1);
        tiles.push(PlannedTile { key, name: format!("tile_{beam:03}.png"), nominal, size });
    }
    let plan = SectionPlan {
        section: SectionId(5),
        serial: SerialIndex(0),
        name: "synthetic".into(),
        version: 0,
        mfovs: vec![MfovPlan { id, revision: 0, tiles }],
    };
    let blank = truth.keys().copied().filter(|k| recipe.blank.contains(&k.beam.0)).collect();
    Section { plan, tiles: images, truth, blank }
}

impl Section {
    /// Keys of all tiles.
    pub(crate) fn present(&self) -> BTreeSet<TileKey> {
        self.tiles.keys().copied().collect()
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

    /// Pixels of all tiles, millions.
    pub(crate) fn mpx(&self) -> f64 {
        self.tiles.values().map(|t| t.data().len() as f64 / 1e6).sum()
    }

    /// Errors of the points of one pair: truth of p less truth of q, pixels.
    pub(crate) fn point_errors(&self, m: &PairMatches) -> Vec<f64> {
        let (p, q) = (&self.truth[&m.p], &self.truth[&m.q]);
        m.points.iter().map(|x| (p.apply(x.p) - q.apply(x.q)).norm()).collect()
    }

    /// Seam errors on a grid over all overlaps of tiles with tissue: how far apart `map` puts one point of tissue seen in two tiles, pixels.
    pub(crate) fn seams(&self, map: impl Fn(TileKey, Xy<f64>) -> Xy<f64>) -> Vec<f64> {
        let keys: Vec<TileKey> = self.tiles.keys().copied().filter(|k| !self.blank.contains(k)).collect();
        let mut errors = Vec::new();
        for (i, &a) in keys.iter().enumerate() {
            for &b in &keys[i + 1..] {
                let (ta, tb) = (&self.truth[&a], &self.truth[&b]);
                if (ta.origin - tb.origin).norm() > 3.0 * ta.half.norm() {
                    continue;
                }
                for x in grid(ta.half, 24) {
                    let y = tb.invert(ta.apply(x));
                    if y.x >= 0.0 && y.y >= 0.0 && y.x <= 2.0 * tb.half.x && y.y <= 2.0 * tb.half.y {
                        errors.push((map(a, x) - map(b, y)).norm());
                    }
                }
            }
        }
        errors
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
    let rows = (rect.min.y..rect.max.y).flat_map(|y| &pixels.row(y as usize)[x0..x1]).copied();
    Pixels::new(rect.size().x, rect.size().y, rows.collect::<Vec<u8>>())
}

fn grid(half: Xy<f64>, n: usize) -> impl Iterator<Item = Xy<f64>> {
    let at = move |i: usize, half: f64| 2.0 * half * i as f64 / (n - 1) as f64;
    (0..n * n).map(move |i| Xy::new(at(i % n, half.x), at(i / n, half.y)))
}

/// Places in units of the pitch, from the centre outward.
fn hexagon(rings: i32) -> Vec<(f64, f64)> {
    let mut cells = Vec::new();
    for row in -rings..=rings {
        for column in -rings..=rings {
            let distance = column.abs().max(row.abs()).max((column + row).abs());
            if distance <= rings {
                cells.push((distance, row, column));
            }
        }
    }
    cells.sort_unstable();
    cells.into_iter().map(|(_, row, column)| (f64::from(column) + f64::from(row) / 2.0, f64::from(row))).collect()
}

fn draw(recipe: &Recipe, map: &Truth, blank: bool, seed: u64) -> Pixels {
    let (w, h) = (recipe.size.0 as usize, recipe.size.1 as usize);
    let mut random = Random(hash(seed as i64, 2, recipe.seed));
    let mut data = Vec::with_capacity(w * h);
    for y in 0..h {
        for x in 0..w {
            let at = Xy::new(x as f64, y as f64);
            let (u, v) = (at.x / map.half.x - 1.0, at.y / map.half.y - 1.0);
            let tissue = if blank { 190.0 } else { texture(map.apply(at), recipe.cell_px, recipe.seed) };
            let vignette = 1.0 - 0.12 * (u * u + v * v);
            // The same in every tile: stripes and specks of the detector.
            let camera = 4.0 * ((x * 7 % 13) as f64 / 13.0 - 0.5) + 4.0 * ((y * 5 % 11) as f64 / 11.0 - 0.5);
            let value = tissue * vignette + camera + recipe.noise * random.normal();
            data.push(value.round().clamp(1.0, 255.0) as u8);
        }
    }
    Pixels::new(w, h, data)
}

/// Membranes between cells of a jittered lattice, dark on light, with organelle-like blotches; about 40 grey values of contrast.
fn texture(at: Xy<f64>, cell: f64, seed: u64) -> f64 {
    let (x, y) = (at.x / cell, at.y / cell);
    let (cx, cy) = (x.floor() as i64, y.floor() as i64);
    let (mut first, mut second, mut shade) = (f64::MAX, f64::MAX, 0u64);
    for j in -1..=1 {
        for i in -1..=1 {
            let h = hash(cx + i, cy + j, seed);
            let (px, py) = ((cx + i) as f64 + unit(h), (cy + j) as f64 + unit(h >> 21));
            let d = (px - x).powi(2) + (py - y).powi(2);
            if d < first {
                (second, first, shade) = (first, d, h);
            } else if d < second {
                second = d;
            }
        }
    }
    let wall = (second.sqrt() - first.sqrt()) * cell;
    let membrane = 95.0 * (-(wall / 6.0).powi(2)).exp();
    let inside = 30.0 * (unit(shade >> 42) - 0.5);
    185.0 - membrane
        + inside
        + 22.0 * value_noise(at * (1.0 / 7.0), seed)
        + 18.0 * value_noise(at * (1.0 / 29.0), seed + 9)
}

/// Smooth noise of unit lattice, about -1 to 1.
fn value_noise(at: Xy<f64>, seed: u64) -> f64 {
    let (cx, cy) = (at.x.floor() as i64, at.y.floor() as i64);
    let ease = |t: f64| t * t * (3.0 - 2.0 * t);
    let (u, v) = (ease(at.x - cx as f64), ease(at.y - cy as f64));
    let corner = |i, j| 2.0 * unit(hash(cx + i, cy + j, seed ^ 0x5555)) - 1.0;
    let top = corner(0, 0) * (1.0 - u) + corner(1, 0) * u;
    let bottom = corner(0, 1) * (1.0 - u) + corner(1, 1) * u;
    top * (1.0 - v) + bottom * v
}

fn hash(x: i64, y: i64, seed: u64) -> u64 {
    let mut h = (x as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (y as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F) ^ seed;
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

fn unit(h: u64) -> f64 {
    (h & 0x1F_FFFF) as f64 / f64::from(1 << 21)
}

/// A small generator with a fixed sequence a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (hash(self.0 as i64, 1, 0) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (self.next() + self.next() + self.next() + self.next() - 2.0) * 3.0f64.sqrt()
    }
}
