//! What lies inside the cells: capsules that belong to one object and are drawn only there.

use super::field::{Index, Segment, V3};

/// What a capsule inside a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Mitochondrion,
    Vesicles,
    /// Thickened membrane between the owner and `target`.
    Density {
        target: u32,
    },
    Nucleus,
}

/// All of them, found by place.
pub(super) struct Organelles {
    index: Index,
    parts: Vec<Part>,
}

impl Organelles {
    pub(super) fn new(low: V3, high: V3) -> Self {
        Self { index: Index::new(low, high, 180.0), parts: Vec::new() }
    }

    pub(super) fn push(&mut self, part: Part, shape: Segment) {
        self.index.insert(shape);
        self.parts.push(part);
    }

    /// Those that come within `reach` of `p`.
    pub(super) fn near(&self, p: V3, reach: f32, out: &mut Vec<(Part, Segment)>) {
        out.clear();
        let all = self.index.near(p).iter().map(|&i| (self.parts[i as usize], self.index.items()[i as usize]));
        out.extend(all.filter(|(_, s)| s.field(p) <= reach));
    }
}
