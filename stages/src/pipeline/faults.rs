//! `DIR/faults.jsonl`: what is wrong with a section, a line each, as soon as it is seen; while the sample is still in the scope and
//! long before the section is complete.
//!
//! ```text
//! {"z":7,"fault":"overlap","kind":"failed","p":NAME,"q":NAME,"confidence":0.1,"why":".."}     failed, doubtful, thin
//! {"z":7,"fault":"jitter"|"skew","p":NAME,"q":NAME,"px":9.1}                                  first rows of an overlap
//! {"z":7,"fault":"scan","row":417,"rise":0.8,"tiles":[NAME, ..]}                              a line that jumps in several beams
//! {"z":7,"fault":"tile","tile":NAME,"verdict":"incomplete"}
//! ```
//! A log, in the order of events, appended to; what counts as unusual jitter is what came before, and what is matched anew after
//! a restart is told anew. `quality.json` at the end of the section is what depends on none of this.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use kinesin_stream::ids::TileKey;
use kinesin_stream::plan::SectionPlan;
use serde_json::{Value, json};

use super::gather::MfovDone;
use super::quality::{JITTER_OVER_MEDIAN, JITTER_PX, SKEW_PX, thin_px};
use super::telemetry::Telemetry;
use crate::inspect::{self, scan_faults};
use crate::pointmatch::{Pair, PairMatches, RowDrift, Verdict};

/// Overlaps whose jitter tells what is usual, and how few do.
const REMEMBERED: usize = 256;
const FEWEST: usize = 8;

/// Writes the records; shared by all who see faults.
pub(super) struct FaultLog {
    /// Folder of the results.
    out: PathBuf,
    pixel_nm: f64,
    jitters: Mutex<VecDeque<f64>>,
}

impl FaultLog {
    pub(super) fn new(out: PathBuf, pixel_nm: f64) -> Self {
        Self { out, pixel_nm, jitters: Mutex::default() }
    }

    /// All tiles of an exposure have come.
    pub(super) fn exposed(&self, done: &MfovDone, telemetry: &Telemetry) -> std::io::Result<()> {
        let z = done.plan.serial.0;
        let bad = |v| matches!(v, inspect::Verdict::Incomplete | inspect::Verdict::Saturated);
        let tiles = done.tiles.iter().filter(|(_, q)| bad(q.verdict));
        let mut lines: Vec<Value> = tiles
            .map(|(key, q)| json!({"z": z, "fault": "tile", "tile": name(&done.plan, *key), "verdict": q.verdict}))
            .collect();
        for fault in scan_faults(&done.tiles) {
            let tiles: Vec<String> = fault.tiles.iter().map(|key| name(&done.plan, *key)).collect();
            lines.push(json!({"z": z, "fault": "scan", "row": fault.row, "rise": fault.rise, "tiles": tiles}));
        }
        self.append(&lines, telemetry)
    }

    /// A pair was matched, or could not be.
    pub(super) fn matched(
        &self,
        plan: &SectionPlan,
        pair: &Pair,
        found: &PairMatches,
        telemetry: &Telemetry,
    ) -> std::io::Result<()> {
        let ends = json!({"p": name(plan, found.p), "q": name(plan, found.q)});
        let line = |fault: &str, more: Value| {
            let mut line = json!({"z": plan.serial.0, "fault": fault});
            if let (Some(line), Value::Object(ends), Value::Object(more)) = (line.as_object_mut(), ends.clone(), more) {
                line.extend(ends.into_iter().chain(more));
            }
            line
        };
        let mut lines = Vec::new();
        let confidence = found.confidence;
        match &found.verdict {
            Verdict::Failed(why) => {
                lines.push(line("overlap", json!({"kind": "failed", "confidence": confidence, "why": why})));
            }
            Verdict::Doubtful(why) => {
                lines.push(line("overlap", json!({"kind": "doubtful", "confidence": confidence, "why": why})));
            }
            Verdict::Matched => {
                let px = overlap_px(pair, found).filter(|px| *px < thin_px(self.pixel_nm));
                lines.extend(px.map(|px| line("overlap", json!({"kind": "thin", "overlap_px": px}))));
            }
            Verdict::Apart => {}
        }
        if let Some(rows) = found.rows {
            let usual = self.usual(rows);
            if rows.skew_px >= SKEW_PX {
                lines.push(line("skew", json!({"px": rows.skew_px})));
            }
            if usual.is_some_and(|usual| rows.jitter_px > JITTER_PX.max(JITTER_OVER_MEDIAN * usual)) {
                lines.push(line("jitter", json!({"px": rows.jitter_px, "usual_px": usual})));
            }
        }
        self.append(&lines, telemetry)
    }

    /// Median jitter of the overlaps before; `None` where they are too few.
    fn usual(&self, rows: RowDrift) -> Option<f64> {
        let mut jitters = self.jitters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known: Vec<f64> = jitters.iter().copied().collect();
        jitters.push_back(rows.jitter_px);
        if jitters.len() > REMEMBERED {
            jitters.pop_front();
        }
        drop(jitters);
        known.sort_by(f64::total_cmp);
        (known.len() >= FEWEST).then(|| known[known.len() / 2])
    }

    fn append(&self, lines: &[Value], telemetry: &Telemetry) -> std::io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        telemetry.faults(lines.len() as u64);
        std::fs::create_dir_all(&self.out)?;
        // One write: lines of several workers do not mix.
        let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
        OpenOptions::new().create(true).append(true).open(self.out.join("faults.jsonl"))?.write_all(text.as_bytes())
    }
}

fn name(plan: &SectionPlan, key: TileKey) -> String {
    plan.tile(key).map_or_else(|| key.to_string(), |t| t.name.clone())
}

/// Shorter side of the overlap at the mean shift of the points.
fn overlap_px(pair: &Pair, found: &PairMatches) -> Option<f64> {
    let n = found.points.len();
    let shift = found.points.iter().map(|m| m.q - m.p).reduce(|a, b| a + b)? * (1.0 / n as f64);
    let size = pair.overlap(shift)?.size();
    Some(size.x.min(size.y) as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kinesin_stream::geometry::Xy;
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex};
    use kinesin_stream::plan::{MfovPlan, PlannedTile};

    use super::*;

    fn plan() -> SectionPlan {
        let id = MfovId::new(SectionId(0), RegionId(0), 0);
        let tile = |beam: u16| PlannedTile {
            key: TileKey { mfov: id, beam: BeamId(beam) },
            name: format!("t{beam}"),
            nominal: Xy::new(90.0 * f64::from(beam), 0.0),
            size: Xy::new(100, 100),
        };
        let mfovs = vec![MfovPlan { id, revision: 0, tiles: (0..3).map(tile).collect() }];
        SectionPlan { section: SectionId(0), serial: SerialIndex(7), name: "s".into(), version: 0, mfovs }
    }

    #[test]
    fn a_pair_that_fails_is_on_disk_at_once_and_one_that_nobody_expected_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (log, telemetry, plan) = (FaultLog::new(folder.path().into(), 4.0), Telemetry::default(), plan());
        let tiles: Vec<&PlannedTile> = plan.tiles().collect();
        let pair = Pair {
            p: tiles[0].key,
            q: tiles[1].key,
            shift: Xy::new(-90.0, 0.0),
            p_size: tiles[0].size,
            q_size: tiles[1].size,
        };
        log.matched(&plan, &pair, &PairMatches::apart(&pair), &telemetry).expect("room");
        let path = folder.path().join("faults.jsonl");
        assert!(!path.is_file());
        log.matched(&plan, &pair, &PairMatches::failed(&pair, 0.1, "resin"), &telemetry).expect("room");
        let text = std::fs::read_to_string(&path).expect("a line");
        assert_eq!(
            text,
            "{\"z\":7,\"fault\":\"overlap\",\"p\":\"t0\",\"q\":\"t1\",\"kind\":\"failed\",\"confidence\":0.1,\"why\":\"resin\"}\n"
        );
        let done = MfovDone { plan: plan.into(), mfov: pair.p.mfov, tiles: BTreeMap::new(), lost: BTreeMap::new() };
        log.exposed(&done, &telemetry).expect("nothing to say");
        assert_eq!(telemetry.quality_faults(), 1);
    }
}
