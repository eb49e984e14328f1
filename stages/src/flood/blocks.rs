//! The sections a window holds, cut into blocks for flooding, and the blocks' labels put together again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use kinesin_stream::geometry::{VoxelSize, Xy, Zyx};
use ndarray::{Array2, Array3, s};

use super::canvas::{Canvas, CanvasInput, CanvasResult};
use super::config::{FloodPlan, Span, blocks_along};
use super::drive::{Watch, drive};
use super::ids::base_id;
use super::rules::FloodRules;
use super::seeds::peaks;
use super::window::{FloodError, FloodSection};
use crate::agglomerate::overlaps;
use crate::model::{GreyTable, Normalisation};
use crate::runtime::Network;

struct Section {
    image: Array2<u8>,
    closed: Array2<bool>,
    table: GreyTable,
    labels: Option<Array2<u64>>,
}

/// A block's place in the plane; pairs are half-open ranges in voxels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) place: Xy<usize>,
    own: [(usize, usize); 2],
    seen: [(usize, usize); 2],
}

/// A flooded block: its labels as written ids, looked up by local label.
pub(super) struct Flooded {
    pub(super) result: CanvasResult,
    pub(super) ids: Vec<u64>,
}

/// Everything about a window but the networks; shared by the workers.
pub(super) struct HeldSections {
    pub(super) plan: FloodPlan,
    pub(super) rules: FloodRules,
    normalisation: Normalisation,
    size: VoxelSize,
    /// Rows and columns.
    plane: [usize; 2],
    pub(super) blocks: Vec<Block>,
    sections: VecDeque<Section>,
    /// Place of the first held section.
    pub(super) first: usize,
}

impl HeldSections {
    pub(super) fn new(
        plan: FloodPlan,
        rules: FloodRules,
        normalisation: Normalisation,
        size: VoxelSize,
        shape: Zyx<usize>,
    ) -> Self {
        let blocks = blocks(&plan, shape);
        Self {
            plan,
            rules,
            normalisation,
            size,
            plane: [shape.y, shape.x],
            blocks,
            sections: VecDeque::new(),
            first: 0,
        }
    }

    /// Place of the section wanted next.
    pub(super) fn end(&self) -> usize {
        self.first + self.sections.len()
    }

    /// Remembers labels, the first of section `from`.
    pub(super) fn write(&mut self, from: usize, labels: &Array3<u64>) {
        for (z, section) in labels.outer_iter().enumerate() {
            self.sections[from + z - self.first].labels = Some(section.to_owned());
        }
    }

    /// Drops the sections before `z`.
    pub(super) fn forget_before(&mut self, z: usize) {
        let keep = z.max(self.first);
        self.sections.drain(..keep - self.first);
        self.first = keep;
    }

    pub(super) fn fits(&self, z: usize, dim: (usize, usize)) -> Result<(), FloodError> {
        if dim == (self.plane[0], self.plane[1]) {
            return Ok(());
        }
        let what = format!(
            "{} x {} pixels (rows x columns), the volume has {} x {}",
            dim.0, dim.1, self.plane[0], self.plane[1]
        );
        Err(FloodError::Section { z, what })
    }

    /// Keeps the next section; `labels` where they are written already.
    pub(super) fn push(&mut self, section: FloodSection, labels: Option<Array2<u64>>) -> Result<(), FloodError> {
        let z = self.end();
        self.fits(z, section.image.dim())?;
        self.fits(z, section.exclude.dim())?;
        let table = self.normalisation.table(section.image.view());
        let mut closed = section.exclude;
        closed.zip_mut_with(&section.image, |c, &v| *c |= v == 0);
        self.sections.push_back(Section { image: section.image, closed, table, labels });
        Ok(())
    }

    /// One worker: takes blocks until none is left.
    pub(super) fn work(
        &self,
        span: Span,
        next: &AtomicUsize,
        network: &mut dyn Network,
        watch: &Watch<'_>,
    ) -> Result<Vec<(usize, Flooded)>, FloodError> {
        let mut taken = Vec::new();
        let canvases = std::iter::from_fn(|| {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let block = self.blocks.get(i)?;
            let (canvas, known) = self.canvas(span, block);
            taken.push((i, known));
            Some(canvas)
        });
        let results = drive(&self.rules, canvases, network, self.plan.batch, watch)?;
        let mut flooded = Vec::with_capacity(results.len());
        for ((i, mut ids), result) in taken.into_iter().zip(results) {
            let place = self.blocks[i].place;
            for count in 1..=result.counters.kept as usize {
                ids.push(base_id(place.y, place.x, span.window, count)?);
            }
            flooded.push((i, Flooded { result, ids }));
        }
        Ok(flooded)
    }

    /// The canvas of a block, and the written ids of its local labels 0 (none), 1, 2, ...
    fn canvas(&self, span: Span, block: &Block) -> (Canvas, Vec<u64>) {
        let [(y0, y1), (x0, x1)] = block.seen;
        let shape = (span.end - span.first, y1 - y0, x1 - x0);
        let cut = s![y0..y1, x0..x1];
        let sections = || self.sections.range(span.first - self.first..span.end - self.first);
        let mut image = Array3::zeros(shape);
        let mut closed = Array3::from_elem(shape, false);
        let mut written = Array3::<u64>::zeros(shape);
        for (z, section) in sections().enumerate() {
            image.slice_mut(s![z, .., ..]).assign(&section.image.slice(cut));
            closed.slice_mut(s![z, .., ..]).assign(&section.closed.slice(cut));
            if let Some(labels) = section.labels.as_ref().filter(|_| span.first + z < span.open) {
                written.slice_mut(s![z, .., ..]).assign(&labels.slice(cut));
            }
        }
        let tables: Vec<GreyTable> = sections().map(|s| s.table.clone()).collect();
        let (known, ids) = number(&written);
        let fov = self.rules.fov();
        let scaled = Array3::from_shape_fn(shape, |(z, y, x)| tables[z].0[usize::from(image[[z, y, x]])]);
        let seeds = peaks(&scaled, &closed, self.size, Zyx::new(fov.z / 2, fov.y / 2, fov.x / 2));
        let input = CanvasInput { image, tables, closed, known, open: span.open - span.first, seeds };
        (Canvas::new(&self.rules, input), ids)
    }

    /// Pairs of labels of different blocks that are one object in the new sections both have seen.
    pub(super) fn joins_of_halos(&self, span: Span, flooded: &[Flooded]) -> Vec<(u64, u64)> {
        let mut joins = Vec::new();
        for (i, a) in self.blocks.iter().enumerate() {
            for (j, b) in self.blocks.iter().enumerate().skip(i + 1) {
                let range = |axis: usize| (a.seen[axis].0.max(b.seen[axis].0), a.seen[axis].1.min(b.seen[axis].1));
                let ((y0, y1), (x0, x1)) = (range(0), range(1));
                if y0 >= y1 || x0 >= x1 {
                    continue;
                }
                let at = |f: &Flooded, block: &Block, z: usize, y: usize, x: usize| {
                    f.ids[f.result.labels[[z, y - block.seen[0].0, x - block.seen[1].0]] as usize]
                };
                let zs = span.open - span.first..span.commit - span.first;
                let pairs = zs.flat_map(|z| (y0..y1).flat_map(move |y| (x0..x1).map(move |x| (z, y, x))));
                let pairs = pairs.map(|(z, y, x)| (at(&flooded[i], a, z, y, x), at(&flooded[j], b, z, y, x)));
                let found = overlaps(pairs).into_iter().filter(|o| o.a != o.b && self.plan.join.joins(o));
                joins.extend(found.map(|o| (o.a, o.b)));
            }
        }
        joins
    }

    pub(super) fn compose(&self, span: Span, flooded: &[Flooded], written: &BTreeMap<u64, u64>) -> Array3<u64> {
        let mut labels = Array3::zeros((span.commit - span.open, self.plane[0], self.plane[1]));
        for (block, f) in self.blocks.iter().zip(flooded) {
            let ids: Vec<u64> = f.ids.iter().map(|id| *written.get(id).unwrap_or(id)).collect();
            let ([(y0, y1), (x0, x1)], seen) = (block.own, block.seen);
            let from = f.result.labels.slice(s![
                span.open - span.first..span.commit - span.first,
                y0 - seen[0].0..y1 - seen[0].0,
                x0 - seen[1].0..x1 - seen[1].0
            ]);
            labels.slice_mut(s![.., y0..y1, x0..x1]).zip_mut_with(&from, |to, &l| *to = ids[l as usize]);
        }
        labels
    }
}

/// Numbers the ids of a block from 1 in ascending order; the list of ids begins with 0 for "none".
fn number(written: &Array3<u64>) -> (Array3<i32>, Vec<u64>) {
    let mut numbers = BTreeMap::<u64, i32>::new();
    let mut last = 0;
    for &id in written.iter().filter(|&&id| id != 0) {
        if id != last {
            numbers.insert(id, 0);
            last = id;
        }
    }
    for (number, local) in (1..).zip(numbers.values_mut()) {
        *local = number;
    }
    let known = written.mapv(|id| if id == 0 { 0 } else { numbers[&id] });
    (known, std::iter::once(0).chain(numbers.into_keys()).collect())
}

fn blocks(plan: &FloodPlan, shape: Zyx<usize>) -> Vec<Block> {
    let cut = |n: usize| {
        let count = blocks_along(n, plan.core);
        (0..count).map(move |i| (i * n / count, (i + 1) * n / count)).collect::<Vec<_>>()
    };
    let wide = |(a, b): (usize, usize), n: usize| (a.saturating_sub(plan.halo), (b + plan.halo).min(n));
    let mut blocks = Vec::new();
    for (y, own_y) in cut(shape.y).into_iter().enumerate() {
        for (x, own_x) in cut(shape.x).into_iter().enumerate() {
            let seen = [wide(own_y, shape.y), wide(own_x, shape.x)];
            blocks.push(Block { place: Xy::new(x, y), own: [own_y, own_x], seen });
        }
    }
    blocks
}
