use std::sync::Arc;

use kinesin_stream::map::Affine;

use super::shown::{OutputGrid, SectionTruth, classes_in_result, labels_in_result};
use super::stored::StoredTruth;
use super::*;
use crate::scope::tests::{CodedTissue, small};

fn scene(mut change: impl FnMut(&mut crate::scope::SimConfig)) -> Arc<Scene> {
    let mut config = small();
    change(&mut config);
    Scene::with_tissue(config, Arc::new(CodedTissue::new(2, 420, 480))).unwrap()
}

const OUT: OutputGrid = OutputGrid {
    rect: BoxXy { min: Xy::new(0, 0), max: Xy::new(240, 210) },
    reduction: 2.0,
    origin: Xy::new(0.0, 0.0),
};

#[test]
fn a_perfect_result_shows_every_voxel_its_own_tissue() {
    let scene = scene(|_| {});
    let truth = Truth::of(scene.clone());
    let serial = SerialIndex(1);
    let seen = SectionTruth::of(&scene, serial).seen(&truth.placements(serial), &truth.alignment(serial), &OUT);
    let mut shown = 0;
    for ((y, x), place) in seen.indexed_iter() {
        let Some(p) = place else { continue };
        let wanted = Xy::new(reduced_to_full(x as f64, 2.0), reduced_to_full(y as f64, 2.0));
        assert!((*p - wanted).norm() < 0.15, "voxel {x}, {y} shows {p:?}");
        shown += 1;
    }
    // Seven tiles of 96 x 84 px with 12 px overlap in voxels of four pixels, less what lies beyond.
    assert!(shown > 9000, "{shown}");
}

#[test]
fn a_shifted_result_is_looked_up_at_the_tissue_it_shows() {
    let scene = scene(|c| {
        c.optics = crate::scope::config::OpticsConfig::IDEAL;
        c.sections = crate::scope::config::SectionsConfig::IDEAL;
    });
    let truth = Truth::of(scene.clone());
    let serial = SerialIndex(0);
    let shift = SectionToVolume(Map::Affine(Affine::translation(Xy::new(10.0, -6.0))));
    let labels = labels_in_result(&scene, serial, &truth.placements(serial), &shift, &OUT).unwrap();
    let classes = classes_in_result(&scene, serial, &truth.placements(serial), &shift, &OUT).unwrap();
    let tissue = CodedTissue::new(2, 420, 480);
    // Voxel (120, 105) is volume px 240.5, 210.5 and shows section px 230.5, 216.5: one of the four around it.
    let around = [(216, 230), (216, 231), (217, 230), (217, 231)].map(|(y, x)| tissue.label(y, x));
    assert!(around.contains(&labels[(105, 120)]), "{}", labels[(105, 120)]);
    assert!(classes[(105, 120)] < 4);
}

#[test]
fn tiles_without_tissue_and_voxels_without_a_tile_show_nothing() {
    let scene = scene(|c| c.faults.blank = 1.0);
    let truth = Truth::of(scene.clone());
    let serial = SerialIndex(0);
    let seen = labels_in_result(&scene, serial, &truth.placements(serial), &truth.alignment(serial), &OUT).unwrap();
    assert!(seen.iter().all(|&l| l == 0));
}

#[test]
fn labels_in_the_volume_frame_are_those_of_the_tissue() {
    let scene = scene(|_| {});
    let truth = Truth::of(scene.clone());
    let tissue = CodedTissue::new(2, 420, 480);
    let whole = truth.labels(SerialIndex(0), 1).unwrap();
    assert_eq!((whole.dim(), whole[(17, 33)]), ((420, 480), tissue.label(17, 33)));
    let third = truth.labels(SerialIndex(0), 3).unwrap();
    assert_eq!((third.dim(), third[(5, 7)]), ((140, 160), tissue.label(16, 22)));
}

#[test]
fn the_truth_on_disk_says_the_same_as_the_truth_in_memory() {
    let scene = scene(|c| {
        c.faults.blank = 0.2;
        c.damage.list = vec![crate::scope::config::Damage {
            section: 0,
            kind: crate::scope::config::DamageKind::Missing,
            size_px: None,
            angle_deg: None,
            at: None,
        }];
    });
    let truth = Truth::of(scene.clone());
    let dir = tempfile::tempdir().unwrap();
    truth.write(dir.path(), 1).unwrap();
    for root in [dir.path().to_path_buf(), dir.path().join("truth")] {
        let stored = StoredTruth::open(&root).unwrap();
        assert_eq!(stored.plan(), scene.plan());
        for serial in [0, 1].map(SerialIndex) {
            assert_eq!(stored.placements(serial).unwrap(), truth.placements(serial));
            assert_eq!(stored.faults(serial), Some(&truth.faults(serial)));
        }
        assert_eq!(stored.alignment(SerialIndex(0)), None);
        let (placements, alignment) = (truth.placements(SerialIndex(1)), truth.alignment(SerialIndex(1)));
        assert_eq!(stored.alignment(SerialIndex(1)), Some(&alignment));
        let wanted = labels_in_result(&scene, SerialIndex(1), &placements, &alignment, &OUT).unwrap();
        let got = stored.labels_in_result(SerialIndex(1), &placements, &alignment, &OUT).unwrap().unwrap();
        assert!(got == wanted && got.iter().any(|&l| l > 0));
        let wanted = classes_in_result(&scene, SerialIndex(1), &placements, &alignment, &OUT).unwrap();
        assert!(stored.classes_in_result(SerialIndex(1), &placements, &alignment, &OUT).unwrap().unwrap() == wanted);
    }
}
