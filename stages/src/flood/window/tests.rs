use std::collections::BTreeSet;
use std::sync::Arc;

use ndarray::Array2;

use super::*;
use crate::flood::Schedule;
use crate::model::FfnRules;
use crate::runtime::RuleNetwork;

mod arms;
mod gaps;
mod one_owner;

const SHAPE: Zyx<usize> = Zyx::new(40, 70, 90);
const CUBE: VoxelSize = VoxelSize(Zyx::new(1.0, 1.0, 1.0));

fn rules() -> FloodRules {
    let ffn = FfnRules {
        deltas: Zyx::new(2, 4, 4),
        init_activation: 0.95,
        pad_value: 0.05,
        move_threshold: 0.9,
        segment_threshold: 0.6,
        min_segment_size: 30,
        min_boundary_dist: Zyx::new(1, 1, 1),
        disco_seed_threshold: 0.0,
    };
    FloodRules::new(Zyx::new(7, 13, 13), &ffn)
}

fn config() -> FloodConfig {
    let join = crate::agglomerate::JoinRule { min_iou: 0.5, min_voxels: 20 };
    FloodConfig { window: Some(18), core: Some(40), halo: Some(12), join, ..FloodConfig::default() }
}

fn factory() -> NetworkFactory {
    Arc::new(|| Ok(Box::new(RuleNetwork::new([7, 13, 13], 0.0)) as Box<dyn Network>))
}

/// Number of the tube at a voxel: nine tubes of radius 5 that wander through all sections; 0 between them.
fn tube(z: usize, y: usize, x: usize) -> usize {
    for (row, cy) in [16.0f64, 35.0, 54.0].into_iter().enumerate() {
        for (column, cx) in [18.0f64, 44.0, 70.0].into_iter().enumerate() {
            let phase = (row * 3 + column) as f64;
            let (cy, cx) = (cy + 2.0 * (z as f64 / 6.0 + phase).sin(), cx + 4.0 * (z as f64 / 9.0 + phase).cos());
            if (y as f64 - cy).powi(2) + (x as f64 - cx).powi(2) <= 25.0 {
                return 1 + row * 3 + column;
            }
        }
    }
    0
}

fn section(z: usize) -> FloodSection {
    let plane = (SHAPE.y, SHAPE.x);
    let image = Array2::from_shape_fn(plane, |(y, x)| if tube(z, y, x) > 0 { 200 } else { 60 });
    let exclude = Array2::from_shape_fn(plane, |(y, x)| tube(z, y, x) == 5 && z >= 20 && (x < 45 || y > 0));
    FloodSection::new(image, exclude)
}

fn open(config: &FloodConfig, workers: usize) -> RollingFlood {
    let norm = Normalisation::Fixed { mean: 128.0, sd: 33.0 };
    RollingFlood::with_rules(config, rules(), norm, CUBE, SHAPE, workers, &factory()).unwrap()
}

fn run_from(flood: &mut RollingFlood, results: &mut Vec<WindowResult>, stop_after: usize) {
    while flood.next_section() < SHAPE.z && results.len() < stop_after {
        let z = flood.next_section();
        results.extend(flood.push_section(section(z), &Watch::nothing()).unwrap());
    }
    if results.len() < stop_after {
        assert!(flood.finish(&Watch::nothing()).unwrap().is_none(), "the planned last window labels everything");
    }
}

fn run(config: &FloodConfig, workers: usize) -> Vec<WindowResult> {
    let (mut flood, mut results) = (open(config, workers), Vec::new());
    run_from(&mut flood, &mut results, usize::MAX);
    results
}

fn whole(results: &[WindowResult]) -> Array3<u64> {
    let parts: Vec<_> = results.iter().map(|r| r.labels.view()).collect();
    ndarray::concatenate(ndarray::Axis(0), &parts).unwrap()
}

#[test]
fn every_tube_is_one_object_through_all_blocks_and_windows() {
    let results = run(&config(), 1);
    assert!(results.len() >= 3, "{} windows", results.len());
    let labels = whole(&results);
    assert_eq!(labels.dim(), (SHAPE.z, SHAPE.y, SHAPE.x));
    let mut found: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); 10];
    let (mut tubes, mut covered) = (0, 0);
    for ((z, y, x), &id) in labels.indexed_iter() {
        let t = tube(z, y, x);
        assert!(t > 0 || id == 0, "ground has no label at {z} {y} {x}");
        if t != 5 && t > 0 {
            tubes += 1;
            covered += usize::from(id != 0);
        }
        if id != 0 {
            found[t].insert(id);
        }
    }
    let all: BTreeSet<u64> = found.iter().flatten().copied().collect();
    assert!(found[1..].iter().all(|ids| ids.len() == 1), "{found:?}");
    assert_eq!(all.len(), 9, "no two tubes share an id");
    // not all: a voxel that one field of view saw cut off from the tube may not rise again
    assert!(covered as f64 > 0.95 * tubes as f64, "{covered} of {tubes}");
}

#[test]
fn excluded_voxels_get_no_label() {
    let labels = whole(&run(&config(), 1));
    let excluded: Vec<_> = (0..SHAPE.z).map(|z| section(z).exclude).collect();
    assert!(labels.indexed_iter().all(|((z, y, x), &id)| id == 0 || !excluded[z][[y, x]]));
    assert!(labels.indexed_iter().any(|((z, y, x), &id)| id != 0 && z < 20 && tube(z, y, x) == 5));
}

#[test]
fn workers_and_batch_size_change_no_byte() {
    for schedule in [Schedule::Reference, Schedule::Thrifty] {
        let config = FloodConfig { schedule, ..config() };
        let one = run(&config, 1);
        for (workers, batch) in [(2, 1), (3, 2), (1, 5)] {
            let config = FloodConfig { batch: Some(batch), ..config.clone() };
            assert_eq!(run(&config, workers), one, "{schedule:?}, {workers} workers, batch {batch}");
        }
    }
}

#[test]
fn a_run_resumed_from_what_was_written_continues_with_the_same_bytes() {
    let all = run(&config(), 1);
    for windows in 1..all.len() {
        let mut results = all[..windows].to_vec();
        let labels = whole(&results);
        let mut flood = open(&config(), 2);
        let committed = labels.dim().0;
        let context = (flood.context_from(committed)..committed)
            .map(|z| LabelledSection { section: section(z), labels: labels.index_axis(ndarray::Axis(0), z).to_owned() })
            .collect();
        flood.resume(committed, context).unwrap();
        run_from(&mut flood, &mut results, usize::MAX);
        assert_eq!(results, all);
    }
}

#[test]
fn a_volume_that_ends_early_is_labelled_to_its_last_section() {
    let mut flood = open(&config(), 1);
    let mut sections = 0;
    for z in 0..29 {
        sections += flood.push_section(section(z), &Watch::nothing()).unwrap().map_or(0, |r| r.labels.dim().0);
    }
    assert!(sections < 29);
    sections += flood.finish(&Watch::nothing()).unwrap().unwrap().labels.dim().0;
    assert_eq!(sections, 29);
}

#[test]
fn a_section_without_data_gets_no_label_and_its_neighbours_do() {
    let lost = 16;
    let mut flood = open(&FloodConfig { window: Some(40), ..config() }, 1);
    let mut result = None;
    for z in 0..SHAPE.z {
        let mut s = section(z);
        if z == lost {
            s.image.fill(0);
        }
        result = flood.push_section(s, &Watch::nothing()).unwrap();
    }
    let labels = result.unwrap().labels;
    let labelled = |z: usize| labels.index_axis(ndarray::Axis(0), z).iter().filter(|&&l| l != 0).count();
    assert_eq!(labelled(lost), 0);
    assert!(labelled(lost - 1) > 300 && labelled(lost + 1) > 300, "nine tubes of about 80 voxels");
}

#[test]
fn what_does_not_fit_is_named_before_any_work() {
    let norm = Normalisation::Section {};
    let small = RollingFlood::with_rules(&config(), rules(), norm, CUBE, Zyx::new(5, 70, 90), 1, &factory());
    assert!(small.err().unwrap().to_string().contains("smaller than the network's field of view"));
    let bad = FloodConfig { window: Some(7), core: Some(3), ..FloodConfig::default() };
    let text = RollingFlood::with_rules(&bad, rules(), norm, CUBE, SHAPE, 1, &factory()).err().unwrap().to_string();
    assert!(text.contains("flood.window = 7") && text.contains("flood.core = 3"), "{text}");
    let mut flood = open(&config(), 1);
    let wrong = FloodSection::new(Array2::zeros((3, 3)), Array2::from_elem((3, 3), false));
    assert!(flood.push_section(wrong, &Watch::nothing()).unwrap_err().to_string().contains("3 x 3"));
}

#[test]
fn a_flood_stops_when_the_watch_says_so() {
    let mut flood = open(&config(), 2);
    let watch = Watch { progress: &|_, _| false, seconds: &|| 0.0 };
    let stopped = (0..18).find_map(|z| flood.push_section(section(z), &watch).err());
    assert!(matches!(stopped, Some(FloodError::Stopped)));
}

#[test]
fn what_the_watch_is_told_adds_up_to_the_counts_of_the_result() {
    let told = Mutex::new(FloodCounters::default());
    let progress = |counted: &FloodCounters, _: f64| {
        told.lock().unwrap().add(counted);
        true
    };
    let watch = Watch { progress: &progress, seconds: &|| 0.0 };
    let (mut flood, mut counted) = (open(&config(), 2), FloodCounters::default());
    for z in 0..SHAPE.z {
        flood.push_section(section(z), &watch).unwrap().iter().for_each(|r| counted.add(&r.counters));
    }
    assert!(counted.kept > 0);
    assert_eq!(told.into_inner().unwrap(), counted);
}

/// One window over all sections, in one block.
fn one() -> FloodConfig {
    FloodConfig { window: Some(40), core: Some(90), ..config() }
}

fn labels_of(config: &FloodConfig) -> Array3<u64> {
    whole(&run(config, 1))
}

/// Tubes with a label on at least a quarter of their voxels.
fn tubes_found(labels: &Array3<u64>) -> usize {
    let mut counts = [(0, 0); 10];
    for ((z, y, x), &id) in labels.indexed_iter() {
        let (all, with) = &mut counts[tube(z, y, x)];
        *all += 1;
        *with += usize::from(id != 0);
    }
    counts[1..].iter().filter(|(all, with)| 4 * with > *all).count()
}

#[test]
fn every_seed_policy_finds_the_tubes_and_a_chain_adds_nothing_to_a_full_volume() {
    let with = |seeds: &str| FloodConfig { seeds: toml::from_str::<Seeds>(seeds).unwrap().seeds, ..one() };
    for seeds in [
        "[[seeds]]\nkind = \"section-peaks\"",
        "[[seeds]]\nkind = \"grid\"\nstep = 4\noffsets = [0, 2]",
        "[[seeds]]\nkind = \"section-grid\"\nstep = 5\noffsets = [0]\nreverse = true",
        "[[seeds]]\nkind = \"peaks\"\nreverse = true",
    ] {
        assert!(tubes_found(&labels_of(&with(seeds))) >= 8, "{seeds}");
    }
    let chain = with("[[seeds]]\nkind = \"peaks\"\n[[seeds]]\nkind = \"fill-empty\"");
    let (one, more) = (run(&one(), 1), run(&chain, 1));
    assert!(more[0].counters.listed > one[0].counters.listed);
    assert!(tubes_found(&whole(&more)) == tubes_found(&whole(&one)));
}

#[derive(serde::Deserialize)]
struct Seeds {
    seeds: Vec<crate::flood::SeedPolicy>,
}

#[test]
fn a_list_of_one_start_point_gives_one_object() {
    let at = (0..SHAPE.x).find(|&x| tube(20, 16, x) == 1).unwrap() + 5;
    let policy = |points| crate::flood::SeedPolicy::List { file: "a.csv".into(), reverse: false, points };
    let given = FloodConfig { seeds: vec![policy(Some(vec![Zyx::new(20, 16, at)]))], ..one() };
    let labels = labels_of(&given);
    let ids: BTreeSet<u64> = labels.iter().copied().filter(|id| *id != 0).collect();
    assert_eq!(ids.len(), 1);
    assert!(labels.indexed_iter().all(|((z, y, x), id)| *id == 0 || tube(z, y, x) == 1));
    let norm = Normalisation::Fixed { mean: 128.0, sd: 33.0 };
    let unread = FloodConfig { seeds: vec![policy(None)], ..one() };
    let error = RollingFlood::with_rules(&unread, rules(), norm, CUBE, SHAPE, 1, &factory()).err().unwrap();
    assert!(error.to_string().contains("a.csv was not read"), "{error}");
}

#[test]
fn an_initial_segmentation_stays_as_it_is_and_the_rest_is_filled() {
    for config in [one(), config()] {
        let (mut flood, mut results) = (open(&config, 1), Vec::new());
        for z in 0..SHAPE.z {
            let mut s = section(z);
            s.initial =
                Some(Array2::from_shape_fn((SHAPE.y, SHAPE.x), |(y, x)| if tube(z, y, x) == 3 { 77 } else { 0 }));
            results.extend(flood.push_section(s, &Watch::nothing()).unwrap());
        }
        let labels = whole(&results);
        assert!(labels.indexed_iter().all(|((z, y, x), id)| (*id == 77) == (tube(z, y, x) == 3)));
        assert!(tubes_found(&labels) >= 8);
    }
    let mut s = section(0);
    s.initial = Some(Array2::from_elem((SHAPE.y, SHAPE.x), 1 << 56));
    let error = open(&one(), 1).push_section(s, &Watch::nothing()).unwrap_err().to_string();
    assert!(error.contains("2^56"), "{error}");
}

#[test]
fn masks_on_the_image_keep_voxels_centres_or_starts_out() {
    use crate::flood::{KeptFrom, MaskRule};
    let mask = |from| FloodConfig { masks: vec![MaskRule { above: Some(150), from, ..MaskRule::default() }], ..one() };
    // the tubes are the bright voxels
    for from in [KeptFrom::Labels, KeptFrom::Centres, KeptFrom::Starts] {
        let result = &run(&mask(from), 1)[0];
        assert!(result.labels.iter().all(|id| *id == 0), "{from:?}");
        assert_eq!(result.counters.kept, 0);
    }
}

#[test]
fn nothing_crosses_a_jump_between_sections() {
    let shift = crate::flood::ShiftRule { limit: 4.0, patch: 40, search: 12 };
    let jump = FloodConfig { shift: Some(shift), ..one() };
    let (mut flood, mut result) = (open(&jump, 1), None);
    for z in 0..SHAPE.z {
        let mut s = section(z);
        if z >= 20 {
            // from here on everything lies 10 voxels further along y
            s.image = Array2::from_shape_fn(
                (SHAPE.y, SHAPE.x),
                |(y, x)| if tube(z, (y + 60) % 70, x) > 0 { 200 } else { 60 },
            );
            s.exclude.fill(false);
        }
        result = flood.push_section(s, &Watch::nothing()).unwrap();
    }
    let result = result.unwrap();
    assert!(result.counters.skipped_barred > 0);
    let ids = |zs: std::ops::Range<usize>| -> BTreeSet<u64> {
        result.labels.slice(ndarray::s![zs, .., ..]).iter().copied().filter(|id| *id != 0).collect()
    };
    assert!(!ids(0..17).is_empty() && !ids(24..40).is_empty());
    assert!(ids(0..17).is_disjoint(&ids(24..40)), "an object on both sides of the jump");
}

#[test]
fn probabilities_and_origins_belong_to_the_labels() {
    for config in [one(), config()] {
        let results = run(&FloodConfig { probability: true, ..config }, 2);
        for r in &results {
            let probability = r.probability.as_ref().unwrap();
            // the rule's network says +4 inside: p = 0.982
            assert!(r.labels.iter().zip(probability).all(|(id, p)| if *id == 0 { *p == 0 } else { *p == 251 }));
            let began: BTreeSet<u64> = r.origins.iter().map(|o| o.id).collect();
            let there: BTreeSet<u64> = r.labels.iter().copied().filter(|id| *id != 0).collect();
            assert!(there.is_subset(&began), "every object says where it began");
            let steps: u64 = r.origins.iter().map(|o| o.evaluations).sum();
            assert!(steps <= r.counters.evaluations);
            for o in r.origins.iter().filter(|o| !o.continued) {
                assert!(tube(o.start.z, o.start.y, o.start.x) > 0);
            }
        }
    }
    assert!(run(&one(), 1)[0].probability.is_none());
}

/// Keeps states in memory, every `every` requests.
struct Memory {
    every: usize,
    asked: AtomicUsize,
    states: Mutex<BTreeMap<crate::flood::BlockKey, Vec<u8>>>,
}

impl Memory {
    fn new(every: usize) -> Arc<Self> {
        Arc::new(Self { every, asked: AtomicUsize::new(0), states: Mutex::new(BTreeMap::new()) })
    }
}

struct InMemory(Arc<Memory>);

impl BlockStore for InMemory {
    fn keeper(&self, key: BlockKey) -> crate::flood::Keeper {
        let (due, keep) = (self.0.clone(), self.0.clone());
        crate::flood::Keeper {
            due: Arc::new(move || due.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % due.every == 0),
            keep: Arc::new(move |state| {
                keep.states.lock().unwrap().insert(key, state.to_vec());
            }),
        }
    }

    fn kept(&self, key: BlockKey) -> std::io::Result<Option<Vec<u8>>> {
        Ok(self.0.states.lock().unwrap().get(&key).cloned())
    }

    fn forget_before(&self, window: usize) -> std::io::Result<()> {
        self.0.states.lock().unwrap().retain(|key, _| key.window >= window);
        Ok(())
    }
}

#[test]
fn a_run_killed_within_a_window_goes_on_from_its_checkpoint_with_the_same_bytes() {
    let thrifty = FloodConfig { schedule: Schedule::Thrifty, ..config() };
    for config in [FloodConfig { probability: true, ..one() }, config(), thrifty] {
        let all = run(&config, 1);
        for (kill_after, workers, batch) in [(7, 1, 1), (40, 2, 1), (40, 1, 3)] {
            let store = Memory::new(5);
            let config = FloodConfig { batch: Some(batch), ..config.clone() };
            let mut first = open(&config, workers).kept_in(Arc::new(InMemory(store.clone())));
            let steps = AtomicUsize::new(0);
            let alive =
                |_: &FloodCounters, _: f64| steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < kill_after;
            let watch = Watch { progress: &alive, seconds: &|| 0.0 };
            let killed = (0..SHAPE.z).find_map(|z| first.push_section(section(z), &watch).err());
            assert!(matches!(killed, Some(FloodError::Stopped)));
            assert!(!store.states.lock().unwrap().is_empty(), "something was kept");
            let mut again = open(&config, 3 - workers).kept_in(Arc::new(InMemory(store.clone())));
            let mut results = Vec::new();
            run_from(&mut again, &mut results, usize::MAX);
            assert!(results == all, "killed after {kill_after}, {workers} workers, batch {batch}");
            assert!(store.states.lock().unwrap().is_empty(), "nothing is kept of what is done");
        }
    }
}

#[test]
fn a_checkpoint_that_is_damaged_or_of_another_block_is_refused() {
    let store = Memory::new(1);
    let mut first = open(&one(), 1).kept_in(Arc::new(InMemory(store.clone())));
    let watch = Watch { progress: &|_, _| false, seconds: &|| 0.0 };
    assert!((0..SHAPE.z).any(|z| first.push_section(section(z), &watch).is_err()));
    let good = store.states.lock().unwrap().clone();
    let error = |config: &FloodConfig, change: &dyn Fn(&mut Vec<u8>)| {
        let mut states = good.clone();
        states.values_mut().for_each(change);
        *store.states.lock().unwrap() = states;
        let mut again = open(config, 1).kept_in(Arc::new(InMemory(store.clone())));
        (0..SHAPE.z).find_map(|z| again.push_section(section(z), &watch).err()).unwrap().to_string()
    };
    assert!(error(&one(), &|s| s[40] ^= 1).contains("damaged"));
    assert!(error(&FloodConfig { core: Some(40), ..one() }, &|_| ()).contains("not of this one"));
}

/// Says "no number" from the `first`-th evaluation on, `times` times.
struct Ill {
    good: crate::runtime::RuleNetwork,
    first: u64,
    times: u64,
}

impl Network for Ill {
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
        self.good.run(inputs, items, out)?;
        if (self.first..self.first + self.times).contains(&self.good.evaluations) {
            out[17] = f32::NAN;
        }
        Ok(())
    }
}

#[test]
fn an_object_without_finite_numbers_is_a_counted_loss_and_a_network_without_any_stops_the_run() {
    let ill = |times: u64| -> NetworkFactory {
        Arc::new(move || {
            Ok(Box::new(Ill { good: RuleNetwork::new([7, 13, 13], 0.0), first: 30, times }) as Box<dyn Network>)
        })
    };
    let run = |times: u64| {
        let norm = Normalisation::Fixed { mean: 128.0, sd: 33.0 };
        let mut flood = RollingFlood::with_rules(&one(), rules(), norm, CUBE, SHAPE, 1, &ill(times)).unwrap();
        let told = AtomicUsize::new(0);
        let progress = |counted: &FloodCounters, _: f64| {
            told.fetch_add(counted.not_finite as usize, std::sync::atomic::Ordering::Relaxed);
            true
        };
        let watch = Watch { progress: &progress, seconds: &|| 0.0 };
        let mut result = Ok(None);
        for z in 0..SHAPE.z {
            result = flood.push_section(section(z), &watch);
        }
        assert_eq!(told.into_inner() as u64, times.min(16), "the watch is told of each");
        result
    };
    let lost = run(1).unwrap().unwrap();
    assert_eq!(lost.counters.not_finite, 1);
    assert!(tubes_found(&lost.labels) >= 7, "the other tubes are whole");
    let error = run(u64::MAX / 2).unwrap_err().to_string();
    assert!(error.contains("16 times in a row"), "{error}");
}

#[test]
fn contradictory_options_are_all_told_before_any_work() {
    let text = "thrifty = { inner = 0.0 }\nrules = { deltas = [9, 4, 4] }\nshift = { limit = 30.0 }\nseeds = []\ncheckpoint_seconds = -1.0";
    let bad: FloodConfig = toml::from_str(text).unwrap();
    let norm = Normalisation::Section {};
    let told = RollingFlood::with_rules(&bad, rules(), norm, CUBE, SHAPE, 1, &factory()).err().unwrap().to_string();
    for part in [
        "flood.thrifty.inner = 0",
        "schedule = \"reference\"",
        "flood.rules.deltas = [9, 4, 4]",
        "flood.shift.limit = 30",
        "flood.seeds is empty",
        "checkpoint_seconds",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(toml::from_str::<FloodConfig>("seed = []").unwrap_err().to_string().contains("unknown field"));
}
