//! What a section looks like by itself, against those around it: out of focus, or with a part gone.
//!
//! *Sharpness.* In a square of 16 px of the view, `m2`, `m4` and `m16` being means of 2, 4 and 16 px squared:
//! `sum (m2 - m4)^2 / sum (m4 - m16)^2`, the detail of 2 to 4 px as a part of that of 4 to 16. The median over the squares with any texture,
//! so that dirt, whose rims are coarse, does not count. Noise of single pixels is mostly averaged away. Contrast does not matter.
//!
//! Both are compared with the median of the sections around: what is usual depends on tissue and microscope.

use std::collections::VecDeque;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// Side of a square, pixels of the view.
const SQUARE: usize = 16;
/// Least sum of squares in a square with texture: a standard deviation of 3 grey levels.
const LEAST: f64 = 9.0 * 16.0;
/// Squares that tell.
const ENOUGH: usize = 16;
/// Final sections that are kept in mind.
const KEPT: usize = 8;

/// What a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// Fine detail as a part of coarser; none where there is too little texture to tell.
    pub sharpness: Option<f64>,
    /// Tissue, pixels of the view.
    pub area: u64,
}

impl Look {
    /// Of the image of a section, 0 = no data.
    pub(super) fn of(image: &Array2<u8>) -> Self {
        let (h, w) = image.dim();
        let corners = (0..h / SQUARE).flat_map(|r| (0..w / SQUARE).map(move |c| (r * SQUARE, c * SQUARE)));
        let mut shares: Vec<f64> = corners.filter_map(|(y, x)| detail(image, y, x)).collect();
        shares.sort_by(f64::total_cmp);
        let median = shares.get(shares.len() / 2).filter(|_| shares.len() >= ENOUGH);
        let sharpness = median.map(|v| (v * 10_000.0).round() / 10_000.0);
        Self { sharpness, area: image.iter().filter(|v| **v > 0).count() as u64 }
    }

    /// As parts of what is usual among `others`: sharpness and area, 1 where that cannot be told.
    pub(super) fn beside<'a>(&self, others: impl Iterator<Item = &'a Self> + Clone) -> Beside {
        let part = |own: Option<f64>, others: Vec<f64>| match (own, median(others)) {
            (Some(own), Some(usual)) if usual > 0.0 => (own / usual * 100.0).round() / 100.0,
            _ => 1.0,
        };
        let areas = others.clone().map(|o| o.area as f64).collect();
        Beside {
            sharpness: part(self.sharpness, others.filter_map(|o| o.sharpness).collect()),
            area: part(Some(self.area as f64), areas),
        }
    }
}

/// A section against those around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// Its sharpness, as a part of the usual.
    pub sharpness: f64,
    /// Its area, as a part of the usual.
    pub area: f64,
}

/// Looks of the last final sections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Looks(VecDeque<Look>);

impl Looks {
    /// One more; the oldest goes.
    pub(super) fn add(&mut self, look: Look) {
        self.0.push_back(look);
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Look> + Clone {
        self.0.iter()
    }
}

/// `None` of fewer than two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().filter(|_| values.len() > 1)
}

/// The measure in one square; `None` where it is not filled or has no texture.
fn detail(image: &Array2<u8>, y: usize, x: usize) -> Option<f64> {
    let square = image.slice(ndarray::s![y..y + SQUARE, x..x + SQUARE]);
    if square.iter().any(|v| *v == 0) {
        return None;
    }
    let n = SQUARE / 2;
    let pair = |r: usize, c: usize| {
        let at = |j: usize, i: usize| f64::from(square[[2 * r + j, 2 * c + i]]);
        (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0
    };
    let m2: Vec<f64> = (0..n * n).map(|i| pair(i / n, i % n)).collect();
    let mean = m2.iter().sum::<f64>() / m2.len() as f64;
    let (mut fine, mut coarse) = (0.0, 0.0);
    for (r, c) in (0..n / 2).flat_map(|r| (0..n / 2).map(move |c| (2 * r, 2 * c))) {
        let four = [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)].map(|(r, c)| m2[r * n + c]);
        let m4 = four.iter().sum::<f64>() / 4.0;
        fine += four.iter().map(|v| (v - m4).powi(2)).sum::<f64>();
        coarse += (m4 - mean).powi(2);
    }
    (coarse >= LEAST).then(|| fine / 4.0 / coarse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(length: f64, contrast: f64) -> Array2<u8> {
        let turn = |v: usize| (v as f64 / length * std::f64::consts::TAU).sin();
        Array2::from_shape_fn((160, 160), |(y, x)| {
            let (fine, coarse) = (turn(x + y), ((x as f64 + 0.5 * y as f64) / 5.0).sin());
            (128.0 + contrast * (20.0 * fine + 40.0 * coarse)) as u8
        })
    }

    #[test]
    fn fine_detail_counts_and_contrast_does_not() {
        let (sharp, dull, soft) = (Look::of(&waves(7.0, 1.0)), Look::of(&waves(7.0, 0.5)), Look::of(&waves(60.0, 1.0)));
        let others = [sharp; 3];
        assert!((dull.beside(others.iter()).sharpness - 1.0).abs() < 0.1, "{sharp:?} {dull:?}");
        assert!(soft.beside(others.iter()).sharpness < 0.4, "{sharp:?} {soft:?}");
        let flat = Look::of(&Array2::from_elem((160, 160), 90));
        assert_eq!((flat.sharpness, flat.beside(others.iter()).sharpness), (None, 1.0));
    }

    #[test]
    fn a_part_that_is_gone_is_seen_against_the_usual() {
        let whole = waves(7.0, 1.0);
        let mut torn = whole.clone();
        torn.slice_mut(ndarray::s![40.., ..]).fill(0);
        let others = [Look::of(&whole); 3];
        assert_eq!(Look::of(&torn).beside(others.iter()).area, 0.25);
        assert_eq!(Look::of(&torn).beside(others[..1].iter()).area, 1.0, "one other is not what is usual");
    }
}
