//! Objects that are two in one window and one in the next.

use super::*;

/// Two arms along z that a bar joins far beyond the first window.
fn arms(z: usize) -> FloodSection {
    let near = |y: usize, x: usize, cx: usize| y.abs_diff(35).pow(2) + x.abs_diff(cx).pow(2) <= 36;
    let image = Array2::from_shape_fn((SHAPE.y, SHAPE.x), |(y, x)| {
        let arm = z < 25 && (near(y, x, 25) || near(y, x, 65));
        let bar = (20..25).contains(&z) && y.abs_diff(35) <= 6 && (25..=65).contains(&x);
        if arm || bar { 200 } else { 60 }
    });
    FloodSection::new(image, Array2::from_elem((SHAPE.y, SHAPE.x), false))
}

#[test]
fn arms_that_meet_beyond_their_window_become_one_by_a_row_of_the_table() {
    let mut flood = open(&FloodConfig { core: Some(90), ..config() }, 1);
    let results: Vec<WindowResult> =
        (0..SHAPE.z).filter_map(|z| flood.push_section(arms(z), &Watch::nothing()).unwrap()).collect();
    let labels = whole(&results);
    let (a, b) = (labels[[8, 35, 25]], labels[[8, 35, 65]]);
    assert!(a != 0 && b != 0 && a != b, "the first window ends at section {}", results[0].span.commit);
    let rows: Vec<(u64, u64)> = results.iter().flat_map(|r| r.equivalences.clone()).collect();
    assert_eq!(rows, [(a.min(b), a.max(b))]);
}
