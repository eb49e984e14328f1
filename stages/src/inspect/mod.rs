//! What one tile's pixels show about the exposure, in one pass over them.
//!
//! ```text
//! mean       m  = E[I]                                   grey values (0 to 255)
//! contrast   s  = sqrt(E[I^2] - m^2)                     grey values; holds noise and structure alike
//! C(k)       autocovariance of the image at a lag of k px, mean of the lags along x and along y
//! structure     = sqrt(max(0, C(1) - C(16)))             grey values: variation at scales of 1 to 16 px
//! sharpness     = 1 - C(2) / C(1)                        0 blurred .. about 0.5 and more crisp; 0 where nothing is seen
//! saturated     = share of pixels at 0 or 255
//! blank lines   = rows in which all pixels are equal
//! line jump     = the row whose steps to the next stand out ([`LineJump`])
//! ```
//! Lag 0 is never used in structure and sharpness, so noise that is independent from pixel to pixel drops out of both;
//! taking C(16) away removes vignetting and slow changes of brightness. The difference of two autocovariances as a measure
//! of focus is that of Vollath (J. Microscopy 147, 1987); dividing it by C(1) makes it independent of contrast. The limits of
//! mean and contrast that operators use (65 to 195, 5 to 105) are SBEMimage's defaults; blank lines are how an incomplete
//! grab shows. A tile is called blurred only against the other tiles of its section ([`compare`]): no single tile tells.
//!
//! Pure: no I/O, no state. Cost: seven multiply-adds and two differences a pixel.

mod scan;

use std::collections::BTreeMap;

use kinesin_stream::ids::TileKey;
use kinesin_stream::pixels::Pixels;
use serde::{Deserialize, Serialize};

pub use scan::{LineJump, ScanFault, scan_faults};

use crate::wide::{Kernel, wide};
use scan::{line_jump, steps};

/// From where on a tile is not called good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InspectConfig {
    /// Structure (grey values) below which a tile is blank. Default 1.5: half of the faintest stained tissue seen, and well
    /// above empty resin. Tiles whose structure does not stand out of their own noise are blank too, whatever this says.
    pub blank_structure: f64,
    /// Share of pixels at 0 or 255 above which a tile is saturated. Default 0.1: vessels and resin at white stay below it.
    pub saturated_fraction: f64,
    /// Share of blank rows above which a tile is incomplete. Default 0.01: one stuck row is a blemish, not a lost grab.
    pub blank_lines_fraction: f64,
    /// A tile is blurred where its sharpness is below this part of the section's median. Default 0.5: a blur of about one
    /// pixel more than the others have; differences of tissue stay above it.
    pub blurred_fraction: f64,
    /// Fewest tiles with structure for which a median is taken. Default 5.
    pub blurred_min_tiles: usize,
}

impl Default for InspectConfig {
    fn default() -> Self {
        Self {
            blank_structure: 1.5,
            saturated_fraction: 0.1,
            blank_lines_fraction: 0.01,
            blurred_fraction: 0.5,
            blurred_min_tiles: 5,
        }
    }
}

/// What the numbers say, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing but noise or a flat field.
    Blank,
    /// Too many rows without any variation while the others have it.
    Incomplete,
    /// Too many pixels at the ends of the scale.
    Saturated,
    /// Much less sharp than the other tiles of its section.
    Blurred,
    /// None of these.
    Good,
}

/// The measures of one tile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TileQuality {
    /// Mean grey value.
    pub mean: f64,
    /// Standard deviation of the grey values.
    pub contrast: f64,
    /// Standard deviation of what is not noise and not slow, grey values.
    pub structure: f64,
    /// See the module; comparable between tiles of the same kind of tissue.
    pub sharpness: f64,
    /// Share of pixels at 0 or 255.
    pub saturated: f64,
    /// Rows in which all pixels are equal.
    pub blank_lines: usize,
    /// The row that stands out, as a line that jumped; several beams at once make it a scan fault ([`scan_faults`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_jump: Option<LineJump>,
    /// Whether there is nothing to match or to segment.
    pub blank: bool,
    /// The judgement.
    pub verdict: Verdict,
}

/// Lags at which the autocovariance is taken, pixels.
const LAGS: [usize; 3] = [1, 2, 16];

/// Sums of the products at one lag, and of the two factors, to take the means away.
#[derive(Clone, Copy, Default)]
struct Lagged {
    products: u64,
    first: u64,
    second: u64,
    count: u64,
}

impl Lagged {
    fn covariance(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let count = self.count as f64;
        (self.products as f64 - self.first as f64 * self.second as f64 / count) / count
    }
}

/// Pixels whose sums fit small numbers: 4096 products of two bytes fit 32 bits.
const AT_ONCE: usize = 4096;

#[inline(always)]
fn products(a: &[u8], b: &[u8]) -> u64 {
    let sum = |(a, b): (&[u8], &[u8])| a.iter().zip(b).map(|(&x, &y)| u32::from(x) * u32::from(y)).sum::<u32>();
    a.chunks(AT_ONCE).zip(b.chunks(AT_ONCE)).map(|part| u64::from(sum(part))).sum()
}

#[inline(always)]
fn sum(row: &[u8]) -> u64 {
    row.chunks(AT_ONCE).map(|part| u64::from(part.iter().map(|&v| u32::from(v)).sum::<u32>())).sum()
}

/// Measures one tile of any size. An image without pixels is blank.
pub fn inspect(pixels: &Pixels, config: &InspectConfig) -> TileQuality {
    let all = wide(Measure(pixels));
    let (width, height) = (pixels.width(), pixels.height());
    let count = (width * height) as f64;
    let at = |i: usize| (all.along_x[i].covariance() + all.along_y[i].covariance()) / 2.0;
    let saturated = all.saturated as f64 / count.max(1.0);
    let quality = measures(&all.own, [at(0), at(1), at(2)], saturated, all.blank_lines, (count, height), config);
    let line_jump = if quality.blank { None } else { line_jump(&all.along, &all.across) };
    TileQuality { line_jump, ..quality }
}

/// What is added up over a tile.
#[derive(Default)]
struct Sums {
    own: Lagged,
    along_x: [Lagged; LAGS.len()],
    along_y: [Lagged; LAGS.len()],
    saturated: usize,
    blank_lines: usize,
    /// Steps along each row, and from each row to the next.
    along: Vec<u64>,
    across: Vec<u64>,
}

struct Measure<'a>(&'a Pixels);

impl Kernel for Measure<'_> {
    type Out = Sums;

    #[inline(always)]
    fn run(self) -> Sums {
        Sums::of(self.0)
    }
}

impl Sums {
    #[inline(always)]
    fn of(pixels: &Pixels) -> Self {
        let (width, height) = (pixels.width(), pixels.height());
        let mut all = Self::default();
        for y in 0..height {
            let row = pixels.row(y);
            let (total, w) = (sum(row), width as u64);
            let add = |to: &mut Lagged, products, first, second, count| {
                *to = Lagged {
                    products: to.products + products,
                    first: to.first + first,
                    second: to.second + second,
                    count: to.count + count,
                }
            };
            add(&mut all.own, products(row, row), total, total, w);
            for (i, &lag) in LAGS.iter().enumerate() {
                if lag < width {
                    let (first, second) = (total - sum(&row[width - lag..]), total - sum(&row[..lag]));
                    add(&mut all.along_x[i], products(&row[..width - lag], &row[lag..]), first, second, w - lag as u64);
                }
                // The row is the upper one of a pair, and the lower one of another.
                if y + lag < height {
                    add(&mut all.along_y[i], products(row, pixels.row(y + lag)), total, 0, w);
                }
                if y >= lag {
                    add(&mut all.along_y[i], 0, 0, total, 0);
                }
            }
            all.along.push(if width > 1 { steps(&row[1..], &row[..width - 1]) } else { 0 });
            if y + 1 < height {
                all.across.push(steps(row, pixels.row(y + 1)));
            }
            let ends = |part: &[u8]| usize::from(part.iter().map(|&v| u8::from(v == 0 || v == 255)).sum::<u8>());
            all.saturated += row.chunks(128).map(ends).sum::<usize>();
            all.blank_lines += usize::from(row.iter().fold(0, |differs, v| differs | (v ^ row[0])) == 0);
        }
        all
    }
}

fn measures(
    own: &Lagged,
    [c1, c2, c16]: [f64; 3],
    saturated: f64,
    blank_lines: usize,
    (count, height): (f64, usize),
    config: &InspectConfig,
) -> TileQuality {
    let variance = own.covariance().max(0.0);
    let structure = (c1 - c16).max(0.0).sqrt();
    // Pure noise leaves C(1) - C(16) at random within about variance * sqrt(1/N); four of that is chance.
    let chance = 4.0 * variance / count.max(1.0).sqrt();
    let blank = structure < config.blank_structure || structure * structure <= chance;
    let all_lines = blank_lines == height;
    let lines = blank_lines as f64 / (height.max(1)) as f64;
    let verdict = if all_lines || (blank && saturated <= config.saturated_fraction) {
        Verdict::Blank
    } else if lines > config.blank_lines_fraction {
        Verdict::Incomplete
    } else if saturated > config.saturated_fraction {
        Verdict::Saturated
    } else {
        Verdict::Good
    };
    TileQuality {
        mean: if count > 0.0 { own.first as f64 / count } else { 0.0 },
        contrast: variance.sqrt(),
        structure,
        sharpness: if blank || c1 <= 0.0 { 0.0 } else { (1.0 - c2 / c1).clamp(0.0, 1.0) },
        saturated,
        blank_lines,
        line_jump: None,
        blank,
        verdict,
    }
}

/// Marks the tiles of one section that are much less sharp than its median. Depends on the set of tiles only.
pub fn compare(tiles: &mut BTreeMap<TileKey, TileQuality>, config: &InspectConfig) {
    let mut sharpness: Vec<f64> = tiles.values().filter(|t| !t.blank).map(|t| t.sharpness).collect();
    if sharpness.len() < config.blurred_min_tiles.max(1) {
        return;
    }
    sharpness.sort_by(f64::total_cmp);
    let limit = config.blurred_fraction * sharpness[sharpness.len() / 2];
    for tile in tiles.values_mut() {
        if tile.verdict == Verdict::Good && tile.sharpness < limit {
            tile.verdict = Verdict::Blurred;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId};

    fn image(width: usize, height: usize, value: impl Fn(usize, usize) -> f64) -> Pixels {
        let data: Vec<u8> = (0..width * height).map(|i| value(i % width, i / width).clamp(0.0, 255.0) as u8).collect();
        Pixels::new(width, height, data)
    }

    /// Independent noise of this standard deviation, the same each time.
    fn noise(x: usize, y: usize, sd: f64) -> f64 {
        let mut sum = 0.0;
        for k in 0..4u64 {
            let mut h =
                (x as u64 * 0x9E37_79B9 + y as u64 * 0x85EB_CA6B + k * 0xC2B2_AE35).wrapping_mul(0x2545_F491_4F6C_DD1D);
            h ^= h >> 29;
            h = h.wrapping_mul(0xBF58_476D_1CE4_E5B9);
            sum += (h >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
        }
        sum * 1.732 * sd
    }

    fn waves(x: usize, y: usize, period: f64) -> f64 {
        let w = std::f64::consts::TAU / period;
        128.0 + 40.0 * (x as f64 * w).sin() * (y as f64 * w).cos()
    }

    #[test]
    fn mean_and_contrast_are_those_of_the_pixels() {
        let q = inspect(&image(8, 6, |x, _| if x % 2 == 0 { 100.0 } else { 120.0 }), &InspectConfig::default());
        assert!((q.mean - 110.0).abs() < 1e-9);
        assert!((q.contrast - 10.0).abs() < 1e-9);
    }

    #[test]
    fn noise_without_structure_is_blank_at_any_strength_and_size() {
        for sd in [0.0, 3.0, 12.0, 45.0] {
            for side in [40, 150, 400] {
                let shade = |x: usize| 120.0 + 0.05 * x as f64;
                let q = inspect(&image(side, side, |x, y| shade(x) + noise(x, y, sd)), &InspectConfig::default());
                assert!(q.blank && q.verdict == Verdict::Blank, "sd {sd}, side {side}: {q:?}");
            }
        }
    }

    #[test]
    fn structure_under_strong_noise_is_not_blank() {
        let q = inspect(&image(300, 300, |x, y| waves(x, y, 20.0) + noise(x, y, 45.0)), &InspectConfig::default());
        assert_eq!(q.verdict, Verdict::Good, "{q:?}");
    }

    #[test]
    fn sharpness_hardly_depends_on_noise_and_marks_the_blurred_tile_of_a_section() {
        let config = InspectConfig::default();
        let clean = inspect(&image(300, 300, |x, y| waves(x, y, 10.0)), &config);
        let noisy = inspect(&image(300, 300, |x, y| waves(x, y, 10.0) + noise(x, y, 12.0)), &config);
        assert!((clean.sharpness - noisy.sharpness).abs() < 0.03, "{clean:?} {noisy:?}");
        let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
        let key = |beam| TileKey { mfov, beam: BeamId(beam) };
        let mut tiles: BTreeMap<_, _> = (0..6).map(|b| (key(b), clean)).collect();
        tiles.insert(key(6), inspect(&image(300, 300, |x, y| waves(x, y, 30.0)), &config));
        compare(&mut tiles, &config);
        let verdicts: Vec<_> = tiles.values().map(|t| t.verdict).collect();
        assert_eq!(verdicts[..6], [Verdict::Good; 6]);
        assert_eq!(verdicts[6], Verdict::Blurred);
    }

    #[test]
    fn burnt_and_half_grabbed_tiles_are_told_apart() {
        let config = InspectConfig::default();
        let burnt = inspect(
            &image(200, 200, |x, y| waves(x, y, 20.0) + if y < 60 { 200.0 } else { 0.0 } + (x % 2) as f64),
            &config,
        );
        assert!(burnt.saturated > 0.2);
        let half =
            inspect(&image(200, 200, |x, y| if y < 150 { waves(x, y, 20.0) + (x % 2) as f64 } else { 7.0 }), &config);
        assert_eq!((half.verdict, half.blank_lines), (Verdict::Incomplete, 50));
    }

    #[test]
    fn any_size_is_measured() {
        for (w, h) in [(0, 0), (1, 1), (1, 50), (50, 1), (3, 2), (17, 17)] {
            let q = inspect(&image(w, h, |x, y| noise(x, y, 30.0) + 100.0), &InspectConfig::default());
            assert!(q.mean.is_finite() && q.sharpness.is_finite() && q.blank, "{w} x {h}: {q:?}");
        }
    }
}
