//! Objects across sections without data.

use super::*;

/// Section 20 is missing and shows the one before it; 21 may say that every object ends before it.
fn with_gap(ends_objects: bool) -> Vec<WindowResult> {
    let (mut flood, mut results) = (open(&config(), 1), Vec::new());
    for z in 0..SHAPE.z {
        let mut shown = section(if z == 20 { 19 } else { z });
        shown.exclude.fill(z == 20);
        shown.ends_objects = ends_objects && z == 21;
        results.extend(flood.push_section(shown, &Watch::nothing()).unwrap());
    }
    assert!(flood.finish(&Watch::nothing()).unwrap().is_none());
    results
}

/// Tubes that have one id on both sides of the gap, merges of windows included.
fn followed(results: &[WindowResult]) -> usize {
    let labels = whole(results);
    let merges: Vec<(u64, u64)> = results.iter().flat_map(|r| r.equivalences.clone()).collect();
    let ids = |sections: std::ops::Range<usize>, of: usize| -> BTreeSet<u64> {
        let here =
            labels.indexed_iter().filter(|((z, y, x), id)| **id != 0 && sections.contains(z) && tube(*z, *y, *x) == of);
        let mut ids: BTreeSet<u64> = here.map(|(_, id)| *id).collect();
        while merges.iter().any(|(a, b)| ids.contains(a) != ids.contains(b)) {
            let more: Vec<u64> =
                merges.iter().filter(|(a, b)| ids.contains(a) || ids.contains(b)).flat_map(|(a, b)| [*a, *b]).collect();
            ids.extend(more);
        }
        ids
    };
    (1..10).filter(|t| !ids(14..20, *t).is_disjoint(&ids(21..28, *t))).count()
}

#[test]
fn no_object_is_followed_across_a_gap_that_is_marked() {
    let marked = with_gap(true);
    assert_eq!(followed(&marked), 0);
    let labels = whole(&marked);
    let labelled = |z: usize| labels.index_axis(ndarray::Axis(0), z).iter().any(|id| *id != 0);
    let with_labels: Vec<usize> = (14..28).filter(|z| labelled(*z)).collect();
    assert!(with_labels.contains(&14) && with_labels.contains(&27) && !with_labels.contains(&20), "{with_labels:?}");
    assert!(followed(&with_gap(false)) > 0, "without the mark fields of view reach over it");
}
