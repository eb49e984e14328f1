//! Which start points a block gets, `[[flood.seeds]]`: one or more policies, one after the other.
//!
//! Where a policy's point lies in an object that an earlier one found, it is passed over; so a chain costs little. Grids and
//! lists count in voxels of the volume, so blocks and windows do not move them.

use std::path::PathBuf;

use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::queue::SeedRound;
use super::seeds::{peaks, section_peaks};

/// One policy. `reverse = true` visits its points last one first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SeedPolicy {
    /// Voxels farthest from edges of the image, in three dimensions: the policy of the published runs, and the default.
    Peaks {
        /// See [`SeedPolicy`].
        #[serde(default)]
        reverse: bool,
    },
    /// The same in each section by itself; more of them, for sections that are thick or badly aligned.
    SectionPeaks {
        /// See [`SeedPolicy`].
        #[serde(default)]
        reverse: bool,
    },
    /// A grid in z, y, x, then the same grid shifted along all three, and so on.
    Grid {
        /// Step of the grid, voxels. Default 16: half a field of view of 33.
        #[serde(default = "default_step")]
        step: usize,
        /// Shifts, in order; below the step. Default 0, 8, 4, 12, 2, 10, 14: each halves the gaps.
        #[serde(default = "default_offsets")]
        offsets: Vec<usize>,
        /// See [`SeedPolicy`].
        #[serde(default)]
        reverse: bool,
    },
    /// A grid in y and x, in every section.
    SectionGrid {
        /// As for `grid`.
        #[serde(default = "default_step")]
        step: usize,
        /// As for `grid`.
        #[serde(default = "default_offsets")]
        offsets: Vec<usize>,
        /// See [`SeedPolicy`].
        #[serde(default)]
        reverse: bool,
    },
    /// Voxels farthest from what is labelled when this policy's turn comes.
    FillEmpty {
        /// See [`SeedPolicy`].
        #[serde(default)]
        reverse: bool,
    },
    /// Points of a file: CSV with a header line `z,y,x`, or JSON `[[z, y, x], ...]`; voxels of the volume that is segmented.
    List {
        /// The file.
        file: PathBuf,
        /// See [`SeedPolicy`].
        #[serde(default)]
        reverse: bool,
        /// Its content, once read.
        #[serde(skip)]
        points: Option<Vec<Zyx<usize>>>,
    },
}

fn default_step() -> usize {
    16
}

fn default_offsets() -> Vec<usize> {
    vec![0, 8, 4, 12, 2, 10, 14]
}

/// A block as the policies see it.
pub(super) struct SeedView<'a> {
    /// Normalised grey, made when it is needed.
    pub(super) image: &'a dyn Fn() -> Array3<f32>,
    pub(super) closed: &'a Array3<bool>,
    pub(super) size: VoxelSize,
    /// Distance kept from every border: half a field of view.
    pub(super) margin: Zyx<usize>,
    /// The block's first voxel in the volume.
    pub(super) origin: Zyx<usize>,
}

impl SeedPolicy {
    /// The default.
    pub fn peaks() -> Self {
        Self::Peaks { reverse: false }
    }

    /// What is wrong with the settings; `key` is where they stand.
    pub(super) fn faults(&self, key: &str, want: &mut dyn FnMut(bool, String)) {
        match self {
            Self::Grid { step, offsets, .. } | Self::SectionGrid { step, offsets, .. } => {
                want(*step >= 1, format!("{key}.step = 0, use 1 or more voxels"));
                want(!offsets.is_empty(), format!("{key}.offsets is empty, use [0] for one grid"));
                let far = offsets.iter().filter(|o| **o >= *step).collect::<Vec<_>>();
                want(far.is_empty(), format!("{key}.offsets {far:?} reach the step {step}, use less than it"));
            }
            _ => {}
        }
    }

    pub(super) fn round(&self, view: &SeedView<'_>) -> SeedRound {
        let (list, reverse) = match self {
            Self::FillEmpty { reverse } => {
                return SeedRound::FillEmpty { size: view.size, margin: view.margin, reverse: *reverse };
            }
            Self::Peaks { reverse } => (peaks(&(view.image)(), view.closed, view.size, view.margin), reverse),
            Self::SectionPeaks { reverse } => (section_peaks(&(view.image)(), view.closed, view.margin), reverse),
            Self::Grid { step, offsets, reverse } => (grid(view, offsets, |o| (o, *step), *step), reverse),
            Self::SectionGrid { step, offsets, reverse } => (grid(view, offsets, |_| (0, 1), *step), reverse),
            Self::List { points, reverse, .. } => {
                (points.iter().flatten().filter_map(|p| local(view, *p)).collect(), reverse)
            }
        };
        SeedRound::List(if *reverse { list.into_iter().rev().collect() } else { list })
    }
}

/// A point of the volume in the block; `None` where the block has no room for a field of view round it.
fn local(view: &SeedView<'_>, p: Zyx<usize>) -> Option<Zyx<usize>> {
    let (nz, ny, nx) = view.closed.dim();
    let at = |p: usize, origin: usize, margin: usize, n: usize| {
        p.checked_sub(origin).filter(|i| *i >= margin && i + margin < n)
    };
    let (o, m) = (view.origin, view.margin);
    Some(Zyx::new(at(p.z, o.z, m.z, nz)?, at(p.y, o.y, m.y, ny)?, at(p.x, o.x, m.x, nx)?))
}

/// For each offset a grid with `step` in the plane and first section and step along z by `along_z`.
fn grid(
    view: &SeedView<'_>,
    offsets: &[usize],
    along_z: impl Fn(usize) -> (usize, usize),
    step: usize,
) -> Vec<Zyx<usize>> {
    let (nz, ny, nx) = view.closed.dim();
    let line = |first: usize, step: usize, origin: usize, n: usize| {
        let skip = origin.saturating_sub(first).div_ceil(step.max(1));
        (first + skip * step..origin + n).step_by(step.max(1))
    };
    let mut points = Vec::new();
    for &offset in offsets {
        let (z0, step_z) = along_z(offset);
        for z in line(z0, step_z, view.origin.z, nz) {
            for y in line(offset, step, view.origin.y, ny) {
                points.extend(line(offset, step, view.origin.x, nx).filter_map(|x| local(view, Zyx::new(z, y, x))));
            }
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(closed: &'a Array3<bool>, image: &'a dyn Fn() -> Array3<f32>) -> SeedView<'a> {
        let size = VoxelSize(Zyx::new(1.0, 1.0, 1.0));
        SeedView { image, closed, size, margin: Zyx::new(1, 2, 2), origin: Zyx::new(10, 0, 7) }
    }

    fn list(policy: &SeedPolicy) -> Vec<Zyx<usize>> {
        let closed = Array3::from_elem((6, 9, 9), false);
        let image = || Array3::zeros((6, 9, 9));
        match policy.round(&view(&closed, &image)) {
            SeedRound::List(list) => list,
            SeedRound::FillEmpty { .. } => panic!("a list was expected"),
        }
    }

    #[test]
    fn a_grid_lies_where_the_volume_has_it_and_not_the_block() {
        // volume z 10..16, of which 11..=14 hold a centre; multiples of 4: 12. y 2..=6: 4. x 7..16, 9..=13: 12
        let policy = SeedPolicy::Grid { step: 4, offsets: vec![0], reverse: false };
        assert_eq!(list(&policy), [Zyx::new(2, 4, 5)]);
        // shifted by 1: z 13, y 5, x 9 and 13
        let policy = SeedPolicy::Grid { step: 4, offsets: vec![0, 1], reverse: true };
        assert_eq!(list(&policy), [Zyx::new(3, 5, 6), Zyx::new(3, 5, 2), Zyx::new(2, 4, 5)]);
        let policy = SeedPolicy::SectionGrid { step: 4, offsets: vec![0], reverse: false };
        assert_eq!(list(&policy), (1..=4).map(|z| Zyx::new(z, 4, 5)).collect::<Vec<_>>());
    }

    #[test]
    fn a_list_is_cut_to_the_block() {
        let points = [(12, 4, 12), (9, 4, 12), (12, 1, 12), (12, 4, 14)].map(|(z, y, x)| Zyx::new(z, y, x));
        let policy = SeedPolicy::List { file: "seeds.csv".into(), reverse: false, points: Some(points.to_vec()) };
        assert_eq!(list(&policy), [Zyx::new(2, 4, 5)]);
    }

    #[test]
    fn policies_that_do_not_exist_are_refused_and_bad_ones_named() {
        let read = |text: &str| toml::from_str::<SeedPolicy>(text);
        assert_eq!(read("kind = \"peaks\"").unwrap(), SeedPolicy::peaks());
        assert!(read("kind = \"peeks\"").unwrap_err().to_string().contains("peeks"));
        assert!(read("kind = \"peaks\"\nstep = 3").unwrap_err().to_string().contains("step"));
        let mut faults = Vec::new();
        let mut want = |ok: bool, fault: String| faults.extend((!ok).then_some(fault));
        read("kind = \"grid\"\nstep = 8\noffsets = [0, 9]").unwrap().faults("flood.seeds.0", &mut want);
        assert!(read("kind = \"list\"").unwrap_err().to_string().contains("file"));
        assert!(faults[0].contains("flood.seeds.0.offsets [9]"), "{faults:?}");
    }
}
