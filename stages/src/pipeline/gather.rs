//! Counts a section to its promised total, and names each pair of overlapping tiles as soon as both are durable.
//!
//! Only ids and qualities are held, never pixels. Pairs named early are a head start: which of them count is decided when
//! the section closes, from the set of its tiles alone, so that arrival order cannot change the result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kinesin_stream::ids::{MfovId, SectionId, TileKey};
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::tile::Reason;

use crate::inspect::{InspectConfig, TileQuality, compare};
use crate::pointmatch::{MatchConfig, Pair, pairs};

/// One mFOV of which every promised tile is durable or lost.
#[derive(Clone, Debug)]
pub struct MfovDone {
    /// The promise of its section.
    pub plan: Arc<SectionPlan>,
    /// Which stage stop.
    pub mfov: MfovId,
    /// What is durable.
    pub tiles: BTreeMap<TileKey, TileQuality>,
    /// What will never come.
    pub lost: BTreeMap<TileKey, Reason>,
}

/// A section of which every promised tile is durable or lost.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Its promise.
    pub plan: Arc<SectionPlan>,
    /// What is durable.
    pub tiles: BTreeMap<TileKey, TileQuality>,
    /// What will never come.
    pub lost: BTreeMap<TileKey, Reason>,
    /// The pairs that count, sorted.
    pub pairs: Vec<(TileKey, TileKey)>,
}

/// Sections that are not complete yet.
#[derive(Debug)]
pub struct Gather {
    inspect: InspectConfig,
    matching: MatchConfig,
    open: BTreeMap<SectionId, Open>,
}

#[derive(Debug)]
struct Open {
    plan: Arc<SectionPlan>,
    awaited: BTreeSet<MfovId>,
    tiles: BTreeMap<TileKey, TileQuality>,
    lost: BTreeMap<TileKey, Reason>,
    named: BTreeSet<(TileKey, TileKey)>,
}

impl Gather {
    /// Nothing gathered yet.
    pub fn new(inspect: InspectConfig, matching: MatchConfig) -> Self {
        Self { inspect, matching, open: BTreeMap::new() }
    }

    /// Takes one mFOV; gives the pairs that can be matched now, and the section if this was its last mFOV.
    pub fn add(&mut self, done: MfovDone) -> (Vec<Pair>, Option<Closed>) {
        let open = self.open.entry(done.plan.section).or_insert_with(|| Open {
            awaited: done.plan.mfovs.iter().map(|m| m.id).collect(),
            plan: done.plan.clone(),
            tiles: BTreeMap::new(),
            lost: BTreeMap::new(),
            named: BTreeSet::new(),
        });
        if !open.awaited.remove(&done.mfov) {
            return (Vec::new(), None);
        }
        open.tiles.extend(done.tiles);
        open.lost.extend(done.lost);
        // Blank tiles have nothing to match; later attempts replace earlier ones inside `pairs`.
        let seen: BTreeSet<TileKey> = open.tiles.iter().filter(|(_, q)| !q.blank).map(|(k, _)| *k).collect();
        let now = pairs(&open.plan, &seen, &self.matching);
        let ready = now.iter().filter(|p| open.named.insert((p.p, p.q))).copied().collect();
        if !open.awaited.is_empty() {
            return (ready, None);
        }
        let mut open = self.open.remove(&done.plan.section).expect("it is being closed");
        compare(&mut open.tiles, &self.inspect);
        let pairs = now.iter().map(|p| (p.p, p.q)).collect();
        (ready, Some(Closed { plan: open.plan, tiles: open.tiles, lost: open.lost, pairs }))
    }

    /// Sections that have begun and are not complete.
    pub fn incomplete(&self) -> impl Iterator<Item = SectionId> + '_ {
        self.open.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::geometry::Xy;
    use kinesin_stream::ids::{BeamId, RegionId, SerialIndex};
    use kinesin_stream::plan::{MfovPlan, PlannedTile};

    const GOOD: TileQuality = TileQuality {
        mean: 100.0,
        contrast: 20.0,
        structure: 20.0,
        sharpness: 0.5,
        saturated: 0.0,
        blank_lines: 0,
        blank: false,
        verdict: crate::inspect::Verdict::Good,
    };

    fn plan() -> Arc<SectionPlan> {
        let section = SectionId(4);
        let mfov = |mfov: u32| {
            let id = MfovId::new(section, RegionId(0), mfov);
            let tile = |beam: u16| PlannedTile {
                key: TileKey { mfov: id, beam: BeamId(beam) },
                name: format!("{mfov}_{beam}"),
                nominal: Xy::new(f64::from(beam) * 90.0, f64::from(mfov) * 90.0),
                size: Xy::new(100, 100),
            };
            MfovPlan { id, revision: 0, tiles: vec![tile(0), tile(1)] }
        };
        let mfovs = (0..3).map(mfov).collect();
        Arc::new(SectionPlan { section, serial: SerialIndex(0), name: "s".into(), version: 0, mfovs })
    }

    fn run(order: [usize; 3], blank: Option<TileKey>) -> (usize, Vec<(TileKey, TileKey)>) {
        let plan = plan();
        let mut gather = Gather::new(InspectConfig::default(), MatchConfig::default());
        let mut early = 0;
        for (i, m) in order.into_iter().enumerate() {
            let mfov = &plan.mfovs[m];
            let quality = |k| TileQuality { blank: Some(k) == blank, ..GOOD };
            let tiles = mfov.tiles.iter().map(|t| (t.key, quality(t.key))).collect();
            let done = MfovDone { plan: plan.clone(), mfov: mfov.id, tiles, lost: BTreeMap::new() };
            let (pairs, closed) = gather.add(done.clone());
            early += pairs.len();
            assert_eq!(closed.is_some(), i == 2, "the section closes with its last mFOV");
            if let Some(closed) = closed {
                assert_eq!(gather.incomplete().count(), 0);
                return (early, closed.pairs);
            }
            assert!(gather.add(done).0.is_empty(), "the same mFOV again changes nothing");
        }
        unreachable!("three mFOVs close the section");
    }

    #[test]
    fn any_order_names_each_pair_once_and_closes_with_the_same_pairs() {
        let (early, pairs) = run([0, 1, 2], None);
        // Three rows of one pair, two columns of two.
        assert_eq!((early, pairs.len()), (7, 7));
        for order in [[2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            assert_eq!(run(order, None), (early, pairs.clone()));
        }
    }

    #[test]
    fn blank_tiles_are_in_no_pair() {
        let key = plan().mfovs[1].tiles[0].key;
        let (_, pairs) = run([0, 1, 2], Some(key));
        assert!(pairs.iter().all(|&(p, q)| p != key && q != key));
        assert_eq!(pairs.len(), 4);
    }
}
