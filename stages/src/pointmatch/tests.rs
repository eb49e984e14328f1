//! Matching on drawn tiles with known truth.

use kinesin_stream::pixels::Pixels;

use super::synthetic::{Recipe, Section, Tissue, cut, max, rms, section};
use super::*;

/// Seven beams of 256 x 224 px.
fn seven() -> Recipe {
    Recipe { size: (256, 224), rings: 1, overlap: 0.12, stage_px: 5.0, lens_px: 0.3, noise: 12.0, ..Recipe::default() }
}

fn errors(section: &Section, matches: &[PairMatches]) -> Vec<f64> {
    matches.iter().filter(|m| m.verdict == Verdict::Matched).flat_map(|m| section.point_errors(m)).collect()
}

fn matched(matches: &[PairMatches]) -> usize {
    matches.iter().filter(|m| m.verdict == Verdict::Matched).count()
}

#[test]
fn all_overlaps_of_seven_beams_are_matched_to_a_fraction_of_a_pixel() {
    let section = section(&seven());
    let matches = section.matches(&mut Matcher::new(MatchConfig::default()));
    let errors = errors(&section, &matches);
    assert_eq!((matches.len(), matched(&matches)), (12, 12));
    assert!(rms(&errors) < 0.15 && max(&errors) < 0.6, "rms {} max {}", rms(&errors), max(&errors));
}

#[test]
fn noise_as_strong_as_the_tissue_costs_precision_but_makes_no_wrong_match() {
    let section = section(&Recipe { noise: 45.0, ..seven() });
    let matches = section.matches(&mut Matcher::new(MatchConfig::default()));
    let errors = errors(&section, &matches);
    assert!(matched(&matches) >= 10, "{matches:?}");
    assert!(rms(&errors) < 0.6 && max(&errors) < 2.0, "rms {} max {}", rms(&errors), max(&errors));
}

#[test]
fn tiles_without_tissue_fail_although_the_camera_draws_the_same_pattern_in_all() {
    let section = section(&Recipe { blank: (0..7).map(|b| (0, b)).collect(), ..seven() });
    for m in section.matches(&mut Matcher::new(MatchConfig::default())) {
        assert!(matches!(m.verdict, Verdict::Failed(_)) && m.points.is_empty(), "{m:?}");
    }
}

#[test]
fn errors_of_the_stage_beyond_the_margin_are_found_at_twice_the_margin() {
    let section = section(&Recipe { stage_px: 5.0, ..seven() });
    // Two tiles differ by up to 10 px.
    let narrow = MatchConfig { margin_px: 5.0, margin_fraction: 0.0, ..MatchConfig::default() };
    let matches = section.matches(&mut Matcher::new(narrow));
    let errors = errors(&section, &matches);
    assert_eq!(matched(&matches), 12);
    assert!(max(&errors) < 0.6, "{errors:?}");
}

#[test]
fn small_tiles_with_eighteen_pixels_of_overlap_match() {
    let small =
        Recipe { size: (150, 132), tissue: Tissue::Drawn(25.0), stage_px: 3.0, lens_px: 0.0, affine: 0.0, ..seven() };
    let section = section(&small);
    let matches = section.matches(&mut Matcher::new(MatchConfig::default()));
    let errors = errors(&section, &matches);
    assert!(matched(&matches) >= 11, "{matches:?}");
    assert!(rms(&errors) < 0.25 && max(&errors) < 0.6, "{errors:?}");
}

#[test]
fn tiles_that_only_a_wrong_stage_keeps_apart_are_matched_and_others_are_no_fault() {
    // Neighbours overlap by 6 % and are off by up to a tenth of a tile.
    let section = section(&Recipe { overlap: 0.06, stage_px: 12.0, ..seven() });
    let matches = section.matches(&mut Matcher::new(MatchConfig::default()));
    let all = pairs(&section.plan, &section.present(), &MatchConfig::default());
    let unexpected = all.iter().zip(&matches).filter(|(pair, _)| !pair.expected(&MatchConfig::default()));
    let verdicts: Vec<&Verdict> = unexpected.map(|(_, m)| &m.verdict).collect();
    assert!(verdicts.iter().all(|v| matches!(v, Verdict::Matched | Verdict::Apart)), "{verdicts:?}");
    let errors = errors(&section, &matches);
    assert!(matched(&matches) >= 8 && max(&errors) < 1.0, "{} matched, {errors:?}", matched(&matches));
}

#[test]
fn a_used_matcher_gives_the_same_bytes_as_a_new_one() {
    let section = section(&seven());
    let mut used = Matcher::new(MatchConfig::default());
    let first = section.matches(&mut used);
    assert_eq!(section.matches(&mut used), first);
    let all = pairs(&section.plan, &section.present(), used.config());
    for (pair, expected) in all.iter().zip(&first).rev() {
        let mut fresh = Matcher::new(MatchConfig::default());
        let rects = fresh.rects(pair);
        let (p, q) = (cut(&section.tiles[&pair.p], &rects.p), cut(&section.tiles[&pair.q], &rects.q));
        assert_eq!(&fresh.match_pair(pair, &p, &q).expect("strips of the pair"), expected);
    }
}

#[test]
fn strips_of_another_size_are_refused_by_name() {
    let section = section(&Recipe { rings: 1, size: (64, 56), ..seven() });
    let mut matcher = Matcher::new(MatchConfig { margin_px: 2.0, ..MatchConfig::default() });
    let pair =
        pairs(&section.plan, &section.present(), &MatchConfig { min_overlap_px: 4, ..MatchConfig::default() })[0];
    let wrong = Pixels::new(3, 2, vec![0; 6]);
    let error = matcher.match_pair(&pair, &wrong, &wrong).expect_err("3 x 2 is no strip").to_string();
    assert!(error.contains("beam 001") && error.contains("got 3 x 2 px"), "{error}");
}

#[test]
fn flat_strips_fail_and_say_that_they_are_flat() {
    let section = section(&Recipe { size: (64, 56), ..seven() });
    let mut matcher = Matcher::new(MatchConfig { min_overlap_px: 4, ..MatchConfig::default() });
    let pair = pairs(&section.plan, &section.present(), matcher.config())[0];
    let flat = |s: Xy<usize>| Pixels::new(s.x, s.y, vec![90; s.x * s.y]);
    let rects = matcher.rects(&pair);
    let m = matcher.match_pair(&pair, &flat(rects.p.size()), &flat(rects.q.size())).expect("strips of the pair");
    assert_eq!(m.verdict, Verdict::Failed("no texture in the overlap".into()));
}

#[test]
fn unknown_settings_are_refused() {
    assert!(serde_json::from_str::<MatchConfig>(r#"{"margin_px": 12.0}"#).is_ok());
    assert!(serde_json::from_str::<MatchConfig>(r#"{"margin": 12.0}"#).is_err());
}
