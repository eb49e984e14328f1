//! Smooth noise that costs a table look-up.
//!
//! One periodic cube of band-limited noise (white noise under a Gaussian) is made per seed. A section cuts planes out of it,
//! at a chosen length per texel, and samples them bilinearly: mean 0, variance 1, features about six texels wide.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

const N: usize = 64;
/// Standard deviation of the Gaussian, texels.
const SIGMA: f32 = 2.5;

/// A periodic cube of smooth noise.
pub(super) struct Noise {
    data: Vec<f32>,
}

/// One plane of it.
pub(super) struct Plane {
    data: Vec<f32>,
    per_nm: f32,
}

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed ^ 0x6e6f_6973);
        let mut data: Vec<f32> = (0..N * N * N).map(|_| rng.random::<f32>() - 0.5).collect();
        for stride in [1, N, N * N] {
            data = blurred(&data, stride);
        }
        let mean = data.iter().sum::<f32>() / data.len() as f32;
        let variance = data.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / data.len() as f32;
        let scale = 1.0 / variance.sqrt();
        data.iter_mut().for_each(|v| *v = (*v - mean) * scale);
        Self { data }
    }

    /// The plane at height `z` nm with `texel` nm per texel; `channel` picks independent planes.
    pub(super) fn plane(&self, z: f32, texel: f32, channel: u32) -> Plane {
        let h = z / texel + channel as f32 * 17.37;
        let (k, u) = (h.floor(), h - h.floor());
        let (a, b) = ((k as i64).rem_euclid(N as i64) as usize, (k as i64 + 1).rem_euclid(N as i64) as usize);
        let (a, b) = (&self.data[a * N * N..(a + 1) * N * N], &self.data[b * N * N..(b + 1) * N * N]);
        Plane { data: a.iter().zip(b).map(|(a, b)| a + (b - a) * u).collect(), per_nm: 1.0 / texel }
    }
}

impl Plane {
    /// Value at (y, x) nm.
    pub(super) fn at(&self, y: f32, x: f32) -> f32 {
        let (y, x) = (y * self.per_nm + 1024.0 * N as f32, x * self.per_nm + 1024.0 * N as f32);
        let (j, i) = (y as u32, x as u32);
        let (v, u) = (y - j as f32, x - i as f32);
        let m = N as u32 - 1;
        let (r0, r1) = (((j & m) as usize) * N, (((j + 1) & m) as usize) * N);
        let (c0, c1) = ((i & m) as usize, ((i + 1) & m) as usize);
        let d = &self.data[..N * N];
        let top = d[r0 + c0] + (d[r0 + c1] - d[r0 + c0]) * u;
        let bottom = d[r1 + c0] + (d[r1 + c1] - d[r1 + c0]) * u;
        top + (bottom - top) * v
    }
}

/// Gaussian along one axis of the periodic cube.
fn blurred(data: &[f32], stride: usize) -> Vec<f32> {
    let reach = (3.0 * SIGMA).ceil() as usize;
    let kernel: Vec<f32> = (0..=reach).map(|d| (-0.5 * (d as f32 / SIGMA).powi(2)).exp()).collect();
    (0..data.len())
        .map(|i| {
            let here = i / stride % N;
            let line = i - here * stride;
            let at = |k: usize| data[line + (k % N) * stride];
            let sides = (1..=reach).map(|d| kernel[d] * (at(here + d) + at(here + N - d)));
            at(here) * kernel[0] + sides.sum::<f32>()
        })
        .collect()
}

/// A well-mixed number from four.
pub(super) fn hash(a: u32, b: u32, c: u32, d: u32) -> u32 {
    let mut h = a.wrapping_mul(0x9e37_79b1)
        ^ b.wrapping_mul(0x85eb_ca77)
        ^ c.wrapping_mul(0xc2b2_ae3d)
        ^ d.wrapping_mul(0x27d4_eb2f);
    h ^= h >> 15;
    h = h.wrapping_mul(0x2c1b_3c6d);
    h ^= h >> 12;
    h = h.wrapping_mul(0x297a_2d39);
    h ^ (h >> 15)
}

/// The same as a number from 0 to 1.
pub(super) fn unit(h: u32) -> f32 {
    (h >> 8) as f32 / (1u32 << 24) as f32
}
