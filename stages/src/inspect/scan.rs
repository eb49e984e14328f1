//! Scan faults: a line that jumps, or is lit up, in all beams of an exposure at once.
//!
//! ```text
//! r(y) = sum_x |I(x, y+1) - I(x, y)|  /  mean over rows y, y+1 of sum_x |I(x+1, y) - I(x, y)|
//! rise = r(y) / (median of r over the rows around y) - 1
//! ```
//! Steps down over steps along: noise makes both alike, tissue does over many rows, a fault in one or two. Operators of MultiSEMs
//! look for a peak of this ratio at the same row of two beams ("beam arc"), because what all beams show at once is not tissue.

use std::collections::BTreeMap;

use kinesin_stream::ids::{MfovId, TileKey};
use serde::{Deserialize, Serialize};

use super::TileQuality;

/// Rise from which on a row stands out; what operators use.
const RISE: f64 = 0.3;
/// Rise from which on a beam is believed alone, where it is the only one of its exposure.
const RISE_ALONE: f64 = 1.0;
/// Rows on either side that a row is compared with, and how many next to it are left out.
const AROUND: usize = 6;
const LEFT_OUT: usize = 2;
/// Rows of two beams that count as the same may differ by so many.
const SAME_ROWS: u32 = 1;

/// The row of a tile that stands out most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LineJump {
    /// Between this row and the next.
    pub row: u32,
    /// By how much of the rows around.
    pub rise: f64,
}

/// A row that stands out in several beams of one exposure.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanFault {
    /// Which stage stop.
    pub mfov: MfovId,
    /// Between this row and the next.
    pub row: u32,
    /// Largest rise.
    pub rise: f64,
    /// Where it shows, sorted.
    pub tiles: Vec<TileKey>,
}

/// Sum of the distances of values side by side, or of two rows.
#[inline(always)]
pub(super) fn steps(a: &[u8], b: &[u8]) -> u64 {
    let sum = |(a, b): (&[u8], &[u8])| a.iter().zip(b).map(|(&x, &y)| u32::from(x.abs_diff(y))).sum::<u32>();
    a.chunks(4096).zip(b.chunks(4096)).map(|part| u64::from(sum(part))).sum()
}

/// The row that stands out most from the steps along each row and those from each row to the next.
pub(super) fn line_jump(along: &[u64], across: &[u64]) -> Option<LineJump> {
    let ratios: Vec<f64> =
        across.iter().zip(along.windows(2)).map(|(a, w)| 2.0 * *a as f64 / ((w[0] + w[1]) as f64).max(1.0)).collect();
    let mut found: Option<LineJump> = None;
    let mut near = Vec::with_capacity(2 * AROUND);
    for (y, &ratio) in ratios.iter().enumerate() {
        near.clear();
        near.extend_from_slice(&ratios[y.saturating_sub(AROUND)..y.saturating_sub(LEFT_OUT)]);
        near.extend_from_slice(ratios.get(y + LEFT_OUT + 1..(y + AROUND + 1).min(ratios.len())).unwrap_or(&[]));
        if near.len() < AROUND {
            continue;
        }
        near.sort_by(f64::total_cmp);
        let usual = near[near.len() / 2];
        let rise = if usual > 0.0 { ratio / usual - 1.0 } else { 0.0 };
        if rise >= RISE && found.is_none_or(|f| rise > f.rise) {
            found = Some(LineJump { row: y as u32, rise });
        }
    }
    found
}

/// The faults of all exposures of which there are tiles, sorted.
pub fn scan_faults(tiles: &BTreeMap<TileKey, TileQuality>) -> Vec<ScanFault> {
    let mut stops: BTreeMap<MfovId, Vec<(LineJump, TileKey)>> = BTreeMap::new();
    let mut beams: BTreeMap<MfovId, usize> = BTreeMap::new();
    for (key, quality) in tiles {
        *beams.entry(key.mfov).or_default() += 1;
        if let Some(jump) = quality.line_jump {
            stops.entry(key.mfov).or_default().push((jump, *key));
        }
    }
    let mut faults = Vec::new();
    for (mfov, mut jumps) in stops {
        jumps.sort_by_key(|(jump, key)| (jump.row, *key));
        for same in jumps.chunk_by(|a, b| b.0.row - a.0.row <= SAME_ROWS) {
            let rise = same.iter().map(|(j, _)| j.rise).fold(0.0, f64::max);
            if same.len() > 1 || (beams[&mfov] == 1 && rise >= RISE_ALONE) {
                let mut tiles: Vec<TileKey> = same.iter().map(|(_, key)| *key).collect();
                tiles.sort_unstable();
                faults.push(ScanFault { mfov, row: same[0].0.row, rise, tiles });
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use kinesin_stream::ids::{BeamId, RegionId, SectionId};
    use kinesin_stream::pixels::Pixels;

    use super::super::{InspectConfig, inspect};
    use super::*;

    /// Tissue of `beam`, with noise; from row 70 on it lies `by` pixels further right.
    fn tile(beam: u16, by: f64) -> (TileKey, TileQuality) {
        let mut state = u64::from(beam) + 1;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64 * 24.0 - 12.0
        };
        let data: Vec<u8> = (0..200 * 160)
            .map(|i| {
                let (x, y) = (f64::from(i % 200), f64::from(i / 200));
                let x = x + f64::from(beam) * 31.0 - if y >= 70.0 { by } else { 0.0 };
                (120.0 + 50.0 * (x / 4.0 + (y / 17.0).sin()).sin() + 15.0 * (y / 9.0).cos() + noise()) as u8
            })
            .collect();
        let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
        (TileKey { mfov, beam: BeamId(beam) }, inspect(&Pixels::new(200, 160, data), &InspectConfig::default()))
    }

    #[test]
    fn a_line_that_jumps_in_two_beams_is_a_fault_and_one_in_a_single_beam_is_not() {
        let tiles: BTreeMap<_, _> = (0..5).map(|b| tile(b, if b > 2 { 6.0 } else { 0.0 })).collect();
        let faults = scan_faults(&tiles);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!((faults[0].row, faults[0].tiles.len()), (69, 2));
        let tiles: BTreeMap<_, _> = (0..5).map(|b| tile(b, if b > 3 { 6.0 } else { 0.0 })).collect();
        assert!(scan_faults(&tiles).is_empty());
    }

    #[test]
    fn tissue_noise_and_single_beams_that_scan_well_have_none() {
        assert!(scan_faults(&BTreeMap::from([tile(0, 0.0)])).is_empty());
        assert_eq!(scan_faults(&BTreeMap::from([tile(0, 6.0)])).len(), 1, "the only beam is believed alone");
    }
}
