//! One section as a window holds it: grey values and what they mean to the network, what is kept out, jumps, labels.

use kinesin_stream::geometry::Zyx;
use ndarray::{Array2, ArrayView2};

use super::histogram::{HistogramRule, matched};
use super::masks::{Jump, MaskRule, ShiftRule};
use crate::model::{GreyTable, Normalisation};

/// One section of the volume as it comes to the flood.
#[derive(Clone, Debug)]
pub struct FloodSection {
    /// Grey, 0 = no data.
    pub image: Array2<u8>,
    /// Voxels that are not to be segmented.
    pub exclude: Array2<bool>,
    /// Voxels that hold no centre or no start: bits of [`super::NO_MOVE`] and [`super::NO_START`].
    pub barred: Option<Array2<u8>>,
    /// Objects to build on, 0 = none.
    pub initial: Option<Array2<u64>>,
    /// Whether no field of view may hold both this section and the one before it, so that every object ends between them.
    pub ends_objects: bool,
}

impl FloodSection {
    /// A section of which only `exclude` is kept out.
    pub fn new(image: Array2<u8>, exclude: Array2<bool>) -> Self {
        Self { image, exclude, barred: None, initial: None, ends_objects: false }
    }

    /// Shapes (rows, columns) of all that it brings.
    pub(super) fn shapes(&self) -> Vec<(usize, usize)> {
        let mut shapes = vec![self.image.dim(), self.exclude.dim()];
        shapes.extend(self.barred.as_ref().map(Array2::dim));
        shapes.extend(self.initial.as_ref().map(Array2::dim));
        shapes
    }
}

/// A section whose labels are written already, for a restart.
#[derive(Clone, Debug)]
pub struct LabelledSection {
    /// Image and mask.
    pub section: FloodSection,
    /// Labels as they were written.
    pub labels: Array2<u64>,
}

/// What is done to a section when it comes.
#[derive(Clone, Debug)]
pub(super) struct SectionRules {
    pub(super) normalisation: Normalisation,
    pub(super) histogram: Option<HistogramRule>,
    /// Those on the image itself; others come with the section.
    pub(super) masks: Vec<MaskRule>,
    pub(super) shift: Option<ShiftRule>,
}

pub(super) struct Section {
    pub(super) image: Array2<u8>,
    pub(super) closed: Array2<bool>,
    pub(super) barred: Option<Array2<u8>>,
    pub(super) table: GreyTable,
    /// Where it lies displaced against the section before.
    pub(super) jumps: Vec<Jump>,
    pub(super) initial: Option<Array2<u64>>,
    pub(super) labels: Option<Array2<u64>>,
}

impl SectionRules {
    /// `before` is the image of the section before, where it is held.
    pub(super) fn section(&self, s: FloodSection, labels: Option<Array2<u64>>, before: Option<&Array2<u8>>) -> Section {
        let FloodSection { image, exclude: mut closed, mut barred, initial, ends_objects } = s;
        closed.zip_mut_with(&image, |c, &v| *c |= v == 0);
        for mask in self.masks.iter().filter(|m| m.volume.is_none()) {
            mask.mark(|y, x| u64::from(image[[y, x]]), &mut closed, &mut barred);
        }
        let table = self.table(image.view(), &closed);
        let mut jumps = match (&self.shift, before) {
            (Some(shift), Some(before)) => shift.jumps(before.view(), image.view()),
            _ => Vec::new(),
        };
        if ends_objects {
            jumps = vec![Jump { y: (0, image.nrows()), x: (0, image.ncols()) }];
        }
        Section { image, closed, barred, table, jumps, initial, labels }
    }

    fn table(&self, image: ArrayView2<'_, u8>, closed: &Array2<bool>) -> GreyTable {
        let reference = self.histogram.as_ref().and_then(|h| Some((h.counts.as_ref()?, h.min_voxels)));
        let Some((reference, least)) = reference else { return self.normalisation.table(image) };
        let mut counts = [0u64; 256];
        image.iter().zip(closed).filter(|(_, c)| !**c).for_each(|(&v, _)| counts[usize::from(v)] += 1);
        if counts[1..].iter().sum::<u64>() < least {
            return self.normalisation.table(image);
        }
        self.normalisation.table_of(&counts, &matched(&counts, reference))
    }
}

impl Section {
    /// Adds to `bits`, which are those of the section at `at` of a block that begins at (`y0`, `x0`), the centres whose field of
    /// view would reach over one of this section's jumps.
    pub(super) fn bar_jumps(
        &self,
        mut bits: ndarray::ArrayViewMut2<'_, u8>,
        (y0, x0): (usize, usize),
        fov: Zyx<usize>,
    ) {
        let (rows, columns) = bits.dim();
        let span = |(a, b): (usize, usize), origin: usize, half: usize, n: usize| {
            let low = a.saturating_sub(half).saturating_sub(origin).min(n);
            low..(b + half).saturating_sub(origin).min(n).max(low)
        };
        for jump in &self.jumps {
            for y in span(jump.y, y0, fov.y / 2, rows) {
                for x in span(jump.x, x0, fov.x / 2, columns) {
                    bits[[y, x]] |= super::NO_MOVE;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centres_whose_field_of_view_reaches_a_jump_are_barred() {
        let section = Section {
            image: Array2::zeros((1, 1)),
            closed: Array2::from_elem((1, 1), false),
            barred: None,
            table: GreyTable([0.0; 256]),
            jumps: vec![Jump { y: (10, 12), x: (20, 24) }],
            initial: None,
            labels: None,
        };
        // the block begins at y 5, x 18; with a field of view of 5 x 3 centres from y 8 to 13 and x 19 to 24 are barred
        let mut bits = Array2::zeros((10, 10));
        section.bar_jumps(bits.view_mut(), (5, 18), Zyx::new(3, 5, 3));
        let barred: Vec<_> = bits.indexed_iter().filter(|(_, b)| **b > 0).map(|((y, x), _)| (y + 5, x + 18)).collect();
        assert_eq!((barred[0], barred[barred.len() - 1], barred.len()), ((8, 19), (13, 24), 36));
    }

    #[test]
    fn a_section_with_little_data_is_not_matched() {
        let mut counts = vec![0; 256];
        counts[200] = 10;
        let histogram = Some(HistogramRule { reference: "r".into(), min_voxels: 5, counts: Some(counts) });
        let normalisation = Normalisation::Fixed { mean: 0.0, sd: 1.0 };
        let rules = SectionRules { normalisation, histogram, masks: Vec::new(), shift: None };
        let section = |n: usize| FloodSection::new(Array2::from_elem((1, n), 50), Array2::from_elem((1, n), false));
        assert_eq!(rules.section(section(4), None, None).table.0[50], 50.0);
        assert_eq!(rules.section(section(5), None, None).table.0[50], 200.0);
    }
}
