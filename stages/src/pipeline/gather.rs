//! Counts a section to its promised total, and names each pair of overlapping tiles as soon as both are durable.
//!
//! Only ids and qualities are held, never pixels. Pairs named early are a head start: which of them count is decided when
//! the section closes, from the set of its tiles alone, so that arrival order cannot change the result.
//!
//! *Retakes.* A section closes once for each version of its result. What an instrument promises before a section has ended
//! is counted with the first version; what it promises after that makes a version of its own
//! ([`MfovPlan::revision`](kinesin_stream::plan::MfovPlan::revision)). So what belongs together is decided by the instrument's own order of events, never by
//! how far the line was. An amendment is known here before the last mFOV promised without it: the scope says it first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kinesin_stream::ids::{MfovId, SectionId, TileKey};
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::tile::Reason;

use crate::inspect::{InspectConfig, TileQuality, compare};
use crate::pointmatch::{MatchConfig, Neighbours, Pair};

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

/// Every tile promised for one version of a section is durable or lost.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Its promise, as far as this version counts it.
    pub plan: Arc<SectionPlan>,
    /// Which version: 0 is the section as it first ended, later ones hold the retakes that came since the one before.
    pub revision: u32,
    /// What is durable.
    pub tiles: BTreeMap<TileKey, TileQuality>,
    /// What will never come.
    pub lost: BTreeMap<TileKey, Reason>,
    /// The pairs that count, sorted; of version 0 only.
    pub pairs: Vec<(TileKey, TileKey)>,
}

/// An instrument that broke the rules of amendments.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// What was promised for a version came after that version was made.
    #[error(
        "{mfov} was promised for version {version} of its section's result, which was complete without it; \
         an instrument promises retakes before the section's last mFOV ends, or as the next version"
    )]
    TooLate {
        /// Which stage stop.
        mfov: MfovId,
        /// Its version.
        version: u32,
    },
}

/// Sections that are not complete yet.
#[derive(Debug)]
pub struct Gather {
    inspect: InspectConfig,
    matching: MatchConfig,
    /// By section and version.
    open: BTreeMap<(SectionId, u32), Open>,
    /// Versions that were closed, with the number of their stage stops.
    closed: BTreeMap<(SectionId, u32), usize>,
}

#[derive(Debug)]
struct Open {
    plan: Arc<SectionPlan>,
    /// Its stage stops of this version.
    promised: usize,
    done: BTreeSet<MfovId>,
    tiles: BTreeMap<TileKey, TileQuality>,
    lost: BTreeMap<TileKey, Reason>,
    near: Neighbours,
    named: BTreeSet<(TileKey, TileKey)>,
}

/// Stage stops of one version.
fn stops(plan: &SectionPlan, revision: u32) -> usize {
    plan.mfovs.iter().filter(|m| m.revision == revision).count()
}

/// Of each place the newest tile that shows anything; the newest where none does.
pub(super) fn current(tiles: &BTreeMap<TileKey, TileQuality>) -> BTreeSet<TileKey> {
    let mut last: BTreeMap<TileKey, TileKey> = BTreeMap::new();
    // In key order later attempts come later.
    for (key, quality) in tiles {
        match last.get(&key.first()) {
            Some(there) if quality.blank && !tiles[there].blank => {}
            _ => drop(last.insert(key.first(), *key)),
        }
    }
    last.into_values().collect()
}

impl Gather {
    /// Nothing gathered yet.
    pub fn new(inspect: InspectConfig, matching: MatchConfig) -> Self {
        Self { inspect, matching, open: BTreeMap::new(), closed: BTreeMap::new() }
    }

    /// Takes one mFOV; gives the pairs that can be matched now, and the section if this was the last mFOV of a version.
    ///
    /// # Errors
    /// Where it was promised for a version that is complete without it. An mFOV that comes again changes nothing.
    pub fn add(&mut self, done: MfovDone) -> Result<(Vec<Pair>, Option<Closed>), GatherError> {
        let Some(version) = done.plan.mfov(done.mfov).map(|m| m.revision) else { return Ok((Vec::new(), None)) };
        let id = (done.plan.section, version);
        if let Some(counted) = self.closed.get(&id) {
            let late = stops(&done.plan, version) > *counted;
            return if late { Err(GatherError::TooLate { mfov: done.mfov, version }) } else { Ok((Vec::new(), None)) };
        }
        let of_section = self.open.range_mut((id.0, 0)..=(id.0, u32::MAX));
        let older = of_section.filter(|(_, o)| o.plan.version < done.plan.version);
        older.for_each(|(id, o)| (o.plan, o.promised) = (done.plan.clone(), stops(&done.plan, id.1)));
        let open = self.open.entry(id).or_insert_with(|| Open::new(done.plan.clone(), version));
        if !open.done.insert(done.mfov) {
            return Ok((Vec::new(), None));
        }
        let mut ready = Vec::new();
        // Later versions match what they replace against what is there, which is not known here.
        // Blank tiles have nothing to match.
        for (key, _) in done.tiles.iter().filter(|(_, q)| version == 0 && !q.blank) {
            let Some(tile) = done.plan.tile(*key) else { continue };
            ready.extend(open.near.add(tile, &self.matching));
        }
        open.named.extend(ready.iter().map(|p| (p.p, p.q)));
        open.tiles.extend(done.tiles);
        open.lost.extend(done.lost);
        if open.done.len() < open.promised {
            return Ok((ready, None));
        }
        let mut open = self.open.remove(&id).expect("it is being closed");
        self.closed.insert(id, open.done.len());
        if version == 0 {
            compare(&mut open.tiles, &self.inspect);
        }
        Ok((ready, Some(open.closed(version))))
    }

    /// Sections that have begun and are not complete.
    pub fn incomplete(&self) -> impl Iterator<Item = SectionId> + '_ {
        self.open.keys().map(|id| id.0)
    }
}

impl Open {
    fn new(plan: Arc<SectionPlan>, version: u32) -> Self {
        let promised = stops(&plan, version);
        let longest = plan.tiles().map(|t| t.size.x.max(t.size.y)).max().unwrap_or(1);
        let (done, tiles, lost, named) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { plan, promised, done, tiles, lost, near: Neighbours::new(longest), named }
    }

    fn closed(self, revision: u32) -> Closed {
        let near = self.near;
        let pairs = self.named.into_iter().filter(|(p, q)| near.current(*p) && near.current(*q)).collect();
        // The same plan whether or not later amendments are known already.
        let plan = if self.plan.version == 0 { self.plan } else { Arc::new(self.plan.as_of(revision)) };
        Closed { plan, revision, tiles: self.tiles, lost: self.lost, pairs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::geometry::Xy;
    use kinesin_stream::ids::{Attempt, BeamId, RegionId, SerialIndex};
    use kinesin_stream::plan::{MfovPlan, PlannedTile};

    const GOOD: TileQuality = TileQuality {
        mean: 100.0,
        contrast: 20.0,
        structure: 20.0,
        sharpness: 0.5,
        saturated: 0.0,
        blank_lines: 0,
        line_jump: None,
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
            let (pairs, closed) = gather.add(done.clone()).expect("in time");
            early += pairs.len();
            assert_eq!(closed.is_some(), i == 2, "the section closes with its last mFOV");
            if let Some(closed) = closed {
                assert_eq!(gather.incomplete().count(), 0);
                return (early, closed.pairs);
            }
            assert!(gather.add(done).expect("nothing new").0.is_empty(), "the same mFOV again changes nothing");
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

    fn done(plan: &Arc<SectionPlan>, at: MfovId) -> MfovDone {
        let tiles = plan.mfov(at).expect("promised").tiles.iter().map(|t| (t.key, GOOD)).collect();
        MfovDone { plan: plan.clone(), mfov: at, tiles, lost: BTreeMap::new() }
    }

    /// The promise with beam 1 of mFOV 1 once more.
    fn retaken(plan: &SectionPlan, revision: u32) -> Arc<SectionPlan> {
        let mut stop = plan.mfovs[1].clone();
        stop.revision = revision;
        stop.id.attempt = Attempt(plan.version as u16 + 1);
        stop.tiles.remove(0);
        stop.tiles[0].key.mfov = stop.id;
        Arc::new(plan.amended([stop]))
    }

    #[test]
    fn what_is_promised_before_the_end_is_waited_for_and_counts_instead_of_what_it_replaces() {
        let first = plan();
        let amended = retaken(&first, 0);
        let mfovs: Vec<MfovId> = amended.mfovs.iter().map(|m| m.id).collect();
        let run = |order: [usize; 4]| {
            let mut gather = Gather::new(InspectConfig::default(), MatchConfig::default());
            // The last two are told once the amendment is known.
            let mut closed = order.iter().enumerate().filter_map(|(i, m)| {
                let plan = if i < 2 && first.mfov(mfovs[*m]).is_some() { &first } else { &amended };
                gather.add(done(plan, mfovs[*m])).expect("in time").1
            });
            let one = closed.next().expect("it closes");
            assert!(closed.next().is_none());
            (one.plan, one.tiles.len(), one.pairs)
        };
        let (plan, tiles, counted) = run([0, 1, 2, 3]);
        assert_eq!((plan.mfovs.len(), tiles, counted.len()), (4, 7, 7));
        let old = first.mfovs[1].tiles[1].key;
        assert!(counted.iter().all(|(p, q)| *p != old && *q != old));
        for order in [[2, 3, 1, 0], [1, 0, 3, 2], [3, 2, 1, 0]] {
            assert_eq!(run(order), (plan.clone(), tiles, counted.clone()));
        }
    }

    #[test]
    fn what_is_promised_after_the_end_closes_on_its_own_even_where_the_section_is_not_closed_yet() {
        let first = plan();
        let amended = retaken(&first, 1);
        let twice = retaken(&amended, 2);
        let ids: Vec<MfovId> = twice.mfovs.iter().map(|m| m.id).collect();
        for order in [[0, 1, 4, 2, 3], [2, 4, 3, 1, 0]] {
            let mut gather = Gather::new(InspectConfig::default(), MatchConfig::default());
            let closed: Vec<Closed> =
                order.iter().filter_map(|m| gather.add(done(&twice, ids[*m])).expect("in time").1).collect();
            let mut versions: Vec<_> = closed.iter().map(|c| (c.revision, c.plan.mfovs.len(), c.tiles.len())).collect();
            versions.sort_unstable();
            assert_eq!(versions, [(0, 3, 6), (1, 4, 1), (2, 5, 1)]);
            // As if nothing had been promised since.
            assert_eq!(*closed.iter().find(|c| c.revision == 0).expect("closed").plan, *first);
            assert_eq!(gather.incomplete().count(), 0);
        }
    }

    #[test]
    fn a_retake_of_a_result_that_is_complete_without_it_is_named() {
        let first = plan();
        let mut gather = Gather::new(InspectConfig::default(), MatchConfig::default());
        for m in &first.mfovs {
            gather.add(done(&first, m.id)).expect("in time");
        }
        let late = retaken(&first, 0);
        let error = gather.add(done(&late, late.mfovs[2].id)).expect_err("too late").to_string();
        assert!(error.contains("mFOV 1 attempt 1") && error.contains("version 0"), "{error}");
    }

    #[test]
    fn the_newest_tile_that_shows_anything_is_the_current_one() {
        let first = plan();
        let all = retaken(&first, 1);
        let blank = TileQuality { blank: true, ..GOOD };
        let (old, new) = (first.mfovs[1].tiles[1].key, all.mfovs[2].tiles[0].key);
        for (a, b, wanted) in [(GOOD, GOOD, new), (blank, GOOD, new), (GOOD, blank, old), (blank, blank, new)] {
            assert_eq!(current(&BTreeMap::from([(old, a), (new, b)])), BTreeSet::from([wanted]));
        }
    }

    #[test]
    fn thousands_of_stops_are_gathered_with_the_pairs_of_all_tiles_at_once() {
        let section = SectionId(9);
        let stop = |n: u32| {
            let id = MfovId::new(section, RegionId(0), n);
            let tile = |beam: u16| PlannedTile {
                key: TileKey { mfov: id, beam: BeamId(beam) },
                name: format!("{n}_{beam}"),
                nominal: Xy::new(f64::from(n % 80 * 4 + u32::from(beam % 4)) * 92.0, f64::from(n / 80) * 92.0),
                size: Xy::new(100, 100),
            };
            MfovPlan { id, revision: 0, tiles: (0..4).map(tile).collect() }
        };
        let mfovs: Vec<MfovPlan> = (0..4000).map(stop).collect();
        let plan = Arc::new(SectionPlan { section, serial: SerialIndex(0), name: "s".into(), version: 0, mfovs });
        let mut gather = Gather::new(InspectConfig::default(), MatchConfig::default());
        // 1777 and 4000 share no factor: every stop once, far from the one before.
        let order = (0..4000).map(|i| plan.mfovs[i * 1777 % 4000].id);
        let closed = order.filter_map(|m| gather.add(done(&plan, m)).expect("in time").1).last().expect("it closes");
        let all = crate::pointmatch::pairs(&plan, &plan.tiles().map(|t| t.key).collect(), &MatchConfig::default());
        // 50 rows of 319 pairs, 49 of 320 between them.
        assert_eq!(closed.pairs.len(), 50 * 319 + 49 * 320);
        assert_eq!(closed.pairs, all.iter().map(|p| (p.p, p.q)).collect::<Vec<_>>());
    }

    #[test]
    fn blank_tiles_are_in_no_pair() {
        let key = plan().mfovs[1].tiles[0].key;
        let (_, pairs) = run([0, 1, 2], Some(key));
        assert!(pairs.iter().all(|&(p, q)| p != key && q != key));
        assert_eq!(pairs.len(), 4);
    }
}
