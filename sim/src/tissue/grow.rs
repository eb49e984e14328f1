//! Growing the objects of a tissue: vessels, cell bodies, dendrites with spines and branches, then axons wherever space is
//! left. One seeded sequence of decisions; every step looks at what is there already and turns towards free space.
//!
//! How a single curve finds its way is in [`course`](super::course).

use rand::Rng;

use super::config::TissueConfig;
use super::course::{Course, Grower};
use super::field::{Index, Kind, Segment, V3, along, dot, norm, sub};
use super::organelle::{Organelles, Part};

/// What is grown beyond the block on every side, so that its rim looks like its inside, nm.
const MARGIN: f32 = 600.0;

/// All objects of a tissue.
pub(super) struct Grown {
    pub(super) cells: Index,
    pub(super) organelles: Organelles,
}

/// Grows everything.
pub(super) fn grow(config: &TissueConfig) -> Grown {
    let e = config.extent_nm();
    let low = [-MARGIN; 3];
    let high = [e.z as f32 + MARGIN, e.y as f32 + MARGIN, e.x as f32 + MARGIN];
    let mut g = Grower::new(config.seed, low, high);
    g.vessels(config.vessels as f32);
    g.bodies(config.cell_bodies as f32, config.spines_per_um as f32);
    g.dendrites(config.dendrites as f32, config.spines_per_um as f32);
    g.axons(config.gap as f32);
    g.synapses();
    Grown { cells: g.cells, organelles: g.organelles }
}

impl Grower {
    fn vessels(&mut self, share: f32) {
        let beyond = 3000.0;
        let side: [f32; 3] = std::array::from_fn(|k| self.high[k] - self.low[k] + 2.0 * beyond);
        let surface = 2.0 * (side[0] * side[1] + side[1] * side[2] + side[0] * side[2]);
        let mean_chord = 4.0 * self.volume(beyond) / surface;
        let mean_section = std::f32::consts::PI * 2300.0 * 2300.0;
        for _ in 0..self.count(share * self.volume(beyond) / mean_section / mean_chord) {
            let (start, d, r) = (self.point(beyond), self.direction(), self.between(1700.0, 2800.0));
            let id = self.new_id();
            let mut path = vec![(start, r)];
            for sign in [-1.0, 1.0] {
                path.reverse();
                let (mut p, mut d) = (start, d.map(|v| v * sign));
                while (0..3).all(|k| p[k] > self.low[k] - beyond && p[k] < self.high[k] + beyond) {
                    d = self.turned(d, 0.12);
                    p = along(p, d, 500.0);
                    path.push((p, r * self.between(0.94, 1.06)));
                }
            }
            self.insert(&path, id, Kind::Vessel);
            self.large.extend_from_slice(&path);
        }
    }

    fn bodies(&mut self, share: f32, spines: f32) {
        let beyond = 3000.0;
        for _ in 0..self.count(share * self.volume(beyond) / 1.5e11) {
            let (c, r) = (self.point(beyond), self.between(2600.0, 3600.0));
            if self.near_large(c, r * 1.3) {
                continue;
            }
            let id = self.new_id();
            let lobes: Vec<V3> = (0..3).map(|_| along(c, self.direction(), r * 0.3)).collect();
            for lobe in &lobes {
                let end = r * self.between(0.8, 0.9);
                self.cells.insert(Segment::new(c, *lobe, r, end, id, Kind::Body));
            }
            self.large.push((c, r * 1.25));
            let nucleus = r - self.between(500.0, 900.0);
            let far = along(c, self.direction(), r * 0.15);
            self.organelles.push(Part::Nucleus, Segment::new(c, far, nucleus, nucleus * 0.93, id, Kind::Body));
            for _ in 0..60 {
                let a = along(c, self.direction(), self.between(nucleus + 250.0, r * 1.1));
                let b = along(a, self.direction(), self.between(300.0, 1200.0));
                let width = self.between(110.0, 180.0);
                if norm(sub(b, c)) > nucleus + 250.0 {
                    self.organelles.push(Part::Mitochondrion, Segment::new(a, b, width, width, id, Kind::Body));
                }
            }
            for _ in 0..4 {
                let d = self.direction();
                let width = self.between(350.0, 600.0);
                let radius = move |s: f32| width * (0.75 + 0.8 * (-s / 1500.0).exp());
                let path = self.course(
                    along(c, d, r * 0.9),
                    d,
                    &Course { id, step: 160.0, longest: 1e6, wander: 0.25, radius: &radius },
                );
                self.dendrite(&path, id, spines);
            }
        }
    }

    fn dendrites(&mut self, share: f32, spines: f32) {
        let mut wanted = share * self.volume(0.0);
        for _ in 0..100_000 {
            if wanted <= 0.0 {
                return;
            }
            let (start, width) = (self.point(0.0), self.between(180.0, 460.0));
            if self.cells.room(start, width, 0) < width * 0.7 {
                wanted -= 1e6;
                continue;
            }
            let id = self.new_id();
            let phase = self.between(0.0, 6.0);
            let radius = move |s: f32| width * (1.0 + 0.15 * (s / 700.0 + phase).sin());
            let c = Course { id, step: 150.0, longest: 1e6, wander: 0.3, radius: &radius };
            let path = self.both_ways(start, &c);
            if path.len() < 8 {
                continue;
            }
            wanted -= path
                .windows(2)
                .map(|w| std::f32::consts::PI * w[0].1 * w[0].1 * norm(sub(w[1].0, w[0].0)))
                .sum::<f32>();
            self.dendrite(&path, id, spines);
            if self.rng.random::<f32>() < 0.06 * path.len() as f32 * 0.15 {
                let (from, d) = (path[path.len() / 2].0, self.direction());
                let thin = move |s: f32| width * (0.6 + 0.3 * (-s / 500.0).exp());
                let branch =
                    self.course(from, d, &Course { id, step: 150.0, longest: 1e6, wander: 0.3, radius: &thin });
                self.dendrite(&branch, id, spines);
            }
        }
    }

    /// Puts in a grown dendrite, its mitochondria and its spines.
    fn dendrite(&mut self, path: &[(V3, f32)], id: u32, spines: f32) {
        if path.len() < 3 {
            return;
        }
        self.insert(path, id, Kind::Dendrite);
        self.mitochondria(path, id, 0.55, 0.035, 14);
        for w in path.windows(2) {
            let (from, shaft) = w[0];
            let length = norm(sub(w[1].0, from));
            if self.rng.random::<f32>() >= spines * length * 1e-3 {
                continue;
            }
            let axis = self.unit(sub(w[1].0, from));
            let v = self.direction();
            let out = self.unit(along(v, axis, -dot(v, axis)));
            let (neck, head) = (self.between(38.0, 60.0), self.between(110.0, 210.0));
            let reach = shaft + self.between(300.0, 1000.0);
            let radius =
                move |s: f32| if s < reach { neck } else { head * (1.0 - ((s - reach) / head - 1.0).powi(2) * 0.3) };
            let spine = self.course(
                from,
                out,
                &Course { id, step: 90.0, longest: reach + 1.8 * head, wander: 0.5, radius: &radius },
            );
            let end = spine[spine.len() - 1];
            if norm(sub(end.0, from)) > shaft + 250.0 {
                self.insert(&spine, id, Kind::Dendrite);
                self.heads.push((end.0, id));
            }
        }
    }

    /// Strings of capsules inside a path, `share` as wide, begun with `chance` at each of its points.
    fn mitochondria(&mut self, path: &[(V3, f32)], id: u32, share: f32, chance: f32, longest: usize) {
        let mut i = 0;
        while i + 3 < path.len() {
            if self.rng.random::<f32>() >= chance || path[i].1 < 95.0 {
                i += 1;
                continue;
            }
            let n = 3 + (self.rng.random::<f32>() * (longest - 3) as f32) as usize;
            let part = &path[i..(i + n).min(path.len())];
            let width = (share * part.iter().fold(f32::MAX, |m, p| m.min(p.1))).clamp(55.0, 170.0);
            let aside = self.direction().map(|v| v * (part[0].1 - width).max(0.0) * 0.4);
            for w in part.windows(2) {
                let (a, b) = (along(w[0].0, aside, 1.0), along(w[1].0, aside, 1.0));
                self.organelles.push(Part::Mitochondrion, Segment::new(a, b, width, width, id, Kind::Axon));
            }
            i += n + 3;
        }
    }

    fn axons(&mut self, gap: f32) {
        let pitch = gap * 1.8;
        let side: [usize; 3] = std::array::from_fn(|k| ((self.high[k] - self.low[k]) / pitch) as usize + 1);
        let mut order: Vec<u32> = (0..side.iter().product::<usize>() as u32).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.rng.random_range(0..=i));
        }
        for at in order {
            let at = at as usize;
            let cell = [at / (side[1] * side[2]), at / side[2] % side[1], at % side[2]];
            let p: V3 = std::array::from_fn(|k| self.low[k] + (cell[k] as f32 + self.rng.random::<f32>()) * pitch);
            if self.cells.least(p, 0).is_none_or(|(_, f)| f > gap) {
                self.axon(p);
            }
        }
    }

    fn axon(&mut self, start: V3) {
        let id = self.next;
        let u = self.rng.random::<f32>();
        let thin = 38.0 + 90.0 * u * u;
        let (period, phase, swell) =
            (self.between(1800.0, 4200.0), self.between(0.0, 4000.0), self.between(60.0, 170.0));
        let bulge = move |s: f32| {
            let v = ((s + phase) % period - period * 0.5) / 300.0;
            (-v * v).exp()
        };
        let radius = move |s: f32| thin + swell * bulge(s);
        let c = Course { id, step: 100.0, longest: 1e6, wander: 0.45, radius: &radius };
        let path = self.both_ways(start, &c);
        if path.len() < 7 {
            return;
        }
        self.next += 1;
        self.put_axon(&path, id);
        if self.rng.random::<f32>() < 0.004 * path.len() as f32 {
            let (from, d) = (path[path.len() / 2].0, self.direction());
            let branch = self.course(from, d, &c);
            if branch.len() > 8 {
                self.put_axon(&branch, id);
            }
        }
    }

    fn put_axon(&mut self, path: &[(V3, f32)], id: u32) {
        self.insert(path, id, Kind::Axon);
        self.mitochondria(path, id, 0.6, 0.12, 9);
        for w in path.windows(3) {
            if w[1].1 > 110.0 && w[1].1 >= w[0].1 && w[1].1 > w[2].1 {
                self.boutons.push((w[1].0, id));
            }
        }
    }

    /// A synapse where a spine head meets an axon, and where some varicosities meet a dendrite or a body.
    fn synapses(&mut self) {
        for (p, id) in std::mem::take(&mut self.heads) {
            let Some((i, f)) = self.cells.least(p, id) else { continue };
            let axon = self.cells.items()[i as usize];
            if axon.kind == Kind::Axon && f < 250.0 {
                let (out, r) = axon.normal(p);
                self.synapse(axon.id, along(p, out, -(f + r)), id, p);
            }
        }
        for (p, axon) in std::mem::take(&mut self.boutons) {
            let Some((i, f)) = self.cells.least(p, axon) else { continue };
            let target = self.cells.items()[i as usize];
            if matches!(target.kind, Kind::Dendrite | Kind::Body) && f < 250.0 && self.rng.random::<f32>() < 0.5 {
                let (out, _) = target.normal(p);
                self.synapse(axon, p, target.id, along(p, out, -(f + 120.0)));
            }
        }
    }

    /// Vesicles within the axon at `from`, thickened membranes on the way to `to`.
    fn synapse(&mut self, axon: u32, from: V3, target: u32, to: V3) {
        let (a, b) = (self.cells.least_of(from, axon), self.cells.least_of(from, target));
        let (a2, b2) = (self.cells.least_of(to, axon), self.cells.least_of(to, target));
        let (d0, d1) = (b - a, b2 - a2);
        if !(d0 > 0.0 && d1 < 0.0) {
            return;
        }
        let border = along(from, sub(to, from), d0 / (d0 - d1));
        let (size, cloud) = (self.between(120.0, 210.0), self.between(150.0, 260.0));
        self.organelles.push(Part::Density { target }, Segment::new(border, border, size, size, axon, Kind::Axon));
        let middle = along(from, sub(border, from), 0.35);
        self.organelles.push(Part::Vesicles, Segment::new(from, middle, cloud * 0.8, cloud, axon, Kind::Axon));
    }
}
