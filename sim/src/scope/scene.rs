//! What there is to see: every promise, map, fault and pixel of a simulated acquisition, as functions of its settings.
//!
//! Nothing here depends on time, order or threads: [`Scene::tile`] gives the same bytes whenever and wherever it is called.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use kinesin_stream::geometry::{BoxXy, Xy, Zyx};
use kinesin_stream::ids::{Attempt, SectionId, SerialIndex, TileKey};
use kinesin_stream::map::Grid;
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{RunPlan, SectionPlan};
use serde::{Deserialize, Serialize};

use super::config::{DamageKind, SimConfig, Spoiled};
use super::damage::{TrueDamage, damage_of};
use super::draw::{Draws, What, Whose};
use super::exposure::{Contrast, Light, blur, expose};
use super::layout::Layout;
use super::optics::tile_map;
use super::plane::Plane;
use super::retakes::{Amendment, amendments, spoiled};
use super::section::SectionMap;
use super::source::{OpenTissue, SimError};
use crate::tissue::Tissue;
use crate::tissue::recorded::RecordedTissue;

/// Grey value and largest noise of a beam that is off.
const BLANK: (f32, f64) = (12.0, 2.0);
/// Section maps kept; tiles come section by section.
const KEPT_MAPS: usize = 4;

/// What goes wrong with one tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TileFaults {
    /// Never acquired.
    pub lost: bool,
    /// The beam was off.
    pub blank: bool,
    /// Blurred.
    pub out_of_focus: bool,
    /// Sent twice.
    pub duplicated: bool,
    /// Sent some stage stops later.
    pub late: bool,
}

impl TileFaults {
    /// Whether anything is wrong.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A simulated acquisition, fully determined.
pub struct Scene {
    config: SimConfig,
    layout: Layout,
    plan: RunPlan,
    tissue: Arc<dyn Tissue>,
    recorded: Option<Arc<RecordedTissue>>,
    plane: Plane,
    /// Pixels of the scope in voxels of the tissue.
    scale: Xy<f64>,
    maps: Mutex<VecDeque<(SerialIndex, Arc<SectionMap>)>>,
}

impl Scene {
    /// Grows or opens the tissue and lays out the acquisition.
    ///
    /// # Errors
    /// All faults of the settings at once, or what is wrong with the recorded volume.
    pub fn open(config: SimConfig) -> Result<Arc<Self>, SimError> {
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(SimError::Config(faults));
        }
        let OpenTissue { tissue, recorded } = OpenTissue::open(&config)?;
        Self::assemble(config, tissue, recorded)
    }

    /// As [`Self::open`], over any tissue; `config.tissue` is not looked at.
    ///
    /// # Errors
    /// All faults of the settings at once.
    pub fn with_tissue(config: SimConfig, tissue: Arc<dyn Tissue>) -> Result<Arc<Self>, SimError> {
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(SimError::Config(faults));
        }
        Self::assemble(config, tissue, None)
    }

    fn assemble(
        mut config: SimConfig,
        tissue: Arc<dyn Tissue>,
        recorded: Option<Arc<RecordedTissue>>,
    ) -> Result<Arc<Self>, SimError> {
        let (shape, voxel) = (tissue.shape(), tissue.voxel_size().0);
        let there = shape.z.saturating_sub(config.layout.first_z);
        if config.layout.sections == 0 {
            config.layout.sections = there as u32;
        }
        if there < config.layout.sections as usize || there == 0 {
            return Err(SimError::Config(vec![format!(
                "layout.first_z = {} with layout.sections = {}: the tissue has {} sections, {there} from there on",
                config.layout.first_z, config.layout.sections, shape.z
            )]));
        }
        if config.layout.pixel_size_nm == 0.0 {
            config.layout.pixel_size_nm = voxel.x;
        }
        let scale = Xy::new(config.layout.pixel_size_nm / voxel.x, config.layout.pixel_size_nm / voxel.y);
        let area = Xy::new(shape.x as f64 / scale.x, shape.y as f64 / scale.y);
        let layout = Layout::new(&config.layout, area);
        let plan = run_plan(&config, &layout, voxel);
        let kept = config.pace.tissue_cache_mib as usize * (1 << 20);
        let plane = Plane::new(tissue.clone(), config.exposure.fill, kept);
        Ok(Arc::new(Self { config, layout, plan, tissue, recorded, plane, scale, maps: Mutex::default() }))
    }

    /// The settings, with what was left to be found filled in.
    pub fn config(&self) -> &SimConfig {
        &self.config
    }

    /// The promise of the whole run.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// The ideal places.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What lies under the scope.
    pub fn tissue(&self) -> &Arc<dyn Tissue> {
        &self.tissue
    }

    /// Section of the tissue that this section was cut from.
    pub fn tissue_z(&self, serial: SerialIndex) -> usize {
        self.config.layout.first_z + serial.0 as usize
    }

    /// Pixels of the scope, and so of the volume, in voxels of the tissue.
    pub fn scale(&self) -> Xy<f64> {
        self.scale
    }

    /// Sections in the order in which they are imaged.
    pub fn order(&self) -> Vec<SerialIndex> {
        let mut order: Vec<_> = (0..self.plan.sections).map(SerialIndex).collect();
        if self.config.layout.shuffle_sections {
            Draws::new(self.config.seed, What::SectionOrder, Whose::default()).shuffle(&mut order);
        }
        order
    }

    /// The promise of a section as it begins. Its id is its number at cutting, whatever the order of imaging.
    pub fn section_plan(&self, serial: SerialIndex) -> SectionPlan {
        self.layout.section_plan(SectionId(serial.0), serial)
    }

    /// The promise of a section with everything that is taken again.
    pub fn whole_plan(&self, serial: SerialIndex) -> SectionPlan {
        let first = self.section_plan(serial);
        self.amendments(&first).into_iter().fold(first, |plan, amendment| plan.amended(amendment.stops))
    }

    /// What is taken again of the section with this first promise, in the order in which it comes.
    pub(crate) fn amendments(&self, first: &SectionPlan) -> Vec<Amendment> {
        if self.is_missing(first.serial) {
            return Vec::new();
        }
        amendments(&self.config.faults, self.config.seed, &self.layout, &first.mfovs)
    }

    /// Tile pixel to section pixel, as it really is.
    pub fn tile_map(&self, key: TileKey) -> Grid {
        tile_map(&self.config.optics, &self.layout, self.config.seed, Whose::of(key))
    }

    /// Section pixel to volume pixel (the tissue in pixels of the scope), as it really is.
    pub fn section_map(&self, serial: SerialIndex) -> Arc<SectionMap> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, map)) = maps.iter().find(|(s, _)| *s == serial) {
            return map.clone();
        }
        let o = &self.config.optics;
        let reach = 5.0 * (o.stage_sd_px + o.beam_offset_sd_px + o.beam_jitter_sd_px) + o.lens_px + o.scan_start_px;
        let map = Arc::new(SectionMap::new(
            &self.config.sections,
            self.damage(serial),
            self.config.seed,
            serial.0,
            self.layout.centre,
            self.layout.extent(reach + 32.0),
        ));
        maps.push_back((serial, map.clone()));
        if maps.len() > KEPT_MAPS {
            maps.pop_front();
        }
        map
    }

    /// What happened to a section.
    pub fn damage(&self, serial: SerialIndex) -> Vec<TrueDamage> {
        let (shape, all) = (self.tissue.shape(), self.layout.extent(0.0));
        let far = Xy::new((shape.x as f64 / self.scale.x) as i64, (shape.y as f64 / self.scale.y) as i64);
        let within = all.intersect(&BoxXy { min: Xy::new(0, 0), max: far }).unwrap_or(all);
        damage_of(&self.config.damage, self.config.seed, serial.0, within)
    }

    /// Whether nothing of a section is left.
    pub fn is_missing(&self, serial: SerialIndex) -> bool {
        self.damage(serial).iter().any(|d| d.kind == DamageKind::Missing)
    }

    /// What goes wrong with a tile.
    pub fn faults(&self, key: TileKey) -> TileFaults {
        let f = &self.config.faults;
        let happens = |what, probability| Draws::new(self.config.seed, what, Whose::of(key)).chance(probability);
        // Who takes a tile again looks at it.
        let first = key.mfov.attempt == Attempt(0);
        if first && happens(What::Lost, f.lost) {
            return TileFaults { lost: true, ..TileFaults::default() };
        }
        let spoiled = spoiled(f, self.config.seed, self.layout.beams, key);
        let blank = spoiled == Some(Spoiled::Blank) || (first && happens(What::Blank, f.blank));
        let blurred =
            spoiled == Some(Spoiled::Blurred) || (first && happens(What::Focus, self.config.exposure.focus_loss));
        TileFaults {
            lost: false,
            blank,
            out_of_focus: !blank && blurred,
            duplicated: happens(What::Duplicate, f.duplicated),
            late: happens(What::Late, f.late),
        }
    }

    /// The image of a tile, also of one that will be lost on its way.
    pub fn tile(&self, key: TileKey) -> Pixels {
        let (size, e) = (self.layout.tile, &self.config.exposure);
        let (width, height) = (size.x as usize, size.y as usize);
        let noise = Draws::new(self.config.seed, What::Noise, Whose::of(key));
        let faults = self.faults(key);
        if faults.blank {
            let dark = vec![BLANK.0; width * height];
            let grey = expose(&dark, Contrast { gain: 1.0, offset: 0.0 }, e.noise_sd.min(BLANK.1), noise);
            return Pixels::new(width, height, grey);
        }
        let serial = SerialIndex(key.mfov.section.0);
        let light = Light {
            plane: &self.plane,
            z: self.tissue_z(serial),
            scale: self.scale,
            tile: &self.tile_map(key),
            section: &self.section_map(serial),
            fill: e.fill,
        };
        let mut light = light.sample(size);
        if faults.out_of_focus && e.focus_blur_px > 0.0 {
            light = blur(&light, width, e.focus_blur_px);
        }
        Pixels::new(width, height, expose(&light, self.contrast(key), e.noise_sd, noise))
    }

    /// Whether all tissue could be read so far.
    ///
    /// # Errors
    /// The first failure to read the recorded volume.
    pub fn check(&self) -> Result<(), SimError> {
        self.recorded.as_ref().map_or(Ok(()), |r| r.check()).map_err(SimError::from)
    }

    fn contrast(&self, key: TileKey) -> Contrast {
        let (s, e) = (&self.config.sections, &self.config.exposure);
        let drawn = |what, whose, gain_sd, offset_sd| {
            let mut d = Draws::new(self.config.seed, what, whose);
            Contrast { gain: (1.0 + d.normal(gain_sd)).max(0.1), offset: d.normal(offset_sd) }
        };
        let section = drawn(What::Contrast, Whose::section(key.mfov.section.0), s.gain_sd, s.offset_sd);
        let beam = drawn(What::BeamGrey, Whose::beam(u32::from(key.beam.0)), e.gain_sd, e.offset_sd);
        section.then(beam)
    }
}

fn run_plan(config: &SimConfig, layout: &Layout, voxel: Zyx<f64>) -> RunPlan {
    let (o, s) = (&config.optics, &config.sections);
    let plain = layout.extent(0.0).size();
    let radius = (plain.x as f64).hypot(plain.y as f64) / 2.0;
    let turned = radius * s.rotation_deg.min(90.0).to_radians().sin();
    let spread = o.stage_sd_px + o.beam_offset_sd_px + o.beam_jitter_sd_px + s.deformation_sd_px;
    let tile_mpx = f64::from(layout.tile.x) * f64::from(layout.tile.y) / 1e6;
    RunPlan {
        name: config.name.clone(),
        beams: layout.beams,
        tile_px: layout.tile,
        pixel_size_nm: config.layout.pixel_size_nm,
        thickness_nm: voxel.z,
        sections: config.layout.sections,
        mfovs_per_section: layout.mfovs,
        extent: layout.extent((s.shift_px + turned + 3.0 * spread).ceil()),
        peak_tiles_per_second: config.pace.scope_mpx_per_s * config.pace.speed / tile_mpx,
    }
}
