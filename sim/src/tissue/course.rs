//! How a curve finds its way: a random walk that turns towards free space.
//!
//! A curve may pass where both it and its neighbours keep a width of twice [`ROOM`] ([`Index::room`]); where it cannot, it
//! ends. That keeps the Voronoi cells connected along their curves. Lengths in nm.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::field::{Index, Kind, Segment, V3, along, dot, norm, sub};
use super::organelle::Organelles;

/// How far beyond an object's surface its neighbours are looked for.
const REACH: f32 = 320.0;
/// Half the least width of a passage.
const ROOM: f32 = 42.0;

/// Axis points with their radii.
pub(super) type Path = Vec<(V3, f32)>;

/// The tissue while it grows, and its source of randomness.
pub(super) struct Grower {
    pub(super) rng: Pcg64Mcg,
    pub(super) cells: Index,
    pub(super) organelles: Organelles,
    pub(super) low: V3,
    pub(super) high: V3,
    pub(super) next: u32,
    /// Spine heads and varicosities: place and object.
    pub(super) heads: Vec<(V3, u32)>,
    pub(super) boutons: Vec<(V3, u32)>,
    /// Vessels and bodies as spheres, to keep others away.
    pub(super) large: Vec<(V3, f32)>,
}

/// How a curve is grown.
pub(super) struct Course<'a> {
    pub(super) id: u32,
    pub(super) step: f32,
    pub(super) longest: f32,
    pub(super) wander: f32,
    pub(super) radius: &'a dyn Fn(f32) -> f32,
}

impl Grower {
    /// Nothing yet, in the box from `low` to `high`.
    pub(super) fn new(seed: u64, low: V3, high: V3) -> Self {
        Self {
            rng: Pcg64Mcg::seed_from_u64(seed),
            cells: Index::new(low, high, REACH),
            organelles: Organelles::new(low, high),
            low,
            high,
            next: 1,
            heads: Vec::new(),
            boutons: Vec::new(),
            large: Vec::new(),
        }
    }

    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.rng.random::<f32>()
    }

    pub(super) fn point(&mut self, beyond: f32) -> V3 {
        let (low, high) = (self.low, self.high);
        std::array::from_fn(|k| self.between(low[k] - beyond, high[k] + beyond))
    }

    pub(super) fn direction(&mut self) -> V3 {
        loop {
            let v: V3 = std::array::from_fn(|_| self.between(-1.0, 1.0));
            let n = norm(v);
            if n > 0.1 && n < 1.0 {
                return [v[0] / n, v[1] / n, v[2] / n];
            }
        }
    }

    pub(super) fn turned(&mut self, d: V3, by: f32) -> V3 {
        let v = along(d, self.direction(), by);
        let n = norm(v).max(1e-3);
        [v[0] / n, v[1] / n, v[2] / n]
    }

    pub(super) fn volume(&self, beyond: f32) -> f32 {
        (0..3).map(|k| self.high[k] - self.low[k] + 2.0 * beyond).product()
    }

    /// Whole number of expected value `v`.
    pub(super) fn count(&mut self, v: f32) -> usize {
        (v + self.rng.random::<f32>()) as usize
    }

    pub(super) fn new_id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn outside(&self, p: V3) -> bool {
        (0..3).any(|k| p[k] < self.low[k] || p[k] > self.high[k])
    }

    pub(super) fn insert(&mut self, path: &[(V3, f32)], id: u32, kind: Kind) {
        for w in path.windows(2) {
            self.cells.insert(Segment::new(w[0].0, w[1].0, w[0].1, w[1].1, id, kind));
        }
    }

    pub(super) fn near_large(&self, p: V3, r: f32) -> bool {
        self.large.iter().any(|(c, rc)| norm(sub(p, *c)) < r + rc + 300.0)
    }

    /// From `start` until it leaves the box, finds no passage or is as long as it may be.
    pub(super) fn course(&mut self, start: V3, mut d: V3, c: &Course<'_>) -> Path {
        let mut path = vec![(start, (c.radius)(0.0))];
        let mut p = start;
        let mut s = 0.0;
        while s < c.longest && !self.outside(p) {
            s += c.step;
            let full = (c.radius)(s);
            let wide = self.best(p, d, full, c.wander, 9, c);
            let Some((q, r)) = wide.or_else(|| self.best(p, d, full.min(70.0), 1.2, 16, c)) else { break };
            d = self.unit(sub(q, p));
            p = q;
            path.push((p, r));
        }
        path
    }

    pub(super) fn unit(&self, v: V3) -> V3 {
        let n = norm(v).max(1e-3);
        [v[0] / n, v[1] / n, v[2] / n]
    }

    /// The next axis point: of several directions the one that keeps its course and has room.
    pub(super) fn best(&mut self, p: V3, d: V3, r: f32, wander: f32, tries: u32, c: &Course<'_>) -> Option<(V3, f32)> {
        let want = r + 60.0;
        let mut best: Option<(f32, V3)> = None;
        for _ in 0..tries {
            let by = wander * self.rng.random::<f32>();
            let e = self.turned(d, by);
            let q = along(p, e, c.step);
            let room = self.cells.room(q, r, c.id);
            if room < ROOM {
                continue;
            }
            let score = 1.5 * (room / want).min(1.0) + dot(e, d);
            if best.is_none_or(|(s, _)| score > s) {
                best = Some((score, q));
            }
        }
        best.map(|(_, q)| (q, r))
    }

    /// From `start` both ways, as one path.
    pub(super) fn both_ways(&mut self, start: V3, c: &Course<'_>) -> Path {
        let d = self.direction();
        let mut path = self.course(start, [-d[0], -d[1], -d[2]], c);
        path.reverse();
        let ahead = self.course(start, d, c);
        path.extend_from_slice(&ahead[1..]);
        path
    }
}
