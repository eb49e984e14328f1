//! The match workers of the line: read the two strips of a pair, match them, and note how their grey values compare.

use std::sync::Arc;

use kinesin_backpressure::{Bytes, Cost, Receiver, Sender};
use kinesin_stream::geometry::Xy;
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;

use super::faults::FaultLog;
use super::gather::Closed;
use super::telemetry::{StageName, Telemetry};
use super::tiles::{SectionError, TileStore};
use crate::pointmatch::{Matcher, Pair, PairMatches, StripRects, Verdict};
use crate::render::intensity::OverlapStat;

/// A pair to match.
#[derive(Clone, Debug)]
pub(super) struct PairJob {
    pub(super) plan: Arc<SectionPlan>,
    pub(super) pair: Pair,
}

/// What the montage stage takes.
#[derive(Clone, Debug)]
pub(super) enum MontageInput {
    /// One pair is matched.
    Matched(Arc<SectionPlan>, PairMatches, Option<OverlapStat>),
    /// These are the tiles and pairs of a section.
    Closed(Closed),
}

impl Cost for PairJob {
    fn cost(&self) -> Bytes {
        Bytes(size_of::<Self>() as u64)
    }
}

impl Cost for MontageInput {
    fn cost(&self) -> Bytes {
        let bytes = match self {
            Self::Matched(_, matches, _) => matches.points.len() * size_of::<crate::pointmatch::PointMatch>(),
            Self::Closed(closed) => 128 * (closed.tiles.len() + closed.lost.len() + closed.pairs.len()),
        };
        Bytes((size_of::<Self>() + bytes) as u64)
    }
}

/// Most pixels that are compared for the grey values of one overlap.
const STAT_SAMPLES: usize = 20_000;

/// Matches one pair, and compares its grey values.
pub(super) fn one(
    matcher: &mut Matcher,
    store: &dyn TileStore,
    pair: &Pair,
) -> Result<(PairMatches, Option<OverlapStat>), StopError> {
    let rects = matcher.rects(pair);
    let read = |key, rect| store.read_part(key, rect).map_err(|source| SectionError::Store { key, source });
    let (p, q) = (read(pair.p, rects.p)?, read(pair.q, rects.q)?);
    let matches = matcher.match_pair(pair, &p, &q)?;
    let stat = compare(&matches, &rects, &p, &q);
    Ok((matches, stat))
}

/// Pixels that are read for a pair.
pub(super) fn pixels(matcher: &Matcher, pair: &Pair) -> u64 {
    let rects = matcher.rects(pair);
    (rects.p.size().x * rects.p.size().y + rects.q.size().x * rects.q.size().y) as u64
}

/// One worker: its own [`Matcher`], the shared edges.
pub(super) fn work(
    mut matcher: Matcher,
    store: &dyn TileStore,
    (telemetry, faults): (&Telemetry, &FaultLog),
    (jobs, matched): (Receiver<PairJob>, Sender<MontageInput>),
    run: &RunToken,
) -> Result<(), StopError> {
    while let Some(job) = jobs.recv_blocking() {
        let pair = &job.pair;
        run.working_on(format!("{} with {}", pair.p, pair.q));
        let pixels = pixels(&matcher, pair);
        let (matches, stat) = telemetry.time(StageName::Match, pixels, || one(&mut matcher, store, pair))?;
        faults.matched(&job.plan, pair, &matches, telemetry)?;
        matched.send_blocking(MontageInput::Matched(job.plan.clone(), matches, stat))?;
    }
    Ok(run.check()?)
}

/// Mean and spread of the same tissue in both tiles, at the median shift of the point matches.
fn compare(matches: &PairMatches, rects: &StripRects, p: &Pixels, q: &Pixels) -> Option<OverlapStat> {
    if matches.verdict != Verdict::Matched {
        return None;
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).map(|v| v.round() as i64)
    };
    let along = |axis: fn(Xy<f64>) -> f64| median(matches.points.iter().map(|m| axis(m.q) - axis(m.p)).collect());
    let shift = Xy::new(along(|v| v.x)?, along(|v| v.y)?);
    let mut q_rect = rects.q;
    for corner in [&mut q_rect.min, &mut q_rect.max] {
        *corner = Xy::new(corner.x - shift.x, corner.y - shift.y);
    }
    let common = rects.p.intersect(&q_rect)?;
    let step = ((common.size().x * common.size().y) / STAT_SAMPLES).isqrt().max(1);
    let (mut in_p, mut in_q) = (Vec::new(), Vec::new());
    for y in (common.min.y..common.max.y).step_by(step) {
        for x in (common.min.x..common.max.x).step_by(step) {
            let at = |pixels: &Pixels, x: i64, y: i64| pixels.row(y as usize)[x as usize];
            in_p.push(at(p, x - rects.p.min.x, y - rects.p.min.y));
            in_q.push(at(q, x + shift.x - rects.q.min.x, y + shift.y - rects.q.min.y));
        }
    }
    OverlapStat::of(matches.p, &in_p, matches.q, &in_q)
}
