//! Where objects may start: the voxels farthest from edges of the image, or from what is labelled already.
//!
//! [`peaks`] is the policy of the published flood-filling runs (Januszewski et al., Nature Methods 2018, "PolicyPeaks"): Sobel gradient,
//! edges where it exceeds its own Gaussian (sigma 49/6 voxels), Euclidean distance to the nearest edge, local maxima over
//! 7 x 7 x 7 voxels, ties broken by a fixed noise, visited in order of z, y, x. On anisotropic voxels gradient and distance
//! are measured in units of the smallest voxel side, which changes nothing where voxels are cubes. [`section_peaks`] does the
//! same in each section by itself; [`empty_peaks`] takes the distance to labels in place of edges.

use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::{Array3, s};

use super::distance::distance;
use super::filters::{gaussian, gradient, running_maximum};
use super::noise::Noise;

const SIGMA: f64 = 49.0 / 6.0;
const REACH: usize = 3;
const NOISE_SEED: u32 = 42;
const NOISE: f64 = 1e-4;

/// Start points in visiting order, all at least `margin` voxels from every border of `image` (normalised grey).
/// Voxels of `closed` count as edges and hold no start point.
pub fn peaks(image: &Array3<f32>, closed: &Array3<bool>, size: VoxelSize, margin: Zyx<usize>) -> Vec<Zyx<usize>> {
    let least = size.0.z.min(size.0.y).min(size.0.x);
    let spacing = [size.0.z / least, size.0.y / least, size.0.x / least];
    let mut edges = edges(image, spacing);
    edges.zip_mut_with(closed, |e, &c| *e |= c);
    if edges.iter().all(|&e| e) {
        return Vec::new();
    }
    let away = distance(&edges, spacing);
    drop(edges);
    maxima(&away, closed, margin)
}

/// As [`peaks`], in every section by itself.
pub fn section_peaks(image: &Array3<f32>, closed: &Array3<bool>, margin: Zyx<usize>) -> Vec<Zyx<usize>> {
    let nz = image.dim().0;
    let mut all = Vec::new();
    for z in margin.z..nz.saturating_sub(margin.z) {
        let section = image.slice(s![z..=z, .., ..]).to_owned();
        let closed = closed.slice(s![z..=z, .., ..]).to_owned();
        let mut edges = edges(&section, [1.0; 3]);
        edges.zip_mut_with(&closed, |e, &c| *e |= c);
        if edges.iter().any(|&e| !e) {
            let away = distance(&edges, [1.0; 3]);
            let found = maxima(&away, &closed, Zyx::new(0, margin.y, margin.x));
            all.extend(found.into_iter().map(|s| Zyx::new(z, s.y, s.x)));
        }
    }
    all
}

/// The voxels farthest from `taken` ones; nothing where nothing is taken, because then every place is as good.
pub fn empty_peaks(taken: &Array3<bool>, size: VoxelSize, margin: Zyx<usize>) -> Vec<Zyx<usize>> {
    if taken.iter().all(|&t| t) {
        return Vec::new();
    }
    let least = size.0.z.min(size.0.y).min(size.0.x);
    let away = distance(taken, [size.0.z / least, size.0.y / least, size.0.x / least]);
    maxima(&away, taken, margin)
}

/// Local maxima over 7 voxels along every axis, ties broken by noise, in order of z, y, x.
fn maxima(away: &Array3<f32>, closed: &Array3<bool>, margin: Zyx<usize>) -> Vec<Zyx<usize>> {
    let mut noise = Noise::new(NOISE_SEED);
    let height = Array3::from_shape_vec(
        away.raw_dim(),
        away.iter()
            .zip(closed)
            .map(|(&d, &c)| f64::from(if c || !d.is_finite() { -1.0 } else { d }) + noise.uniform() * NOISE)
            .collect(),
    )
    .expect("one value per voxel");
    let highest = running_maximum(&height, REACH);
    let (nz, ny, nx) = height.dim();
    // one section has no neighbours along z that a maximum could miss
    let reach = |n: usize| if n == 1 { 0 } else { REACH };
    let inside = |i: usize, n: usize, m: usize| i >= m.max(reach(n)) && i + m.max(reach(n)) < n;
    let mut seeds = Vec::new();
    for ((z, y, x), &h) in height.indexed_iter() {
        if h > 0.0
            && h == highest[[z, y, x]]
            && inside(z, nz, margin.z)
            && inside(y, ny, margin.y)
            && inside(x, nx, margin.x)
        {
            seeds.push(Zyx::new(z, y, x));
        }
    }
    seeds
}

fn edges(image: &Array3<f32>, spacing: [f64; 3]) -> Array3<bool> {
    let gradient = gradient(image, spacing);
    let level = gaussian(&gradient, SIGMA);
    let mut edges = Array3::from_elem(image.raw_dim(), false);
    ndarray::Zip::from(&mut edges).and(&gradient).and(&level).for_each(|e, &g, &l| *e = g > l);
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUBE: VoxelSize = VoxelSize(Zyx::new(1.0, 1.0, 1.0));

    /// Bright balls on dark ground.
    fn balls(centres: &[[i64; 3]]) -> Array3<f32> {
        Array3::from_shape_fn((30, 40, 40), |(z, y, x)| {
            let near =
                |c: &[i64; 3]| (z as i64 - c[0]).pow(2) + (y as i64 - c[1]).pow(2) + (x as i64 - c[2]).pow(2) <= 49;
            if centres.iter().any(near) { 1.0 } else { -1.0 }
        })
    }

    #[test]
    fn a_ball_holds_a_start_point_near_its_centre() {
        let image = balls(&[[15, 20, 20]]);
        let seeds = peaks(&image, &Array3::from_elem(image.raw_dim(), false), CUBE, Zyx::new(4, 4, 4));
        assert!(seeds.iter().any(|s| s.z.abs_diff(15) <= 2 && s.y.abs_diff(20) <= 2 && s.x.abs_diff(20) <= 2));
        assert!(seeds.is_sorted_by_key(|s| [s.z, s.y, s.x]));
        assert!(seeds.iter().all(|s| s.z >= 4 && s.z + 4 < 30 && s.x >= 4 && s.x + 4 < 40));
    }

    #[test]
    fn every_section_has_its_own_start_points() {
        let image = balls(&[[15, 20, 20]]);
        let seeds = section_peaks(&image, &Array3::from_elem(image.raw_dim(), false), Zyx::new(4, 4, 4));
        // the ball of radius 7 spans sections 8 to 22
        for z in 10..=20 {
            let near = |s: &&Zyx<usize>| s.z == z && s.y.abs_diff(20) <= 2 && s.x.abs_diff(20) <= 2;
            assert!(seeds.iter().any(|s| near(&s)), "section {z}");
        }
        assert!(seeds.is_sorted_by_key(|s| [s.z, s.y, s.x]));
    }

    #[test]
    fn what_is_empty_starts_far_from_what_is_taken() {
        // taken but for a slab of 9 sections, whose middle is section 14
        let taken = Array3::from_shape_fn((30, 20, 20), |(z, _, _)| !(10..19).contains(&z));
        let seeds = empty_peaks(&taken, CUBE, Zyx::new(3, 3, 3));
        assert!(!seeds.is_empty() && seeds.iter().all(|s| s.z == 14));
        assert!(empty_peaks(&Array3::from_elem((9, 9, 9), true), CUBE, Zyx::new(1, 1, 1)).is_empty());
    }

    #[test]
    fn closed_voxels_hold_no_start_point() {
        let image = balls(&[[15, 12, 20], [15, 28, 20]]);
        let closed = Array3::from_shape_fn(image.raw_dim(), |(_, y, _)| y < 20);
        let seeds = peaks(&image, &closed, CUBE, Zyx::new(4, 4, 4));
        assert!(!seeds.is_empty() && seeds.iter().all(|s| s.y >= 20));
        assert!(peaks(&image, &Array3::from_elem(image.raw_dim(), true), CUBE, Zyx::new(4, 4, 4)).is_empty());
    }
}
