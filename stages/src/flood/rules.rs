//! The numbers that steer a flood, as logits, and the moves they lead to.

use kinesin_stream::geometry::Zyx;

use serde::{Deserialize, Serialize};

use super::schedule::ThriftyRule;
use crate::model::{FfnRules, Model, ModelError};

/// `[flood.rules]`: what is taken in place of the model's own rules. Every key by default that of the model, with which it
/// was trained and measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleConfig {
    /// Step of the field of view along z, y, x, voxels; at most half of it.
    pub deltas: Option<Zyx<usize>>,
    /// Probability written at the start voxel.
    pub init_activation: Option<f64>,
    /// Probability fed for voxels not yet visited.
    pub pad_value: Option<f64>,
    /// Least probability at the new centre for a move.
    pub move_threshold: Option<f64>,
    /// Least probability of a voxel of the object.
    pub segment_threshold: Option<f64>,
    /// Objects with fewer voxels are dropped.
    pub min_segment_size: Option<usize>,
    /// No object starts within this distance of another, voxels along z, y, x.
    pub min_boundary_dist: Option<Zyx<usize>>,
    /// A voxel below one half may not rise again once the share of movable voxels exceeds this: 0 always ("disco bias" on),
    /// -1 never.
    pub disco_seed_threshold: Option<f64>,
}

/// Rules of one network in the form the inner loop wants; triples are z, y, x.
#[derive(Clone, Debug, PartialEq)]
pub struct FloodRules {
    pub(super) fov: [usize; 3],
    pub(super) deltas: [usize; 3],
    pub(super) min_boundary: [usize; 3],
    pub(super) init: f32,
    pub(super) pad: f32,
    pub(super) move_at: f32,
    pub(super) segment_at: f32,
    pub(super) min_size: usize,
    pub(super) disco: f64,
    pub(super) skip_explored: f64,
    /// `None` for the published walk.
    pub(super) thrifty: Option<ThriftyRule>,
}

impl FloodRules {
    /// The rules of a flood-filling model.
    ///
    /// # Errors
    /// [`ModelError::Misfit`] for a model of another kind.
    pub fn of(model: &Model) -> Result<Self, ModelError> {
        Ok(Self::new(model.manifest().shape, model.ffn()?))
    }

    /// Rules for a field of view of this shape.
    pub fn new(fov: Zyx<usize>, f: &FfnRules) -> Self {
        Self {
            fov: fov.into(),
            deltas: f.deltas.into(),
            min_boundary: f.min_boundary_dist.into(),
            init: logit(f.init_activation),
            pad: logit(f.pad_value),
            move_at: logit(f.move_threshold),
            segment_at: logit(f.segment_threshold),
            min_size: f.min_segment_size,
            disco: f.disco_seed_threshold,
            skip_explored: 0.0,
            thrifty: None,
        }
    }

    /// A cheaper, coarser flood: positions where at most this share of the field of view is unexplored are not run.
    /// Measured on one crop: 0.05 saves more than half of all evaluations and loses 3 to 5 points of coverage. 0 is off.
    #[must_use]
    pub fn skipping_explored(mut self, share: f64) -> Self {
        self.skip_explored = share;
        self
    }

    /// With the settings of a site or a command in place of the model's.
    ///
    /// # Errors
    /// Everything that contradicts the field of view or itself.
    pub fn with(mut self, config: &RuleConfig) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut want = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        let half = self.fov.map(|n| n / 2);
        if let Some(deltas) = config.deltas {
            self.deltas = deltas.into();
            let fits = self.deltas.iter().zip(half).all(|(d, h)| *d <= h) && self.deltas.iter().any(|d| *d > 0);
            let (d, f) = (self.deltas, self.fov);
            want(
                fits,
                format!(
                    "flood.rules.deltas = {d:?} does not fit the field of view {f:?}; use up to {half:?}, not all 0"
                ),
            );
        }
        if let Some(d) = config.min_boundary_dist {
            self.min_boundary = d.into();
            let fits = self.min_boundary.iter().zip(half).all(|(d, h)| *d <= h);
            want(
                fits,
                format!(
                    "flood.rules.min_boundary_dist = {:?} exceeds half the field of view, {half:?}",
                    self.min_boundary
                ),
            );
        }
        let probabilities = [
            ("init_activation", config.init_activation, &mut self.init),
            ("pad_value", config.pad_value, &mut self.pad),
            ("move_threshold", config.move_threshold, &mut self.move_at),
            ("segment_threshold", config.segment_threshold, &mut self.segment_at),
        ];
        for (name, given, to) in probabilities {
            if let Some(p) = given {
                want(p > 0.0 && p < 1.0, format!("flood.rules.{name} = {p}, use a probability between 0 and 1"));
                *to = logit(p);
            }
        }
        want(
            self.init >= self.move_at,
            "flood.rules: init_activation is below move_threshold, no object could start".into(),
        );
        self.min_size = config.min_segment_size.unwrap_or(self.min_size);
        self.disco = config.disco_seed_threshold.unwrap_or(self.disco);
        let disco = self.disco;
        want(
            disco == -1.0 || (0.0..=1.0).contains(&disco),
            format!("flood.rules.disco_seed_threshold = {disco}, use 0 to 1, or -1 for off"),
        );
        if faults.is_empty() { Ok(self) } else { Err(faults) }
    }

    /// Which positions are run; `None` for the published walk, which is the default.
    #[must_use]
    pub fn scheduled(mut self, thrifty: Option<ThriftyRule>) -> Self {
        self.thrifty = thrifty;
        self
    }

    /// Shape of the field of view.
    pub fn fov(&self) -> Zyx<usize> {
        self.fov.into()
    }

    /// Steps of the field of view.
    pub fn deltas(&self) -> Zyx<usize> {
        self.deltas.into()
    }

    /// Cell of the lattice of deltas round `start` that holds `at`; `start` lies in the middle of its cell.
    pub(super) fn cell(&self, at: [usize; 3], start: [usize; 3]) -> [i64; 3] {
        std::array::from_fn(|a| {
            let delta = self.deltas[a] as i64;
            (at[a] as i64 - start[a] as i64 + delta / 2).div_euclid(delta.max(1))
        })
    }

    /// Where to go next, best first: on each face of the cuboid of deltas the voxel with the highest activation, if high enough.
    pub(super) fn moves(&self, logits: &[f32]) -> impl Iterator<Item = [i64; 3]> + use<> {
        let mut found: Vec<(f32, [i64; 3])> = Vec::with_capacity(6);
        for best in self.face_maxima(logits).filter(|best| best.0 >= self.move_at) {
            if !found.contains(&best) {
                found.push(best);
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        found.into_iter().map(|(_, offset)| offset)
    }

    /// Face maxima that are likely of the object and yet too low to go there.
    pub(super) fn hesitations(&self, logits: &[f32]) -> impl Iterator<Item = [i64; 3]> {
        self.face_maxima(logits).filter(|best| (0.0..self.move_at).contains(&best.0)).map(|(_, offset)| offset)
    }

    /// Share of the cuboid of deltas that is likely of the object and yet too low to go there.
    pub(super) fn unsettled(&self, logits: &[f32]) -> f64 {
        let d = self.deltas;
        let corner: [usize; 3] = std::array::from_fn(|a| self.fov[a] / 2 - d[a]);
        let side = d.map(|d| 2 * d + 1);
        let rows = (0..side[0]).flat_map(|z| (0..side[1]).map(move |y| (corner[0] + z, corner[1] + y)));
        let rows = rows.map(|(z, y)| (z * self.fov[1] + y) * self.fov[2] + corner[2]);
        let likely =
            |row: usize| logits[row..row + side[2]].iter().filter(|l| (0.0..self.move_at).contains(*l)).count();
        rows.map(likely).sum::<usize>() as f64 / side.iter().product::<usize>() as f64
    }

    /// The voxel with the highest value on each face of the cuboid of deltas.
    fn face_maxima(&self, logits: &[f32]) -> impl Iterator<Item = (f32, [i64; 3])> {
        let faces = (0..3).filter(|&a| self.deltas[a] > 0).flat_map(|a| [(a, -1), (a, 1)]);
        faces.map(|(axis, side)| self.face_maximum(logits, axis, side * self.deltas[axis] as i64))
    }

    /// First of the highest voxels of one face in the order of z, y, x.
    fn face_maximum(&self, logits: &[f32], axis: usize, offset: i64) -> (f32, [i64; 3]) {
        let range = |a: usize| {
            let d = self.deltas[a] as i64;
            if a == axis { offset..=offset } else { -d..=d }
        };
        let centre: [i64; 3] = std::array::from_fn(|a| (self.fov[a] / 2) as i64);
        let mut best = (f32::NEG_INFINITY, [0; 3]);
        for z in range(0) {
            for y in range(1) {
                for x in range(2) {
                    let row = (centre[0] + z) * self.fov[1] as i64 + centre[1] + y;
                    let value = logits[(row * self.fov[2] as i64 + centre[2] + x) as usize];
                    if value > best.0 {
                        best = (value, [z, y, x]);
                    }
                }
            }
        }
        best
    }
}

/// Log odds of a probability; rounded to f32 before and after, as the published settings are stored.
fn logit(p: f64) -> f32 {
    let p = f64::from(p as f32);
    (p / (1.0 - p)).ln() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> FloodRules {
        let ffn = FfnRules {
            deltas: Zyx::new(1, 2, 2),
            init_activation: 0.95,
            pad_value: 0.05,
            move_threshold: 0.9,
            segment_threshold: 0.6,
            min_segment_size: 1,
            min_boundary_dist: Zyx::new(0, 0, 0),
            disco_seed_threshold: 0.0,
        };
        FloodRules::new(Zyx::new(3, 5, 5), &ffn)
    }

    #[test]
    fn moves_go_to_face_maxima_in_descending_order_and_only_above_the_threshold() {
        let mut logits = vec![-1.0f32; 75];
        let at = |z: usize, y: usize, x: usize| z * 25 + y * 5 + x;
        logits[at(1, 2, 4)] = 5.0; // face x = +2
        logits[at(0, 1, 1)] = 7.0; // face z = -1
        logits[at(1, 4, 2)] = 2.0; // face y = +2, below logit(0.9) = 2.197
        let moves: Vec<_> = rules().moves(&logits).collect();
        assert_eq!(moves, [[-1, -1, -1], [0, 0, 2]]);
    }

    #[test]
    fn settings_replace_the_rules_of_the_model_and_contradictions_are_all_told() {
        let config: RuleConfig =
            toml::from_str("deltas = [0, 1, 2]\ndisco_seed_threshold = -1.0\nmove_threshold = 0.8").unwrap();
        let got = rules().with(&config).unwrap();
        assert_eq!((got.deltas, got.disco, got.move_at), ([0, 1, 2], -1.0, logit(0.8)));
        assert_eq!(got.min_size, rules().min_size);
        let bad: RuleConfig = toml::from_str("deltas = [2, 2, 2]\npad_value = 1.5\ninit_activation = 0.5").unwrap();
        let faults = rules().with(&bad).unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].contains("[2, 2, 2] does not fit the field of view [3, 5, 5]; use up to [1, 2, 2]"),
            "{faults:?}"
        );
        assert!(toml::from_str::<RuleConfig>("disco = 0.5").is_err());
    }

    #[test]
    fn an_edge_voxel_that_leads_two_faces_is_one_move() {
        let mut logits = vec![-1.0f32; 75];
        logits[25 + 4 * 5 + 4] = 5.0; // y = +2 and x = +2
        assert_eq!(rules().moves(&logits).collect::<Vec<_>>(), [[0, 2, 2]]);
    }

    #[test]
    fn the_start_lies_in_the_middle_of_its_cell() {
        let r = rules();
        let cells: Vec<i64> = (8..=12).map(|x| r.cell([5, 5, x], [5, 5, 10])[2]).collect();
        assert_eq!(cells, [-1, 0, 0, 1, 1]); // offsets -2..=2 with delta 2: (offset + 1) floor-divided by 2
    }
}
