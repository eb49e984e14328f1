//! A later version of a section: only what its retakes touch is done again, and what was published stays beside it.
//!
//! ```text
//! retakes ─► pairs that touch them ─ matched ─┐
//! version before: point matches, places ──────┴─► solve ─► hold what stays ─► DIR/sections/<z>/v<n>/..
//!                                                              │ tiles that changed or moved
//! volume/image (version 0) ── blocks that they do not touch ───┴─► DIR/volume/revisions/<z>_v<n>
//! ```
//! *Frame.* The section's way into the volume is that of version 0, but where that has none or all its tiles are new (`late`): other
//! sections do not move. Of the new solve the shift,
//! turn and scale that all tiles share are taken out; a tile that then lies within [`HELD_PX`] of its place keeps place and tone,
//! bit by bit.
//!
//! *Image.* OME-Zarr like `volume/image`, of the same extent, but holding only the cells (one chunk of the coarsest level) that
//! differ from version 0; elsewhere 0, no data. Within them blocks that no changed tile touches are those of version 0. So the
//! newest one alone, laid over `volume/image`, is the section as it is known now. Labels stay those of version 0.
//!
//! *Restart.* Everything is a function of the tiles, the configuration and the version before; the commit comes last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use kinesin_stream::geometry::{BoxXy, BoxZyx, Xy, Zyx};
use kinesin_stream::ids::TileKey;
use kinesin_stream::ledger::{Ledger, State};
use kinesin_stream::map::{Affine, Grid, Map, SectionToVolume, TileToSection};
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::{self, ImageSpec, ImageWriter, VolumeSource};
use ndarray::{Array2, Axis, s};
use serde::{Deserialize, Serialize};

use super::aligning::AlignmentFile;
use super::cells::{bands, corners, of_corners, plane, touched_blocks};
use super::commits::{Commit, Commits};
use super::gather::{Closed, current};
use super::late::Late;
use super::matching;
use super::montaging::{Evidence, Matches, Montaged, SectionSolver, Solved};
use super::telemetry::{StageName, Telemetry};
use super::tiles::TileCache;
use crate::inspect::{InspectConfig, TileQuality, Verdict, compare};
use crate::montage::Montage;
use crate::pointmatch::{MatchConfig, Matcher, Neighbours, Pair, PairMatches};
use crate::publish::{SectionFiles, read_json, write_json};
use crate::render::intensity::OverlapStat;
use crate::render::{PlacedTile, Renderer, Tone, compose};

/// A tile that a new solve moves by less than this keeps its place, px: less than what a pair of tiles may disagree by anyway.
const HELD_PX: f64 = 0.5;

/// `sections/<z>/v<n>/revision.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionFile {
    /// Name of the section.
    pub section: String,
    /// Its z.
    pub z: u32,
    /// Which version this is, from 1; it replaces the one before.
    pub version: u32,
    /// Tiles that count from now on, each with the one that it replaces.
    pub retaken: BTreeMap<String, Option<String>>,
    /// Tiles that stayed the same but not where they were.
    pub moved: Vec<String>,
    /// Which parts of the image differ from the version before: `[x0, y0, x1, y1]`, half-open, voxels of the volume.
    pub boxes: Vec<[i64; 4]>,
    /// Which parts differ from version 0, by any version so far.
    pub boxes_since_first: Vec<[i64; 4]>,
    /// The image of this version, from the run's folder; none where the section has no place in the volume.
    pub image: Option<String>,
    /// Of which version the labels are.
    pub labels_of_version: u32,
}

/// Makes later versions of published sections.
pub(super) struct Reviser {
    pub(super) solver: SectionSolver,
    pub(super) inspect: InspectConfig,
    pub(super) matcher: Matcher,
    pub(super) renderer: Renderer,
    /// The published image.
    pub(super) image: ImageSpec,
    pub(super) out: PathBuf,
    pub(super) commits: Arc<Commits>,
    /// None for recorded data.
    pub(super) ledger: Option<Ledger>,
    pub(super) late: Late,
    pub(super) telemetry: Arc<Telemetry>,
}

/// The version before, as its files have it.
struct Before {
    evidence: Evidence,
    solved: Solved,
    alignment: AlignmentFile,
    boxes_since_first: Vec<[i64; 4]>,
}

impl Reviser {
    /// Makes the version that `closed` names: it holds only what is new. The version before is published.
    ///
    /// # Errors
    /// Where files or tiles cannot be read or written.
    pub(super) fn revise(&mut self, closed: Closed, tiles: &mut TileCache, run: &RunToken) -> Result<(), StopError> {
        let (z, version) = (closed.plan.serial.0, closed.revision);
        let files = SectionFiles::new(&self.out, z).version(version);
        if self.commits.has_revision(z, version) {
            let solved = read_json(&files.solved())?.ok_or_else(|| lacking(&files.solved()))?;
            return self.mark(&placed(&closed.plan, solved), read_json(&files.alignment())?.as_ref());
        }
        let before = self.before(z, version - 1)?;
        let was: BTreeMap<TileKey, TileQuality> = before.evidence.tiles.iter().copied().collect();
        let closed = merged(closed, &before.evidence, &self.inspect);
        let matches = self.matches(&closed, &was, before.evidence.pairs, tiles, run)?;
        let pixels = closed.plan.tiles().map(|t| u64::from(t.size.x) * u64::from(t.size.y)).sum();
        // With the lens that the version before found: what was taken again must not bend the others anew.
        let lenses = &before.solved.montage.lenses;
        let (mut montage, mut tones) =
            self.telemetry.time(StageName::Montage, pixels, || self.solver.solve(&closed, &matches, lenses));
        let moved = hold(&closed.plan, &before.solved, &mut montage, &mut tones)?;
        let solved = Solved { plan: closed.plan.clone(), montage, tones: tones.into_iter().collect() };
        self.solver.write(&files, &closed, matches, &solved)?;
        let old = placed(&closed.plan, before.solved);
        write_json(&files.solved(), &solved)?;
        let new = placed(&closed.plan, solved);
        let was = before.alignment.map.clone();
        let alignment = self.aligned_anew(&new, (&closed, before.alignment), tiles)?;
        write_json(&files.alignment(), &alignment)?;
        let map = alignment.map.as_ref();
        let boxes = self.changed((&old, was.as_ref()), (&new, map), &moved);
        let mut since_first = before.boxes_since_first;
        since_first.extend(boxes.iter().filter(|b| !since_first.contains(b)).copied().collect::<Vec<_>>());
        let image = map.map(|_| format!("volume/revisions/{z}_v{version}"));
        if let (Some(map), Some(image)) = (map, &image) {
            self.draw(z, image, &new, map, &since_first, tiles)?;
        }
        let record = record(&closed, &old, &new, &moved, (boxes.clone(), since_first), image);
        write_json(&files.revision(), &record)?;
        self.commits.add(&Commit::Revision { z, version, boxes })?;
        self.mark(&new, Some(&alignment))
    }

    /// Enters that its tiles are where they are: those that they replace are superseded.
    fn mark(&self, section: &Montaged, alignment: Option<&AlignmentFile>) -> Result<(), StopError> {
        let seen = alignment.is_some_and(|a| a.map.is_some());
        Ok(section.mark(self.ledger.as_ref(), if seen { State::Published } else { State::Placed })?)
    }

    fn before(&self, z: u32, version: u32) -> Result<Before, StopError> {
        let files = SectionFiles::new(&self.out, z).version(version);
        let boxes_since_first = match version {
            0 => Vec::new(),
            _ => {
                read_json::<RevisionFile>(&files.revision())?
                    .ok_or_else(|| lacking(&files.revision()))?
                    .boxes_since_first
            }
        };
        Ok(Before {
            evidence: read_json(&files.evidence())?.ok_or_else(|| lacking(&files.evidence()))?,
            solved: read_json(&files.solved())?.ok_or_else(|| lacking(&files.solved()))?,
            alignment: read_json(&files.alignment())?.ok_or_else(|| lacking(&files.alignment()))?,
            boxes_since_first,
        })
    }

    /// Matches of all pairs that count now: those of the version before, and new ones of what was replaced.
    fn matches(
        &mut self,
        closed: &Closed,
        was: &BTreeMap<TileKey, TileQuality>,
        known: Vec<(PairMatches, Option<OverlapStat>)>,
        tiles: &TileCache,
        run: &RunToken,
    ) -> Result<Matches, StopError> {
        let now = showing(&closed.tiles);
        let mut matches: Matches = known.into_iter().map(|(m, stat)| ((m.p, m.q), (m, stat))).collect();
        matches.retain(|(p, q), _| now.contains(p) && now.contains(q));
        for pair in touching(&closed.plan, &showing(was), &now, self.matcher.config()) {
            run.check()?;
            let pixels = matching::pixels(&self.matcher, &pair);
            let matcher = &mut self.matcher;
            let found =
                self.telemetry.time(StageName::Match, pixels, || matching::one(matcher, tiles.store(), &pair))?;
            matches.insert((pair.p, pair.q), found);
        }
        Ok(matches)
    }

    /// What of the image changes: where a tile was or is that was replaced or moved.
    fn changed(
        &self,
        (old, was): (&Montaged, Option<&SectionToVolume>),
        (new, map): (&Montaged, Option<&SectionToVolume>),
        moved: &BTreeSet<TileKey>,
    ) -> Vec<[i64; 4]> {
        let keys = |m: &Montaged| m.montage.tiles.iter().map(|t| t.key).collect::<BTreeSet<_>>();
        let (before, now) = (keys(old), keys(new));
        let touched = |of: &Montaged, map: Option<&SectionToVolume>, other: &BTreeSet<TileKey>| -> Vec<BoxXy> {
            let Some(map) = map else { return Vec::new() };
            let placed = of.placed(|tile, size| compose(tile, map, size)).into_iter();
            let touched = placed.filter(|p| moved.contains(&p.key) || !other.contains(&p.key));
            touched.map(|p| p.bounds(1)).collect()
        };
        let plane = plane(&self.image);
        let boxes = touched(old, was, &now).into_iter().chain(touched(new, map, &before));
        let boxes: BTreeSet<[i64; 4]> = boxes.filter_map(|b| b.intersect(&plane)).map(corners).collect();
        boxes.into_iter().collect()
    }

    /// The cells that hold any of `boxes`, from the tiles and, where no box is, from version 0.
    fn draw(
        &self,
        z: u32,
        image: &str,
        section: &Montaged,
        map: &SectionToVolume,
        boxes: &[[i64; 4]],
        tiles: &mut TileCache,
    ) -> Result<(), StopError> {
        let placed = section.placed(|tile, size| compose(tile, map, size));
        let first = volume::open(&self.out.join("volume/image/0"))?;
        let writer = ImageWriter::create(&self.out.join(image), self.image.clone())?;
        let boxes: Vec<BoxXy> = boxes.iter().map(|b| of_corners(*b)).collect();
        let pixels = boxes.iter().map(|b| (b.size().x * b.size().y) as u64).sum();
        let blocks = Blocks { z, renderer: &self.renderer, placed: &placed, boxes: &boxes, first: &*first };
        self.telemetry.time(StageName::Render, pixels, || -> Result<(), StopError> {
            let mut rows_out = writer.section(z as usize)?;
            for rows in bands(&self.image) {
                let mut band = Array2::zeros((rows.size().y, rows.size().x));
                for block in touched_blocks(&self.image, &rows, &boxes) {
                    let pixels = blocks.pixels(block, tiles)?;
                    let x = |v: i64| v as usize;
                    band.slice_mut(s![.., x(block.min.x)..x(block.max.x)]).assign(&pixels);
                }
                rows_out.push_rows(band.view())?;
            }
            Ok(rows_out.finish()?)
        })?;
        tiles.clear();
        Ok(())
    }
}

/// What the blocks of one section are made of.
struct Blocks<'a> {
    z: u32,
    renderer: &'a Renderer,
    placed: &'a [PlacedTile],
    boxes: &'a [BoxXy],
    first: &'a dyn VolumeSource,
}

impl Blocks<'_> {
    fn pixels(&self, block: BoxXy, tiles: &mut TileCache) -> Result<Array2<u8>, StopError> {
        if self.boxes.iter().any(|b| b.intersect(&block).is_some()) {
            return Ok(tiles.block(self.renderer, self.placed, block, 1)?);
        }
        let at = i64::from(self.z);
        let (min, max) = (Zyx::new(at, block.min.y, block.min.x), Zyx::new(at + 1, block.max.y, block.max.x));
        Ok(self.first.read_u8(BoxZyx { min, max })?.index_axis_move(Axis(0), 0))
    }
}

fn lacking(path: &std::path::Path) -> StopError {
    let text = format!(
        "{} is not there, which the next version of the section is made from; run again with --overwrite",
        path.display()
    );
    std::io::Error::new(std::io::ErrorKind::NotFound, text).into()
}

/// Current tiles that show anything.
fn showing(tiles: &BTreeMap<TileKey, TileQuality>) -> BTreeSet<TileKey> {
    current(tiles).into_iter().filter(|k| !tiles[k].blank).collect()
}

/// What is known of the section with what is new.
fn merged(closed: Closed, before: &Evidence, config: &InspectConfig) -> Closed {
    let mut tiles: BTreeMap<TileKey, TileQuality> = before.tiles.iter().copied().collect();
    tiles.extend(closed.tiles);
    // Judged anew against what is there now.
    for quality in tiles.values_mut().filter(|q| q.verdict == Verdict::Blurred) {
        quality.verdict = Verdict::Good;
    }
    compare(&mut tiles, config);
    let mut lost: BTreeMap<_, _> = before.lost.iter().cloned().collect();
    lost.extend(closed.lost);
    Closed { plan: closed.plan, revision: closed.revision, tiles, lost, pairs: Vec::new() }
}

/// The pairs among `now` that touch what is not in `was`, sorted.
fn touching(plan: &SectionPlan, was: &BTreeSet<TileKey>, now: &BTreeSet<TileKey>, config: &MatchConfig) -> Vec<Pair> {
    let longest = plan.tiles().map(|t| t.size.x.max(t.size.y)).max().unwrap_or(1);
    let mut near = Neighbours::new(longest);
    for tile in now.intersection(was).filter_map(|k| plan.tile(*k)) {
        near.add(tile, config);
    }
    let new = now.difference(was).filter_map(|k| plan.tile(*k));
    let mut pairs: Vec<Pair> = new.flat_map(|tile| near.add(tile, config)).collect();
    pairs.sort_by_key(|p| (p.p, p.q));
    pairs
}

fn placed(plan: &Arc<SectionPlan>, solved: Solved) -> Montaged {
    Montaged { plan: plan.clone(), ..solved.into() }
}

/// Lays `new` into the frame of `old` and leaves what hardly moves exactly where it was, with its tone; gives the tiles that
/// are in both and moved.
fn hold(
    plan: &SectionPlan,
    old: &Solved,
    new: &mut Montage,
    tones: &mut BTreeMap<TileKey, Tone>,
) -> Result<BTreeSet<TileKey>, StopError> {
    let points = |key: TileKey| {
        let size = plan.tile(key).map_or(Xy::new(1, 1), |t| t.size);
        let (w, h) = (f64::from(size.x) - 1.0, f64::from(size.y) - 1.0);
        [(0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)].map(|(u, v)| Xy::new(u * w, v * h))
    };
    let both: Vec<(Xy<f64>, Xy<f64>)> = new
        .tiles
        .iter()
        .filter_map(|t| Some((t, old.montage.tile(t.key)?)))
        .flat_map(|(t, there)| points(t.key).map(|p| (t.map.0.apply(p), there.0.apply(p))))
        .collect();
    let frame = frame(&both);
    let before: BTreeMap<TileKey, Tone> = old.tones.iter().copied().collect();
    let mut moved = BTreeSet::new();
    for tile in &mut new.tiles {
        let map = followed(&tile.map.0, &frame)?;
        match old.montage.tile(tile.key) {
            Some(there) if points(tile.key).iter().all(|p| (map.apply(*p) - there.0.apply(*p)).norm() <= HELD_PX) => {
                tile.map = there.clone();
                tones.extend(before.get(&tile.key).map(|tone| (tile.key, *tone)));
            }
            there => {
                if there.is_some() {
                    moved.insert(tile.key);
                }
                tile.map = TileToSection(map);
            }
        }
    }
    Ok(moved)
}

/// The affine map that takes first points to second ones best: what two solutions of one section may differ by although no
/// tile moved (place, turn, scale). Huber weights at [`HELD_PX`], so that tiles that did move do not count for much.
fn frame(both: &[(Xy<f64>, Xy<f64>)]) -> Affine {
    let n = both.len().max(1) as f64;
    let sum = both.iter().fold((Xy::default(), Xy::default()), |(f, t), (a, b)| (f + *a, t + *b));
    let (from, to) = (sum.0 * (1.0 / n), sum.1 * (1.0 / n));
    let mut frame = Affine::translation(to - from);
    for _ in 0..10 {
        // Normal equations of 1, x, y about the middle, for both axes at once.
        let (mut m, mut r) = ([[0.0f64; 3]; 3], [Xy::default(); 3]);
        for (a, b) in both {
            let weight = HELD_PX / (frame.apply(*a) - *b).norm().max(HELD_PX);
            let row = [1.0, a.x - from.x, a.y - from.y];
            for i in 0..3 {
                (0..3).for_each(|j| m[i][j] += weight * row[i] * row[j]);
                r[i] = r[i] + (*b - *a) * (weight * row[i]);
            }
        }
        for i in 0..3 {
            // Fewer points than a plane needs leave the frame as it is.
            if m[i][i] < 1e-6 {
                return frame;
            }
            let (pivot, value) = (m[i], r[i]);
            for k in (0..3).filter(|k| *k != i) {
                let factor = m[k][i] / pivot[i];
                (0..3).for_each(|j| m[k][j] -= factor * pivot[j]);
                r[k] = r[k] - value * factor;
            }
        }
        let [t, u, v] = std::array::from_fn(|i| r[i] * (1.0 / m[i][i]));
        let moved = t - u * from.x - v * from.y;
        frame = Affine { rows: [[1.0 + u.x, v.x, moved.x], [u.y, 1.0 + v.y, moved.y]] };
    }
    frame
}

/// First `map`, then `frame`.
fn followed(map: &Map, frame: &Affine) -> Result<Map, StopError> {
    Ok(match map {
        Map::Affine(a) => Map::Affine(a.then(frame)),
        Map::Grid(g) => Map::Grid(Grid::from_fn(g.xs().to_vec(), g.ys().to_vec(), |p| frame.apply(g.apply(p)))?),
    })
}

fn record(
    closed: &Closed,
    old: &Montaged,
    new: &Montaged,
    moved: &BTreeSet<TileKey>,
    (boxes, boxes_since_first): (Vec<[i64; 4]>, Vec<[i64; 4]>),
    image: Option<String>,
) -> RevisionFile {
    let before: BTreeMap<TileKey, &str> = old.montage.tiles.iter().map(|t| (t.key.first(), t.name.as_str())).collect();
    let fresh = new.montage.tiles.iter().filter(|t| old.montage.tile(t.key).is_none());
    let retaken = fresh.map(|t| (t.name.clone(), before.get(&t.key.first()).map(|n| (*n).to_owned()))).collect();
    let name = |key: &TileKey| closed.plan.tile(*key).map_or_else(|| key.to_string(), |t| t.name.clone());
    RevisionFile {
        section: closed.plan.name.clone(),
        z: closed.plan.serial.0,
        version: closed.revision,
        retaken,
        moved: moved.iter().map(name).collect(),
        boxes,
        boxes_since_first,
        image,
        labels_of_version: 0,
    }
}

#[cfg(test)]
mod tests {
    use kinesin_stream::ids::{Attempt, BeamId, MfovId, RegionId, SectionId, SerialIndex};
    use kinesin_stream::plan::{MfovPlan, PlannedTile};

    use super::*;
    use crate::montage::{Anchor, PlacedTile as MontagedTile, Residual};
    use crate::pointmatch::pairs;

    /// Twelve tiles in rows of four; the beams `again` once more.
    fn plan(again: &[u16]) -> SectionPlan {
        let id = MfovId::new(SectionId(2), RegionId(0), 0);
        let stop = |id: MfovId, beams: Vec<u16>| {
            let tile = |beam: u16| PlannedTile {
                key: TileKey { mfov: id, beam: BeamId(beam) },
                name: format!("{beam}-{}", id.attempt.0),
                nominal: Xy::new(f64::from(beam % 4) * 90.0, f64::from(beam / 4) * 90.0),
                size: Xy::new(100, 100),
            };
            MfovPlan { id, revision: u32::from(id.attempt.0), tiles: beams.into_iter().map(tile).collect() }
        };
        let (section, serial) = (SectionId(2), SerialIndex(0));
        let mfovs = vec![stop(id, (0..12).collect())];
        let first = SectionPlan { section, serial, name: "s".into(), version: 0, mfovs };
        first.amended([stop(id.at(Attempt(1)), again.to_vec())])
    }

    #[test]
    fn pairs_that_stay_and_pairs_that_retakes_touch_are_all_pairs() {
        let plan = plan(&[5, 6, 11]);
        let (first, again): (BTreeSet<TileKey>, BTreeSet<TileKey>) =
            plan.tiles().map(|t| t.key).partition(|k| k.mfov.attempt == Attempt(0));
        // Beam 6 showed nothing before, beam 11 does not either the second time.
        let was: BTreeSet<_> = first.iter().copied().filter(|k| k.beam != BeamId(6)).collect();
        let new: BTreeSet<_> = again.into_iter().filter(|k| k.beam != BeamId(11)).collect();
        let replaced = |k: &&TileKey| !new.iter().any(|n| n.first() == k.first());
        let now: BTreeSet<TileKey> = was.iter().filter(replaced).copied().chain(new.clone()).collect();
        let config = MatchConfig::default();
        let stay = pairs(&plan, &was, &config).into_iter().filter(|p| now.contains(&p.p) && now.contains(&p.q));
        let touch = touching(&plan, &was, &now, &config);
        // Two neighbours inside the rows: each has four, one of them is between the two.
        assert_eq!(touch.len(), 4 + 4 - 1);
        let mut all: Vec<Pair> = stay.chain(touch).collect();
        all.sort_by_key(|p| (p.p, p.q));
        assert_eq!(all, pairs(&plan, &now, &config));
    }

    fn solved(plan: &SectionPlan, at: impl Fn(u16) -> Xy<f64>, attempt: impl Fn(u16) -> u16, gain: f32) -> Solved {
        let tiles: Vec<&PlannedTile> = plan.tiles().filter(|t| attempt(t.key.beam.0) == t.key.mfov.attempt.0).collect();
        let place = |t: &&PlannedTile| MontagedTile {
            key: t.key,
            name: t.name.clone(),
            map: TileToSection(Map::Affine(Affine::translation(at(t.key.beam.0)))),
            anchor: Anchor::Matches,
        };
        let mut placed: Vec<MontagedTile> = tiles.iter().map(place).collect();
        placed.sort_by_key(|t| t.key);
        let montage = Montage {
            section: plan.section,
            serial: plan.serial,
            stiffness: None,
            lenses: crate::montage::KnownLenses::default(),
            trials: Vec::new(),
            residual: Residual::default(),
            pairs: Vec::new(),
            tiles: placed,
        };
        Solved {
            plan: Arc::new(plan.clone()),
            montage,
            tones: tiles.iter().map(|t| (t.key, Tone { gain, offset: 0.0 })).collect(),
        }
    }

    #[test]
    fn what_hardly_moves_stays_bit_by_bit_and_what_all_tiles_share_is_no_move() {
        let plan = plan(&[5]);
        let place = |beam: u16| Xy::new(f64::from(beam) * 10.0 + 0.1, -3.0);
        let old = solved(&plan, place, |_| 0, 1.0);
        let shift = Xy::new(7.3, -2.1);
        let off = |beam: u16| match beam {
            2 => Xy::new(0.3, -0.3),
            9 => Xy::new(0.0, 1.5),
            _ => Xy::default(),
        };
        let new = solved(&plan, |b| place(b) + shift + off(b), |b| u16::from(b == 5), 1.5);
        let (mut montage, mut tones) = (new.montage, new.tones.into_iter().collect());
        let moved = hold(&plan, &old, &mut montage, &mut tones).expect("affine maps");
        assert_eq!(moved.iter().map(|k| k.beam.0).collect::<Vec<_>>(), [9]);
        for tile in &montage.tiles {
            let beam = tile.key.beam.0;
            match old.montage.tile(tile.key) {
                Some(there) if beam != 9 => assert_eq!((&tile.map, tones[&tile.key].gain), (there, 1.0)),
                _ => {
                    // What moved tilts the common frame a little, the less the more tiles stayed.
                    assert!((tile.map.0.apply(Xy::default()) - place(beam) - off(beam)).norm() < 0.1);
                    assert_eq!(tones[&tile.key].gain, 1.5);
                }
            }
        }
    }
}
