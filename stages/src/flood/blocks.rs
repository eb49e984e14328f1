//! The sections a window holds, cut into blocks for flooding, and the blocks' labels put together again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kinesin_stream::geometry::{VoxelSize, Xy, Zyx};
use ndarray::{Array2, Array3, ArrayView3, ArrayViewMut3, s};

use super::canvas::{Canvas, CanvasInput, CanvasResult};
use super::config::{FloodPlan, Span, blocks_along};
use super::counters::Origin;
use super::drive::{Watch, drive};
use super::ids::{base_id, is_base};
use super::policies::{SeedPolicy, SeedView};
use super::sections::{FloodSection, Section, SectionRules};
use super::store::{BlockKey, BlockStore};
use super::window::{FloodError, ObjectOrigin};
use crate::agglomerate::{Overlap, overlaps, split_pieces};
use crate::model::GreyTable;
use crate::runtime::Network;

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

/// What the blocks of a window are made with, beside its plan.
pub(super) struct BlockOptions {
    pub(super) sections: SectionRules,
    pub(super) seeds: Vec<SeedPolicy>,
    pub(super) probability: bool,
    pub(super) split_pieces: Option<u64>,
    /// Where half-done blocks are kept.
    pub(super) store: Option<Arc<dyn BlockStore>>,
}

/// Everything about a window but the networks; shared by the workers.
pub(super) struct HeldSections {
    pub(super) plan: FloodPlan,
    pub(super) options: BlockOptions,
    size: VoxelSize,
    /// Rows and columns.
    plane: [usize; 2],
    pub(super) blocks: Vec<Block>,
    sections: VecDeque<Section>,
    /// Place of the first held section.
    pub(super) first: usize,
}

impl HeldSections {
    pub(super) fn new(plan: FloodPlan, options: BlockOptions, size: VoxelSize, shape: Zyx<usize>) -> Self {
        let blocks = blocks(&plan, shape);
        let sections = VecDeque::new();
        Self { plan, options, size, plane: [shape.y, shape.x], blocks, sections, first: 0 }
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
        section.shapes().into_iter().try_for_each(|dim| self.fits(z, dim))?;
        if let Some(id) = section.initial.iter().flatten().find(|id| is_base(**id)) {
            let what =
                format!("the initial segmentation has the id {id}; ids from 2^56 on are for new objects, renumber it");
            return Err(FloodError::Section { z, what });
        }
        let before = self.sections.back().map(|s| &s.image);
        let section = self.options.sections.section(section, labels, before);
        self.sections.push_back(section);
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
        let (mut taken, mut fault) = (Vec::new(), None);
        let canvases = std::iter::from_fn(|| {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let block = self.blocks.get(i)?;
            match self.canvas(span, block) {
                Ok((canvas, known)) => {
                    taken.push((i, known));
                    Some(canvas)
                }
                Err(e) => {
                    fault = Some(e);
                    None
                }
            }
        });
        let results = drive(&self.plan.rules, canvases, network, self.plan.batch, watch)?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        let mut flooded = Vec::with_capacity(results.len());
        for ((i, mut ids), mut result) in taken.into_iter().zip(results) {
            let place = self.blocks[i].place;
            if result.broken {
                return Err(FloodError::NotFinite { block_y: place.y, block_x: place.x, window: span.window });
            }
            let mut last = result.known as usize + result.counters.kept as usize;
            if let Some(least) = self.options.split_pieces {
                last = split_pieces(&mut result.labels, result.known, least, last as i32 + 1) as usize - 1;
            }
            for count in 1..=last - result.known as usize {
                ids.push(base_id(place.y, place.x, span.window, count)?);
            }
            flooded.push((i, Flooded { result, ids }));
        }
        Ok(flooded)
    }

    /// The canvas of a block, and the written ids of its local labels 0 (none), 1, 2, ...
    fn canvas(&self, span: Span, block: &Block) -> Result<(Canvas, Vec<u64>), FloodError> {
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
            let labels = if span.first + z < span.open { &section.labels } else { &section.initial };
            if let Some(labels) = labels {
                written.slice_mut(s![z, .., ..]).assign(&labels.slice(cut));
            }
        }
        let tables: Vec<GreyTable> = sections().map(|s| s.table.clone()).collect();
        let (known, ids) = number(&written);
        let fixed = ids.iter().filter(|id| **id != 0 && !is_base(**id)).count() as i32;
        let fov = self.plan.rules.fov();
        let scaled = || Array3::from_shape_fn(shape, |(z, y, x)| tables[z].0[usize::from(image[[z, y, x]])]);
        let view = SeedView {
            image: &scaled,
            closed: &closed,
            size: self.size,
            margin: Zyx::new(fov.z / 2, fov.y / 2, fov.x / 2),
            origin: Zyx::new(span.first, y0, x0),
        };
        let rounds: Vec<_> = self.options.seeds.iter().map(|policy| policy.round(&view)).collect();
        let barred = self.barred(span, block);
        let input = CanvasInput { image, tables, closed, known, open: span.open - span.first, seeds: Vec::new() };
        let mut canvas = Canvas::new(&self.plan.rules, input).seeded(rounds).fixed(fixed);
        if let Some(barred) = barred {
            canvas = canvas.barred(barred);
        }
        if self.options.probability {
            canvas = canvas.with_probability();
        }
        if let Some(store) = &self.options.store {
            let key = BlockKey { window: span.window, y: block.place.y, x: block.place.x };
            if let Some(state) = store.kept(key)? {
                let named = |e| FloodError::Checkpoint { key, source: e };
                canvas = canvas.restore(&state).map_err(named)?;
            }
            canvas = canvas.kept_by(store.keeper(key));
        }
        Ok((canvas, ids))
    }

    /// Where a block's centres may not move or start; `None` where nothing is barred.
    fn barred(&self, span: Span, block: &Block) -> Option<Array3<u8>> {
        let [(y0, y1), (x0, x1)] = block.seen;
        let sections: Vec<&Section> = self.sections.range(span.first - self.first..span.end - self.first).collect();
        if sections.iter().all(|s| s.barred.is_none() && s.jumps.is_empty()) {
            return None;
        }
        let fov = self.plan.rules.fov();
        let mut bits = Array3::zeros((sections.len(), y1 - y0, x1 - x0));
        for (z, section) in sections.iter().enumerate() {
            if let Some(barred) = &section.barred {
                bits.slice_mut(s![z, .., ..]).zip_mut_with(&barred.slice(s![y0..y1, x0..x1]), |b, &n| *b |= n);
            }
            // a field of view that holds this section and the one before it
            if z > 0 {
                for centre in z.saturating_sub(fov.z / 2)..(z + fov.z / 2).min(sections.len()) {
                    section.bar_jumps(bits.slice_mut(s![centre, .., ..]), (y0, x0), fov);
                }
            }
        }
        Some(bits)
    }

    /// Joins of objects with those of earlier sections on which they lie.
    pub(super) fn joins_with_known(&self, flooded: &[Flooded]) -> Vec<(u64, u64)> {
        let mut joins = Vec::new();
        for block in flooded {
            for o in &block.result.overlaps {
                let (new, known) = (block.ids[o.label as usize], block.ids[o.known as usize]);
                if is_base(known) && is_base(new) && self.plan.join.continues(o.shared, o.labelled) {
                    joins.push((new, known));
                }
            }
        }
        joins
    }

    /// Pairs of labels of different blocks that are one object in the new sections both have seen.
    pub(super) fn joins_of_halos(&self, span: Span, flooded: &[Flooded]) -> Vec<(u64, u64)> {
        let mut joins = Vec::new();
        let extents: Vec<_> = self.blocks.iter().zip(flooded).map(|(block, f)| block.extents(span, f)).collect();
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
                let piece = |of: usize, id: u64, shared: u64, seen: u64| {
                    let extent = extents[of].get(&id);
                    extent
                        .is_some_and(|e| e.lies_in((y0, y1), (x0, x1)) && self.plan.join.holds(shared, seen, e.voxels))
                };
                let one = |o: &Overlap| {
                    self.plan.join.joins(o) || piece(i, o.a, o.shared, o.of_a) || piece(j, o.b, o.shared, o.of_b)
                };
                let found = overlaps(pairs).into_iter().filter(|o| o.a != o.b && one(o));
                joins.extend(found.map(|o| (o.a, o.b)));
            }
        }
        joins
    }

    /// The labels of `open..commit` as they are written: each voxel by the block that owns it.
    pub(super) fn compose(&self, span: Span, flooded: &[Flooded], written: &BTreeMap<u64, u64>) -> Array3<u64> {
        let mut labels = Array3::zeros((span.commit - span.open, self.plane[0], self.plane[1]));
        for (block, f) in self.blocks.iter().zip(flooded) {
            let ids: Vec<u64> = f.ids.iter().map(|id| *written.get(id).unwrap_or(id)).collect();
            let own = |to: &mut u64, l: &i32| *to = ids[*l as usize];
            block.owned(span, &mut labels).zip_mut_with(&block.of_block(span, &f.result.labels), own);
        }
        labels
    }

    /// The probabilities of `open..commit`, where they were asked for.
    pub(super) fn compose_probability(&self, span: Span, flooded: &[Flooded]) -> Option<Array3<u8>> {
        let mut all = Array3::zeros((span.commit - span.open, self.plane[0], self.plane[1]));
        for (block, f) in self.blocks.iter().zip(flooded) {
            block.owned(span, &mut all).assign(&block.of_block(span, f.result.probability.as_ref()?));
        }
        Some(all)
    }

    /// Where the objects of a window began.
    pub(super) fn origins(&self, span: Span, flooded: &[Flooded], written: &BTreeMap<u64, u64>) -> Vec<ObjectOrigin> {
        let of_block = |(block, f): (&Block, &Flooded)| {
            let origin = |o: &Origin| {
                let found = f.ids[o.label as usize];
                let [(y0, _), (x0, _)] = block.seen;
                ObjectOrigin {
                    id: *written.get(&found).unwrap_or(&found),
                    found,
                    window: span.window,
                    start: Zyx::new(span.first + o.start[0], y0 + o.start[1], x0 + o.start[2]),
                    continued: o.continued,
                    evaluations: o.evaluations,
                    voxels: o.voxels,
                }
            };
            f.result.origins.iter().map(origin).collect::<Vec<_>>()
        };
        self.blocks.iter().zip(flooded).flat_map(of_block).collect()
    }
}

/// Where the new voxels of an object of a block lie.
struct Extent {
    y: (usize, usize),
    x: (usize, usize),
    voxels: u64,
}

impl Extent {
    fn lies_in(&self, y: (usize, usize), x: (usize, usize)) -> bool {
        y.0 <= self.y.0 && self.y.1 <= y.1 && x.0 <= self.x.0 && self.x.1 <= x.1
    }
}

impl Block {
    /// Of each object that began in this block and window: its extent in the volume.
    fn extents(&self, span: Span, f: &Flooded) -> BTreeMap<u64, Extent> {
        let mut found: Vec<Option<Extent>> = f.ids.iter().map(|_| None).collect();
        let new = s![span.open - span.first..span.commit - span.first, .., ..];
        for ((_, y, x), &label) in f.result.labels.slice(new).indexed_iter().filter(|(_, l)| **l > f.result.known) {
            let (y, x) = (y + self.seen[0].0, x + self.seen[1].0);
            let e = found[label as usize].get_or_insert(Extent { y: (y, y), x: (x, x), voxels: 0 });
            e.y = (e.y.0.min(y), e.y.1.max(y + 1));
            e.x = (e.x.0.min(x), e.x.1.max(x + 1));
            e.voxels += 1;
        }
        f.ids.iter().zip(found).filter_map(|(id, e)| Some((*id, e?))).collect()
    }

    /// The part of an array of `open..commit` that this block owns.
    fn owned<'a, T>(&self, span: Span, all: &'a mut Array3<T>) -> ArrayViewMut3<'a, T> {
        let [(y0, y1), (x0, x1)] = self.own;
        all.slice_mut(s![..span.commit - span.open, y0..y1, x0..x1])
    }

    /// The same part of an array of the block.
    fn of_block<'a, T>(&self, span: Span, of: &'a Array3<T>) -> ArrayView3<'a, T> {
        let ([(y0, y1), (x0, x1)], seen) = (self.own, self.seen);
        of.slice(s![
            span.open - span.first..span.commit - span.first,
            y0 - seen[0].0..y1 - seen[0].0,
            x0 - seen[1].0..x1 - seen[1].0
        ])
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
