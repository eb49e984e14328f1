//! Tissue grown from a seed: see [`TissueConfig`] for what can be set.
//!
//! ```text
//! seed ─► curves, organelles (once) ─► per section: warp, two nearest objects, distance to the border ─► label, class, grey
//! ```
//! A voxel depends on the settings and its place only, so any rectangle of any section can be asked for, in any order, from
//! any thread. Memory is about 4 kB per µm³ of tissue; sections are not kept.

use kinesin_stream::geometry::{BoxXy, VoxelSize, Zyx};
use ndarray::Array2;
use rayon::prelude::*;

use super::Tissue;
use super::config::{TissueConfig, TissueError};
use super::field::{Kind, Segment, V3};
use super::grow::{Grown, grow};
use super::noise::{Noise, Plane};
use super::organelle::Part;
use super::shade;

/// Distance from a border up to which it is known exactly, nm.
const RIM: f32 = 56.0;
/// Side of the square of voxels that shares a list of candidates, nm.
const BLOCK: f64 = 64.0;
/// How much the warp may stretch a block.
const STRETCH: f32 = 1.7;

/// Procedural tissue.
pub struct Procedural {
    config: TissueConfig,
    grown: Grown,
    noise: Noise,
    resin: Resin,
}

/// The line that cuts off a corner of every section.
struct Resin {
    normal: [f32; 2],
    offset: f32,
}

/// What is common to the voxels of one section.
pub(super) struct Section {
    pub(super) seed: u32,
    pub(super) z: f32,
    pub(super) index: u32,
    /// Half the side of a voxel in the plane, nm.
    pub(super) half: f32,
    pub(super) membrane: f32,
    warp: [Plane; 5],
    pub(super) fine: Plane,
    pub(super) medium: Plane,
    pub(super) coarse: Plane,
}

/// What is known of one voxel before it gets a grey value.
pub(super) struct Spot {
    /// Row and column, voxels.
    pub(super) pixel: [u32; 2],
    /// Place before and after the warp, nm.
    pub(super) place: V3,
    pub(super) warped: V3,
    /// Depth in resin; negative outside.
    pub(super) resin: f32,
    pub(super) owner: Segment,
    pub(super) other: u32,
    /// Field of the owner.
    pub(super) field: f32,
    /// Distance to the border with the nearest other object; large where above [`RIM`].
    pub(super) border: f32,
    /// How much the border's normal lies in the plane: 1 upright, 0 lying flat in the section.
    pub(super) upright: f32,
}

/// A voxel: grey value, label, class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Voxel {
    /// Grey value, 1 to 255.
    pub grey: u8,
    /// Object, 0 between objects.
    pub label: u32,
    /// 0 neuropil, 1 cell body, 2 vessel, 3 resin.
    pub class: u8,
}

impl Procedural {
    /// Grows the tissue: about 1 s per 1000 µm³.
    pub fn new(config: TissueConfig) -> Result<Self, TissueError> {
        if let Some(fault) = config.faults().into_iter().next() {
            return Err(fault);
        }
        let grown = grow(&config);
        let noise = Noise::new(config.seed);
        let resin = Resin::new(&config);
        Ok(Self { config, grown, noise, resin })
    }

    /// The settings.
    pub fn config(&self) -> &TissueConfig {
        &self.config
    }

    /// Grey values, labels and classes of `rect` of section `z` in one pass; axes y, x.
    pub fn voxels(&self, z: usize, rect: BoxXy) -> Array2<Voxel> {
        self.map(z, rect, |section, spot, inside| {
            let (label, class) = identity(section, spot);
            Voxel { grey: shade::grey(section, spot, inside), label, class }
        })
    }

    fn section(&self, z: usize) -> Section {
        let v = self.config.voxel_size.0;
        let nm = (z as f64 * v.z) as f32;
        let plane = |texel, channel| self.noise.plane(nm, texel, channel);
        Section {
            seed: self.config.seed as u32,
            z: nm,
            index: z as u32,
            half: (v.x.max(v.y) * 0.5) as f32,
            membrane: self.config.membrane as f32,
            warp: [plane(50.0, 0), plane(50.0, 1), plane(50.0, 2), plane(15.0, 3), plane(15.0, 4)],
            fine: plane(7.0, 5),
            medium: plane(28.0, 6),
            coarse: plane(110.0, 7),
        }
    }

    /// Evaluates `value` at every voxel of `rect`, in parallel by rows of blocks that lie at the same voxels whatever the
    /// rectangle.
    fn map<T, F>(&self, z: usize, rect: BoxXy, value: F) -> Array2<T>
    where
        T: Copy + Default + Send,
        F: Fn(&Section, &Spot, &[(Part, Segment)]) -> T + Sync,
    {
        let size = rect.size();
        let section = self.section(z);
        let v = self.config.voxel_size.0;
        let mut out = vec![T::default(); size.x * size.y];
        let side = self.block();
        let mut bands = Vec::new();
        let mut rest = out.as_mut_slice();
        let mut y = rect.min.y;
        while y < rect.max.y {
            let end = ((y.div_euclid(side) + 1) * side).min(rect.max.y);
            let (band, tail) = rest.split_at_mut((end - y) as usize * size.x);
            bands.push((y, end, band));
            rest = tail;
            y = end;
        }
        bands.into_par_iter().for_each(|(from, to, band)| {
            let mut block = Block::default();
            let mut x = rect.min.x;
            while x < rect.max.x {
                let end = ((x.div_euclid(side) + 1) * side).min(rect.max.x);
                self.gather(&section, from.div_euclid(side), x.div_euclid(side), &mut block);
                let mut pixels = (from..to).flat_map(|row| (x..end).map(move |column| [row, column]));
                loop {
                    let batch: Vec<[i64; 2]> = pixels.by_ref().take(LANES).collect();
                    if batch.is_empty() {
                        break;
                    }
                    let lanes = Lanes::of(&section, &batch, [v.y, v.x], &block.near);
                    for (lane, [row, column]) in batch.into_iter().enumerate() {
                        let spot = self.spot(&section, &block, &lanes, lane, [row, column]);
                        let at = (row - from) as usize * size.x + (column - rect.min.x) as usize;
                        band[at] = value(&section, &spot, &block.inside);
                    }
                }
                x = end;
            }
        });
        Array2::from_shape_vec((size.y, size.x), out).expect("one value a voxel")
    }

    /// Side of a block, voxels.
    fn block(&self) -> i64 {
        ((BLOCK / self.config.voxel_size.0.x.max(self.config.voxel_size.0.y)).round() as i64).max(1)
    }

    /// Lists what can be nearest or second nearest anywhere in a block.
    fn gather(&self, section: &Section, row: i64, column: i64, block: &mut Block) {
        let v = self.config.voxel_size.0;
        let side = self.block() as f64;
        let centre = |i: i64, v: f64| ((i as f64 + 0.5) * side - 0.5) * v;
        let p = section.warped(centre(row, v.y) as f32, centre(column, v.x) as f32);
        let radius = STRETCH * 0.5 * (side * v.x).hypot(side * v.y) as f32;
        let items = self.grown.cells.items();
        block.fields.clear();
        block.fields.extend(self.grown.cells.near(p).iter().map(|&i| (items[i as usize].field(p), i)));
        let first = block.fields.iter().fold(f32::MAX, |m, f| m.min(f.0));
        let limit = first + 2.0 * RIM + 2.0 * radius;
        block.fields.retain(|f| f.0 <= limit);
        block.fields.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        block.near.clear();
        block.near.extend(block.fields.iter().map(|f| (f.0 - radius - 2.0 * RIM, items[f.1 as usize])));
        self.grown.organelles.near(p, radius + 100.0, &mut block.inside);
    }

    fn spot(&self, section: &Section, block: &Block, lanes: &Lanes, lane: usize, [row, column]: [i64; 2]) -> Spot {
        let (y, x) = (lanes.y[lane], lanes.x[lane]);
        let p: V3 = std::array::from_fn(|k| lanes.p[k][lane]);
        let (f1, f2) = (lanes.f1[lane], lanes.f2[lane]);
        let item = |i: u32| block.near.get(i as usize).map_or(Segment::NOTHING, |n| n.1);
        let (first, second) = (item(lanes.i1[lane]), item(lanes.i2[lane]));
        let (mut border, mut upright) = (1e3, 1.0);
        if f2 - f1 < 2.0 * RIM {
            let (n1, n2) = (first.normal(p).0, second.normal(p).0);
            let n: V3 = std::array::from_fn(|k| n1[k] - n2[k]);
            let all = (n[0] * n[0] + n[1] * n[1] + n[2] * n[2]).sqrt().max(0.35);
            border = (f2 - f1) / all;
            upright = (n[1].hypot(n[2]) / all).min(1.0);
        }
        let resin = self.resin.depth(y, x) + 60.0 * section.coarse.at(y, x);
        Spot {
            pixel: [row as u32, column as u32],
            place: [section.z, y, x],
            warped: p,
            resin,
            owner: first,
            other: second.id,
            field: f1,
            border,
            upright,
        }
    }
}

/// Label and class of a voxel.
fn identity(section: &Section, spot: &Spot) -> (u32, u8) {
    if spot.resin > 0.0 {
        return (0, 3);
    }
    let class = match spot.owner.kind {
        Kind::Body => 1,
        Kind::Vessel => 2,
        Kind::Axon | Kind::Dendrite => 0,
    };
    let outside = spot.border < section.membrane || shade::in_lumen(spot);
    (if outside { 0 } else { spot.owner.id }, class)
}

/// Voxels evaluated together, so that the arithmetic fills the processor's vector registers.
const LANES: usize = 8;

/// The nearest and, of another object, second nearest segment at each of a few voxels.
struct Lanes {
    y: [f32; LANES],
    x: [f32; LANES],
    p: [[f32; LANES]; 3],
    f1: [f32; LANES],
    f2: [f32; LANES],
    i1: [u32; LANES],
    i2: [u32; LANES],
}

impl Lanes {
    fn of(section: &Section, pixels: &[[i64; 2]], voxel: [f64; 2], near: &[(f32, Segment)]) -> Self {
        let mut l = Self {
            y: [0.0; LANES],
            x: [0.0; LANES],
            p: [[0.0; LANES]; 3],
            f1: [f32::MAX; LANES],
            f2: [f32::MAX; LANES],
            i1: [u32::MAX; LANES],
            i2: [u32::MAX; LANES],
        };
        for (k, [row, column]) in pixels.iter().enumerate() {
            (l.y[k], l.x[k]) = ((*row as f64 * voxel[0]) as f32, (*column as f64 * voxel[1]) as f32);
            [l.p[0][k], l.p[1][k], l.p[2][k]] = section.warped(l.y[k], l.x[k]);
        }
        let mut id1 = [0u32; LANES];
        for (i, (matters, s)) in near.iter().enumerate() {
            if i % 4 == 0 && l.f1[..pixels.len()].iter().all(|f1| f1 < matters) {
                break;
            }
            let f = s.fields(&l.p);
            for k in 0..LANES {
                let (least, own) = (f[k] < l.f1[k], s.id == id1[k]);
                let next = !own && (least || f[k] < l.f2[k]);
                let (f2, i2) = if least { (l.f1[k], l.i1[k]) } else { (f[k], i as u32) };
                l.f2[k] = if next { f2 } else { l.f2[k] };
                l.i2[k] = if next { i2 } else { l.i2[k] };
                l.f1[k] = if least { f[k] } else { l.f1[k] };
                l.i1[k] = if least { i as u32 } else { l.i1[k] };
                id1[k] = if least { s.id } else { id1[k] };
            }
        }
        l
    }
}

/// Candidates of one block.
#[derive(Default)]
struct Block {
    fields: Vec<(f32, u32)>,
    /// Nearest to the block's centre first, with the least value that the nearest field of a voxel must have for it to matter.
    near: Vec<(f32, Segment)>,
    inside: Vec<(Part, Segment)>,
}

impl Section {
    /// The place in the grown tissue of a point of the section: straight curves and round bodies become irregular.
    fn warped(&self, y: f32, x: f32) -> V3 {
        let [wz, wy, wx, sy, sx] = &self.warp;
        let (dz, dy, dx) = (wz.at(y, x), wy.at(y, x), wx.at(y, x));
        [self.z + 30.0 * dz, y + 34.0 * dy + 6.0 * sy.at(y, x), x + 34.0 * dx + 6.0 * sx.at(y, x)]
    }
}

impl Resin {
    fn new(config: &TissueConfig) -> Self {
        let e = config.extent_nm();
        let (h, w) = (e.y as f32, e.x as f32);
        let side = (2.0 * config.resin as f32).sqrt();
        let (flip_y, flip_x) = (config.seed & 1 == 1, config.seed & 2 == 2);
        let length = (1.0 / (h * h) + 1.0 / (w * w)).sqrt();
        let (mut ny, mut nx, mut offset) = (-1.0 / h / length, -1.0 / w / length, side / length);
        if config.resin <= 0.0 {
            offset = -1e6;
        }
        if flip_y {
            (ny, offset) = (-ny, offset + ny * h);
        }
        if flip_x {
            (nx, offset) = (-nx, offset + nx * w);
        }
        Self { normal: [ny, nx], offset }
    }

    fn depth(&self, y: f32, x: f32) -> f32 {
        self.offset + self.normal[0] * y + self.normal[1] * x
    }
}

impl Tissue for Procedural {
    fn shape(&self) -> Zyx<usize> {
        self.config.shape
    }

    fn voxel_size(&self) -> VoxelSize {
        self.config.voxel_size
    }

    fn image(&self, z: usize, rect: BoxXy) -> Array2<u8> {
        self.map(z, rect, shade::grey)
    }

    fn labels(&self, z: usize, rect: BoxXy) -> Option<Array2<u64>> {
        Some(self.map(z, rect, |section, spot, _| u64::from(identity(section, spot).0)))
    }

    fn classes(&self, z: usize, rect: BoxXy) -> Option<Array2<u8>> {
        Some(self.map(z, rect, |section, spot, _| identity(section, spot).1))
    }
}

#[cfg(test)]
mod tests {
    use kinesin_stream::geometry::Xy;

    use super::*;

    fn small(seed: u64) -> Procedural {
        let shape = Zyx::new(6, 110, 130);
        let voxel_size = VoxelSize(Zyx::new(30.0, 16.0, 16.0));
        Procedural::new(TissueConfig { seed, shape, voxel_size, ..TissueConfig::default() }).expect("valid settings")
    }

    fn rect(x0: i64, y0: i64, x1: i64, y1: i64) -> BoxXy {
        BoxXy { min: Xy::new(x0, y0), max: Xy::new(x1, y1) }
    }

    #[test]
    fn any_rectangle_shows_the_same_voxels_as_the_whole() {
        let (tissue, again) = (small(5), small(5));
        let whole = tissue.voxels(3, rect(0, 0, 130, 110));
        for (x0, y0, x1, y1) in [(0, 0, 1, 1), (17, 3, 99, 58), (64, 64, 130, 110), (5, 107, 6, 110)] {
            let part = again.voxels(3, rect(x0, y0, x1, y1));
            assert_eq!(part, whole.slice(ndarray::s![y0 as usize..y1 as usize, x0 as usize..x1 as usize]));
            let image = again.image(3, rect(x0, y0, x1, y1));
            assert!(image.iter().zip(&part).all(|(g, v)| *g == v.grey && *g > 0));
        }
        assert_ne!(whole, small(6).voxels(3, rect(0, 0, 130, 110)));
    }

    #[test]
    fn objects_fill_the_tissue_and_go_on_from_section_to_section() {
        let tissue = small(7);
        let all = rect(0, 0, 130, 110);
        let (mut labelled, mut kept) = (0, 0);
        for z in 0..5 {
            let (a, b) = (tissue.voxels(z, all), tissue.voxels(z + 1, all));
            let neuropil = || a.iter().zip(&b).filter(|(v, _)| v.class == 0);
            labelled += neuropil().filter(|(v, _)| v.label > 0).count();
            kept += neuropil().filter(|(v, w)| v.label > 0 && v.label == w.label).count();
            let between = neuropil().filter(|(v, _)| v.label == 0).count();
            assert!(between * 10 < a.len() * 4, "{between} of {} voxels between objects", a.len());
        }
        let share = kept as f64 / labelled as f64;
        assert!((0.75..0.97).contains(&share), "{share:.3} of the labelled voxels are kept in the next section");
    }

    #[test]
    fn the_same_objects_are_seen_at_another_voxel_size() {
        let fine = small(8);
        let shape = Zyx::new(6, 55, 65);
        let voxel_size = VoxelSize(Zyx::new(30.0, 32.0, 32.0));
        let coarse =
            Procedural::new(TissueConfig { shape, voxel_size, ..fine.config().clone() }).expect("valid settings");
        let (a, b) = (fine.voxels(2, rect(0, 0, 130, 110)), coarse.voxels(2, rect(0, 0, 65, 55)));
        let same = b.indexed_iter().filter(|((y, x), v)| a[[2 * y, 2 * x]].label == v.label).count();
        assert_eq!(same, b.len());
    }

    #[test]
    fn wrong_settings_are_named_with_what_they_may_be() {
        let config = TissueConfig { gap: 1.0, resin: 0.9, ..TissueConfig::default() };
        assert_eq!(config.faults().iter().map(|f| f.key).collect::<Vec<_>>(), ["gap", "resin"]);
        let text = Procedural::new(config).err().expect("refused").to_string();
        assert!(text.contains("gap = 1") && text.contains("50 to 400 nm"), "{text}");
        assert!(serde_json::from_str::<TissueConfig>(r#"{"gapp": 70}"#).is_err());
    }
}
