//! Several sections in a row fit nothing before them: the stack goes on, and says where it is broken.

use super::*;

/// Another tissue, deformed as section `z` of the stack is.
fn other(z: usize) -> Array2<u8> {
    static OTHER: OnceLock<Vec<Array2<u8>>> = OnceLock::new();
    let made = OTHER.get_or_init(|| {
        let one = |z: usize| deformed(&tissue(99, SIZE, z as f64), &warp(z));
        (0..7).map(one).collect()
    });
    made[z].clone()
}

fn warp(z: usize) -> Deformation {
    Deformation::new(z as u64 + 1, Xy::new(SIZE, SIZE), 3.0, 40.0, 4.0)
}

/// Sections of one tissue (`a`) or another (`b`), or none (`.`).
fn sections(text: &str) -> Vec<Option<SectionView>> {
    let one = |(z, kind): (usize, char)| {
        let image = match kind {
            'a' if z < 6 => stack()[z].1.clone(),
            'a' => deformed(&cells(SIZE, z as f64), &warp(z)),
            'b' => other(z),
            _ => return None,
        };
        Some(view(z as u32, &image, 2))
    };
    text.chars().enumerate().map(one).collect()
}

fn run(text: &str, lag: u32) -> Vec<Alignment> {
    align_views(AlignConfig { lag, ..AlignConfig::default() }, sections(text))
}

/// One letter a section: `r`eference, `a`ligned, `b`ridged, `n`ew start, `m`issing, `f`ailed; capital where the volume is broken before.
fn verdicts(done: &[Alignment]) -> String {
    let letter = |a: &Alignment| {
        let letter = match &a.verdict {
            Verdict::Reference => 'r',
            Verdict::Aligned => 'a',
            Verdict::Bridged { .. } => 'b',
            Verdict::NewStart { .. } => 'n',
            Verdict::Inserted => 'i',
            Verdict::Missing => 'm',
            Verdict::Failed { .. } => 'f',
        };
        if a.broken_before { letter.to_ascii_uppercase() } else { letter }
    };
    done.iter().map(letter).collect()
}

fn apart(done: &[Alignment], a: usize, b: usize) -> f64 {
    rms(&residuals((&done[a], &warp(a)), (&done[b], &warp(b)), SIZE))
}

#[test]
fn a_stack_goes_on_where_its_sections_stop_fitting_those_before() {
    for (lag, stack, wanted) in [
        (2, "aabbb", "raNaa"),
        (2, "baaa", "fraa"),
        (2, "bbaaa", "raNaa"),
        (2, ".baaa", "mfraa"),
        // While they may still move, two that fit nothing around them lose their place; four keep it, between two breaks.
        (2, "aabbaa", "raffba"),
        (2, "aabbbaa", "raNaaBa"),
        (0, "aabbb", "rafNa"),
        (0, "baaa", "rfNa"),
    ] {
        let done = run(stack, lag);
        assert_eq!(verdicts(&done), wanted, "{stack} with lag {lag}");
        let pairs = done.windows(2).enumerate().filter(|(_, w)| w[1].verdict == Verdict::Aligned);
        for (z, _) in pairs {
            // Cells wander by 0.6 px a section at most.
            assert!(apart(&done, z, z + 1) < 1.2, "{stack}: section {} {} px rms", z + 1, apart(&done, z, z + 1));
        }
        if wanted.eq_ignore_ascii_case("ranaaba") {
            // Over four sections, as in "aab": sin(0.12 * 4) * 5 = 2.3 px.
            assert!(apart(&done, 1, 5) < 2.4, "{} px rms across", apart(&done, 1, 5));
        }
    }
}

#[test]
fn a_new_start_lies_as_the_last_section_did_and_says_why() {
    let done = run("aabbb", 2);
    let at = |z: usize| done[z].map.as_ref().expect("placed").0.apply(Xy::new(320.0, 320.0));
    // Stiff, so that the middle differs by what bends the last one.
    assert!((at(2) - at(1)).norm() < 10.0, "{:?} {:?}", at(2), at(1));
    let Verdict::NewStart { after, reason } = &done[2].verdict else { panic!("{:?}", done[2].verdict) };
    assert_eq!(*after, SerialIndex(1));
    assert!(reason.contains("no coarse pose"), "{reason}");
    let told = Quality::of(&done[2], &AlignConfig::default());
    assert!(told.grade == Grade::Doubtful && told.reasons[0].contains("broken before it"), "{told:?}");
    let Verdict::Failed { reason } = &run("baaa", 2)[0].verdict else { panic!("the first is wrong") };
    assert!(reason.contains("section 1 and the next fit each other"), "{reason}");
}

#[test]
fn a_restart_between_breaks_continues_with_the_same_bits() {
    let config = AlignConfig { key_every: 1, ..AlignConfig::default() };
    let views = sections("aabbbaa");
    let view_of = |z: u32| views[z as usize].clone().expect("all there");
    let whole = align_views(config.clone(), views.clone());
    let (mut straight, mut done) = (Aligner::new(config.clone()).expect("allowed"), vec![]);
    for z in 0..7 {
        let state = serde_json::to_string(straight.state()).expect("a plain record");
        let state: AlignerState = serde_json::from_str(&state).expect("our own text");
        let needed: Vec<SectionView> = state.views_needed().iter().map(|s| view_of(s.0)).collect();
        straight = Aligner::resume(config.clone(), state, &needed).expect("all there");
        done.extend(straight.push(&view_of(z)).expect("in order"));
    }
    done.extend(straight.finish());
    assert_eq!(done, whole);
}

/// Section `z` of a tissue whose left part is that of the stack and whose right part is another's.
fn joined(z: usize, part: f64) -> Array2<u8> {
    let (a, b) = (cells(SIZE, z as f64), tissue(99, SIZE, z as f64));
    let both = Array2::from_shape_fn(a.dim(), |at| if (at.1 as f64) < part * SIZE as f64 { a[at] } else { b[at] });
    deformed(&both, &warp(z))
}

#[test]
fn a_section_that_its_neighbours_outvote_is_no_reference() {
    let images: Vec<Array2<u8>> = stack().into_iter().map(|(_, image)| image).collect();
    let views = (0..5).map(|z| {
        let image = if z == 2 { joined(2, 0.58) } else { images[z].clone() };
        Some(view(z as u32, &image, 2))
    });
    let done = align_views(AlignConfig::default(), views.collect::<Vec<_>>());
    assert_eq!(verdicts(&done), "raaba", "{:?}", done[2].outvoted);
    let outvoted = done[2].outvoted.expect("both neighbours say so");
    assert_eq!(outvoted.by, [SerialIndex(1), SerialIndex(3)]);
    assert!(!done[2].kept_as_reference && !done[3].references.contains(&SerialIndex(2)), "{:?}", done[3].references);
    assert!(apart(&done, 1, 3) < 1.5, "{}", apart(&done, 1, 3));
    let told = Quality::of(&done[2], &AlignConfig::default());
    assert!(told.grade != Grade::Good && told.reasons.iter().any(|r| r.contains("sections 1 and 3 agree")), "{told:?}");
}

#[test]
fn a_large_step_between_sections_does_not_end_the_chain() {
    let images: Vec<Array2<u8>> = stack().into_iter().map(|(_, image)| image).collect();
    // From section 2 on two fifths show something else, so 2 fits 1 on too little to be laid onto, but 3 fits 2.
    let views = (0..5).map(|z| {
        let image = if z < 2 { images[z].clone() } else { joined(z, 0.62) };
        Some(view(z as u32, &image, 2))
    });
    let config = AlignConfig { reference_confidence: 0.8, ..AlignConfig::default() };
    let done = align_views(config.clone(), views.collect::<Vec<_>>());
    assert_eq!(verdicts(&done), "raaaa", "{:?}", done[2].verdict);
    assert!(done[2].confidence < 0.8 && done[2].kept_as_reference, "{:?}", done[2]);
    assert_eq!(done[3].references[0], SerialIndex(2));
    assert_eq!(Quality::of(&done[2], &config).grade, Grade::Doubtful);
}
