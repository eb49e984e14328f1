use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::model::FfnRules;
use crate::runtime::RuleNetwork;

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
    FloodSection { image, exclude }
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
    let one = run(&config(), 1);
    for (workers, batch) in [(2, 1), (3, 2), (1, 5)] {
        assert_eq!(
            run(&FloodConfig { batch: Some(batch), ..config() }, workers),
            one,
            "{workers} workers, batch {batch}"
        );
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
    let wrong = FloodSection { image: Array2::zeros((3, 3)), exclude: Array2::from_elem((3, 3), false) };
    assert!(flood.push_section(wrong, &Watch::nothing()).unwrap_err().to_string().contains("3 x 3"));
}

#[test]
fn a_flood_stops_when_the_watch_says_so() {
    let mut flood = open(&config(), 2);
    let watch = Watch { progress: &|_, _| false, seconds: &|| 0.0 };
    let stopped = (0..18).find_map(|z| flood.push_section(section(z), &watch).err());
    assert!(matches!(stopped, Some(FloodError::Stopped)));
}
