//! Which settings of the simulated scope can be used; all faults are told at once.

use super::config::{LayoutConfig, SimConfig};
use super::source::TissueSource;

impl SimConfig {
    /// Everything that is wrong with these settings, one sentence each with the remedy; empty where they can be used.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.layout.faults();
        if let TissueSource::Procedural(tissue) = &self.tissue {
            faults.extend(tissue.faults().iter().map(ToString::to_string));
        }
        if self.sections.deformation_sd_px > self.sections.deformation_grid_px / 10.0 {
            faults.push(format!(
                "sections.deformation_sd_px = {}: the tissue would fold over itself; use at most a tenth of deformation_grid_px = {}",
                self.sections.deformation_sd_px, self.sections.deformation_grid_px
            ));
        }
        let mut need = |key: &str, value: f64, low: f64, high: f64| {
            if !(low..=high).contains(&value) {
                faults.push(format!("{key} = {value}: use {low} to {high}"));
            }
        };
        let (o, e, s, d, f) = (&self.optics, &self.exposure, &self.sections, &self.damage, &self.faults);
        for (key, value, high) in [
            ("optics.stage_sd_px", o.stage_sd_px, 1000.0),
            ("optics.beam_offset_sd_px", o.beam_offset_sd_px, 1000.0),
            ("optics.beam_jitter_sd_px", o.beam_jitter_sd_px, 1000.0),
            ("optics.lens_px", o.lens_px, 100.0),
            ("optics.affine_sd", o.affine_sd, 0.1),
            ("optics.scan_start_px", o.scan_start_px, 100.0),
            ("exposure.gain_sd", e.gain_sd, 1.0),
            ("exposure.offset_sd", e.offset_sd, 255.0),
            ("exposure.noise_sd", e.noise_sd, 255.0),
            ("exposure.focus_loss", e.focus_loss, 1.0),
            ("exposure.focus_blur_px", e.focus_blur_px, 50.0),
            ("sections.rotation_deg", s.rotation_deg, 180.0),
            ("sections.shift_px", s.shift_px, 100_000.0),
            ("sections.deformation_sd_px", s.deformation_sd_px, 1000.0),
            ("sections.gain_sd", s.gain_sd, 1.0),
            ("sections.offset_sd", s.offset_sd, 255.0),
            ("damage.missing", d.missing, 1.0),
            ("damage.fold", d.fold, 1.0),
            ("damage.crack", d.crack, 1.0),
            ("damage.dirt", d.dirt, 1.0),
            ("damage.fold_px", d.fold_px, 10_000.0),
            ("damage.crack_px", d.crack_px, 10_000.0),
            ("damage.dirt_px", d.dirt_px, 100_000.0),
            ("faults.lost", f.lost, 1.0),
            ("faults.blank", f.blank, 1.0),
            ("faults.duplicated", f.duplicated, 1.0),
            ("faults.late", f.late, 1.0),
            ("faults.retaken", f.retaken, 1.0),
            ("pace.speed", self.pace.speed, 1e6),
        ] {
            need(key, value, 0.0, high);
        }
        need("optics.scan_start_rows", o.scan_start_rows, 0.5, 1e6);
        need("sections.deformation_grid_px", s.deformation_grid_px, 16.0, 1e6);
        need("pace.scope_mpx_per_s", self.pace.scope_mpx_per_s, 1e-3, 1e6);
        need("faults.late_mfovs", f64::from(f.late_mfovs), 1.0, 1000.0);
        let (mfovs, beams) = (self.layout.mfovs, self.layout.beams);
        for r in &f.retakes {
            let beam = r.beams.iter().find(|b| **b >= beams);
            if r.mfov >= mfovs || beam.is_some() {
                let beam = beam.map(|b| format!(" beam {b}")).unwrap_or_default();
                faults.push(format!(
                    "faults.retakes: section {} mFOV {}{beam} is never taken a first time; use mFOVs 0 to {} and beams 0 to {}",
                    r.section,
                    r.mfov,
                    mfovs - 1,
                    beams - 1
                ));
            }
        }
        faults
    }
}

impl LayoutConfig {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if ![1, 7, 19, 37, 61, 91].contains(&self.beams) {
            faults.push(format!("layout.beams = {}: use 1, 7, 19, 37, 61 or 91", self.beams));
        }
        if self.cover == 0.0 && !((32..=8192).contains(&self.tile_px.x) && (32..=8192).contains(&self.tile_px.y)) {
            faults.push(format!("layout.tile_px = {} x {}: use 32 to 8192 a side", self.tile_px.x, self.tile_px.y));
        }
        if !(0.0..=0.5).contains(&self.overlap) {
            faults.push(format!("layout.overlap = {}: use 0 to 0.5", self.overlap));
        }
        if !(0.0..=1000.0).contains(&self.min_overlap_px) {
            faults.push(format!("layout.min_overlap_px = {}: use 0 to 1000", self.min_overlap_px));
        }
        if !(0.0..=1.0).contains(&self.cover) {
            faults.push(format!("layout.cover = {}: use 0 (off) to 1", self.cover));
        }
        if !(self.pixel_size_nm == 0.0 || (0.1..=1e5).contains(&self.pixel_size_nm)) {
            faults.push(format!(
                "layout.pixel_size_nm = {}: use 0 (that of the tissue) or 0.1 to 100000",
                self.pixel_size_nm
            ));
        }
        if !(1..=100_000).contains(&self.mfovs) {
            faults.push(format!("layout.mfovs = {}: use 1 to 100000", self.mfovs));
        }
        faults
    }
}
