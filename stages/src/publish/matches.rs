//! Point matches as Render's match service stores them (saalfeldlab/render: `CanvasMatches`).
//!
//! ```text
//! {"pGroupId", "pId", "qGroupId", "qId", "matches": {"p": [[x ..], [y ..]], "q": [[x ..], [y ..]], "w": [w ..]}, "matchCount"}
//! ```
//! A group is a section; p comes before q in the order of (group, id). Pixels of the tile as acquired.

use kinesin_stream::geometry::Xy;
use kinesin_stream::plan::SectionPlan;
use serde::{Deserialize, Serialize};

use crate::pointmatch::{PairMatches, PointMatch, Verdict};

/// The matches of one pair of tiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenderMatches {
    /// Section of p.
    pub p_group_id: String,
    /// Tile p.
    pub p_id: String,
    /// Section of q.
    pub q_group_id: String,
    /// Tile q.
    pub q_id: String,
    /// The points.
    pub matches: RenderPoints,
    /// How many.
    #[serde(default)]
    pub match_count: usize,
}

/// Points of both tiles, columns of x and of y, and their weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RenderPoints {
    /// In p.
    pub p: [Vec<f64>; 2],
    /// In q.
    pub q: [Vec<f64>; 2],
    /// Weights.
    pub w: Vec<f64>,
}

/// All pairs of a section that matched, in the order given; tiles that the plan does not know are left out.
pub fn render_matches(plan: &SectionPlan, pairs: &[PairMatches]) -> Vec<RenderMatches> {
    let matched = pairs.iter().filter(|m| m.verdict == Verdict::Matched);
    let all = matched.filter_map(|m| {
        let (p, q) = (&plan.tile(m.p)?.name, &plan.tile(m.q)?.name);
        let in_order = p <= q;
        let (p_id, q_id) = if in_order { (p, q) } else { (q, p) };
        let mut points = RenderPoints::default();
        for x in &m.points {
            let (p, q) = if in_order { (x.p, x.q) } else { (x.q, x.p) };
            for (to, v) in points.p.iter_mut().zip([p.x, p.y]) {
                to.push(v);
            }
            for (to, v) in points.q.iter_mut().zip([q.x, q.y]) {
                to.push(v);
            }
            points.w.push(x.weight);
        }
        Some(RenderMatches {
            p_group_id: plan.name.clone(),
            p_id: p_id.clone(),
            q_group_id: plan.name.clone(),
            q_id: q_id.clone(),
            match_count: points.w.len(),
            matches: points,
        })
    });
    all.collect()
}

impl RenderMatches {
    /// The points as matches of p and q; `None` where the columns are not of one length.
    pub fn points(&self) -> Option<Vec<PointMatch>> {
        let RenderPoints { p: [px, py], q: [qx, qy], w } = &self.matches;
        let n = w.len();
        if [px, py, qx, qy].iter().any(|c| c.len() != n) {
            return None;
        }
        let point = |i: usize| PointMatch { p: Xy::new(px[i], py[i]), q: Xy::new(qx[i], qy[i]), weight: w[i] };
        Some((0..n).map(point).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
    use kinesin_stream::plan::{MfovPlan, PlannedTile};

    #[test]
    fn matches_are_written_with_p_before_q_and_read_back() {
        let id = MfovId::new(SectionId(1), RegionId(0), 0);
        let key = |beam| TileKey { mfov: id, beam: BeamId(beam) };
        let tile = |beam: u16, name: &str| PlannedTile {
            key: key(beam),
            name: name.into(),
            nominal: Xy::new(0.0, 0.0),
            size: Xy::new(9, 9),
        };
        let mfovs = vec![MfovPlan { id, revision: 0, tiles: vec![tile(0, "b"), tile(1, "a")] }];
        let plan = SectionPlan { section: SectionId(1), serial: SerialIndex(0), name: "7.0".into(), version: 0, mfovs };
        let points: Vec<PointMatch> = (0..3)
            .map(|i| PointMatch { p: Xy::new(f64::from(i), 0.1), q: Xy::new(5.5, f64::from(i)), weight: 0.25 })
            .collect();
        let matched = PairMatches {
            p: key(0),
            q: key(1),
            points: points.clone(),
            confidence: 0.9,
            verdict: Verdict::Matched,
            rows: None,
        };
        let failed = PairMatches { verdict: Verdict::Failed("no".into()), ..matched.clone() };
        let written = serde_json::to_string(&render_matches(&plan, &[matched, failed])).expect("plain numbers");
        let back: Vec<RenderMatches> = serde_json::from_str(&written).expect("its own output");
        assert_eq!((back.len(), back[0].p_id.as_str(), back[0].q_id.as_str(), back[0].match_count), (1, "a", "b", 3));
        let turned: Vec<PointMatch> = points.iter().map(|x| PointMatch { p: x.q, q: x.p, weight: x.weight }).collect();
        assert_eq!(back[0].points(), Some(turned));
        // As the service gives them: without a count, and one that is damaged.
        let mut bare: RenderMatches = serde_json::from_str(
            r#"{"pGroupId": "1.0", "pId": "a", "qGroupId": "1.0", "qId": "b", "matches": {"p": [[1], [2]], "q": [[3], [4]], "w": [1]}}"#,
        )
        .expect("what Render writes");
        assert_eq!(bare.points().expect("one point").len(), 1);
        bare.matches.w.clear();
        assert_eq!(bare.points(), None);
    }
}
