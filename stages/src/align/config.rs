//! Settings of the section-to-volume alignment.

use serde::{Deserialize, Serialize};

use super::AlignError;

/// How a section is laid onto those before it. Lengths are pixels of the full-resolution section unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignConfig {
    /// Reduction of the section images handed in, a whole factor. Default 2: at 4 to 8 nm the tissue that two neighbours share is
    /// still resolved, at a quarter of the work.
    pub reduction: u32,
    /// Side of a pixel at which the coarse step looks, a power of two times `reduction`. Default 8: 48 to 64 nm, where neighbouring sections
    /// look alike. Sections under 96 such pixels are looked at finer, over 512 coarser.
    pub coarse_px: u32,
    /// Angles tried first, degrees to either side. Default 10: hand-placed and taped sections stay within it.
    pub sweep_deg: f64,
    /// Step of the first sweep, degrees. Default 2: half of it moves the rim of a 128 px thumbnail by one pixel.
    pub sweep_step_deg: f64,
    /// Whether all angles are tried where the first sweep finds nothing. Default true: a section can be picked up turned.
    pub full_circle: bool,
    /// Share of trusted coarse blocks that one affine map must explain. Default 0.5: chance explains a fifth of few.
    pub coarse_agreement: f64,
    /// Side of a matched patch. Default 192: 1.2 to 1.5 um, the smallest that holds enough membranes to average out their change
    /// from section to section.
    pub patch_px: u32,
    /// Distance of patches. Default 64: neighbours overlap by two thirds, which halves the error of a node.
    pub stride_px: u32,
    /// How far patches are looked for after the coarse step. Default 40: three times the usual local deformation.
    pub search_px: u32,
    /// Least normalised correlation of a patch that is believed. Default 0.15: unrelated tissue stays under 0.1.
    pub least_score: f64,
    /// Least `1 - rival / peak`, the rival being the second peak or the best match of the mirrored patch. Default 0.2.
    pub least_distinctness: f64,
    /// Distance of the nodes of the warp. Default 64; grows where a section would need more than 96 nodes a side.
    pub node_px: u32,
    /// Sections that a new one is laid onto. Default 2, 1 to 3: the second halves the walk of the errors and carries over a bad one.
    pub references: u32,
    /// Weight of a match to the reference before the last, of the one before that its square. Default 0.5: tissue changes with distance.
    pub older_weight: f64,
    /// Sections that still move when later ones have come, 0 to 8. Default 2: neighbours then lie 0.31 px apart where they lie 0.35 px
    /// with 0, 0.32 with 1 and 0.31 with 3 (bench `drift`); it costs a twentieth of the time, and a section is final two later.
    pub lag: u32,
    /// Sections from one key section to the next, at least; at most twice as many. Default 16.
    pub key_every: u32,
    /// Part of what the key section says that a section and all after it take back. Default 0.03.
    pub key_pull: f64,
    /// Share of tissue with consistent matches under which a section counts as failed. Default 0.25.
    pub least_confidence: f64,
    /// Share of tissue with consistent matches under which a section is placed but later ones are not laid onto it. Default 0.5.
    pub reference_confidence: f64,
    /// Share of tissue with consistent matches under which a section is called doubtful. Default 0.75: good neighbours reach 0.8 and more.
    pub warn_confidence: f64,
    /// Fine detail, as a part of what is usual around, under which a section counts as out of focus: it is placed, but later ones are
    /// not laid onto it. Default 0.5: sections of cortex and of a block face stay above 0.65.
    pub least_sharpness: f64,
    /// Area of tissue, as a part of what is usual around, under which a section is called doubtful. Default 0.8.
    pub warn_area: f64,
    /// Residual to the section before, px rms, over which a section is called doubtful. Default 3: three times the usual.
    pub warn_residual_px: f64,
    /// Distance from the key section, or bend of the volume, px, over which a section is called doubtful. Default 10.
    pub warn_drift_px: f64,
    /// Distance of the nodes of the volume's lasting deformation. Default 192: the size of a patch, the shortest pull there is.
    pub drift_node_px: u32,
    /// Pull of slanted tissue on a section that is reckoned with, px a section. Default 0.05.
    pub drift_pull_px: f64,
    /// Part of the volume's deformation that a section takes back. Default 0.25: in some four sections, so that none jumps.
    pub drift_relax: f64,
    /// Error in the stretch of a section that is reckoned with, part of one. Default 1e-4: a twentieth of a pixel at the rim of a section of 1000 px.
    pub stretch_walk: f64,
    /// Most that compression is taken to change from section to section, part of one. Default 3e-4, 6 % in 200 sections: a steady change up
    /// to that is the knife's and stays in the sections; what is more bends the volume and is taken back.
    pub stretch_trend: f64,
}

impl Default for AlignConfig {
    fn default() -> Self {
        Self {
            reduction: 2,
            coarse_px: 8,
            sweep_deg: 10.0,
            sweep_step_deg: 2.0,
            full_circle: true,
            coarse_agreement: 0.5,
            patch_px: 192,
            stride_px: 64,
            search_px: 40,
            least_score: 0.15,
            least_distinctness: 0.2,
            node_px: 64,
            references: 2,
            older_weight: 0.5,
            lag: 2,
            key_every: 16,
            key_pull: 0.03,
            least_confidence: 0.25,
            reference_confidence: 0.5,
            warn_confidence: 0.75,
            least_sharpness: 0.5,
            warn_area: 0.8,
            warn_residual_px: 3.0,
            warn_drift_px: 10.0,
            drift_node_px: 192,
            drift_pull_px: 0.05,
            drift_relax: 0.25,
            stretch_walk: 1e-4,
            stretch_trend: 3e-4,
        }
    }
}

impl AlignConfig {
    /// Images kept of accepted sections: those that new ones are laid onto, and those that may still move and become the key.
    pub(super) fn images(&self) -> usize {
        self.references.max(self.lag + 1) as usize
    }

    /// Refuses the first value that is out of range.
    pub(super) fn check(&self) -> Result<(), AlignError> {
        let within = |key: &'static str, v: f64, low: f64, high: f64| {
            if (low..=high).contains(&v) { Ok(()) } else { Err(AlignError::Config { key, got: v, low, high }) }
        };
        let s = f64::from(self.reduction);
        within("reduction", s, 1.0, 64.0)?;
        within("coarse_px", f64::from(self.coarse_px), s, 1024.0)?;
        within("sweep_deg", self.sweep_deg, 0.0, 180.0)?;
        within("sweep_step_deg", self.sweep_step_deg, 0.25, 10.0)?;
        within("coarse_agreement", self.coarse_agreement, 0.2, 1.0)?;
        within("patch_px", f64::from(self.patch_px), 16.0 * s, 256.0 * s)?;
        within("stride_px", f64::from(self.stride_px), 4.0 * s, f64::from(self.patch_px))?;
        within("search_px", f64::from(self.search_px), 4.0 * s, f64::from(self.patch_px))?;
        within("least_score", self.least_score, 0.0, 1.0)?;
        within("least_distinctness", self.least_distinctness, 0.0, 1.0)?;
        within("node_px", f64::from(self.node_px), 8.0, 4096.0)?;
        within("references", f64::from(self.references), 1.0, 3.0)?;
        within("older_weight", self.older_weight, 0.0, 1.0)?;
        within("lag", f64::from(self.lag), 0.0, 8.0)?;
        within("key_every", f64::from(self.key_every), 1.0, 4096.0)?;
        within("key_pull", self.key_pull, 0.0, 1.0)?;
        within("least_confidence", self.least_confidence, 0.0, 1.0)?;
        within("reference_confidence", self.reference_confidence, 0.0, 1.0)?;
        within("warn_confidence", self.warn_confidence, 0.0, 1.0)?;
        within("least_sharpness", self.least_sharpness, 0.0, 1.0)?;
        within("warn_area", self.warn_area, 0.0, 1.0)?;
        within("warn_residual_px", self.warn_residual_px, 0.0, 1024.0)?;
        within("warn_drift_px", self.warn_drift_px, 0.0, 1024.0)?;
        within("drift_node_px", f64::from(self.drift_node_px), 8.0, 65536.0)?;
        within("drift_pull_px", self.drift_pull_px, 0.0, 16.0)?;
        within("drift_relax", self.drift_relax, 0.0, 1.0)?;
        within("stretch_walk", self.stretch_walk, 0.0, 0.01)?;
        within("stretch_trend", self.stretch_trend, 0.0, 0.01)
    }
}
