//! From two strips to point matches.

use kinesin_stream::geometry::{BoxXy, Xy, reduced_to_full};
use kinesin_stream::pixels::Pixels;

use super::config::MatchConfig;
use super::correlate::{Correlator, Lags};
use super::course::{Sample, distances};
use super::filter::{Plane, Spare, band_pass, reduced};
use super::pairs::{Pair, StripRects, overlap_rects};
use super::peak::{fraction, score_without_stripes};
use super::rects::{block_rects, grown, middle_of, minus, moved, thirds};
use super::rows::{self, RowDrift};
use super::{PairMatches, PointMatch, Verdict};

/// Strips that are not those of the pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchError {
    /// The strip has another size than its rectangle.
    #[error("strip of {tile}: got {got_x} x {got_y} px, wanted {want_x} x {want_y}; cut it by Matcher::rects")]
    StripSize {
        /// Whose strip.
        tile: String,
        /// Width found.
        got_x: usize,
        /// Height found.
        got_y: usize,
        /// Width needed.
        want_x: usize,
        /// Height needed.
        want_y: usize,
    },
}

/// How often the blocks of a pair are looked for again around the shift that they gave.
const REPEATS: usize = 3;
/// How much more the first shift is smoothed than the blocks.
const FIRST_SMOOTH: f64 = 1.5;
/// A block is so large that its score is about this many times the spread of scores by chance: nearly twice
/// what it needs to count.
const BLOCK_OVER_CHANCE: f64 = 6.0;
/// Most blocks of a pair, as long as none is larger than it is configured: more tell no more of a smooth course.
const MOST_BLOCKS: usize = 24;
/// Blocks of wide overlaps are cut to this many times the fewest pixels: more costs time and tells little more.
const PLENTY: f64 = 2.5;
/// What a confidence counts less by where it was found at twice the margin.
const WIDER_DOUBT: f64 = 1.5;

/// One worker's plans and scratch space. Results do not depend on what it did before.
pub struct Matcher {
    config: MatchConfig,
    correlator: Correlator,
    spare: Spare,
}

/// Part of a tile that is at hand.
struct Strip<'a> {
    rect: BoxXy,
    pixels: &'a Pixels,
}

impl Strip<'_> {
    /// `rect` of the tile as a plane, reduced by `step`.
    fn plane(&self, rect: &BoxXy, step: usize, spare: &mut Spare) -> Plane {
        let local = BoxXy { min: minus(rect.min, self.rect.min), max: minus(rect.max, self.rect.min) };
        reduced(self.pixels, &local, step, spare)
    }
}

/// A band-passed part of a tile.
struct Band {
    rect: BoxXy,
    plane: Plane,
}

impl Band {
    /// A copy of the part `rect`, which lies inside.
    fn part(&self, rect: &BoxXy, spare: &mut Spare) -> Plane {
        let (x0, y0) = ((rect.min.x - self.rect.min.x) as usize, (rect.min.y - self.rect.min.y) as usize);
        let mut part = spare.plane(rect.size().x, rect.size().y);
        for (y, row) in part.data.chunks_exact_mut(rect.size().x.max(1)).enumerate() {
            row.copy_from_slice(&self.plane.row(y0 + y)[x0..x0 + row.len()]);
        }
        part
    }
}

/// A first shift of a pair.
struct First {
    shift: Xy<f64>,
    confidence: f64,
    /// Normalised score that a block at full scale can be expected to have.
    score: f64,
}

impl Matcher {
    /// A matcher for this configuration.
    pub fn new(config: MatchConfig) -> Self {
        Self { config, correlator: Correlator::new(), spare: Spare::default() }
    }

    /// The configuration.
    pub fn config(&self) -> &MatchConfig {
        &self.config
    }

    /// The rectangles of both tiles that [`Matcher::match_pair`] wants, wide enough for the second try.
    pub fn rects(&self, pair: &Pair) -> StripRects {
        overlap_rects(pair, pair.widest(&self.config))
    }

    /// Matches the pair; `p` and `q` are its tiles cut by [`Matcher::rects`]. Tiles without common texture give `Failed`.
    pub fn match_pair(&mut self, pair: &Pair, p: &Pixels, q: &Pixels) -> Result<PairMatches, MatchError> {
        let rects = self.rects(pair);
        let strips = [(pair.p, rects.p, p), (pair.q, rects.q, q)].map(|(key, rect, pixels)| {
            let (got, want) = (Xy::new(pixels.width(), pixels.height()), rect.size());
            let (got_x, got_y, want_x, want_y) = (got.x, got.y, want.x, want.y);
            let wrong = MatchError::StripSize { tile: key.to_string(), got_x, got_y, want_x, want_y };
            if got == want { Ok(Strip { rect, pixels }) } else { Err(wrong) }
        });
        let [p, q] = strips;
        let found = self.match_strips(pair, &p?, &q?);
        // What nobody expected has to be sure.
        let nothing = found.verdict != Verdict::Matched && !pair.expected(&self.config);
        Ok(if nothing { PairMatches::apart(pair) } else { found })
    }

    fn match_strips(&mut self, pair: &Pair, p: &Strip<'_>, q: &Strip<'_>) -> PairMatches {
        let Some(first) = self.first_shift(pair, p, q) else {
            return PairMatches::failed(pair, 0.0, "no texture in the overlap");
        };
        if first.confidence < self.config.doubtful_confidence {
            let reason = format!("no peak stands out (confidence {:.2})", first.confidence);
            return PairMatches::failed(pair, first.confidence, reason);
        }
        let (points, blocks) = self.blocks(pair, p, q, &first);
        let share = points.len() as f64 / blocks.max(1) as f64;
        let verdict = self.verdict(first.confidence, share, points.len(), blocks);
        let points = if matches!(verdict, Verdict::Failed(_)) { Vec::new() } else { points };
        let rows = if verdict == Verdict::Matched { row_drift(pair, p, q, &points) } else { None };
        PairMatches { p: pair.p, q: pair.q, points, confidence: first.confidence, verdict, rows }
    }

    fn verdict(&self, confidence: f64, share: f64, agreeing: usize, blocks: usize) -> Verdict {
        let said = || format!("{agreeing} of {blocks} blocks agree, confidence {confidence:.2}");
        let sure = confidence >= self.config.min_confidence;
        // Blocks search a window of 17 x 17 and have to agree to 1.5 px: four by chance happen less than once in 10^4.
        let confirmed = agreeing >= 4 && share >= 0.6;
        if agreeing == 0 {
            Verdict::Failed(said())
        } else if (sure && share >= self.config.min_agreeing) || confirmed {
            Verdict::Matched
        } else if sure || share >= self.config.min_agreeing {
            Verdict::Doubtful(said())
        } else {
            Verdict::Failed(said())
        }
    }

    /// Whole strips, then thirds of them, then both at twice the margin; the first that convinces, else the best.
    fn first_shift(&mut self, pair: &Pair, p: &Strip<'_>, q: &Strip<'_>) -> Option<First> {
        let mut best: Option<First> = None;
        for times in [1.0, 2.0] {
            let margin = times * pair.margin(&self.config);
            let whole = overlap_rects(pair, margin).p;
            if whole.size().x.min(whole.size().y) < self.config.min_overlap_px {
                continue;
            }
            for part in [vec![whole], thirds(&whole)].into_iter().flatten() {
                let found = self.shift_of(pair, p, q, (&part, margin)).map(|f| First {
                    // A wider search meets more chance and is needed less often: it has to show more.
                    confidence: f.confidence / if times > 1.0 { WIDER_DOUBT } else { 1.0 },
                    ..f
                });
                if let Some(found) = found
                    && best.as_ref().is_none_or(|b| found.confidence > b.confidence)
                {
                    best = Some(found);
                }
                let sure = |b: &First| b.confidence >= self.config.min_confidence;
                if part == whole && best.as_ref().is_some_and(sure) {
                    return best;
                }
            }
            if best.as_ref().is_some_and(|b| b.confidence >= self.config.min_confidence) {
                return best;
            }
        }
        best
    }

    /// The shift at which `part` of p (tile pixels) is found in q, within `margin` of the nominal one.
    fn shift_of(&mut self, pair: &Pair, p: &Strip<'_>, q: &Strip<'_>, (part, margin): (&BoxXy, f64)) -> Option<First> {
        let near = Xy::new(pair.shift.x.round() as i64, pair.shift.y.round() as i64);
        let in_q = grown(&moved(part, near), margin.ceil() as i64).intersect(&q.rect)?;
        // Of tiles that are nominally apart, all that could overlap.
        let expected = pair.overlap(pair.shift).filter(|_| pair.expected(&self.config));
        let overlap = expected.unwrap_or_else(|| overlap_rects(pair, margin).p);
        let common = overlap.size();
        // Sixteen reduced pixels across still tell a shift; the smoothing leaves nothing finer than two.
        let step = (common.x.min(common.y) / 16).clamp(1, 4);
        let radius = FIRST_SMOOTH * self.background(&overlap);
        let scale = step as f64;
        let spare = &mut self.spare;
        let mut planes = [p.plane(part, step, spare), q.plane(&in_q, step, spare)];
        for plane in &mut planes {
            band_pass(plane, FIRST_SMOOTH * self.config.smooth_px / scale, radius / scale, spare);
        }
        let origin = minus(part.min, in_q.min);
        let origin = Xy::new(origin.x as f64, origin.y as f64);
        let (low, high) =
            (pair.shift + origin - Xy::new(margin, margin), pair.shift + origin + Xy::new(margin, margin));
        let lags = Lags {
            min: Xy::new((low.x / scale).floor() as i64, (low.y / scale).floor() as i64),
            max: Xy::new((high.x / scale).ceil() as i64, (high.y / scale).ceil() as i64),
        };
        // Wide overlaps are smeared by the lens, narrow ones hold little that could repeat.
        let guard = ((common.x.min(common.y) as f64 / 8.0).clamp(5.0, 10.0) / scale).max(3.0);
        let peak = self.correlator.best(&planes[0], &planes[1], lags, guard, true);
        planes.into_iter().for_each(|p| self.spare.take(p));
        let peak = peak?;
        let confidence = (1.0 - peak.second.max(peak.mirror)).max(0.0);
        let lag = Xy::new(peak.lag.x as f64, peak.lag.y as f64) + peak.fraction;
        // Noise alone makes a score less than one: `1 / score - 1` is its share, which falls with the area of the smoothing.
        let noise = FIRST_SMOOTH.powi(2) * (1.0 / peak.score.clamp(0.01, 1.0) - 1.0);
        Some(First { shift: lag * scale - origin, confidence, score: 1.0 / (1.0 + noise) })
    }

    /// Matches of blocks around a first shift that follow a smooth course, and the number of blocks tried.
    fn blocks(&mut self, pair: &Pair, p: &Strip<'_>, q: &Strip<'_>, first: &First) -> (Vec<PointMatch>, usize) {
        let whole = |s: Xy<f64>| Xy::new(s.x.round() as i64, s.y.round() as i64);
        let mut near = whole(first.shift);
        let (mut kept, mut tried) = (Vec::new(), 0);
        for _ in 0..REPEATS {
            let Some(common) = overlap_of(pair, near, p, q) else { return (Vec::new(), 0) };
            // Both parts show the same tissue, so that what the filter does at their sides is the same in both.
            let [narrow, sigma, radius] =
                [common.size().x.min(common.size().y) as f64, self.config.smooth_px, self.background(&common)];
            let bands = [(p, common), (q, moved(&common, near))].map(|(strip, rect)| {
                let mut plane = strip.plane(&rect, 1, &mut self.spare);
                band_pass(&mut plane, sigma, radius, &mut self.spare);
                Band { rect, plane }
            });
            let mut rects = block_rects(&common, self.block_area(&common, first.score));
            let plenty = PLENTY * self.wanted_area(first.score);
            rects.iter_mut().for_each(|r| *r = middle_of(r, plenty));
            let found: Vec<PointMatch> = rects.iter().filter_map(|rect| self.block(&bands, rect, near)).collect();
            bands.into_iter().for_each(|b| self.spare.take(b.plane));
            let samples: Vec<Sample> = found.iter().map(|m| Sample { at: m.p, shift: m.q - m.p }).collect();
            let off = distances(&samples);
            let outlier = self.config.outlier_px;
            kept = found.into_iter().zip(off).filter(|(_, off)| *off <= outlier).map(|(m, _)| m).collect::<Vec<_>>();
            tried = rects.len();
            let mean = kept.iter().fold(Xy::default(), |s, m| s + (m.q - m.p)) * (1.0 / kept.len().max(1) as f64);
            // In a narrow overlap every row and column that is cut off by a wrong first shift counts.
            if kept.is_empty()
                || whole(mean) == near
                || (mean - Xy::new(near.x as f64, near.y as f64)).norm() < narrow / 16.0
            {
                break;
            }
            near = whole(mean);
        }
        (kept, tried)
    }

    /// The score that chance may reach in a block.
    fn least_score(&self, rect: &BoxXy) -> f64 {
        let independent = (rect.size().x * rect.size().y) as f64 / self.independent();
        self.config.min_over_chance / independent.max(1.0).sqrt()
    }

    /// Smoothing leaves one independent value in so many pixels.
    fn independent(&self) -> f64 {
        4.0 * std::f64::consts::PI * self.config.smooth_px.max(0.5).powi(2)
    }

    /// Fewest pixels that stand out of chance well enough.
    fn wanted_area(&self, score: f64) -> f64 {
        self.independent() * (BLOCK_OVER_CHANCE / score.max(0.01)).powi(2)
    }

    /// Pixels of a block: as few as the expected score allows, because many small blocks show how the shift bends.
    fn block_area(&self, common: &BoxXy, score: f64) -> f64 {
        let size = common.size();
        self.wanted_area(score)
            .max((size.x * size.y) as f64 / MOST_BLOCKS as f64)
            .min((self.config.block_px * self.config.block_px) as f64)
    }

    /// Radius of the local mean for an overlap: a window much wider than the overlap would see its two sides differently.
    fn background(&self, overlap: &BoxXy) -> f64 {
        let narrow = overlap.size().x.min(overlap.size().y) as f64;
        self.config.background_px.min((narrow / 3.0).max(4.0))
    }

    /// One block: `rect` of p looked for in q around `near`.
    fn block(&mut self, [p, q]: &[Band; 2], rect: &BoxXy, near: Xy<i64>) -> Option<PointMatch> {
        let in_q = grown(&moved(rect, near), self.config.search_px as i64).intersect(&q.rect)?;
        let parts = (p.part(rect, &mut self.spare), q.part(&in_q, &mut self.spare));
        let found = self.found(&parts, (rect, &in_q), near);
        self.spare.take(parts.0);
        self.spare.take(parts.1);
        found
    }

    /// What `rect` of p and the wider `in_q` of q show, whose pixels are f and g.
    fn found(&mut self, (f, g): &(Plane, Plane), (rect, in_q): (&BoxXy, &BoxXy), near: Xy<i64>) -> Option<PointMatch> {
        let reach = self.config.search_px as i64;
        let origin = minus(rect.min, in_q.min);
        let middle = Xy::new(near.x + origin.x, near.y + origin.y);
        let lags =
            Lags { min: Xy::new(middle.x - reach, middle.y - reach), max: Xy::new(middle.x + reach, middle.y + reach) };
        let peak = self.correlator.best(f, g, lags, 4.0, false)?;
        if peak.at_rim || peak.score < self.config.min_score.max(self.least_score(rect)) {
            return None;
        }
        if score_without_stripes(f, g, peak.lag) < 0.4 * peak.score {
            return None;
        }
        let whole = minus(peak.lag, origin);
        let shift = Xy::new(whole.x as f64, whole.y as f64) + fraction(f, g, peak.lag)?;
        let seen = rect.intersect(&moved(in_q, Xy::new(-whole.x, -whole.y)))?;
        let size = seen.size();
        let at = Xy::new(
            seen.min.x as f64 + reduced_to_full(0.0, size.x as f64),
            seen.min.y as f64 + reduced_to_full(0.0, size.y as f64),
        );
        Some(PointMatch { p: at, q: at + shift, weight: peak.score.min(1.0) })
    }
}

/// The common part in pixels of p at a whole shift, within what is at hand.
fn overlap_of(pair: &Pair, near: Xy<i64>, p: &Strip<'_>, q: &Strip<'_>) -> Option<BoxXy> {
    let common = pair.overlap(Xy::new(near.x as f64, near.y as f64))?;
    common.intersect(&p.rect)?.intersect(&moved(&q.rect, Xy::new(-near.x, -near.y)))
}

/// How the first rows of the overlap lie, at the mean shift of the points.
fn row_drift<'a>(pair: &Pair, p: &Strip<'a>, q: &Strip<'a>, points: &[PointMatch]) -> Option<RowDrift> {
    let mean = points.iter().fold(Xy::default(), |s, m| s + (m.q - m.p)) * (1.0 / points.len().max(1) as f64);
    let near = Xy::new(mean.x.round() as i64, mean.y.round() as i64);
    let common = overlap_of(pair, near, p, q).filter(|c| c.size().x >= rows::LEAST_COLUMNS)?;
    let part = |strip: &Strip<'a>, x: i64, y: i64| {
        let (x, y) = ((x - strip.rect.min.x) as usize, (y - strip.rect.min.y) as usize);
        &strip.pixels.row(y)[x..x + common.size().x]
    };
    let lines = rows::rows_of(common.min.y, common.size().y, near);
    rows::drift(lines.map(|(y, in_q)| (part(p, common.min.x, y), part(q, common.min.x + near.x, in_q))))
}
