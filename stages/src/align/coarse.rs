//! Turn and shift of a section at thumbnail scale: two estimates that must agree.
//!
//! 1. *Sweep*: the thumbnail is turned by each angle and correlated with the reference over all shifts at once (Fourier transform, zero padded;
//!    two angles share one complex transform). The highest correlation wins.
//! 2. *Votes*: blocks of the thumbnail are matched around that pose, and one affine map must explain the given share of the
//!    trusted ones, and lie close to the pose. Chance does not reach that share.
//!
//! The opposite contrast counts as much as the same: the sign of the highest correlation tells which it is. Where all angles have failed, the
//! section is also tried turned over and at other pixel sizes, only to say so.
//!
//! Cost at 128 px thumbnails: 7 transforms of 160 x 160 and 40 blocks, about 6 ms.

use std::sync::Arc;

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::map::{Affine, Map};
use rayon::prelude::*;
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};

use super::blocks::{Search, match_blocks};
use super::config::AlignConfig;
use super::filled::Summed;
use super::fit::{self, FOLDS, Pair};
use super::plane::{Plane, deviation};
use super::warp;

/// Votes within this many thumbnail pixels of the affine map agree with it: local deformation and half a pixel of search.
const TOLERANCE: f64 = 2.5;
/// The sweep is done on thumbnails of at least this many pixels on the shorter side.
const LEAST_SWEPT: usize = 56;
/// Blocks that must agree at least, whatever their share; two fifths of all where that is more.
const LEAST_VOTES: usize = 8;

/// Pixel sizes that a section is tried at where it fits nowhere, as a part of what it should have.
const OTHER_SIZES: [f64; 6] = [0.5, 0.67, 0.8, 1.25, 1.5, 2.0];

/// Section pixel to volume pixel, full resolution, by a sweep around 0 and, where `all_angles`, over the circle.
pub(super) fn find(
    section: &Plane,
    reference: &Plane,
    config: &AlignConfig,
    all_angles: bool,
) -> Result<Affine, String> {
    match sweep(section, reference, config, all_angles) {
        Err(reason) if all_angles => Err(match named(section, reference, config) {
            Some(name) => format!("{name} ({reason})"),
            None => reason,
        }),
        found => found,
    }
}

/// What is wrong with a section that fits nowhere, where that can be told.
fn named(section: &Plane, reference: &Plane, config: &AlignConfig) -> Option<String> {
    if sweep(&resized(section, -1.0, 1.0), reference, config, true).is_ok() {
        return Some("the section is mirrored: turned over it fits".to_owned());
    }
    let fits = |k: &&f64| sweep(&resized(section, **k, **k), reference, config, false).is_ok();
    let size = OTHER_SIZES.iter().find(fits)?;
    Some(format!("its pixels are {size} times those of the others: drawn {size} times as large it fits"))
}

/// The section stretched about its first pixel, or turned over.
fn resized(section: &Plane, x: f64, y: f64) -> Plane {
    let map = Map::Affine(Affine { rows: [[x, 0.0, 0.0], [0.0, y, 0.0]] });
    let frame = Plane { area: BoxXy { min: Xy::new(0, 0), max: Xy::new(0, 0) }, grey: vec![], ..*section };
    let place = |u: f64, v: f64| {
        let corner = Xy::new(u * (section.width as f64 - 1.0), v * (section.height as f64 - 1.0));
        frame.place_of(map.apply(section.to_full(corner)))
    };
    let (a, b) = (place(0.0, 0.0), place(1.0, 1.0));
    let low = Xy::new(a.x.min(b.x).floor() as i64, a.y.min(b.y).floor() as i64);
    let high = Xy::new(a.x.max(b.x).ceil() as i64 + 1, a.y.max(b.y).ceil() as i64 + 1);
    warp::drawn(section, &map, BoxXy { min: low, max: high })
}

fn sweep(section: &Plane, reference: &Plane, config: &AlignConfig, all_angles: bool) -> Result<Affine, String> {
    // The sweep is done twice coarser where that leaves enough; votes follow at the thumbnail's own scale.
    let enough = section.width.min(section.height).min(reference.width.min(reference.height)) >= 2 * LEAST_SWEPT;
    let halves = enough.then(|| (section.halved(), reference.halved()));
    let (swept, onto) = halves.as_ref().map_or((section, reference), |(s, r)| (s, r));
    let transforms = Transforms::new(swept, onto);
    let (step, n) = if all_angles {
        // Twice the first step, all around.
        let n = (180.0 / (2.0 * config.sweep_step_deg)).ceil();
        (180.0 / n, 2 * n as i32)
    } else {
        (config.sweep_step_deg, 2 * (config.sweep_deg / config.sweep_step_deg).ceil() as i32 + 1)
    };
    let angles: Vec<f64> = (0..n).map(|i| f64::from(i - n / 2) * step).collect();
    let mut best = transforms.best_of(&angles);
    for finer in [step / 2.0, step / 4.0] {
        let beside = transforms.best_of(&[best.degrees - finer, best.degrees + finer]);
        if beside.score > best.score {
            best = beside;
        }
    }
    let pose = transforms.pose(&best);
    if best.inverted {
        confirm(section, &reference.inverted(), pose, config)
    } else {
        confirm(section, reference, pose, config)
    }
}

/// Votes of blocks around `pose`.
fn confirm(section: &Plane, reference: &Plane, pose: Affine, config: &AlignConfig) -> Result<Affine, String> {
    let turned = turn(section, &pose, reference);
    let side = turned.width.min(turned.height);
    let patch = (side / 4).clamp(16, 40) & !1;
    let search = Search {
        patch,
        stride: patch / 2,
        reach: (patch / 4).max(6),
        least_score: config.least_score,
        least_distinctness: config.least_distinctness / 2.0,
        again: 0,
    };
    let back = pose.inverse().ok_or("the turned thumbnail is flat")?;
    let blocks = match_blocks(&Summed::new(&turned), &Summed::new(&padded(reference, turned.area)), &search);
    let trusted: Vec<Pair> = blocks
        .iter()
        .filter(|m| m.trusted)
        .map(|m| Pair { from: back.apply(m.at), to: m.to, weight: 1.0, fold: (m.cell.x & 1) as usize % FOLDS })
        .collect();
    let tolerance = TOLERANCE * f64::from(section.scale);
    let told = |agree: usize| {
        format!("{agree} of {} trusted coarse blocks ({} in all) agree on one pose", trusted.len(), blocks.len())
    };
    let Some((map, votes)) = fit::vote(&trusted, tolerance) else { return Err(told(0)) };
    let agreement = votes.len() as f64 / trusted.len() as f64;
    let enough = LEAST_VOTES.max(blocks.len() * 2 / 5);
    if votes.len() < enough || agreement < config.coarse_agreement {
        return Err(told(votes.len()));
    }
    let (w, h) = (section.width as f64, section.height as f64);
    let corners = [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h)].map(|(x, y)| section.to_full(Xy::new(x, y)));
    let apart = corners.iter().map(|c| (map.apply(*c) - pose.apply(*c)).norm()).fold(0.0, f64::max);
    let allowed = 0.1 * w.hypot(h) * f64::from(section.scale);
    if apart > allowed {
        return Err(format!("sweep and block votes differ by {apart:.0} px at a corner, {allowed:.0} px are allowed"));
    }
    Ok(map)
}

/// `reference` in a larger or shifted frame.
fn padded(reference: &Plane, area: BoxXy) -> Plane {
    let mut out = Plane::empty(area, reference.scale);
    if let Some(part) = area.intersect(&reference.area) {
        for y in part.min.y..part.max.y {
            let to = (y - area.min.y) as usize * out.width + (part.min.x - area.min.x) as usize;
            let from =
                (y - reference.area.min.y) as usize * reference.width + (part.min.x - reference.area.min.x) as usize;
            let n = part.size().x;
            out.grey[to..to + n].copy_from_slice(&reference.grey[from..from + n]);
        }
    }
    out
}

/// `section` under `pose`, in a frame that holds it and the reference and a margin for the search.
fn turn(section: &Plane, pose: &Affine, reference: &Plane) -> Plane {
    let (w, h) = (section.width as f64, section.height as f64);
    let mut area = reference.area;
    for (x, y) in [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h)] {
        let p = reference.place_of(pose.apply(section.to_full(Xy::new(x, y))));
        let at = Xy::new(p.x.floor() as i64 + reference.area.min.x, p.y.floor() as i64 + reference.area.min.y);
        area = area.union(&BoxXy { min: at, max: Xy::new(at.x + 1, at.y + 1) });
    }
    let margin = 24;
    area.min = Xy::new(area.min.x - margin, area.min.y - margin);
    area.max = Xy::new(area.max.x + margin, area.max.y + margin);
    warp::drawn(section, &Map::Affine(*pose), area)
}

/// One angle of the sweep.
#[derive(Clone, Copy)]
struct Peak {
    degrees: f64,
    /// Shift of the thumbnail's centre from the reference's, thumbnail pixels.
    shift: Xy<f64>,
    /// Height of the correlation, whatever its sign.
    score: f32,
    /// Whether it is negative.
    inverted: bool,
}

/// The reference's spectrum and what is needed to turn the section.
struct Transforms<'a> {
    section: &'a Plane,
    reference: &'a Plane,
    side: usize,
    forward: Arc<dyn Fft<f32>>,
    inverse: Arc<dyn Fft<f32>>,
    spectrum: Vec<Complex<f32>>,
}

impl<'a> Transforms<'a> {
    fn new(section: &'a Plane, reference: &'a Plane) -> Self {
        let longest = |p: &Plane| p.width.max(p.height);
        let diagonal = (section.width as f64).hypot(section.height as f64).ceil() as usize;
        let side = smooth_size(longest(reference) + diagonal);
        let mut planner = FftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(side), planner.plan_fft_inverse(side));
        let mut spectrum = vec![Complex::default(); side * side];
        for y in 0..reference.height {
            for x in 0..reference.width {
                spectrum[y * side + x].re = f32::from(deviation(reference.grey[y * reference.width + x]));
            }
        }
        transform(&mut spectrum, side, forward.as_ref());
        Self { section, reference, side, forward, inverse, spectrum }
    }

    /// The best of several angles; earlier ones win ties.
    fn best_of(&self, angles: &[f64]) -> Peak {
        let peaks: Vec<Peak> = angles.par_chunks(2).flat_map_iter(|pair| self.peaks(pair)).collect();
        peaks.into_iter().reduce(|a, b| if b.score > a.score { b } else { a }).expect("there is an angle")
    }

    /// Peaks of one or two angles.
    fn peaks(&self, angles: &[f64]) -> Vec<Peak> {
        let n = self.side;
        let mut data = vec![Complex::default(); n * n];
        for (k, degrees) in angles.iter().enumerate() {
            self.draw_turned(*degrees, |i, v| if k == 0 { data[i].re = v } else { data[i].im = v });
        }
        transform(&mut data, n, self.forward.as_ref());
        data.iter_mut().zip(&self.spectrum).for_each(|(d, r)| *d = d.conj() * r);
        transform(&mut data, n, self.inverse.as_ref());
        let parts: [fn(&Complex<f32>) -> f32; 2] = [|c| c.re, |c| -c.im];
        angles.iter().zip(parts).map(|(a, part)| self.highest(*a, &data, part)).collect()
    }

    /// The highest correlation among shifts that keep half of the smaller side in common.
    fn highest(&self, degrees: f64, data: &[Complex<f32>], part: fn(&Complex<f32>) -> f32) -> Peak {
        let n = self.side as i64;
        let (s, r) = (self.section, self.reference);
        // The section is drawn around pixel n / 2; a shift moves its centre onto a pixel of the reference.
        let (cx, cy) = (n / 2, n / 2);
        let common = (s.width.min(r.width) / 2) as i64;
        let rows = (s.height.min(r.height) / 2) as i64;
        let half = (s.width as i64 / 2, s.height as i64 / 2);
        let mut best = Peak { degrees, shift: Xy::default(), score: f32::MIN, inverted: false };
        for y in (rows - half.1)..=(r.height as i64 + half.1 - rows) {
            for x in (common - half.0)..=(r.width as i64 + half.0 - common) {
                let (dx, dy) = ((x - cx).rem_euclid(n), (y - cy).rem_euclid(n));
                let score = part(&data[(dy * n + dx) as usize]);
                if score.abs() > best.score {
                    let shift = Xy::new(x as f64, y as f64);
                    best = Peak { degrees, shift, score: score.abs(), inverted: score < 0.0 };
                }
            }
        }
        best
    }

    /// Writes the section, turned about its centre, around the middle of the square.
    fn draw_turned(&self, degrees: f64, mut put: impl FnMut(usize, f32)) {
        let n = self.side as i64;
        let (w, h) = (self.section.width as f64, self.section.height as f64);
        let centre = Xy::new((w - 1.0) / 2.0, (h - 1.0) / 2.0);
        let (sin, cos) = (-degrees).to_radians().sin_cos();
        let half = (w.hypot(h) / 2.0).ceil() as i64;
        for y in -half..half {
            for x in -half..half {
                let (u, v) = (x as f64, y as f64);
                let p = Xy::new(cos * u - sin * v + centre.x, sin * u + cos * v + centre.y);
                let (c, r) = (p.x.round(), p.y.round());
                if c >= 0.0 && r >= 0.0 && c < w && r < h {
                    let value = self.section.grey[r as usize * self.section.width + c as usize];
                    put(((y + n / 2) * n + x + n / 2) as usize, f32::from(deviation(value)));
                }
            }
        }
    }

    /// Section pixel to volume pixel for a peak.
    fn pose(&self, peak: &Peak) -> Affine {
        let (w, h) = (self.section.width as f64, self.section.height as f64);
        let centre = self.section.to_full(Xy::new((w - 1.0) / 2.0, (h - 1.0) / 2.0));
        let target = self.reference.to_full(peak.shift);
        Affine::rotation(peak.degrees.to_radians(), centre).then(&Affine::translation(target - centre))
    }
}

/// Two-dimensional transform in place; leaves the axes swapped back.
fn transform(data: &mut [Complex<f32>], side: usize, fft: &dyn Fft<f32>) {
    for _ in 0..2 {
        fft.process(data);
        for y in 0..side {
            for x in y + 1..side {
                data.swap(y * side + x, x * side + y);
            }
        }
    }
}

/// The smallest product of 2, 3 and at most one 5 that is not below `n`.
fn smooth_size(n: usize) -> usize {
    (n..)
        .find(|&v| {
            let mut v = v;
            while v % 2 == 0 {
                v /= 2;
            }
            while v % 3 == 0 {
                v /= 3;
            }
            v == 1 || v == 5
        })
        .expect("powers of two never end")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Irregular spots of about 3 px of 8 full-resolution pixels, the sample at (`x`, `y`) pixels.
    fn spots(x: f64, y: f64) -> f64 {
        let hash = |c: i64, r: i64| {
            let mut h = (c as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (r as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
            h = (h ^ (h >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((h >> 40) & 0xFFFF) as f64 / 32768.0 - 1.0
        };
        let (x, y) = ((0.8 * x + 0.6 * y) / 2.7, (0.8 * y - 0.6 * x) / 2.7);
        let (c, r, u, v) = (x.floor() as i64, y.floor() as i64, x.fract(), y.fract());
        let row = |r: i64| hash(c, r) * (1.0 - u) + hash(c + 1, r) * u;
        row(r) * (1.0 - v) + row(r + 1) * v
    }

    /// 128 px squared under a map from pixel to pixel of the spots.
    fn thumbnail(contrast: f64, map: impl Fn(f64, f64) -> (f64, f64)) -> Plane {
        let mut out = Plane::empty(BoxXy { min: Xy::new(0, 0), max: Xy::new(128, 128) }, 8);
        for (i, v) in out.grey.iter_mut().enumerate() {
            let (x, y) = map((i % 128) as f64 + 200.0, (i / 128) as f64 + 200.0);
            *v = (128.0 + contrast * 90.0 * spots(x, y)) as u8;
        }
        out
    }

    #[test]
    fn moved_and_inverted_sections_are_found_and_others_are_named() {
        let config = AlignConfig::default();
        let reference = thumbnail(1.0, |x, y| (x, y));
        for contrast in [1.0, -1.0] {
            let pose = find(&thumbnail(contrast, |x, y| (x + 6.0, y - 4.0)), &reference, &config, false);
            // Six and four thumbnail pixels of 8.
            let at = pose.expect("found").apply(Xy::new(500.0, 500.0));
            assert!((at - Xy::new(548.0, 468.0)).norm() < 4.0, "{at:?}");
        }
        let reason = |map: fn(f64, f64) -> (f64, f64)| {
            find(&thumbnail(1.0, map), &reference, &config, true).expect_err("fits nowhere")
        };
        let turned_over = reason(|x, y| (528.0 - x, y));
        assert!(turned_over.contains("mirrored"), "{turned_over}");
        let larger = reason(|x, y| (264.0 + 1.5 * (x - 264.0), 264.0 + 1.5 * (y - 264.0)));
        assert!(larger.contains("1.5 times"), "{larger}");
        let other = reason(|x, y| (x + 5000.0, y));
        assert!(!other.contains("mirrored") && !other.contains("times"), "{other}");
    }
}
