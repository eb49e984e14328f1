//! `sections/<z>/quality.json`: what an operator wants to know of a section at once, while it can still be taken again.
//!
//! ```text
//! overlaps   doubtful or failed pairs, with why                       montage
//! gaps       neighbours that do not overlap any more, or hardly       places of the solved tiles
//! holes      parts inside the section that no tile shows              the same
//! rows       jitter and skew of the first rows                        point matching
//! scan       lines that jump in several beams at once                 inspection
//! ```
//! What is seen of these before the section is complete is in `faults.jsonl` at once.
//! Limits follow operators' checks of MultiSEM regions: an overlap below 150 nm is thin, 8 px of skew are a fault.

use std::collections::BTreeMap;

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::TileKey;
use kinesin_stream::tile::Reason;
use serde_json::{Value, json};

use super::gather::Closed;
use super::montaging::Matches;
use crate::inspect::scan_faults;
use crate::montage::Montage;

/// Overlap below which a seam is called thin, nm.
const THIN_NM: f64 = 150.0;
/// Skew of the first rows from which on it is told, pixels.
pub(super) const SKEW_PX: f64 = 8.0;
/// Jitter of rows from which on it is told: this many times what the section's other overlaps have, and this many pixels.
pub(super) const JITTER_OVER_MEDIAN: f64 = 3.0;
pub(super) const JITTER_PX: f64 = 0.5;
/// Cells along the shorter side of a tile in which holes are looked for, and most cells of a section.
const CELLS_A_TILE: f64 = 16.0;
const MOST_CELLS: f64 = 4e6;

/// Overlap below which a seam is called thin, pixels.
pub(super) fn thin_px(pixel_nm: f64) -> f64 {
    THIN_NM / pixel_nm.max(f64::MIN_POSITIVE)
}

/// The record of one section.
pub(super) fn quality(closed: &Closed, montage: &Montage, matches: &Matches, pixel_nm: f64) -> Value {
    let name = |key: TileKey| closed.plan.tile(key).map_or_else(|| key.to_string(), |t| t.name.clone());
    let tiles: serde_json::Map<_, _> = closed.tiles.iter().map(|(k, q)| (name(*k), json!(q))).collect();
    let reason = |(k, r): (&TileKey, &Reason)| (name(*k), json!(r.to_string()));
    let lost: serde_json::Map<_, _> = closed.lost.iter().map(reason).collect();
    let faults: Vec<_> = montage
        .faults()
        .map(|f| json!({"p": name(f.p), "q": name(f.q), "confidence": f.confidence, "fault": f.fault}))
        .collect();
    let unconnected: Vec<_> = montage.unconnected().map(|t| json!({"tile": t.name, "held_by": t.anchor})).collect();
    let boxes = boxes(closed, montage);
    let gaps: Vec<_> = gaps(montage, &boxes, thin_px(pixel_nm))
        .map(|(p, q, px)| json!({"p": name(p), "q": name(q), "overlap_px": px, "kind": if px < 0.0 { "gap" } else { "thin" }}))
        .collect();
    let holes: Vec<_> = holes(&boxes).into_iter().map(|h| json!({"x": h.at.x, "y": h.at.y, "px": h.area})).collect();
    let rows: Vec<_> = rows(matches).map(|(p, q, r)| json!({"p": name(p), "q": name(q), "rows": r})).collect();
    let scan: Vec<_> = scan_faults(&closed.tiles)
        .into_iter()
        .map(|f| json!({"row": f.row, "rise": f.rise, "tiles": f.tiles.into_iter().map(name).collect::<Vec<_>>()}))
        .collect();
    json!({
        "section": closed.plan.name,
        "z": closed.plan.serial.0,
        "version": closed.revision,
        "tiles": tiles,
        "lost": lost,
        "doubtful_or_failed_overlaps": faults,
        "tiles_not_held_by_matches": unconnected,
        "gaps": gaps,
        "holes": holes,
        "jitter_or_skew": rows,
        "scan_faults": scan,
        "residual_px": montage.residual,
        "stiffness": montage.stiffness,
    })
}

/// The rectangle that each tile covers at least, section pixels: (left, top), (right, bottom).
type Boxes = BTreeMap<TileKey, (Xy<f64>, Xy<f64>)>;

fn boxes(closed: &Closed, montage: &Montage) -> Boxes {
    let of = |key: TileKey| {
        let (map, size) = (&montage.tile(key)?.0, closed.plan.tile(key)?.size);
        let at = |x: u32, y: u32| map.apply(Xy::new(f64::from(x), f64::from(y)));
        let (right, bottom) = (size.x.saturating_sub(1), size.y.saturating_sub(1));
        let [a, b, c, d] = [at(0, 0), at(right, 0), at(0, bottom), at(right, bottom)];
        Some((key, (Xy::new(a.x.max(c.x), a.y.max(b.y)), Xy::new(b.x.min(d.x), c.y.min(d.y)))))
    };
    montage.tiles.iter().filter_map(|t| of(t.key)).collect()
}

/// Pairs that were to overlap and now do so by less than `thin` pixels, negative where they are apart.
fn gaps<'a>(montage: &'a Montage, boxes: &'a Boxes, thin: f64) -> impl Iterator<Item = (TileKey, TileKey, f64)> + 'a {
    montage.pairs.iter().filter(|p| p.used || p.fault.is_some()).filter_map(move |pair| {
        let ((a, b), (c, d)) = (boxes.get(&pair.p)?, boxes.get(&pair.q)?);
        let along = |a: f64, b: f64, c: f64, d: f64| b.min(d) - a.max(c);
        let common = along(a.x, b.x, c.x, d.x).min(along(a.y, b.y, c.y, d.y));
        (common < thin).then_some((pair.p, pair.q, common))
    })
}

/// Overlaps whose first rows shake or lag more than those of the others.
fn rows(matches: &Matches) -> impl Iterator<Item = (TileKey, TileKey, crate::pointmatch::RowDrift)> {
    let mut jitters: Vec<f64> = matches.values().filter_map(|(m, _)| Some(m.rows?.jitter_px)).collect();
    jitters.sort_by(f64::total_cmp);
    let usual = jitters.get(jitters.len() / 2).copied().unwrap_or(0.0);
    let limit = JITTER_PX.max(JITTER_OVER_MEDIAN * usual);
    matches.values().filter_map(move |(m, _)| {
        let rows = m.rows.filter(|r| r.skew_px >= SKEW_PX || r.jitter_px > limit)?;
        Some((m.p, m.q, rows))
    })
}

/// A part inside the section that no tile shows.
#[derive(Debug, PartialEq)]
struct Hole {
    /// Its middle, section pixels.
    at: Xy<f64>,
    /// Its area, pixels, as far as cells tell.
    area: f64,
}

/// Cells that no tile covers and that are cut off from the outside, joined where they touch along a side.
fn holes(boxes: &Boxes) -> Vec<Hole> {
    let low = boxes.values().map(|b| b.0).reduce(|a, b| Xy::new(a.x.min(b.x), a.y.min(b.y)));
    let high = boxes.values().map(|b| b.1).reduce(|a, b| Xy::new(a.x.max(b.x), a.y.max(b.y)));
    let (Some(low), Some(high)) = (low, high) else { return Vec::new() };
    let shortest = boxes.values().map(|(a, b)| (b.x - a.x).min(b.y - a.y)).fold(f64::INFINITY, f64::min);
    let whole = (high.x - low.x).max(1.0) * (high.y - low.y).max(1.0);
    let cell = (shortest / CELLS_A_TILE).max((whole / MOST_CELLS).sqrt()).max(1.0);
    let mut cells = Cells::new(low, high, cell);
    boxes.values().for_each(|(a, b)| cells.cover(*a, *b));
    // The outside is one part too; it holds the first cell.
    cells.take(0);
    let mut found = Vec::new();
    for i in 0..cells.seen.len() {
        if !cells.seen[i] {
            found.push(cells.take(i));
        }
    }
    found
}

/// Squares of a section, with one of the outside all around.
struct Cells {
    low: Xy<f64>,
    side: f64,
    width: usize,
    height: usize,
    /// Covered by a tile, or counted already.
    seen: Vec<bool>,
}

impl Cells {
    fn new(low: Xy<f64>, high: Xy<f64>, side: f64) -> Self {
        let count = |length: f64| (length / side).ceil().max(0.0) as usize + 2;
        let (width, height) = (count(high.x - low.x), count(high.y - low.y));
        Self { low, side, width, height, seen: vec![false; width * height] }
    }

    /// Marks the cells whose middles lie between two corners.
    fn cover(&mut self, a: Xy<f64>, b: Xy<f64>) {
        let range = |a: f64, b: f64, n: usize| {
            let first = (a / self.side + 0.5).ceil().max(0.0) as usize;
            let end = (b / self.side + 0.5).floor().max(-1.0) + 1.0;
            first.min(n)..(end as usize).clamp(first.min(n), n)
        };
        let (a, b) = (a - self.low, b - self.low);
        let columns = range(a.x, b.x, self.width);
        for y in range(a.y, b.y, self.height) {
            self.seen[y * self.width + columns.start..y * self.width + columns.end].fill(true);
        }
    }

    /// Counts the part that cell `from` belongs to and marks it.
    fn take(&mut self, from: usize) -> Hole {
        let (w, h) = (self.width, self.height);
        let (mut cells, mut sum, mut open) = (0.0, Xy::default(), vec![from]);
        self.seen[from] = true;
        while let Some(i) = open.pop() {
            let (x, y) = (i % w, i / w);
            cells += 1.0;
            sum = sum + Xy::new(x as f64 - 0.5, y as f64 - 0.5);
            let left = (x > 0).then(|| i - 1);
            let right = (x + 1 < w).then(|| i + 1);
            let above = (y > 0).then(|| i - w);
            let below = (y + 1 < h).then(|| i + w);
            for j in [left, right, above, below].into_iter().flatten() {
                if !self.seen[j] {
                    self.seen[j] = true;
                    open.push(j);
                }
            }
        }
        Hole { at: self.low + sum * (self.side / cells), area: cells * self.side * self.side }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId};

    /// A 5 x 4 grid of tiles of 100 px that overlap by 10, without those named.
    fn grid(without: &[u16]) -> Boxes {
        let id = MfovId::new(SectionId(0), RegionId(0), 0);
        let key = |beam| TileKey { mfov: id, beam: BeamId(beam) };
        let tile = |i: u16| {
            let at = Xy::new(f64::from(i % 5) * 90.0 - 37.0, f64::from(i / 5) * 90.0 + 12.0);
            (key(i), (at, at + Xy::new(99.0, 99.0)))
        };
        (0..20).filter(|i| !without.contains(i)).map(tile).collect()
    }

    #[test]
    fn a_missing_tile_inside_is_a_hole_and_one_at_the_rim_is_not() {
        assert!(holes(&grid(&[])).is_empty());
        assert!(holes(&grid(&[0, 9])).is_empty());
        let found = holes(&grid(&[7, 0]));
        assert_eq!(found.len(), 1);
        // What its neighbours leave of tile (2, 1): 80 px square in the middle of it.
        let middle = Xy::new(2.0 * 90.0 - 37.0 + 49.5, 90.0 + 12.0 + 49.5);
        assert!((found[0].at - middle).norm() < 7.0, "{found:?}");
        assert!((found[0].area / 6400.0 - 1.0).abs() < 0.25, "{found:?}");
        assert_eq!(holes(&grid(&[6, 13])).len(), 2);
    }

    #[test]
    fn no_tiles_have_no_holes() {
        assert!(holes(&Boxes::new()).is_empty());
    }
}
