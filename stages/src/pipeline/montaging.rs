//! The montage box of the line: waits until every pair of a section is matched, solves, writes the section's files.
//!
//! Sections are solved in order of z, because each begins with what those before it told of the lenses. One that is complete
//! early waits with its point matches; the alignment behind needs the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use kinesin_backpressure::{Bytes, Cost, Receiver, Sender};
use kinesin_stream::ids::{SectionId, TileKey};
use kinesin_stream::ledger::{Ledger, LedgerError, State};
use kinesin_stream::map::{Affine, Map, TileToSection};
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use kinesin_stream::tile::Reason;
use serde::{Deserialize, Serialize};

use super::gather::{Closed, current};
use super::matching::MontageInput;
use super::quality::quality;
use super::telemetry::{StageName, Telemetry};
use crate::inspect::TileQuality;
use crate::montage::{Anchor, KnownLenses, Montage, MontageConfig, PlacedTile as MontagedTile, Residual, solve};
use crate::pointmatch::PairMatches;
use crate::publish::{SectionFiles, read_json, tile_specs, write_json};
use crate::render::intensity::{self, OverlapStat};
use crate::render::{PlacedTile, Tone};

/// A section whose tiles are placed. Small: no pixels.
#[derive(Clone, Debug)]
pub(super) struct Montaged {
    pub(super) plan: Arc<SectionPlan>,
    pub(super) montage: Arc<Montage>,
    pub(super) tones: BTreeMap<TileKey, Tone>,
}

impl Cost for Montaged {
    fn cost(&self) -> Bytes {
        Bytes((size_of::<Self>() + 1024 * self.montage.tiles.len()) as u64)
    }
}

impl Montaged {
    /// Tiles as the renderer takes them, through `map` of each.
    pub(super) fn placed(
        &self,
        map: impl Fn(&TileToSection, kinesin_stream::geometry::Xy<u32>) -> Map,
    ) -> Vec<PlacedTile> {
        let tiles = self.montage.tiles.iter().filter_map(|t| {
            let size = self.plan.tile(t.key)?.size;
            let tone = self.tones.get(&t.key).copied().unwrap_or(Tone::IDENTITY);
            Some(PlacedTile { key: t.key, size, map: map(&t.map, size), tone })
        });
        tiles.collect()
    }
}

impl Montaged {
    /// Enters how far its tiles have come. Also done for what an earlier run solved: a power cut may have taken it back.
    pub(super) fn mark(&self, ledger: Option<&Ledger>, state: State) -> Result<(), LedgerError> {
        let tiles = || self.montage.tiles.iter().map(|t| t.key).collect();
        ledger.map_or(Ok(0), |l| l.advance_tiles(self.plan.section, &tiles(), state, l.unix_ms())).map(drop)
    }
}

/// What a restart needs to go on without matching again.
#[derive(Serialize, Deserialize)]
pub(super) struct Solved {
    pub(super) plan: Arc<SectionPlan>,
    pub(super) montage: Montage,
    pub(super) tones: Vec<(TileKey, Tone)>,
}

impl From<Solved> for Montaged {
    fn from(solved: Solved) -> Self {
        Self { plan: solved.plan, montage: Arc::new(solved.montage), tones: solved.tones.into_iter().collect() }
    }
}

/// The point matches of pairs, and how their grey values compare.
pub(super) type Matches = BTreeMap<(TileKey, TileKey), (PairMatches, Option<OverlapStat>)>;

/// `sections/<z>/matches.json`: what a later version of the section is solved from.
#[derive(Serialize, Deserialize)]
pub(super) struct Evidence {
    pub(super) tiles: Vec<(TileKey, TileQuality)>,
    pub(super) lost: Vec<(TileKey, Reason)>,
    pub(super) pairs: Vec<(PairMatches, Option<OverlapStat>)>,
}

/// What has come of a section so far.
#[derive(Default)]
struct Open {
    closed: Option<Closed>,
    matches: Matches,
    /// Pairs that count and are not matched yet; known once the section is closed.
    awaited: BTreeSet<(TileKey, TileKey)>,
}

impl Open {
    fn matched(&mut self, matches: &PairMatches, stat: Option<OverlapStat>) {
        let pair = (matches.p, matches.q);
        let counts = self.awaited.remove(&pair) || self.closed.is_none();
        // One named early that does not count in the end was matched in vain.
        if counts {
            self.matches.insert(pair, (matches.clone(), stat));
        }
    }

    fn close(&mut self, closed: Closed) {
        let counted: BTreeSet<(TileKey, TileKey)> = closed.pairs.iter().copied().collect();
        self.matches.retain(|pair, _| counted.contains(pair));
        self.awaited = counted.into_iter().filter(|pair| !self.matches.contains_key(pair)).collect();
        self.closed = Some(closed);
    }
}

/// From matches to places and tones, and the files that say so.
#[derive(Clone, Debug)]
pub(super) struct SectionSolver {
    pub(super) config: MontageConfig,
    /// Leave the tiles where the scope believed them to be.
    pub(super) nominal: bool,
    pub(super) pixel_nm: f64,
}

/// The montage box.
pub(super) struct MontageBox {
    /// Sections whose matches may be held at a time: those that are open, and as many that wait for one before them.
    pub(super) open_sections: usize,
    pub(super) solver: SectionSolver,
    pub(super) out: PathBuf,
    /// None for recorded data.
    pub(super) ledger: Option<Ledger>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl MontageBox {
    pub(super) fn work(
        &self,
        (input, montaged): (Receiver<MontageInput>, Sender<Montaged>),
        run: &RunToken,
    ) -> Result<(), StopError> {
        let mut open: BTreeMap<SectionId, Open> = BTreeMap::new();
        let (mut next, mut lenses) = (0, KnownLenses::default());
        while let Some(message) = input.recv_blocking() {
            let section = match &*message {
                MontageInput::Matched(plan, matches, stat) => {
                    open.entry(plan.section).or_default().matched(matches, *stat);
                    plan.section
                }
                MontageInput::Closed(closed) => {
                    open.entry(closed.plan.section).or_default().close(closed.clone());
                    closed.plan.section
                }
            };
            drop(message);
            run.working_on(section.to_string());
            if open.len() > self.open_sections {
                let text = format!(
                    "{} sections wait for the section at z = {next} to be complete; stages.edges.open_sections allows {}. \
                     raise it (a page of memory a tile and section), then run the same command again",
                    open.len(),
                    self.open_sections / 2
                );
                return Err(std::io::Error::other(text).into());
            }
            while let Some((closed, matches)) = self.next(&mut open, next) {
                run.working_on(closed.plan.section.to_string());
                let section = self.section(closed, matches, &lenses)?;
                lenses = section.montage.lenses.clone();
                next += 1;
                section.mark(self.ledger.as_ref(), State::Placed)?;
                montaged.send_blocking(section)?;
            }
        }
        Ok(run.check()?)
    }

    /// Takes the section at `z` out where all is there that it is solved from.
    fn next(&self, open: &mut BTreeMap<SectionId, Open>, z: u32) -> Option<(Closed, Matches)> {
        let ready = |o: &Open| match &o.closed {
            Some(closed) => closed.plan.serial.0 == z && (o.awaited.is_empty() || self.is_solved(closed)),
            None => false,
        };
        let section = *open.iter().find(|(_, o)| ready(o))?.0;
        let Open { closed, matches, .. } = open.remove(&section)?;
        Some((closed?, matches))
    }

    fn files(&self, plan: &SectionPlan) -> SectionFiles {
        SectionFiles::new(&self.out, plan.serial.0)
    }

    fn is_solved(&self, closed: &Closed) -> bool {
        self.files(&closed.plan).solved().is_file()
    }

    fn section(&self, closed: Closed, matches: Matches, lenses: &KnownLenses) -> Result<Montaged, StopError> {
        let files = self.files(&closed.plan);
        if let Some(solved) = read_json::<Solved>(&files.solved())? {
            return Ok(Montaged { plan: closed.plan, ..solved.into() });
        }
        let pixels = closed.plan.tiles().map(|t| u64::from(t.size.x) * u64::from(t.size.y)).sum();
        let (montage, tones) =
            self.telemetry.time(StageName::Montage, pixels, || self.solver.solve(&closed, &matches, lenses));
        let solved = Solved { plan: closed.plan.clone(), montage, tones: tones.into_iter().collect() };
        self.solver.write(&files, &closed, matches, &solved)?;
        // Last: where this file is, the others are.
        write_json(&files.solved(), &solved)?;
        Ok(solved.into())
    }
}

impl SectionSolver {
    /// Places and tones from the matches of the pairs that count, and from what sections before told of the lenses.
    pub(super) fn solve(
        &self,
        closed: &Closed,
        matches: &Matches,
        lenses: &KnownLenses,
    ) -> (Montage, BTreeMap<TileKey, Tone>) {
        let present = current(&closed.tiles);
        let keys: Vec<TileKey> = present.iter().copied().collect();
        let stats: Vec<OverlapStat> = matches.values().filter_map(|(_, stat)| *stat).collect();
        let tones = intensity::solve(&keys, &stats);
        let montage = if self.nominal {
            nominal(&closed.plan, &present, lenses)
        } else {
            let matches: Vec<PairMatches> = matches.values().map(|(m, _)| m.clone()).collect();
            solve(&closed.plan, &present, &matches, lenses, &self.config)
        };
        (montage, tones)
    }

    /// Every file of a version but `solved.json`.
    pub(super) fn write(
        &self,
        files: &SectionFiles,
        closed: &Closed,
        matches: Matches,
        solved: &Solved,
    ) -> Result<(), StopError> {
        let montage = &solved.montage;
        write_json(&files.montage(), &tile_specs(&closed.plan, self.pixel_nm, |t| montage.tile(t.key).map(|m| &m.0)))?;
        write_json(&files.placements(), &montage.placements())?;
        write_json(&files.quality(), &quality(closed, montage, &matches, self.pixel_nm))?;
        let evidence = Evidence {
            tiles: closed.tiles.iter().map(|(k, q)| (*k, *q)).collect(),
            lost: closed.lost.iter().map(|(k, r)| (*k, r.clone())).collect(),
            pairs: matches.into_values().collect(),
        };
        Ok(write_json(&files.evidence(), &evidence)?)
    }
}

/// Every tile where the scope believed it to be: what the montage stage has to beat.
fn nominal(plan: &SectionPlan, present: &BTreeSet<TileKey>, lenses: &KnownLenses) -> Montage {
    let tiles = plan.tiles().filter(|t| present.contains(&t.key)).map(|t| MontagedTile {
        key: t.key,
        name: t.name.clone(),
        map: TileToSection(Map::Affine(Affine::translation(t.nominal))),
        anchor: Anchor::Nominal,
    });
    Montage {
        section: plan.section,
        serial: plan.serial,
        stiffness: None,
        trials: Vec::new(),
        lenses: lenses.clone(),
        residual: Residual::default(),
        pairs: Vec::new(),
        tiles: tiles.collect(),
    }
}
