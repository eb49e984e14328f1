//! Whether two objects are one, asked of the network: both are cleared round a decision point and each is flooded anew.
//!
//! ```text
//!   a ▓▓▓▓▓▓ │?│ ▒▒▒▒▒▒ b      start inside a, away from the point ─► flood A;  inside b ─► flood B
//!                              one object: A and B are the same voxels, each recovers both a and b, nothing was taken back
//! ```
//!
//! The features and the default thresholds are those of the agglomeration of Januszewski et al., Nature Methods 2018.

use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::{Array3, ArrayView3, s};
use serde::{Deserialize, Serialize};

use super::decide::DecisionPoint;
use crate::flood::{Canvas, CanvasInput, DriveError, FloodRules, Watch, distance, drive};
use crate::model::GreyTable;
use crate::runtime::Network;

/// How decision points are found and judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResegmentRule {
    /// How far labels grow to find who touches, nm. Default 60: two thick sections, or the gap that a membrane leaves.
    pub reach_nm: f64,
    /// Voxels on each side of the point that are looked at. Default: one field of view.
    pub radius: Option<Zyx<usize>>,
    /// No flood starts within this distance of the point, nm. Default 100: the place in question must not decide itself.
    pub zone_nm: f64,
    /// Start points tried for each object until enough of it is recovered. Default 2.
    pub attempts: usize,
    /// Objects with fewer voxels round the point are left alone. Default 1000.
    pub min_voxels: u64,
    /// Least intersection over union of the two floods for a merge. Default 0.8.
    pub min_iou: f64,
    /// Least share of each object that each flood must recover. Default 0.6.
    pub min_recovered: f64,
    /// Largest share of a flood's voxels that it took back again on the way. Default 0.02.
    pub max_deleted: f64,
}

impl Default for ResegmentRule {
    fn default() -> Self {
        Self {
            reach_nm: 60.0,
            radius: None,
            zone_nm: 100.0,
            attempts: 2,
            min_voxels: 1000,
            min_iou: 0.8,
            min_recovered: 0.6,
            max_deleted: 0.02,
        }
    }
}

/// What two floods said of a pair. Arrays are for the floods from `a` and from `b`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resegmented {
    /// The pair and where it comes close.
    pub point: DecisionPoint,
    /// Intersection over union of the two floods.
    pub iou: f64,
    /// Share of `a`'s voxels round the point that each flood recovered.
    pub recovered_a: [f64; 2],
    /// The same of `b`.
    pub recovered_b: [f64; 2],
    /// Share of each flood's voxels that it took back on the way.
    pub deleted: [f64; 2],
    /// Largest distance to the outside within each object, nm.
    pub thickest_nm: [f64; 2],
    /// Start points that were tried.
    pub attempts: [usize; 2],
    /// Fields of view run.
    pub evaluations: u64,
    /// Whether the pair is one object by the rule.
    pub merge: bool,
}

/// The volume in which pairs are judged; all of one shape, but `tables`, one a section.
pub struct Surroundings<'a> {
    /// Grey.
    pub image: ArrayView3<'a, u8>,
    /// Grey to network input.
    pub tables: &'a [GreyTable],
    /// The objects.
    pub labels: ArrayView3<'a, u64>,
    /// Of a voxel.
    pub size: VoxelSize,
}

/// What one flood left.
#[derive(Default)]
struct Flood {
    mask: Vec<bool>,
    deleted: u64,
    attempts: usize,
    evaluations: u64,
}

impl ResegmentRule {
    /// What is wrong with the settings.
    pub fn faults(&self) -> Vec<String> {
        let share = |v: f64| (0.0..=1.0).contains(&v);
        [
            (self.reach_nm > 0.0, format!("reach_nm = {}, use more than 0", self.reach_nm)),
            (self.zone_nm >= 0.0, format!("zone_nm = {}, use 0 or more", self.zone_nm)),
            (self.attempts >= 1, "attempts = 0, use 1 or more".into()),
            (share(self.min_iou), format!("min_iou = {}, use 0 to 1", self.min_iou)),
            (share(self.min_recovered), format!("min_recovered = {}, use 0 to 1", self.min_recovered)),
            (share(self.max_deleted), format!("max_deleted = {}, use 0 to 1", self.max_deleted)),
        ]
        .into_iter()
        .filter(|(ok, _)| !ok)
        .map(|(_, fault)| fault)
        .collect()
    }

    /// Floods both objects of a pair anew; `None` where one of them is too small round the point, or has no place to start.
    ///
    /// # Errors
    /// Where the network fails or the watch says stop.
    pub fn judge(
        &self,
        rules: &FloodRules,
        volume: &Surroundings<'_>,
        point: DecisionPoint,
        network: &mut dyn Network,
        watch: &Watch<'_>,
    ) -> Result<Option<Resegmented>, DriveError> {
        let crop = Crop::new(self, rules, volume, point);
        let (a, b) = (crop.of(point.a), crop.of(point.b));
        let voxels = |mask: &[bool]| mask.iter().filter(|v| **v).count() as u64;
        if voxels(&a) < self.min_voxels || voxels(&b) < self.min_voxels || !crop.holds(rules) {
            return Ok(None);
        }
        let (depth_a, depth_b) = (crop.depth(&a), crop.depth(&b));
        let Some(one) = self.flood(rules, &crop, &a, &depth_a, (network, watch))? else { return Ok(None) };
        let Some(two) = self.flood(rules, &crop, &b, &depth_b, (network, watch))? else { return Ok(None) };
        let shared = one.mask.iter().zip(&two.mask).filter(|(p, q)| **p && **q).count() as f64;
        let union = one.mask.iter().zip(&two.mask).filter(|(p, q)| **p || **q).count() as f64;
        let deleted = |f: &Flood| f.deleted as f64 / voxels(&f.mask).max(1) as f64;
        let thickest = |depth: &Array3<f32>| f64::from(depth.iter().copied().fold(0.0, f32::max));
        let mut found = Resegmented {
            point,
            iou: if union > 0.0 { shared / union } else { 0.0 },
            recovered_a: [share(&a, &one.mask), share(&a, &two.mask)],
            recovered_b: [share(&b, &one.mask), share(&b, &two.mask)],
            deleted: [deleted(&one), deleted(&two)],
            thickest_nm: [thickest(&depth_a), thickest(&depth_b)],
            attempts: [one.attempts, two.attempts],
            evaluations: one.evaluations + two.evaluations,
            merge: false,
        };
        found.merge = self.merges(&found);
        Ok(Some(found))
    }

    /// Whether the features say that the pair is one object.
    pub fn merges(&self, found: &Resegmented) -> bool {
        found.iou >= self.min_iou
            && found.recovered_a.iter().chain(&found.recovered_b).all(|r| *r >= self.min_recovered)
            && found.deleted.iter().all(|d| *d <= self.max_deleted)
    }

    /// Floods from the thickest places of an object until enough of it is recovered; the best of the attempts.
    fn flood(
        &self,
        rules: &FloodRules,
        crop: &Crop<'_, '_>,
        object: &[bool],
        depth: &Array3<f32>,
        (network, watch): (&mut dyn Network, &Watch<'_>),
    ) -> Result<Option<Flood>, DriveError> {
        let (mut best, mut tried): (Option<(f64, Flood)>, Vec<Zyx<usize>>) = (None, Vec::new());
        let mut evaluations = 0;
        while tried.len() < self.attempts {
            let Some(start) = crop.start(self, rules, depth, &tried) else { break };
            tried.push(start);
            let input = crop.input(start);
            let mut results = drive(rules, [Canvas::new(rules, input)], network, 1, watch)?;
            let result = results.remove(0);
            evaluations += result.counters.evaluations;
            let mask: Vec<bool> = result.labels.iter().map(|l| *l > 0).collect();
            let recovered = share(object, &mask);
            if best.as_ref().is_none_or(|(before, _)| recovered > *before) {
                best = Some((recovered, Flood { mask, deleted: result.counters.deleted, ..Flood::default() }));
            }
            if recovered >= self.min_recovered {
                break;
            }
        }
        Ok(best.map(|(_, flood)| Flood { attempts: tried.len(), evaluations, ..flood }))
    }
}

/// Share of the voxels of `object` that are in `mask`.
fn share(object: &[bool], mask: &[bool]) -> f64 {
    let all = object.iter().filter(|o| **o).count();
    let both = object.iter().zip(mask).filter(|(o, m)| **o && **m).count();
    if all == 0 { 0.0 } else { both as f64 / all as f64 }
}

/// The cuboid round a decision point.
struct Crop<'a, 'v> {
    volume: &'a Surroundings<'v>,
    point: DecisionPoint,
    low: [usize; 3],
    high: [usize; 3],
}

impl<'a, 'v> Crop<'a, 'v> {
    fn new(rule: &ResegmentRule, rules: &FloodRules, volume: &'a Surroundings<'v>, point: DecisionPoint) -> Self {
        let radius: [usize; 3] = rule.radius.unwrap_or(rules.fov()).into();
        let (at, shape): ([usize; 3], [usize; 3]) = (point.at.into(), volume.labels.dim().into());
        let low = std::array::from_fn(|i| at[i].saturating_sub(radius[i]));
        let high = std::array::from_fn(|i| (at[i] + radius[i] + 1).min(shape[i]));
        Self { volume, point, low, high }
    }

    /// Whether a field of view fits.
    fn holds(&self, rules: &FloodRules) -> bool {
        let fov: [usize; 3] = rules.fov().into();
        (0..3).all(|i| self.high[i] - self.low[i] >= fov[i])
    }

    fn cut<'b, T>(&self, of: &'b ArrayView3<'_, T>) -> ArrayView3<'b, T> {
        let (low, high) = (self.low, self.high);
        of.slice(s![low[0]..high[0], low[1]..high[1], low[2]..high[2]])
    }

    fn of(&self, id: u64) -> Vec<bool> {
        self.cut(&self.volume.labels).iter().map(|l| *l == id).collect()
    }

    /// Distance of each voxel of an object to the outside, nm; 0 elsewhere.
    fn depth(&self, object: &[bool]) -> Array3<f32> {
        let size = self.volume.size.0;
        let shape: [usize; 3] = std::array::from_fn(|i| self.high[i] - self.low[i]);
        let outside = Array3::from_shape_vec(shape, object.iter().map(|o| !o).collect()).expect("one value per voxel");
        let mut depth = distance(&outside, [size.z, size.y, size.x]);
        // an object that fills the crop has no outside in it
        let most = shape.iter().zip([size.z, size.y, size.x]).map(|(n, s)| *n as f64 * s).fold(0.0, f64::max) as f32;
        depth.mapv_inplace(|d| d.min(most));
        depth
    }

    /// The thickest place of an object that is outside the zone, a field of view's half from those tried, and holds a centre.
    fn start(
        &self,
        rule: &ResegmentRule,
        rules: &FloodRules,
        depth: &Array3<f32>,
        tried: &[Zyx<usize>],
    ) -> Option<Zyx<usize>> {
        let size = self.volume.size.0;
        let (fov, shape): ([usize; 3], [usize; 3]) = (rules.fov().into(), depth.dim().into());
        let at: [usize; 3] = self.point.at.into();
        let away = |p: [usize; 3], q: [usize; 3]| -> f64 {
            let steps = [size.z, size.y, size.x];
            (0..3).map(|i| ((p[i] as f64 - q[i] as f64) * steps[i]).powi(2)).sum::<f64>().sqrt()
        };
        let point: [usize; 3] = std::array::from_fn(|i| at[i] - self.low[i]);
        let mut best: Option<(f32, [usize; 3])> = None;
        for ((z, y, x), &d) in depth.indexed_iter() {
            let p = [z, y, x];
            let room = (0..3).all(|i| p[i] >= fov[i] / 2 && p[i] + fov[i] / 2 < shape[i]);
            let near = tried.iter().any(|t| {
                let t: [usize; 3] = (*t).into();
                (0..3).all(|i| t[i].abs_diff(p[i]) <= fov[i] / 4)
            });
            if d > 0.0 && room && !near && best.is_none_or(|b| d > b.0) && away(p, point) >= rule.zone_nm {
                best = Some((d, p));
            }
        }
        best.map(|(_, p)| p.into())
    }

    /// The crop with everything but the pair closed, and one start point.
    fn input(&self, start: Zyx<usize>) -> CanvasInput {
        let labels = self.cut(&self.volume.labels);
        let pair = [0, self.point.a, self.point.b];
        CanvasInput {
            image: self.cut(&self.volume.image).to_owned(),
            tables: self.volume.tables[self.low[0]..self.high[0]].to_vec(),
            closed: labels.mapv(|l| !pair.contains(&l)),
            known: Array3::zeros(labels.raw_dim()),
            open: 0,
            seeds: vec![start],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decide::decision_points;
    use super::*;
    use crate::flood::RuleConfig;
    use crate::model::{FfnRules, Normalisation};
    use crate::runtime::RuleNetwork;

    const SIZE: VoxelSize = VoxelSize(Zyx::new(10.0, 10.0, 10.0));

    fn rules() -> FloodRules {
        let ffn = FfnRules {
            deltas: Zyx::new(2, 2, 2),
            init_activation: 0.95,
            pad_value: 0.05,
            move_threshold: 0.9,
            segment_threshold: 0.6,
            min_segment_size: 1,
            min_boundary_dist: Zyx::new(0, 0, 0),
            disco_seed_threshold: -1.0,
        };
        FloodRules::new(Zyx::new(7, 7, 7), &ffn).with(&RuleConfig::default()).unwrap()
    }

    /// A bright bar along x, cut into two objects at x = 20; with a dark wall there or without.
    fn judged(wall: bool) -> Resegmented {
        let bar = |z: usize, y: usize| z.abs_diff(8) <= 3 && y.abs_diff(8) <= 3;
        let image = Array3::from_shape_fn((17, 17, 40), |(z, y, x)| {
            if bar(z, y) && !(wall && (19..=20).contains(&x)) { 200u8 } else { 60 }
        });
        let labels = Array3::from_shape_fn((17, 17, 40), |(z, y, x)| match x {
            _ if !bar(z, y) => 0,
            0..19 => 5u64,
            21.. => 9,
            _ => 0,
        });
        let table = Normalisation::Fixed { mean: 128.0, sd: 33.0 }.table(ndarray::Array2::zeros((1, 1)).view());
        let volume = Surroundings { image: image.view(), tables: &vec![table; 17], labels: labels.view(), size: SIZE };
        let rule = ResegmentRule {
            radius: Some(Zyx::new(12, 12, 16)),
            zone_nm: 50.0,
            min_voxels: 100,
            ..ResegmentRule::default()
        };
        let points = decision_points(&labels, SIZE, 20.0);
        assert_eq!(points.len(), 1);
        let mut network = RuleNetwork::new([7, 7, 7], 0.0);
        rule.judge(&rules(), &volume, points[0], &mut network, &Watch::nothing()).unwrap().expect("both are large")
    }

    #[test]
    fn two_halves_of_one_bar_are_one_object() {
        let r = judged(false);
        assert!(r.iou > 0.95 && r.merge, "{r:?}");
        // steps of 2 leave up to two of b's 16 planes unseen at the end of the crop
        assert!(r.recovered_a.iter().chain(&r.recovered_b).all(|f| *f > 0.8), "{r:?}");
        // the bar is 7 voxels of 10 nm wide
        assert_eq!(r.thickest_nm, [40.0, 40.0]);
        assert!(r.evaluations > 2 && r.attempts == [1, 1]);
    }

    #[test]
    fn two_bars_behind_a_wall_stay_two() {
        let r = judged(true);
        assert!(r.iou < 0.01 && !r.merge, "{r:?}");
        assert!(r.recovered_a[0] > 0.9 && r.recovered_a[1] == 0.0 && r.recovered_b[0] == 0.0, "{r:?}");
    }

    #[test]
    fn a_flood_that_took_much_back_is_no_evidence_for_a_merge() {
        let rule = ResegmentRule::default();
        let mut r = judged(false);
        r.deleted = [0.0, 0.03];
        assert!(!rule.merges(&r));
        let bad = ResegmentRule { attempts: 0, min_iou: 2.0, ..rule };
        assert_eq!(bad.faults().len(), 2);
    }
}
