//! One Kalman filter for many places at once: `[b, e, s]` = lasting value, error, rate; what is seen is `b + e` and noise. All places share
//! the covariances, so the filter is three gains a step.

use serde::{Deserialize, Serialize};

/// How the three go on from section to section.
pub(super) struct Rule {
    /// What the rate adds to: 0 = the lasting value, 1 = the error.
    pub(super) adds_to: usize,
    /// Part of the rate that is left a section later.
    pub(super) keeps: f64,
    /// Rate at first, in units of the step's size.
    rate: f64,
    /// Walk of the error a section, in units of the step's size.
    walk: f64,
    /// Spread of the lasting value at first.
    lasting: f64,
    /// Least spread of the noise.
    least: f64,
}

impl Rule {
    /// Of a field in pixels: the rate is a pull, which lasts for some 50 sections.
    pub(super) const FIELD: Self = Self { adds_to: 1, keeps: 0.98, rate: 1.0, walk: 0.5, lasting: 20.0, least: 0.2 };
    /// Of stretch and shear: the rate is the knife's.
    pub(super) const AFFINE: Self = Self { adds_to: 0, keeps: 1.0, rate: 1.0, walk: 1.0, lasting: 0.05, least: 2e-4 };
}

/// Weight of a step in the measured spread, once there are many.
const NEWEST: f64 = 0.05;

/// Covariances and the measured spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    steps: u32,
    covariance: [[f64; 3]; 3],
    /// Variance of the noise.
    noise: f64,
}

impl Filter {
    pub(super) fn new(rule: &Rule) -> Self {
        let mut covariance = [[0.0; 3]; 3];
        covariance[0][0] = rule.lasting * rule.lasting;
        Self { steps: 0, covariance, noise: rule.least * rule.least }
    }

    /// One section on; `size` is what a rate and a walk are measured by.
    pub(super) fn predict(&mut self, rule: &Rule, size: f64) {
        let (rate, walk) = ((rule.rate * size).powi(2), (rule.walk * size).powi(2));
        let p = &mut self.covariance;
        if self.steps == 0 {
            p[2][2] = rate;
        }
        self.steps += 1;
        // x' = T x with the rate added to one of the others, then the rate shrunk.
        let (i, keeps) = (rule.adds_to, rule.keeps);
        for row in p.iter_mut() {
            row[i] += row[2];
            row[2] *= keeps;
        }
        let last = p[2];
        p[i].iter_mut().zip(last).for_each(|(a, r)| *a += r);
        p[2] = last.map(|r| r * keeps);
        p[1][1] += walk;
        p[2][2] += rate * (1.0 - keeps * keeps);
    }

    /// What of a deviation goes to each; `square` is the mean square of the deviations now.
    pub(super) fn gain(&mut self, rule: &Rule, square: f64) -> [f64; 3] {
        let part = NEWEST.max(1.0 / f64::from(self.steps.max(1)));
        self.noise = (self.noise + part * (square - self.noise)).max(rule.least * rule.least);
        let p = self.covariance;
        let seen: [f64; 3] = std::array::from_fn(|i| p[i][0] + p[i][1]);
        let total = seen[0] + seen[1] + self.noise;
        let gain = seen.map(|v| v / total);
        for i in 0..3 {
            for j in 0..3 {
                self.covariance[i][j] = p[i][j] - gain[i] * seen[j];
            }
        }
        gain
    }
}

impl Filter {
    /// Error and rate, where a rate that chance may have made is not believed; `size` as in [`predict`](Self::predict).
    ///
    /// A walk of errors and a slow trend of the sections look alike: together they leave the walk unchecked. So both are weighed: no rate at all
    /// (what the others are then follows from the covariances), and the one found, by how much likelier what was seen is under each
    /// (the density ratio of Savage and Dickey: of a rate of 0, after and before).
    pub(super) fn believed(&self, rule: &Rule, size: f64, [_, error, rate]: [f64; 3]) -> (f64, f64) {
        let [.., [_, with_error, variance]] = self.covariance;
        if variance <= 0.0 {
            return (error, rate);
        }
        let odds = rule.rate * size / variance.sqrt() * (-rate * rate / (2.0 * variance)).exp();
        let share = 1.0 / (1.0 + odds);
        (error - (1.0 - share) * with_error / variance * rate, share * rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_value_is_told_from_an_error_that_grows() {
        // b = 5, e grows by 0.3 a step and is never taken back.
        let mut filter = Filter::new(&Rule::FIELD);
        let mut x = [0.0f64; 3];
        for k in 1..=60 {
            filter.predict(&Rule::FIELD, 0.3);
            x[1] += x[2];
            x[2] *= Rule::FIELD.keeps;
            let new = 5.0 + 0.3 * f64::from(k) - x[0] - x[1];
            let gain = filter.gain(&Rule::FIELD, new * new);
            (0..3).for_each(|i| x[i] += gain[i] * new);
        }
        assert!((x[0] - 5.0).abs() < 1.0 && (x[1] - 18.0).abs() < 1.0, "{x:?}");
    }
}
