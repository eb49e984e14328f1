//! Which parts of a section are not tissue to segment: vessels, cell bodies, resin; by a 2-D network on a coarser image.
//!
//! Method: U-Net (Ronneberger et al., 2015) run over overlapping tiles. Each pixel's logits are the mean over the tiles that
//! cover it, weighted with a pyramid that falls to the tile's rim (integer weights, summed in a fixed order), so no seam shows
//! and results do not depend on batches. The image is reduced by whole factors with exact means over pixels that hold data.
//! Units: pixels `[y, x]` of the rendered section (fine) and of the mask (coarse, `factor` times larger).

use ndarray::{Array2, Array3, ArrayView2, s};
use serde::{Deserialize, Serialize};

use crate::model::{Model, ModelError};
use crate::runtime::{Network, NetworkError};

/// `[mask]` of a site file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskConfig {
    /// Overlap of neighbouring tiles, share of a tile's side. Default 0.25: beyond the reach of the shipped network's rim effect.
    pub overlap: f64,
    /// Classes that are not segmented, by name. Default: every class of the model but its first, which is tissue.
    pub exclude: Option<Vec<String>>,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self { overlap: 0.25, exclude: None }
    }
}

/// Why there is no mask.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// The model is of another kind.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Settings that contradict the model; all of them.
    #[error("mask settings: {}", .0.join("; "))]
    Config(Vec<String>),
}

/// Turns rendered sections into class maps. One per worker.
pub struct Masker {
    network: Box<dyn Network>,
    model: Model,
    tile: [usize; 2],
    classes: usize,
    threshold: f32,
    factor: usize,
    overlap: f64,
    excluded: Vec<bool>,
}

impl Masker {
    /// For sections whose pixels are `pixel_nm` wide; `network` must be one of `model`.
    ///
    /// # Errors
    /// Where the model is no mask model, a class is unknown, or the model's voxel size is not about a whole multiple of the pixel.
    pub fn new(
        config: &MaskConfig,
        model: &Model,
        pixel_nm: f64,
        network: Box<dyn Network>,
    ) -> Result<Self, MaskError> {
        let rules = model.mask()?.clone();
        let mut faults = Vec::new();
        let wanted_nm = model.voxel_size().0.x;
        let factor = (wanted_nm / pixel_nm).round().max(1.0);
        if (factor * pixel_nm / wanted_nm - 1.0).abs() > 0.2 {
            faults.push(format!(
                "model {} wants pixels of {wanted_nm} nm, {factor} x {pixel_nm} nm is more than 20 % away",
                model.name()
            ));
        }
        if !(0.0..=0.5).contains(&config.overlap) {
            faults.push(format!("mask.overlap = {}, use 0 to 0.5", config.overlap));
        }
        let names = config.exclude.clone().unwrap_or_else(|| rules.classes[1..].to_vec());
        for name in names.iter().filter(|n| !rules.classes.contains(n)) {
            faults.push(format!(
                "mask.exclude names \"{name}\", model {} has {}",
                model.name(),
                rules.classes.join(", ")
            ));
        }
        if !faults.is_empty() {
            return Err(MaskError::Config(faults));
        }
        let shape = model.manifest().shape;
        Ok(Self {
            network,
            model: model.clone(),
            tile: [shape.y, shape.x],
            classes: rules.classes.len(),
            threshold: rules.threshold as f32,
            factor: factor as usize,
            overlap: config.overlap,
            excluded: rules.classes.iter().map(|c| names.contains(c)).collect(),
        })
    }

    /// How many pixels of the section one pixel of the mask spans.
    pub fn factor(&self) -> usize {
        self.factor
    }

    /// Class of every coarse pixel of a section (0 = no data in the image); 0 is the model's first class, tissue, also where
    /// there is no data. Shape: that of the section divided by the factor, rounded up.
    ///
    /// # Errors
    /// Where the network fails.
    pub fn classes(&mut self, section: ArrayView2<'_, u8>) -> Result<Array2<u8>, MaskError> {
        let coarse = reduce(section, self.factor);
        let table = self.model.manifest().normalisation.table(coarse.view());
        let (ny, nx) = coarse.dim();
        let [ty, tx] = self.tile;
        let mut sums = Array3::<f32>::zeros((self.classes, ny, nx));
        let mut weights = Array2::<f32>::zeros((ny, nx));
        let mut input = vec![0.0f32; ty * tx];
        let mut logits = vec![0.0f32; self.classes * ty * tx];
        for y0 in starts(ny, ty, self.overlap) {
            for x0 in starts(nx, tx, self.overlap) {
                for (i, value) in input.iter_mut().enumerate() {
                    // beyond the border the image is mirrored, as nothing else looks like tissue
                    let (y, x) = (mirror(y0 + i / tx, ny), mirror(x0 + i % tx, nx));
                    *value = table.0[usize::from(coarse[[y, x]])];
                }
                self.network.run(&[&input], 1, &mut logits)?;
                add_tile(&mut sums, &mut weights, &logits, [y0, x0], self.tile);
            }
        }
        Ok(Array2::from_shape_fn((ny, nx), |(y, x)| {
            if coarse[[y, x]] == 0 {
                0
            } else {
                self.decide(sums.slice(s![.., y, x]).iter().map(|s| s / weights[[y, x]]))
            }
        }))
    }

    /// Voxels that are not to be segmented, at the section's own pixels.
    pub fn exclusion(&self, classes: &Array2<u8>, (ny, nx): (usize, usize)) -> Array2<bool> {
        Array2::from_shape_fn((ny, nx), |(y, x)| {
            self.excluded[usize::from(classes[[y / self.factor, x / self.factor]])]
        })
    }

    /// The most probable class other than the first where it reaches the threshold, else the first.
    fn decide(&self, logits: impl Iterator<Item = f32>) -> u8 {
        let logits: Vec<f32> = logits.collect();
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let parts: Vec<f32> = logits.iter().map(|l| (l - highest).exp()).collect();
        let sum: f32 = parts.iter().sum();
        let mut best = (0u8, self.threshold);
        for (class, part) in (1..=u8::MAX).zip(&parts[1..]) {
            if part / sum >= best.1 {
                best = (class, part / sum);
            }
        }
        best.0
    }
}

/// Rounded mean over `factor` x `factor` pixels that hold data; 0 where fewer than half do.
pub fn reduce(image: ArrayView2<'_, u8>, factor: usize) -> Array2<u8> {
    let (ny, nx) = image.dim();
    Array2::from_shape_fn((ny.div_ceil(factor), nx.div_ceil(factor)), |(y, x)| {
        let cell = image.slice(s![y * factor..((y + 1) * factor).min(ny), x * factor..((x + 1) * factor).min(nx)]);
        let (sum, valid) = cell.iter().fold((0u32, 0u32), |(s, n), &v| (s + u32::from(v), n + u32::from(v > 0)));
        if 2 * valid < cell.len() as u32 || valid == 0 { 0 } else { ((sum + valid / 2) / valid) as u8 }
    })
}

/// First pixels of the tiles along one axis: the last ends at the border, the others lie evenly.
fn starts(n: usize, tile: usize, overlap: f64) -> Vec<usize> {
    if n <= tile {
        return vec![0];
    }
    let step = ((tile as f64 * (1.0 - overlap)) as usize).max(1);
    let count = (n - tile).div_ceil(step);
    (0..=count).map(|i| i * (n - tile) / count).collect()
}

fn mirror(i: usize, n: usize) -> usize {
    let period = (2 * n).max(1);
    let i = i % period;
    if i < n { i } else { period - 1 - i }
}

fn add_tile(
    sums: &mut Array3<f32>,
    weights: &mut Array2<f32>,
    logits: &[f32],
    [y0, x0]: [usize; 2],
    [ty, tx]: [usize; 2],
) {
    let (classes, ny, nx) = sums.dim();
    let rise = |i: usize, n: usize| (i + 1).min(n - i) as f32;
    for y in 0..ty.min(ny - y0) {
        for x in 0..tx.min(nx - x0) {
            let weight = rise(y, ty) * rise(x, tx);
            weights[[y0 + y, x0 + x]] += weight;
            for class in 0..classes {
                sums[[class, y0 + y, x0 + x]] += weight * logits[(class * ty + y) * tx + x];
            }
        }
    }
}

#[cfg(test)]
mod tests;
