//! Placement of drawn sections with known truth.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::Map;

use super::*;
use crate::pointmatch::synthetic::{Recipe, Section, max, nominal, rms, section};
use crate::pointmatch::{MatchConfig, Matcher};

/// 19 beams of 256 x 224 px.
fn nineteen() -> Recipe {
    Recipe {
        size: (256, 224),
        rings: 2,
        overlap: 0.12,
        stage_px: 5.0,
        affine: 0.0,
        lens_px: 0.0,
        noise: 12.0,
        ..Recipe::default()
    }
}

fn matches_of(section: &Section) -> Vec<PairMatches> {
    section.matches(&mut Matcher::new(MatchConfig::default()))
}

fn montage_of(section: &Section, matches: &[PairMatches]) -> Montage {
    solve(&section.plan, &section.present(), matches, &KnownLenses::default(), &MontageConfig::default())
}

fn seams(section: &Section, montage: &Montage) -> Vec<f64> {
    section.seams(|key, x| montage.tile(key).expect("placed").0.apply(x))
}

#[test]
fn a_section_without_distortion_stays_stiff_and_is_placed_to_a_tenth_of_a_pixel() {
    let section = section(&nineteen());
    let montage = montage_of(&section, &matches_of(&section));
    assert_eq!(montage.stiffness, Some(Stiffness { degree: 0, lens: Lens::None }));
    let places = section.places(|key, x| montage.tile(key).expect("placed").0.apply(x));
    assert!(rms(&places) < 0.1 && max(&seams(&section, &montage)) < 0.2, "{}", rms(&places));
    assert!(montage.unconnected().next().is_none() && montage.faults().next().is_none());
}

#[test]
fn a_distorted_section_bends_and_its_seams_close() {
    let section = section(&Recipe { affine: 3e-3, lens_px: 1.0, ..nineteen() });
    let matches = matches_of(&section);
    let montage = montage_of(&section, &matches);
    let softest = montage.stiffness.expect("matched");
    assert!(softest.bends(), "{:?}", montage.trials);
    let nominal = section.seams(|key, x| nominal(&section.plan, key, x));
    let stiff = montage.trials[0].held_out_px;
    let seams = seams(&section, &montage);
    assert!(rms(&nominal) > 3.0 && stiff > 0.5);
    assert!(rms(&seams) < 0.8 * stiff, "seams {} rms, held out when stiff {stiff}; {:?}", rms(&seams), montage.trials);
}

#[test]
fn matches_in_any_order_give_the_same_bytes() {
    let section = section(&Recipe { affine: 2e-3, lens_px: 1.0, ..nineteen() });
    let mut matches = matches_of(&section);
    let bytes = |m: &[PairMatches]| serde_json::to_string(&montage_of(&section, m)).expect("plain numbers");
    let first = bytes(&matches);
    matches.reverse();
    matches.rotate_left(7);
    assert_eq!(bytes(&matches), first);
    let back: Montage = serde_json::from_str(&first).expect("its own output");
    assert_eq!(serde_json::to_string(&back).expect("plain numbers"), first);
}

#[test]
fn wrong_pairs_are_dropped_and_named() {
    let section = section(&nineteen());
    let mut matches = matches_of(&section);
    for k in [3, 17, 30] {
        matches[k].points.iter_mut().for_each(|x| x.q = x.q + Xy::new(15.0, -9.0));
    }
    let montage = montage_of(&section, &matches);
    let faults: Vec<_> = montage.faults().map(|f| (f.p, f.q)).collect();
    assert_eq!(faults, [3, 17, 30].map(|k| (matches[k].p, matches[k].q)));
    assert!(max(&seams(&section, &montage)) < 0.3);
}

#[test]
fn a_tile_without_matches_goes_where_its_neighbours_went_and_is_marked() {
    let section = section(&Recipe { blank: vec![(0, 0)], stage_px: 0.0, ..nineteen() });
    let mut matches = matches_of(&section);
    // All other tiles are seen 4 px further right than planned, but for the pair that would say nothing.
    let lone = section.plan.tiles().next().expect("19 tiles").key;
    let shifted: Vec<TileKey> = section.plan.tiles().map(|t| t.key).filter(|k| *k != lone).collect();
    let mut plan = section.plan.clone();
    for tile in plan.mfovs[0].tiles.iter_mut().filter(|t| shifted.contains(&t.key)) {
        tile.nominal = tile.nominal - Xy::new(4.0, 0.0) * f64::from(tile.key.beam.0 % 2);
    }
    matches.retain(|m| m.p != lone && m.q != lone);
    let montage = solve(&plan, &section.present(), &matches, &KnownLenses::default(), &MontageConfig::default());
    let marked: Vec<_> = montage.unconnected().map(|t| (t.key, t.anchor)).collect();
    assert_eq!(marked, [(lone, Anchor::Neighbours)]);
    // Half of its six neighbours moved by 4 px: between 0 and 4, as the mean of the section.
    let centre = Xy::new(100.0, 100.0);
    let at =
        |key| montage.tile(key).expect("placed").0.apply(centre) - section.plan.tile(key).expect("planned").nominal;
    let around = at(shifted[0]);
    assert!((at(lone) - around).norm() < 2.5, "{:?} beside {around:?}", at(lone));
}

#[test]
fn without_any_match_tiles_stay_where_they_were_planned() {
    let section = section(&Recipe { rings: 1, size: (32, 28), ..nineteen() });
    let montage = montage_of(&section, &[]);
    assert!(montage.tiles.iter().all(|t| t.anchor == Anchor::Nominal));
    for tile in section.plan.tiles() {
        let expected = Map::Affine(Affine::translation(tile.nominal));
        assert_eq!(montage.tile(tile.key).expect("placed").0, expected);
    }
    assert_eq!(montage.placements().tiles.len(), 7);
}

#[test]
fn only_present_tiles_are_placed() {
    let section = section(&nineteen());
    let mut present = section.present();
    let lost = *present.iter().nth(5).expect("19 tiles");
    present.remove(&lost);
    let montage =
        solve(&section.plan, &present, &matches_of(&section), &KnownLenses::default(), &MontageConfig::default());
    assert!(montage.tile(lost).is_none() && montage.tiles.len() == 18);
    assert!(montage.faults().all(|f| f.p == lost || f.q == lost));
}

#[test]
fn unknown_settings_are_refused() {
    assert!(serde_json::from_str::<MontageConfig>(r#"{"huber_px": 2.0}"#).is_ok());
    assert!(serde_json::from_str::<MontageConfig>(r#"{"huber": 2.0}"#).is_err());
}

#[test]
fn sections_that_know_the_lens_from_those_before_are_placed_better_than_alone() {
    // A stage that is off by far more than the lens: alone, a section cannot tell lens from pitch.
    let of = |z: u32| {
        let recipe = Recipe { lens_px: 1.0, stage_px: 8.0, z, ..nineteen() };
        let section = section(&recipe);
        let matches = matches_of(&section);
        (section, matches)
    };
    let place = |section: &Section, montage: &Montage| {
        rms(&section.places(|key, x| montage.tile(key).expect("placed").0.apply(x)))
    };
    let mut known = KnownLenses::default();
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for z in 0..6 {
        let (section, matches) = of(z);
        alone.push(place(&section, &montage_of(&section, &matches)));
        let montage = solve(&section.plan, &section.present(), &matches, &known, &MontageConfig::default());
        together.push(place(&section, &montage));
        known = montage.lenses;
    }
    assert_eq!(known.common.as_ref().map(|l| l.sections), Some(6));
    assert_eq!(alone[0], together[0], "nothing is known before the first section");
    assert!(together[1..].iter().zip(&alone[1..]).all(|(t, a)| t < a), "{together:?}, alone {alone:?}");
}

#[test]
fn a_blank_tile_lies_where_its_beam_lay_in_the_sections_before() {
    let of = |z: u32, blank: Vec<(u32, u16)>| {
        let section = section(&Recipe { pattern_px: 6.0, stage_px: 0.5, blank, z, ..nineteen() });
        let matches = matches_of(&section);
        (section, matches)
    };
    let mut known = KnownLenses::default();
    for z in 0..3 {
        let (section, matches) = of(z, Vec::new());
        known = solve(&section.plan, &section.present(), &matches, &known, &MontageConfig::default()).lenses;
    }
    let (section, matches) = of(3, vec![(0, 4)]);
    let lone = section.plan.tiles().nth(4).expect("19 tiles").key;
    let error = |known: &KnownLenses| {
        let montage = solve(&section.plan, &section.present(), &matches, known, &MontageConfig::default());
        assert_eq!(montage.unconnected().map(|t| t.key).collect::<Vec<_>>(), [lone]);
        // Places are known but for a shift of all.
        let off = |key: TileKey| section.place_error(key, |x| montage.tile(key).expect("placed").0.apply(x));
        let rest: Vec<Xy<f64>> = section.present().into_iter().filter(|k| *k != lone).map(off).collect();
        let mean = rest.iter().fold(Xy::default(), |s, &o| s + o) * (1.0 / rest.len() as f64);
        (off(lone) - mean).norm()
    };
    let (with, without) = (error(&known), error(&KnownLenses::default()));
    // The stage alone puts it up to 0.7 px off; what scale and turn of six neighbours add is less.
    assert!(with < 1.2 && without > 2.0, "{with} px with the pattern, {without} px without");
}

#[test]
fn beams_without_a_pattern_are_not_held_to_one() {
    let mut known = KnownLenses::default();
    for z in 0..4 {
        let section = section(&Recipe { z, ..nineteen() });
        let matches = matches_of(&section);
        let alone = montage_of(&section, &matches);
        let montage = solve(&section.plan, &section.present(), &matches, &known, &MontageConfig::default());
        assert_eq!(montage.tiles, alone.tiles);
        known.pattern = montage.lenses.pattern;
    }
    assert_eq!(known.pattern.len(), 19);
}
