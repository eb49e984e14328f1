//! What an operator is told of a section's alignment: a grade with its reasons, the patches, and a map of what is left.

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::Map;
use serde::{Deserialize, Serialize};

use super::chains::Outvoted;
use super::links::Links;
use super::{AlignConfig, Alignment, Verdict};

/// Cells of a residual map along the longer side, at most.
const MOST_CELLS: f64 = 24.0;

/// How far a section's place can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// Nothing to say.
    Good,
    /// It has its place, but somebody should look.
    Doubtful,
    /// It has no place, or one that its neighbours do not confirm; later sections are not laid onto it and nothing is flooded in it.
    Bad,
}

/// A grade and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// The worst of what the reasons say.
    pub grade: Grade,
    /// What was measured and what is allowed; none where all is good.
    pub reasons: Vec<String>,
}

impl Quality {
    /// Of a record, by the thresholds of the settings.
    pub fn of(record: &Alignment, config: &AlignConfig) -> Self {
        let mut quality = Self { grade: Grade::Good, reasons: vec![] };
        let mut say = |grade, reason: String| {
            quality.grade = if quality.grade == Grade::Bad { Grade::Bad } else { grade };
            quality.reasons.push(reason);
        };
        match &record.verdict {
            Verdict::Missing => say(Grade::Bad, "the section is missing".into()),
            Verdict::Failed { reason } => say(Grade::Bad, format!("it has no place: {reason}")),
            Verdict::Bridged { from } => {
                say(Grade::Doubtful, format!("laid onto section {}, because those between are missing or bad", from.0))
            }
            Verdict::NewStart { after, reason } => say(
                Grade::Doubtful,
                format!(
                    "it and those after it fit each other, but not section {}: the volume is broken before it ({reason})",
                    after.0
                ),
            ),
            Verdict::Reference | Verdict::Aligned | Verdict::Inserted => {}
        }
        if record.broken_before && !matches!(record.verdict, Verdict::NewStart { .. }) {
            say(
                Grade::Doubtful,
                "those just before it belong to another run of sections: the volume is broken there".into(),
            );
        }
        let least = config.warn_confidence.max(config.reference_confidence);
        if record.map.is_some() && !record.references.is_empty() && record.confidence < least {
            let (got, least) = (100.0 * record.confidence, 100.0 * least);
            let text = format!("matches are consistent on {got:.0} % of the common tissue, {least:.0} % are usual");
            // Those after it may have confirmed it.
            let bad = record.confidence < config.reference_confidence && !record.kept_as_reference;
            say(if bad { Grade::Bad } else { Grade::Doubtful }, text);
        }
        if let Some(Outvoted { by, between, with_it }) = &record.outvoted {
            let [a, b, c] = [*between, with_it[0], with_it[1]].map(|v| 100.0 * v);
            let text = format!(
                "sections {} and {} agree on {a:.0} % of their tissue with each other, on {b:.0} and {c:.0} % with it",
                by[0].0, by[1].0
            );
            let little = with_it.iter().any(|w| *w < config.reference_confidence);
            say(if little { Grade::Bad } else { Grade::Doubtful }, text);
        }
        if let Some(beside) = &record.beside {
            if beside.sharpness < config.least_sharpness {
                let text = format!("it is out of focus: its fine detail is {:.2} of the usual", beside.sharpness);
                say(Grade::Bad, text);
            }
            if beside.area < config.warn_area {
                let part = 100.0 * beside.area;
                say(
                    Grade::Doubtful,
                    format!("it covers {part:.0} % of the usual area: a part is gone or was not imaged"),
                );
            }
        }
        if record.in_pieces {
            say(Grade::Doubtful, "a crack or a fold parts it: its pieces lie by themselves".into());
        }
        let mut over = |what: &str, got: f64, most: f64| {
            if got > most {
                say(Grade::Doubtful, format!("{what} {got:.1} px, {most:.1} px are usual"));
            }
        };
        if let Some(residual) = record.residual_px {
            over("residual rms", residual.rms, config.warn_residual_px);
            over("residual of the worst twentieth", residual.p95, 2.0 * config.warn_residual_px);
        }
        if let Some(key) = &record.key {
            over("distance from the key section at the corners", key.off_px, config.warn_drift_px);
        }
        if let Some(shape) = &record.shape {
            over("bend of the volume", shape.bend_px, config.warn_drift_px);
        }
        quality
    }
}

/// The patches of a section that were found in an earlier one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// The earlier section.
    pub reference: SerialIndex,
    /// Patches that were looked for.
    pub tried: u32,
    /// `[x, y, u, v, score, off]`: section pixel (x, y), pixel (u, v) of the earlier section that shows the same, correlation, and
    /// how far apart the two lie in the volume, pixels.
    pub patches: Vec<[f64; 6]>,
}

impl Flow {
    /// Of links whose ends lie where the maps say.
    pub(super) fn new(links: &Links, here: &Map, there: &Map) -> Self {
        let patch = |l: &super::Link| {
            let off = (here.apply(l.from) - there.apply(l.to)).norm();
            [l.from.x, l.from.y, l.to.x, l.to.y, l.score, (off * 100.0).round() / 100.0]
        };
        Self { reference: links.reference, tried: links.tried, patches: links.matches.iter().map(patch).collect() }
    }
}

/// Residuals over a section, in square cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualMap {
    /// Section pixel of the first cell's corner.
    pub origin: Xy<f64>,
    /// Side of a cell, section pixels.
    pub cell_px: f64,
    /// Root mean square in each cell, pixels, row by row; null where nothing was found.
    pub rows: Vec<Vec<Option<f64>>>,
}

impl ResidualMap {
    /// Of the patches of a section from `low` to `high`.
    pub(super) fn new(flow: &Flow, [low, high]: [Xy<f64>; 2], config: &AlignConfig) -> Self {
        let size = high - low;
        let cell = (2.0 * f64::from(config.stride_px)).max((size.x.max(size.y) / MOST_CELLS).ceil());
        let cells = |length: f64| (length / cell).ceil().max(1.0) as usize;
        let (columns, rows) = (cells(size.x), cells(size.y));
        let mut sums = vec![vec![(0.0, 0u32); columns]; rows];
        for [x, y, _, _, _, off] in &flow.patches {
            let at = |v: f64, n: usize| ((v / cell).max(0.0) as usize).min(n - 1);
            let sum = &mut sums[at(y - low.y, rows)][at(x - low.x, columns)];
            *sum = (sum.0 + off * off, sum.1 + 1);
        }
        let rms =
            |(square, n): &(f64, u32)| (*n > 0).then(|| ((square / f64::from(*n)).sqrt() * 100.0).round() / 100.0);
        let rows = sums.iter().map(|row| row.iter().map(rms).collect()).collect();
        Self { origin: low, cell_px: cell, rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::align::Residual;

    #[test]
    fn grades_name_every_measure_that_is_over_its_threshold() {
        let config = AlignConfig::default();
        let serial = SerialIndex(4);
        let good = Alignment {
            map: Some(kinesin_stream::map::SectionToVolume(Map::IDENTITY)),
            confidence: 0.9,
            kept_as_reference: true,
            references: vec![SerialIndex(3)],
            residual_px: Some(Residual { rms: 1.0, p95: 2.0 }),
            ..Alignment::unplaced(serial, "s", Verdict::Aligned)
        };
        assert_eq!(Quality::of(&good, &config), Quality { grade: Grade::Good, reasons: vec![] });
        let rough = Alignment {
            residual_px: Some(Residual { rms: 4.0, p95: 9.0 }),
            verdict: Verdict::Bridged { from: SerialIndex(1) },
            ..good.clone()
        };
        let told = Quality::of(&rough, &config);
        assert_eq!((told.grade, told.reasons.len()), (Grade::Doubtful, 3), "{:?}", told.reasons);
        let unsure = Alignment { confidence: 0.3, kept_as_reference: false, ..rough };
        let told = Quality::of(&unsure, &config);
        assert_eq!((told.grade, told.reasons.len()), (Grade::Bad, 4), "{:?}", told.reasons);
        let lost = Alignment::unplaced(serial, "s", Verdict::Failed { reason: "blank".into() });
        assert_eq!(Quality::of(&lost, &config).reasons, ["it has no place: blank"]);
    }

    #[test]
    fn a_residual_map_has_the_rms_of_each_cell() {
        let config = AlignConfig { stride_px: 50, ..AlignConfig::default() };
        let patch = |x: f64, y: f64, off: f64| [x, y, 0.0, 0.0, 1.0, off];
        let patches = vec![patch(10.0, 10.0, 3.0), patch(90.0, 20.0, 4.0), patch(250.0, 110.0, 1.0)];
        let flow = Flow { reference: SerialIndex(0), tried: 5, patches };
        let map = ResidualMap::new(&flow, [Xy::new(0.0, 0.0), Xy::new(299.0, 199.0)], &config);
        // sqrt((9 + 16) / 2) = 3.54
        assert_eq!(map.rows, [[Some(3.54), None, None], [None, None, Some(1.0)]]);
    }
}
