//! Seeded draws. Every random thing has its own stream, named by (seed, what, section, mFOV, beam), so that any tile can be
//! made alone, in any order, on any thread, and is the same.

use std::sync::OnceLock;

use kinesin_stream::ids::{MfovId, TileKey};
use rand::{Rng, RngCore, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// What a stream of draws decides. The numbers are part of the seed: never renumber, only append.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum What {
    StageError = 1,
    BeamOffset = 2,
    BeamJitter = 3,
    BeamGrey = 4,
    Lens = 5,
    SharedLens = 6,
    Affine = 7,
    ScanStart = 8,
    Noise = 9,
    Focus = 10,
    SectionPlace = 11,
    Deformation = 12,
    Contrast = 13,
    Damage = 14,
    DamageShape = 15,
    Lost = 16,
    Blank = 17,
    Duplicate = 18,
    Late = 19,
    TileOrder = 20,
    SectionOrder = 21,
    Retaken = 22,
    Spoiled = 23,
}

/// Whose stream it is; what does not apply is 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Whose {
    pub(crate) section: u32,
    pub(crate) mfov: u32,
    pub(crate) beam: u32,
    /// Exposures of the same place before this one.
    pub(crate) attempt: u32,
}

impl Whose {
    pub(crate) fn section(section: u32) -> Self {
        Self { section, ..Self::default() }
    }

    /// One exposure of one tile.
    pub(crate) fn of(key: TileKey) -> Self {
        let MfovId { section, mfov, attempt, .. } = key.mfov;
        Self { section: section.0, mfov, beam: u32::from(key.beam.0), attempt: u32::from(attempt.0) }
    }

    pub(crate) fn beam(beam: u32) -> Self {
        Self { beam, ..Self::default() }
    }
}

/// One stream of draws.
pub(crate) struct Draws(Pcg64Mcg);

impl Draws {
    pub(crate) fn new(seed: u64, what: What, whose: Whose) -> Self {
        let mut state = mix(seed ^ 0x6b69_6e65_7369_6e00);
        for part in [what as u64, u64::from(whose.section), u64::from(whose.mfov), u64::from(whose.beam)] {
            state = mix(state ^ mix(part.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        }
        if whose.attempt > 0 {
            state = mix(state ^ mix(0x7265_7461_6b65_0000 | u64::from(whose.attempt)));
        }
        Self(Pcg64Mcg::seed_from_u64(state))
    }

    /// Even in `low..high`.
    pub(crate) fn even(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.random::<f64>()
    }

    /// Normal, mean 0.
    pub(crate) fn normal(&mut self, sd: f64) -> f64 {
        let (u, v): (f64, f64) = (1.0 - self.0.random::<f64>(), self.0.random());
        sd * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// True with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.0.random::<f64>() < probability
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.0.random::<f64>() * (i + 1) as f64) as usize);
        }
    }

    /// Five draws of 12 bits, each an index into [`normal_table`].
    pub(crate) fn five_indexes(&mut self) -> [usize; 5] {
        let bits = self.0.next_u64();
        [52, 40, 28, 16, 4].map(|shift| (bits >> shift) as usize & 0xfff)
    }
}

/// The standard normal in 4096 steps of equal probability, for noise at many values a microsecond. Cut at 3.7 sd.
pub(crate) fn normal_table() -> &'static [f32; 4096] {
    static TABLE: OnceLock<[f32; 4096]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let (step, mut area, mut x) = (1e-4, 0.0, -8.0);
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        std::array::from_fn(|i| {
            let wanted = (i as f64 + 0.5) / 4096.0;
            while area < wanted {
                area += step * density(x + step / 2.0);
                x += step;
            }
            x as f32
        })
    })
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_in_every_part_of_their_name_and_repeat() {
        let first = |seed, what, section, mfov, beam| {
            let whose = Whose { section, mfov, beam, attempt: 0 };
            Draws::new(seed, what, whose).even(0.0, 1.0)
        };
        let all = [
            first(1, What::Noise, 0, 0, 0),
            first(2, What::Noise, 0, 0, 0),
            first(1, What::Lost, 0, 0, 0),
            first(1, What::Noise, 1, 0, 0),
            first(1, What::Noise, 0, 1, 0),
            first(1, What::Noise, 0, 0, 1),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
        }
        assert_eq!(all[0], first(1, What::Noise, 0, 0, 0));
    }

    #[test]
    fn normal_draws_have_the_asked_mean_and_spread() {
        let mut draws = Draws::new(7, What::Noise, Whose::default());
        let values: Vec<f64> = (0..20_000).map(|_| draws.normal(3.0)).collect();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let sd = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 20_000.0).sqrt();
        assert!(mean.abs() < 4.0 * 3.0 / 20_000f64.sqrt() && (sd - 3.0).abs() < 0.08, "{mean} {sd}");
        let table = normal_table();
        let sd = (table.iter().map(|v| v * v).sum::<f32>() / 4096.0).sqrt();
        assert!((sd - 1.0).abs() < 0.01 && table[0] > -3.8 && (table[0] + table[4095]).abs() < 0.01, "{sd}");
    }
}
