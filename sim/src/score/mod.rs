//! How far a result is from the truth. Pure: values in, numbers out.
//!
//! | module | scores |
//! |---|---|
//! | [`labels`] | a segmentation: variation of information, adapted Rand error, coverage |
//! | [`placement`] | tiles within a section: place error and seams |
//! | [`alignment`] | sections against each other: residual between neighbours, error in the volume |
//! | [`gauge`] | what is free: where a result lies as a whole, taken out before errors are measured |
//!
//! Lengths are pixels of the section or the volume. Nothing depends on the order in which parts are added.

use std::collections::BTreeMap;

use kinesin_stream::map::{SectionToVolume, TileToSection};
use serde::{Deserialize, Serialize};

pub mod alignment;
pub mod gauge;
pub mod labels;
pub mod placement;

/// Tile pixel to section pixel, by tile name: `{"tiles": {NAME: MAP}}` of `placements.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Placements {
    /// By file name or TileSpec id.
    pub tiles: BTreeMap<String, TileToSection>,
}

/// Section pixel to volume pixel, by section name: `alignment.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alignment {
    /// Always `forward`: from the section to the volume.
    pub direction: Direction,
    /// By section name.
    pub sections: BTreeMap<String, SectionToVolume>,
}

/// Which way the maps of an [`Alignment`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Section pixel to volume pixel.
    Forward,
}

/// Lengths of many errors, in pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(Vec<f64>);

/// What is told of them; all 0 where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// Root of the mean square.
    pub rms: f64,
    /// Half are below.
    pub median: f64,
    /// 95 in 100 are below.
    pub p95: f64,
    /// 99 in 100 are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Errors {
    /// One more.
    pub fn push(&mut self, error: f64) {
        self.0.push(error);
    }

    /// Those of another part of the same result.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// Rms, quantiles (the least value that the share reaches) and maximum.
    pub fn spread(&self) -> Spread {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let Some(&max) = sorted.last() else { return Spread::default() };
        let count = sorted.len();
        let quantile = |q: f64| sorted[((q * count as f64).ceil() as usize).clamp(1, count) - 1];
        let squares: f64 = sorted.iter().map(|e| e * e).sum();
        let rms = (squares / count as f64).sqrt();
        Spread { count, rms, median: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99), max }
    }
}

impl FromIterator<f64> for Errors {
    fn from_iter<I: IntoIterator<Item = f64>>(errors: I) -> Self {
        Self(errors.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_the_share_reaches() {
        let spread = (1..=100).rev().map(f64::from).collect::<Errors>().spread();
        assert_eq!((spread.count, spread.median, spread.p95, spread.p99, spread.max), (100, 50.0, 95.0, 99.0, 100.0));
        assert!((spread.rms - (101.0f64 * 201.0 / 6.0).sqrt()).abs() < 1e-12);
        assert_eq!(Errors::default().spread(), Spread::default());
    }

    #[test]
    fn the_files_of_the_contract_are_read() {
        let text = r#"{"direction":"forward","sections":{"s1":{"affine":[[1.0,0.0,5.0],[0.0,1.0,6.0]]}}}"#;
        let alignment: Alignment = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&alignment).unwrap(), text);
        assert!(serde_json::from_str::<Alignment>(&text.replace("forward", "inverse")).is_err());
        let placements: Placements =
            serde_json::from_str(r#"{"tiles":{"a.tif":{"affine":[[1,0,0],[0,1,0]]}}}"#).unwrap();
        assert!(placements.tiles.contains_key("a.tif"));
    }
}
