//! `kinesin sim`, `stitch`, `align`: recorded data, written and read, through the same stages as the live line.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kinesin_acquire::dataset::{Assumed, Dataset};
use kinesin_acquire::decode::decode;
use kinesin_backpressure::{Budget, Bytes, Sender};
use kinesin_sim::record::record;
use kinesin_stages::inspect::{InspectConfig, inspect};
use kinesin_stages::pipeline::{
    Factories, FloodMeter, Line, LineConfig, MfovDone, Moment, Nominal, Source, StageName, StagesConfig, StoreError,
    Telemetry, TileStore,
};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, PlannedTile, RunPlan, SectionPlan};
use kinesin_stream::runner::{RunToken, Runner};
use kinesin_stream::stage::StopError;
use kinesin_stream::tile::Reason;
use kinesin_stream::volume::{self, SectionImage};
use serde_json::json;

use crate::cli::{OfflineArgs, RunArgs};
use crate::instrument::Opened;
use crate::outcome::{Failure, Outcome};
use crate::progress::Progress;
use crate::site::SiteFile;
use crate::{doubts, exchange, numbering, prepare, report, segment};

/// `kinesin sim`.
pub fn sim(args: &RunArgs, as_json: bool) -> Result<Outcome, Failure> {
    crate::scenario::refused(args.scenario.as_deref(), "sim")?;
    let site = SiteFile::load(&args.site, &args.tune)?;
    let Some(out) = &args.out else {
        return Err(Failure::Input("no folder for the recording; give --out DIR".into()));
    };
    if !args.overwrite && out.join("truth/sim.json").is_file() {
        let out = out.display();
        return Err(Failure::Input(format!(
            "{out} holds a finished recording; give --overwrite to replace it or another --out"
        )));
    }
    let _busy = Progress::start(as_json, || "recording the simulated acquisition".into());
    let opened = Opened::open(&site)?;
    let Some(scene) = opened.scene() else {
        return Err(Failure::Input("the site file names no simulated scope; add [instrument.sim]".into()));
    };
    prepare::folder(out, args.overwrite)?;
    record(&scene, out, 1, |_| {}).map_err(Failure::input)?;
    kinesin_stages::publish::write_json(&out.join("truth/sim.json"), scene.config()).map_err(Failure::fault)?;
    let plan = scene.plan();
    if as_json {
        println!("{}", json!({"out": out, "plan": plan}));
    } else {
        println!("{} sections of {} beams recorded in {}, with their truth", plan.sections, plan.beams, out.display());
    }
    Ok(Outcome::Complete)
}

/// `kinesin stitch`.
pub fn stitch(args: &OfflineArgs, as_json: bool) -> Result<Outcome, Failure> {
    let recorded = Input::dataset(args)?;
    let (sections, paths, nm) = (recorded.sections.clone(), recorded.paths.clone(), recorded.plan.pixel_size_nm);
    let outcome = line(args, recorded, Nominal { align: true, ..Nominal::default() }, "stitch", as_json)?;
    exchange::write(&args.out, &sections, &paths, nm)?;
    Ok(outcome)
}

/// `kinesin align`.
pub fn align(args: &OfflineArgs, as_json: bool) -> Result<Outcome, Failure> {
    let images = args.input.is_dir() && volume::section_images(&args.input).is_ok_and(|files| !files.is_empty());
    let recorded = if images { Input::images(args)? } else { Input::dataset(args).map_err(or_images)? };
    line(args, recorded, Nominal::default(), "align", as_json)
}

/// Of an input that is nothing recorded: what else `align` takes.
fn or_images(failure: Failure) -> Failure {
    match failure {
        Failure::Input(text) => {
            Failure::Input(format!("{text}, or for align a folder of 8-bit grey images (png, tif, jpg), one a section"))
        }
        other => other,
    }
}

/// Recorded sections, whatever they were recorded as.
struct Input {
    plan: RunPlan,
    sections: Vec<Arc<SectionPlan>>,
    lost: BTreeMap<TileKey, Reason>,
    /// Where the tiles are; none where sections are whole images.
    paths: BTreeMap<TileKey, PathBuf>,
    store: Arc<dyn TileStore>,
    /// Most bytes the store keeps.
    kept: Bytes,
    /// Whether grey 0 is an empty rim.
    zero_is_empty: bool,
}

/// Image files, and the last decoded ones: a tile is asked for by inspection, by each of its pairs and by the renderer.
struct Files {
    paths: BTreeMap<TileKey, PathBuf>,
    kept: Mutex<Kept>,
}

/// Most bytes of decoded files that are kept: an mFOV of 61 beams of 4 Mpx.
const KEPT: Bytes = Bytes::mib(256);

/// Decoded files, the last asked for at the end.
#[derive(Default)]
struct Kept {
    tiles: VecDeque<(TileKey, Pixels)>,
    bytes: u64,
}

impl Kept {
    fn get(&mut self, key: TileKey) -> Option<Pixels> {
        let at = self.tiles.iter().position(|(k, _)| *k == key)?;
        let hit = self.tiles.remove(at)?;
        let pixels = hit.1.clone();
        self.tiles.push_back(hit);
        Some(pixels)
    }

    fn put(&mut self, key: TileKey, pixels: Pixels) {
        let bytes = pixels.data().len() as u64;
        // Two readers may have decoded the same file.
        if bytes > KEPT.0 || self.tiles.iter().any(|(k, _)| *k == key) {
            return;
        }
        while self.bytes + bytes > KEPT.0
            && let Some((_, oldest)) = self.tiles.pop_front()
        {
            self.bytes -= oldest.data().len() as u64;
        }
        self.bytes += bytes;
        self.tiles.push_back((key, pixels));
    }
}

impl Files {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TileStore for Files {
    fn read(&self, key: TileKey) -> Result<Pixels, StoreError> {
        if let Some(pixels) = self.kept().get(key) {
            return Ok(pixels);
        }
        let path = self.paths.get(&key).ok_or_else(|| format!("{key} has no file"))?;
        let bytes = std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let pixels = decode(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        self.kept().put(key, pixels.clone());
        Ok(pixels)
    }
}

/// One image a section, each of its own size.
struct Images(Vec<SectionImage>);

impl TileStore for Images {
    fn read(&self, key: TileKey) -> Result<Pixels, StoreError> {
        let file = self.0.get(key.mfov.section.0 as usize).ok_or_else(|| format!("{key} has no file"))?;
        let image = file.read()?;
        let (h, w) = image.dim();
        Ok(Pixels::new(w, h, image.into_raw_vec_and_offset().0))
    }
}

impl Input {
    fn dataset(args: &OfflineArgs) -> Result<Self, Failure> {
        let mut assumed = Assumed::default();
        if let Some(nm) = args.pixel_nm {
            assumed.pixel_size_nm = nm;
        }
        let data = Dataset::open_with(&args.input, assumed).map_err(Failure::input)?;
        for remark in data.remarks() {
            eprintln!("note: {remark}");
        }
        let (mut files, mut lost) = (BTreeMap::new(), BTreeMap::new());
        for tile in data.sections().iter().flat_map(|s| s.tiles()) {
            if let Some(reason) = data.lost(tile.key) {
                lost.insert(tile.key, reason.clone());
            } else if let Some(path) = data.path(tile.key) {
                files.insert(tile.key, path.to_path_buf());
            }
        }
        let (plan, sections) = (data.plan().clone(), data.sections().to_vec());
        Ok(Self {
            plan,
            sections,
            lost,
            paths: files.clone(),
            store: Arc::new(Files { paths: files, kept: Mutex::default() }),
            kept: KEPT,
            zero_is_empty: false,
        })
    }

    /// A folder of images, one a section. One that cannot be read is a section that is lost; one of another size is taken as it is.
    fn images(args: &OfflineArgs) -> Result<Self, Failure> {
        let files = volume::section_images(&args.input).map_err(Failure::input)?;
        let sizes: Vec<Xy<usize>> = files.iter().filter_map(|f| f.size.as_ref().ok().copied()).collect();
        let Some(largest) = sizes.into_iter().reduce(|a, b| Xy::new(a.x.max(b.x), a.y.max(b.y))) else {
            let why = files.iter().find_map(|f| f.size.as_ref().err().map(ToString::to_string)).unwrap_or_default();
            return Err(Failure::Input(format!("{}: no image can be read: {why}", args.input.display())));
        };
        for remark in numbering::remarks(&files, args.pixel_nm) {
            eprintln!("note: {remark}");
        }
        let px = |size: Xy<usize>| Xy::new(size.x as u32, size.y as u32);
        let (mut sections, mut lost) = (Vec::new(), BTreeMap::new());
        for (z, file) in (0u32..).zip(&files) {
            let section = SectionId(z);
            let id = MfovId::new(section, RegionId(0), 0);
            let key = TileKey { mfov: id, beam: BeamId(0) };
            let name = file.path.file_name().map_or_else(|| format!("{z:05}"), |n| n.to_string_lossy().into_owned());
            let size = px(*file.size.as_ref().unwrap_or(&largest));
            if let Err(error) = &file.size {
                lost.insert(key, Reason::Unreadable(error.to_string()));
            }
            let tile = PlannedTile { key, name: name.clone(), nominal: Xy::default(), size };
            let mfovs = vec![MfovPlan { id, revision: 0, tiles: vec![tile] }];
            let serial = SerialIndex(z);
            sections.push(Arc::new(SectionPlan { section, serial, name, version: 0, mfovs }));
        }
        let plan = RunPlan {
            name: args.input.display().to_string(),
            beams: 1,
            tile_px: px(largest),
            pixel_size_nm: args.pixel_nm.unwrap_or(Assumed::default().pixel_size_nm),
            thickness_nm: Assumed::default().thickness_nm,
            sections: sections.len() as u32,
            mfovs_per_section: 1,
            extent: BoxXy { min: Xy::new(0, 0), max: Xy::new(largest.x as i64, largest.y as i64) },
            peak_tiles_per_second: 0.0,
        };
        Ok(Self {
            plan,
            sections,
            lost,
            paths: BTreeMap::new(),
            store: Arc::new(Images(files)),
            kept: Bytes(0),
            zero_is_empty: true,
        })
    }
}

/// Recorded sections through the line, without networks.
fn line(args: &OfflineArgs, input: Input, nominal: Nominal, command: &str, as_json: bool) -> Result<Outcome, Failure> {
    let mut stages = match &args.site {
        Some(site) => SiteFile::load(site, &args.tune)?.stages,
        None => StagesConfig::default(),
    };
    stages.render.zero_is_empty |= input.zero_is_empty;
    let tile = u64::from(input.plan.tile_px.x) * u64::from(input.plan.tile_px.y);
    let nine = 9 * tile.next_multiple_of(4096);
    stages.edges.tiles.0 = stages.edges.tiles.0.max(nine);
    let identity = json!({"command": command, "plan": input.plan, "stages": stages});
    let workers = crate::site::workers(args.tune.workers);
    let inspect_config = stages.inspect.clone();
    let (out, plan) = (args.out.clone(), input.plan.clone());
    let config = LineConfig {
        stages,
        plan: plan.clone(),
        out: out.clone(),
        workers,
        nominal,
        mask: None,
        flood: None,
        light: false,
    };
    let budget = Budget::new();
    budget.fixed("decoded files", input.kept);
    let line = Line::open(config, &budget).map_err(|faults| Failure::Input(faults.join("\n")))?;
    prepare::apart(&args.input, &out)?;
    prepare::folder(&out, args.overwrite)?;
    segment::claim(&out, &identity)?;

    let (runner, telemetry) = (Runner::new(&budget), Arc::new(Telemetry::default()));
    let stored = line.stored();
    let store = input.store.clone();
    let source = Source::Recorded(store.clone());
    line.start(&runner, source, &Factories::default(), &telemetry, &Arc::new(FloodMeter::default()))
        .map_err(Failure::input)?;
    let counted = telemetry.clone();
    runner.spawn("feed", move |run| feed(&input, &inspect_config, &*store, &stored, &counted, run));
    let progress = {
        let telemetry = telemetry.clone();
        Progress::start(as_json, move || {
            format!(
                "tiles {} · sections complete {} · images {} of {}",
                telemetry.items(StageName::Inspect),
                telemetry.reached(Moment::LastTile),
                telemetry.reached(Moment::Image),
                plan.sections
            )
        })
    };
    let ended = runner.join();
    drop(progress);
    ended.map_err(Failure::fault)?;
    let losses = losses(&out, &telemetry)?;
    let told = if nominal.align { Vec::new() } else { doubts::of(&out, plan.sections)? };
    let result = json!({
        "command": command,
        "seconds": telemetry.elapsed().as_secs_f64(),
        "tiles_lost": losses,
        "quality_faults": telemetry.quality_faults(),
        "sections": told,
        "stages": telemetry.rows(),
        "memory": report::memory(&budget),
    });
    kinesin_stages::publish::write_json(&out.join("report.json"), &result).map_err(Failure::fault)?;
    if as_json {
        println!("{result}");
    } else {
        println!("{} sections, {losses} tiles lost, results in {}", telemetry.reached(Moment::Image), out.display());
        told.iter().for_each(|section| println!("  {section}"));
        println!("look at it: kinesin view {}", out.display());
    }
    let bad = told.iter().any(doubts::Doubt::is_loss);
    Ok(if losses == 0 && !bad { Outcome::Complete } else { Outcome::WithLosses })
}

/// Tiles that the sections' own files call lost.
fn losses(out: &Path, telemetry: &Telemetry) -> Result<usize, Failure> {
    let mut losses = 0;
    for z in telemetry.sections().keys() {
        let path = kinesin_stages::publish::SectionFiles::new(out, *z).quality();
        let quality: Option<serde_json::Value> = kinesin_stages::publish::read_json(&path).map_err(Failure::fault)?;
        losses += quality.and_then(|q| q["lost"].as_object().map(serde_json::Map::len)).unwrap_or(0);
    }
    Ok(losses)
}

/// Measures every tile and hands its mFOV on; a file that cannot be used is a loss with its reason.
fn feed(
    input: &Input,
    config: &InspectConfig,
    store: &dyn TileStore,
    stored: &Sender<MfovDone>,
    telemetry: &Telemetry,
    run: &RunToken,
) -> Result<(), StopError> {
    for plan in &input.sections {
        for mfov in &plan.mfovs {
            let (mut tiles, mut lost) = (BTreeMap::new(), BTreeMap::new());
            for tile in &mfov.tiles {
                run.check()?;
                if let Some(reason) = input.lost.get(&tile.key) {
                    lost.insert(tile.key, reason.clone());
                    continue;
                }
                match store.read(tile.key) {
                    Err(error) => {
                        lost.insert(tile.key, Reason::Unreadable(error.to_string()));
                    }
                    Ok(p) if (p.width(), p.height()) != (tile.size.x as usize, tile.size.y as usize) => {
                        let (w, h) = (p.width(), p.height());
                        let text =
                            format!("{} has {w} x {h} px, promised {} x {}", tile.name, tile.size.x, tile.size.y);
                        lost.insert(tile.key, Reason::WrongShape(text));
                    }
                    Ok(pixels) => {
                        let n = pixels.data().len() as u64;
                        let quality = telemetry.time(StageName::Inspect, n, || inspect(&pixels, config));
                        tiles.insert(tile.key, quality);
                    }
                }
            }
            stored.send_blocking(MfovDone { plan: plan.clone(), mfov: mfov.id, tiles, lost })?;
        }
    }
    Ok(())
}
