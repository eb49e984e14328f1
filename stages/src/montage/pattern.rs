//! The beam pattern: beams of one exposure lie off their nominal places by the same amounts in every section.
//!
//! ```text
//! move(tile) = pattern(beam) + shift(exposure) + error of this tile        learned: mean over exposures and sections
//! ```
//! Scale, turn and shift of an exposure are taken out before: what is learned cannot hold on to a wrong scale and pass it on.
//! Each section is solved with what those before it told, and leaves its own for the next; the order is that of z.

use std::collections::BTreeMap;

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::{BeamId, MfovId};
use kinesin_stream::plan::PlannedTile;
use serde::{Deserialize, Serialize};

use super::lens::KEPT;

/// Fewer placed tiles of an exposure do not tell a pattern from a turn.
const FEWEST_TILES: usize = 6;
/// Sections, as far as they still count, from which on a pattern is believed.
const FEWEST_SECTIONS: f64 = 1.5;
/// A pattern is used where it leaves less than this part of the tiles' moves: else the beams do not hold one.
const USEFUL: f64 = 0.8;

/// Where a beam lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeamPlace {
    /// Off its nominal place, pixels.
    pub offset: Xy<f64>,
    /// Number of sections that told of it, earlier ones counting less.
    pub sections: f64,
}

/// By how much the pattern moves each tile; nothing where none is known, or where it does not tell what moves.
pub(super) fn expected(
    pattern: &[(BeamId, BeamPlace)],
    tiles: &[&PlannedTile],
    moves: &[Xy<f64>],
    placed: &[bool],
) -> Vec<Xy<f64>> {
    let known: BTreeMap<BeamId, Xy<f64>> =
        pattern.iter().filter(|(_, p)| p.sections >= FEWEST_SECTIONS).map(|(b, p)| (*b, p.offset)).collect();
    let offsets: Vec<Xy<f64>> = tiles.iter().map(|t| known.get(&t.key.beam).copied().unwrap_or_default()).collect();
    let left = |of: &dyn Fn(usize) -> Xy<f64>| {
        let all = (0..tiles.len()).map(|i| if placed[i] { of(i) } else { Xy::default() });
        let rest = residuals(tiles, &all.collect::<Vec<_>>(), placed);
        rest.iter().map(|(_, r)| r.x * r.x + r.y * r.y).sum::<f64>()
    };
    let useful = left(&|i| moves[i] - offsets[i]) < USEFUL * USEFUL * left(&|i| moves[i]);
    if useful { offsets } else { vec![Xy::default(); tiles.len()] }
}

/// What is known after a section whose tiles moved like this.
pub(super) fn learned(
    before: &[(BeamId, BeamPlace)],
    tiles: &[&PlannedTile],
    moves: &[Xy<f64>],
    placed: &[bool],
) -> Vec<(BeamId, BeamPlace)> {
    let mut seen: BTreeMap<BeamId, (Xy<f64>, f64)> = BTreeMap::new();
    for (i, rest) in residuals(tiles, moves, placed) {
        let sum = seen.entry(tiles[i].key.beam).or_default();
        *sum = (sum.0 + rest, sum.1 + 1.0);
    }
    let mut known: BTreeMap<BeamId, BeamPlace> = before.iter().copied().collect();
    for (beam, (sum, count)) in seen {
        let place = known.entry(beam).or_insert(BeamPlace { offset: Xy::default(), sections: 0.0 });
        let (old, sections) = (KEPT * place.sections, KEPT * place.sections + 1.0);
        *place = BeamPlace { offset: (place.offset * old + sum * (1.0 / count)) * (1.0 / sections), sections };
    }
    known.into_iter().collect()
}

/// What is left of the moves of placed tiles without shift, scale and turn of their exposures.
fn residuals(tiles: &[&PlannedTile], moves: &[Xy<f64>], placed: &[bool]) -> Vec<(usize, Xy<f64>)> {
    let mut exposures: BTreeMap<MfovId, Vec<usize>> = BTreeMap::new();
    for (i, tile) in tiles.iter().enumerate().filter(|(i, _)| placed[*i]) {
        exposures.entry(tile.key.mfov).or_default().push(i);
    }
    let mut rest = Vec::new();
    for members in exposures.into_values().filter(|m| m.len() >= FEWEST_TILES) {
        let share = 1.0 / members.len() as f64;
        let mean = |of: &dyn Fn(usize) -> Xy<f64>| members.iter().fold(Xy::default(), |s, &i| s + of(i)) * share;
        let (middle, shift) = (mean(&|i| tiles[i].nominal), mean(&|i| moves[i]));
        // Least squares on x and y: two unknowns along each axis.
        let (mut xx, mut xy, mut yy, mut by_x, mut by_y) = (0.0, 0.0, 0.0, Xy::default(), Xy::default());
        for &i in &members {
            let (at, moved) = (tiles[i].nominal - middle, moves[i] - shift);
            (xx, xy, yy) = (xx + at.x * at.x, xy + at.x * at.y, yy + at.y * at.y);
            (by_x, by_y) = (by_x + moved * at.x, by_y + moved * at.y);
        }
        let det = xx * yy - xy * xy;
        // Beams in a line tell nothing of the other axis.
        if det <= 1e-9 * (xx + yy).powi(2) {
            continue;
        }
        let (along_x, along_y) = ((by_x * yy - by_y * xy) * (1.0 / det), (by_y * xx - by_x * xy) * (1.0 / det));
        rest.extend(members.into_iter().map(|i| {
            let at = tiles[i].nominal - middle;
            (i, moves[i] - shift - along_x * at.x - along_y * at.y)
        }));
    }
    rest
}
