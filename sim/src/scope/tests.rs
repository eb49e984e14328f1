//! The simulated scope as a whole: truth against pixels, order, hold, pace, conservation, faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kinesin_acquire::instrument::{Command, Event, Instrument, RawImage};
use kinesin_stream::geometry::{BoxXy, VoxelSize, Xy, Zyx, reduced_to_full};
use kinesin_stream::ids::{Attempt, BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::tile::Reason;
use ndarray::Array2;
use tokio::time::{Instant, timeout};

use super::config::{Damage, DamageKind, ExposureConfig, FaultsConfig, LayoutConfig, Retake, SectionsConfig, Spoiled};
use super::{Scene, SimConfig, SimulatedScope};
use crate::tissue::Tissue;
use crate::truth::Truth;

/// Tissue whose grey values are steep waves and whose labels number the voxels: it tells where it is looked at.
pub(crate) struct CodedTissue {
    shape: Zyx<usize>,
}

impl CodedTissue {
    pub(crate) fn new(z: usize, y: usize, x: usize) -> Self {
        Self { shape: Zyx::new(z, y, x) }
    }

    /// Up to 40 grey levels a voxel: a twentieth of a voxel shows.
    pub(crate) fn grey(z: usize, y: i64, x: i64) -> u8 {
        let wave = |v: i64, length: f64| (v as f64 / length * std::f64::consts::TAU).sin();
        (128.0 + 55.0 * wave(x + 3 * z as i64, 13.0) + 55.0 * wave(y, 17.0)).round() as u8
    }

    pub(crate) fn label(&self, y: i64, x: i64) -> u64 {
        1 + y as u64 * self.shape.x as u64 + x as u64
    }

    fn over<T>(rect: BoxXy, value: impl Fn(i64, i64) -> T) -> Array2<T> {
        let size = rect.size();
        Array2::from_shape_fn((size.y, size.x), |(y, x)| value(rect.min.y + y as i64, rect.min.x + x as i64))
    }
}

impl Tissue for CodedTissue {
    fn shape(&self) -> Zyx<usize> {
        self.shape
    }
    fn voxel_size(&self) -> VoxelSize {
        VoxelSize(Zyx::new(30.0, 8.0, 8.0))
    }
    fn image(&self, z: usize, rect: BoxXy) -> Array2<u8> {
        Self::over(rect, |y, x| Self::grey(z, y, x))
    }
    fn labels(&self, _z: usize, rect: BoxXy) -> Option<Array2<u64>> {
        Some(Self::over(rect, |y, x| self.label(y, x)))
    }
    fn classes(&self, _z: usize, rect: BoxXy) -> Option<Array2<u8>> {
        Some(Self::over(rect, |y, x| ((x + y) % 4) as u8))
    }
}

/// Seven beams of 96 x 84 px with every error of optics and sections, no noise.
pub(crate) fn small() -> SimConfig {
    SimConfig {
        seed: 5,
        layout: LayoutConfig {
            beams: 7,
            tile_px: Xy::new(96, 84),
            min_overlap_px: 12.0,
            mfovs: 1,
            ..LayoutConfig::default()
        },
        exposure: ExposureConfig::IDEAL,
        sections: SectionsConfig { gain_sd: 0.0, offset_sd: 0.0, ..SectionsConfig::default() },
        ..SimConfig::default()
    }
}

/// The same with seven stage stops a section.
fn seven_stops() -> SimConfig {
    let mut config = small();
    config.layout.mfovs = 7;
    config
}

fn scene(config: SimConfig) -> Arc<Scene> {
    Scene::with_tissue(config, Arc::new(CodedTissue::new(3, 420, 480))).unwrap()
}

async fn events(scope: &mut SimulatedScope) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(event) = scope.next().await.unwrap() {
        all.push(event);
    }
    all
}

/// Tiles as they came.
fn tiles(events: &[Event]) -> Vec<(TileKey, Pixels)> {
    let tile = |e: &Event| match e {
        Event::Tile(t) => match &t.image {
            RawImage::Pixels(p) => Some((t.key, p.clone())),
            RawImage::File(_) => panic!("the simulated scope gives pixels"),
        },
        _ => None,
    };
    events.iter().filter_map(tile).collect()
}

/// Grey value at a place between voxels, said once more in other words than the scope's.
fn tissue_at(z: usize, p: Xy<f64>) -> f64 {
    let (x, y) = (p.x.floor(), p.y.floor());
    let mut sum = 0.0;
    for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let near = |t: f64, k: i64| if k == 1 { t } else { 1.0 - t };
        let weight = near(p.x - x, i) * near(p.y - y, j);
        sum += weight * f64::from(CodedTissue::grey(z, y as i64 + j, x as i64 + i));
    }
    sum
}

#[test]
fn the_stored_truth_says_where_every_pixel_was_sampled() {
    let scene = scene(small());
    let truth = Truth::of(scene.clone());
    let mut compared = 0;
    for serial in (0..3).map(SerialIndex) {
        let (placements, alignment) = (truth.placements(serial), truth.alignment(serial));
        for tile in scene.section_plan(serial).tiles() {
            let pixels = scene.tile(tile.key);
            for (x, y) in (0..500).map(|i| (i * 37 % 96, i * 53 % 84)) {
                let section = placements[&tile.name].0.apply(Xy::new(x as f64, y as f64));
                let volume = alignment.0.apply(section);
                if volume.x < 0.0 || volume.y < 0.0 || volume.x > 478.0 || volume.y > 418.0 {
                    continue;
                }
                let wanted = tissue_at(serial.0 as usize, volume);
                let got = f64::from(pixels.row(y)[x]);
                // Half a level of rounding, and what 32-bit weights lose: less than 0.02 px at 40 levels a pixel.
                assert!((got - wanted).abs() < 0.6, "{} ({x}, {y}): {got}, not {wanted}", tile.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 8000, "{compared}");
}

#[test]
fn a_scope_with_larger_pixels_than_the_tissue_sees_the_mean_of_the_voxels_at_the_same_place() {
    let mut config = small();
    config.layout.pixel_size_nm = 16.0;
    config.optics = super::config::OpticsConfig::IDEAL;
    config.sections = SectionsConfig::IDEAL;
    let scene = scene(config);
    let tile = &scene.section_plan(SerialIndex(0)).mfovs[0].tiles[0].clone();
    let pixels = scene.tile(tile.key);
    // A pixel at volume (X, Y) is two voxels wide; tiles may begin between pixels.
    let place = tile.nominal + Xy::new(40.0, 30.0);
    let mean = |p: Xy<f64>| {
        let (x, y) = (reduced_to_full(p.x, 2.0), reduced_to_full(p.y, 2.0));
        let part = |dx, dy| tissue_at(0, Xy::new(x + dx, y + dy));
        (part(-0.5, -0.5) + part(0.5, -0.5) + part(-0.5, 0.5) + part(0.5, 0.5)) / 4.0
    };
    let got = f64::from(pixels.row(30)[40]);
    assert!((got - mean(place)).abs() < 6.0, "{got}, not {}", mean(place));
}

#[tokio::test]
async fn tiles_are_the_same_alone_in_any_order_and_on_any_number_of_threads() {
    let mut config = seven_stops();
    config.exposure = ExposureConfig { focus_loss: 0.2, ..ExposureConfig::default() };
    let mut shuffled = config.clone();
    shuffled.layout.shuffle_sections = true;
    shuffled.faults.late = 0.3;
    config.faults.shuffle = false;
    config.pace.threads = 1;
    shuffled.pace.threads = 3;
    shuffled.pace.tissue_cache_mib = 0;
    let mut in_order = SimulatedScope::over(scene(config)).unwrap();
    let mut any_order = SimulatedScope::over(scene(shuffled)).unwrap();
    let (a, b) = (tiles(&events(&mut in_order).await), tiles(&events(&mut any_order).await));
    assert_ne!(a.iter().map(|t| t.0).collect::<Vec<_>>(), b.iter().map(|t| t.0).collect::<Vec<_>>());
    let (a, b): (BTreeMap<_, _>, BTreeMap<_, _>) = (a.into_iter().collect(), b.into_iter().collect());
    assert_eq!(a.len(), 3 * 49);
    assert!(a == b);
    let (key, pixels) = a.iter().nth(77).unwrap();
    assert!(*pixels == in_order.scene().tile(*key));
}

#[tokio::test(start_paused = true)]
async fn a_held_scope_finishes_its_mfov_says_nothing_more_and_goes_on_where_it_stopped() {
    let mut scope = SimulatedScope::over(scene(seven_stops())).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(scope.next().await.unwrap().unwrap());
    }
    scope.command(Command::Hold).await.unwrap();
    while let Ok(event) = timeout(Duration::from_secs(3600), scope.next()).await {
        seen.push(event.unwrap().unwrap());
    }
    assert_eq!(tiles(&seen).len(), 7);
    assert!(matches!(seen.last(), Some(Event::MfovEnds(id)) if id.mfov == 0));
    scope.command(Command::Go).await.unwrap();
    assert!(matches!(scope.next().await.unwrap(), Some(Event::MfovBegins(id)) if id.mfov == 1));
    assert_eq!(tiles(&events(&mut scope).await).len(), 3 * 49 - 7);
}

#[tokio::test(start_paused = true)]
async fn tiles_come_at_the_set_speed_and_a_dropped_call_loses_none() {
    let mut config = small();
    config.pace.scope_mpx_per_s = 0.8064;
    config.pace.speed = 0.1;
    let mut scope = SimulatedScope::over(scene(config)).unwrap();
    // 8064 px a tile at 0.08064 Mpx/s: ten tiles a second.
    assert!((scope.plan().peak_tiles_per_second - 10.0).abs() < 1e-9);
    let begin = Instant::now();
    let mut seen = Vec::new();
    loop {
        // Most calls are dropped before their tile is due.
        match timeout(Duration::from_millis(30), scope.next()).await {
            Err(_) => {}
            Ok(event) => match event.unwrap() {
                Some(event) => seen.push(event),
                None => break,
            },
        }
    }
    assert_eq!(tiles(&seen).len(), 21);
    let took = begin.elapsed().as_secs_f64();
    assert!((took - 2.0).abs() < 0.05, "20 intervals of 0.1 s took {took} s");
}

#[tokio::test]
async fn every_promised_tile_comes_or_is_lost_before_its_mfov_ends_and_every_fault_is_in_the_truth() {
    let mut config = seven_stops();
    config.layout.shuffle_sections = true;
    config.faults =
        FaultsConfig { lost: 0.1, blank: 0.1, duplicated: 0.2, late: 0.2, late_mfovs: 2, ..FaultsConfig::default() };
    config.damage.list = vec![damage(1, DamageKind::Missing)];
    let mut scope = SimulatedScope::over(scene(config)).unwrap();
    let truth = Truth::of(scope.scene().clone());
    let all = events(&mut scope).await;

    let (mut open, mut told) = (BTreeMap::<MfovId, BTreeSet<TileKey>>::new(), BTreeMap::<TileKey, u32>::new());
    let (mut sections, mut lost, mut late) = (BTreeSet::<SectionId>::new(), BTreeSet::new(), 0);
    let mut latest = None;
    for event in &all {
        match event {
            Event::SectionBegins(plan) => {
                assert!(sections.insert(plan.section));
                open.extend(plan.mfovs.iter().map(|m| (m.id, m.tiles.iter().map(|t| t.key).collect())));
            }
            Event::MfovBegins(id) => latest = Some(*id),
            Event::Tile(tile) => {
                open.get_mut(&tile.key.mfov).unwrap().remove(&tile.key);
                *told.entry(tile.key).or_default() += 1;
                late += u32::from(latest != Some(tile.key.mfov));
            }
            Event::TileLost(key, reason) => {
                assert!(open.get_mut(&key.mfov).unwrap().remove(key), "told twice");
                assert_eq!(*reason == Reason::SectionMissing, key.mfov.section == SectionId(1));
                lost.insert(*key);
            }
            Event::MfovEnds(id) => assert!(open.remove(id).unwrap().is_empty(), "{id} ended too early"),
            Event::SectionAmended(_) => panic!("nothing is taken again"),
            Event::SectionEnds(id) => assert!(sections.remove(id) && open.keys().all(|m| m.section != *id)),
        }
    }
    assert!(open.is_empty() && sections.is_empty());
    assert_eq!(told.len() + lost.len(), 3 * 49);

    let mut counts = [0u32; 4];
    for serial in [0, 2].map(SerialIndex) {
        let faults = truth.faults(serial);
        for tile in scope.scene().section_plan(serial).tiles() {
            let f = faults.tiles.get(&tile.name).copied().unwrap_or_default();
            assert_eq!(f.lost, lost.contains(&tile.key));
            assert_eq!(f.duplicated && !f.lost, told.get(&tile.key) == Some(&2));
            let flags = [f.lost, f.blank, f.duplicated, f.late];
            counts.iter_mut().zip(flags).for_each(|(n, f)| *n += u32::from(f));
            if f.blank {
                assert!(scope.scene().tile(tile.key).data().iter().all(|&v| v < 25));
            }
        }
    }
    assert!(counts.iter().all(|&n| n > 0) && late >= counts[3], "{counts:?}, {late} late");
    assert_eq!(truth.faults(SerialIndex(1)).damage[0].kind, DamageKind::Missing);
}

fn retake(section: u32, mfov: u32, beams: &[u16], after_sections: u32, spoiled: Option<Spoiled>) -> Retake {
    Retake { section, mfov, beams: beams.to_vec(), after_sections, spoiled }
}

#[tokio::test]
async fn spoiled_tiles_come_again_before_or_after_their_section_has_ended_and_the_last_exposure_is_good() {
    let mut config = seven_stops();
    config.exposure = ExposureConfig::default();
    config.faults.retakes = vec![
        retake(0, 2, &[1, 3], 0, Some(Spoiled::Blurred)),
        retake(0, 2, &[1], 1, None),
        retake(1, 0, &[], 5, Some(Spoiled::Blank)),
    ];
    (config.faults.late, config.faults.late_mfovs) = (0.2, 9);
    let mut scope = SimulatedScope::over(scene(config)).unwrap();
    let scene = scope.scene().clone();
    let all = events(&mut scope).await;

    let mut plans = BTreeMap::new();
    let (mut ended, mut ends) = (BTreeSet::new(), BTreeMap::<SectionId, u32>::new());
    for event in &all {
        match event {
            Event::SectionBegins(plan) => assert!(plans.insert(plan.section, plan.clone()).is_none()),
            Event::SectionAmended(plan) => {
                let before = plans.insert(plan.section, plan.clone()).unwrap();
                assert_eq!(plan.version, before.version + 1);
                let open = before.mfovs.iter().any(|m| !ended.contains(&m.id));
                for stop in &plan.mfovs {
                    match before.mfov(stop.id) {
                        Some(there) => assert_eq!(there, stop),
                        None => assert_eq!(stop.revision, ends.get(&plan.section).copied().unwrap_or(0), "{}", stop.id),
                    }
                }
                assert_eq!(open, ends.get(&plan.section).copied().unwrap_or(0) == 0, "{}", plan.section);
            }
            Event::MfovEnds(id) => assert!(ended.insert(*id) && plans[&id.section].mfov(*id).is_some()),
            Event::SectionEnds(id) => {
                assert!(plans[id].mfovs.iter().all(|m| ended.contains(&m.id)), "{id} ended too early");
                *ends.entry(*id).or_default() += 1;
            }
            _ => {}
        }
    }
    // Section 0 is amended twice, once before its end; section 1 once, after the last section.
    let ends: Vec<_> = ends.into_values().collect();
    assert_eq!(ends, [2, 2, 1]);
    let told: BTreeMap<_, _> = tiles(&all).into_iter().collect();
    assert_eq!(told.len(), 3 * 49 + 2 + 1 + 7);
    for (section, plan) in &plans {
        assert_eq!(**plan, scene.whole_plan(SerialIndex(section.0)));
    }
    let key = |mfov: u32, beam: u16, attempt: u16| {
        let id = MfovId::new(SectionId(u32::from(mfov == 0)), RegionId(0), mfov).at(Attempt(attempt));
        TileKey { mfov: id, beam: BeamId(beam) }
    };
    let flags = |k| (scene.faults(k).blank, scene.faults(k).out_of_focus);
    assert_eq!((flags(key(2, 3, 0)), flags(key(2, 3, 1))), ((false, true), (false, false)));
    assert!(flags(key(2, 1, 1)) != (false, false) && flags(key(2, 1, 2)) == (false, false));
    assert_eq!((flags(key(0, 6, 0)), flags(key(0, 6, 1))), ((true, false), (false, false)));
    assert_ne!(scene.tile_map(key(0, 6, 0)), scene.tile_map(key(0, 6, 1)), "the stage stops at another place");
    let truth = Truth::of(scene.clone()).placements(SerialIndex(1));
    assert!(truth.contains_key("002_000001_007.tif") && truth.contains_key("002_000001_007_retake1.tif"));
}

#[tokio::test]
async fn drawn_retakes_are_the_same_whenever_they_come() {
    let keys = |after| {
        let mut config = seven_stops();
        (config.faults.retaken, config.faults.retake_after_sections) = (0.2, after);
        SimulatedScope::over(scene(config)).unwrap()
    };
    let (mut early, mut late) = (keys(0), keys(1));
    let early: BTreeMap<_, _> = tiles(&events(&mut early).await).into_iter().collect();
    let late: BTreeMap<_, _> = tiles(&events(&mut late).await).into_iter().collect();
    let again = early.keys().filter(|k| k.mfov.attempt == Attempt(1)).count();
    assert!((15..45).contains(&again), "{again} of 147");
    assert!(early == late);
}

#[tokio::test]
async fn a_skipped_mfov_says_only_its_begin_and_its_end() {
    let mut scope = SimulatedScope::over(scene(seven_stops())).unwrap();
    let skipped = scope.scene().section_plan(SerialIndex(1)).mfovs[3].id;
    scope.command(Command::Skip(skipped)).await.unwrap();
    let all = events(&mut scope).await;
    assert_eq!(tiles(&all).len(), 3 * 49 - 7);
    assert!(tiles(&all).iter().all(|(key, _)| key.mfov != skipped));
    let ends = |e: &&Event| matches!(e, Event::MfovBegins(id) | Event::MfovEnds(id) if *id == skipped);
    assert_eq!(all.iter().filter(ends).count(), 2);
    assert!(scope.command(Command::Slow(0.0)).await.is_err());
}

#[test]
fn damage_is_seen_in_the_pixels_and_told_in_the_truth() {
    let at = Some(Xy::new(240.0, 210.0));
    let of = |kind| {
        let mut config = small();
        config.optics = super::config::OpticsConfig::IDEAL;
        config.sections = SectionsConfig::IDEAL;
        config.damage.list = vec![Damage { at, angle_deg: Some(90.0), size_px: Some(20.0), ..damage(0, kind) }];
        let scene = scene(config);
        assert_eq!(Truth::of(scene.clone()).faults(SerialIndex(0)).damage[0].kind, kind);
        let tile = scene.section_plan(SerialIndex(0)).mfovs[0].tiles[0].clone();
        // The middle of the middle tile lies on the damage.
        let grey = scene.tile(tile.key);
        let middle = Xy::new((240.0 - tile.nominal.x).round() as usize, (210.0 - tile.nominal.y).round() as usize);
        (
            grey.row(middle.y)[middle.x],
            grey.row(middle.y)[middle.x + 30],
            tile.nominal + Xy::new(middle.x as f64 + 30.0, middle.y as f64),
        )
    };
    let near = |got: u8, wanted: f64| assert!((f64::from(got) - wanted).abs() < 1.0, "{got}, not {wanted}");
    let (gap, beside, p) = of(DamageKind::Crack);
    assert_eq!(gap, ExposureConfig::IDEAL.fill);
    near(beside, tissue_at(0, p - Xy::new(10.0, 0.0)));
    let (band, beside, p) = of(DamageKind::Fold);
    assert!(band < 100);
    near(beside, tissue_at(0, p + Xy::new(10.0, 0.0)));
    let (dirt, beside, p) = of(DamageKind::Dirt);
    assert!(dirt < 40);
    near(beside, tissue_at(0, p));
}

#[test]
fn all_faults_of_the_settings_are_told_at_once_and_unknown_keys_are_refused() {
    let mut config = small();
    config.layout.beams = 60;
    config.faults.lost = 1.5;
    let told = Scene::with_tissue(config, Arc::new(CodedTissue::new(1, 50, 50))).err().unwrap().to_string();
    assert!(told.contains("layout.beams = 60: use 1, 7") && told.contains("faults.lost = 1.5: use 0 to 1"), "{told}");
    assert!(serde_json::from_str::<SimConfig>(r#"{"layout": {"beam": 61}}"#).is_err());
    let mut deep = small();
    deep.layout.sections = 9;
    let told = Scene::with_tissue(deep, Arc::new(CodedTissue::new(3, 50, 50))).err().unwrap().to_string();
    assert!(told.contains("the tissue has 3 sections"), "{told}");
}

fn damage(section: u32, kind: DamageKind) -> Damage {
    Damage { section, kind, size_px: None, angle_deg: None, at: None }
}
