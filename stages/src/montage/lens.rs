//! What the sections before tell of a lens.
//!
//! A section holds its lens only as far as its overlaps and its stage allow; the next one has the same lens and other errors.
//! Each section therefore begins with the sums that those before it left and adds its own: recursive least squares.
//!
//! ```text
//! S l = b       S: information on the lens with all tiles' own unknowns eliminated (Schur complement), b: S times its estimate
//! S' = f S + S_section,   b' = f b + b_section       f < 1 lets go of what was long ago
//! ```
//! Sections are taken in order of z and each leaves its sums in its own files, so what a section is solved with depends on
//! the sections before it and on nothing else.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::BeamId;
use serde::{Deserialize, Serialize};

use super::model::{Lens, SHARED};
use super::pattern::BeamPlace;

/// Part of the earlier information that is kept from section to section: a lens is averaged over about ten.
pub(super) const KEPT: f64 = 0.9;

/// What is known of a run's lenses and of its beam pattern.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KnownLenses {
    /// Of the lens that all tiles share, where sections chose such a one.
    pub common: Option<KnownLens>,
    /// Of the lens of each beam, where sections chose such; sorted.
    pub beams: Vec<(BeamId, KnownLens)>,
    /// Where beams lie off their nominal places; sorted.
    #[serde(default)]
    pub pattern: Vec<(BeamId, BeamPlace)>,
}

/// What is known of one lens. Terms are those of the montage's model; information is in units of one good point's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownLens {
    /// Width and height of the tiles, pixels.
    pub size: Xy<u32>,
    /// Sections that told of it.
    pub sections: u32,
    /// Square matrix, row by row.
    pub information: Vec<f64>,
    /// Information times estimate, along x and y.
    pub weighted: Vec<[f64; 2]>,
}

impl KnownLenses {
    /// What is known of the lens of a kind (and beam) for tiles of this size.
    pub(super) fn of(&self, kind: Lens, beam: BeamId, size: Option<Xy<u32>>) -> Option<&KnownLens> {
        let found = match kind {
            Lens::None => None,
            Lens::Common => self.common.as_ref(),
            Lens::Beam => self.beams.binary_search_by_key(&beam, |b| b.0).ok().map(|i| &self.beams[i].1),
        };
        found.filter(|k| Some(k.size) == size && k.information.len() == SHARED * SHARED && k.weighted.len() == SHARED)
    }

    /// Takes what a section told in place of what was known.
    pub(super) fn put(&mut self, kind: Lens, beam: BeamId, lens: KnownLens) {
        match kind {
            Lens::None => {}
            Lens::Common => self.common = Some(lens),
            Lens::Beam => match self.beams.binary_search_by_key(&beam, |b| b.0) {
                Ok(i) => self.beams[i].1 = lens,
                Err(i) => self.beams.insert(i, (beam, lens)),
            },
        }
    }
}

impl KnownLens {
    /// The sums after a section: `variance` is the lens's part of the inverse of its normal equations, `solution` its terms and
    /// `pulls` what pulled them towards zero. `None` where the numbers say nothing.
    pub(super) fn after(
        before: Option<&Self>,
        size: Xy<u32>,
        variance: &Mat<f64>,
        solution: &[[f64; 2]],
        pulls: &[f64],
    ) -> Option<Self> {
        let whole = variance.llt(Side::Lower).ok()?.solve(Mat::<f64>::identity(SHARED, SHARED));
        let known = |i: usize, j: usize| before.map_or(0.0, |b| b.information[i * SHARED + j]);
        let mut information = vec![0.0; SHARED * SHARED];
        let mut weighted = vec![[0.0; 2]; SHARED];
        for i in 0..SHARED {
            let earlier = before.map_or([0.0; 2], |b| b.weighted[i]);
            for axis in 0..2 {
                let all: f64 = (0..SHARED).map(|j| whole[(i, j)] * solution[j][axis]).sum();
                weighted[i][axis] = all - (1.0 - KEPT) * earlier[axis];
            }
            for j in 0..SHARED {
                let pull = if i == j { pulls[i] } else { 0.0 };
                information[i * SHARED + j] = whole[(i, j)] - pull - (1.0 - KEPT) * known(i, j);
            }
        }
        let fine = information.iter().chain(weighted.iter().flatten()).all(|v| v.is_finite());
        let sections = before.map_or(0, |b| b.sections) + 1;
        fine.then_some(Self { size, sections, information, weighted })
    }
}
