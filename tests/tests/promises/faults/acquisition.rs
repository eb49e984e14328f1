//! Tiny acquisitions, and what an undisturbed run leaves of each: made once, kept in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::harness::{Place, result_bytes, text};

/// A site and its undisturbed outcome.
pub(crate) struct Acquisition {
    site: String,
    /// Every file of the result.
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
    /// Of the report: states of tiles, and why they were lost.
    pub(crate) tiles: Value,
    /// Lines of `commits.jsonl`.
    pub(crate) commits: BTreeSet<String>,
}

/// Three sections of two stage stops of seven beams; a sixth of a second.
const PLAIN: &str = r#"
name = "tiny"
[instrument.sim]
seed = 5
[instrument.sim.tissue.procedural]
seed = 5
shape = [3, 320, 420]
[instrument.sim.layout]
beams = 7
tile_px = { x = 112, y = 100 }
overlap = 0.2
mfovs = 2
[instrument.sim.optics]
stage_sd_px = 3.0
lens_px = 0.5
[instrument.sim.sections]
rotation_deg = 0.5
shift_px = 4.0
deformation_sd_px = 0.5
"#;

const NO_NETWORKS: &str = "[stages.mask]\nenabled = false\n[stages.segment]\nenabled = false\n";
const TROUBLE: &str = "[instrument.sim.faults]\nduplicated = 0.15\nlate = 0.15\nlost = 0.08\nblank = 0.03\n";

impl Acquisition {
    /// Nothing wrong with it.
    pub(crate) fn plain() -> &'static Self {
        static MADE: OnceLock<Acquisition> = OnceLock::new();
        MADE.get_or_init(|| Self::undisturbed(format!("{PLAIN}{NO_NETWORKS}"), 0))
    }

    /// Tiles that come twice, late, or never.
    pub(crate) fn troubled() -> &'static Self {
        static MADE: OnceLock<Acquisition> = OnceLock::new();
        MADE.get_or_init(|| Self::undisturbed(format!("{PLAIN}{TROUBLE}{NO_NETWORKS}"), 1))
    }

    /// Labels too: enough sections for several windows of the network.
    pub(crate) fn labelled() -> &'static Self {
        static MADE: OnceLock<Acquisition> = OnceLock::new();
        MADE.get_or_init(|| {
            let site = crate::harness::SITE.replace("duplicated = 0.1\nlate = 0.1", "late = 0.1");
            Self::undisturbed(site, 0)
        })
    }

    /// The one that a seed is driven through.
    pub(crate) fn of(seed: u64) -> &'static Self {
        if seed.is_multiple_of(2) { Self::plain() } else { Self::troubled() }
    }

    /// The site file, without the link; what the scope keeps goes to `disk`.
    pub(crate) fn site(&self, disk: &Path) -> String {
        let folder = disk.join("spool");
        let spool = format!("[spool]\nfolder = {:?}\ncapacity = \"16 MiB\"\nsegment = \"128 KiB\"\n", text(&folder));
        format!("{}\n{spool}", self.site)
    }

    fn undisturbed(site: String, code: i32) -> Self {
        let place = Place::new();
        place.run(&site, "out", &[]).expect(code);
        let out = place.path("out");
        let commits = std::fs::read_to_string(out.join("commits.jsonl")).expect("a finished run");
        let commits = commits.lines().map(str::to_owned).collect();
        Self { site, files: result_bytes(&out), tiles: place.report("out")["tiles"].clone(), commits }
    }
}
