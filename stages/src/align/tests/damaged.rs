//! One section of a stack is no good: it is recognised and named, and the others lie as they would without it.

use super::*;

/// What is wrong with a section.
#[derive(Clone, Copy, Debug)]
enum Damage {
    OutOfFocus,
    Torn,
    Smaller,
    Magnified,
    Mirrored,
    Empty,
    Resin,
    Dirty,
    Missing,
    OtherTissue,
}

use Damage::{Dirty, Empty, Magnified, Mirrored, Missing, OtherTissue, OutOfFocus, Resin, Smaller, Torn};

fn damaged(damage: Damage, good: &Array2<u8>) -> Option<Array2<u8>> {
    let (h, w) = good.dim();
    let mut noise = Noise(31);
    Some(match damage {
        Missing => return None,
        OutOfFocus => blurred(good, 12),
        Torn => Array2::from_shape_fn((h, w), |(y, x)| if x + y / 4 > w / 2 { 0 } else { good[[y, x]] }),
        Smaller => good.slice(ndarray::s![60..h - 90, 30..w - 100]).to_owned(),
        Magnified => Array2::from_shape_fn((h, w), |(y, x)| good[[y * 4 / 5, x * 4 / 5]]),
        Mirrored => good.slice(ndarray::s![.., ..;-1]).to_owned(),
        Empty => Array2::zeros((h, w)),
        Resin => Array2::from_shape_fn((h, w), |_| (150.0 + 12.0 * noise.next()) as u8),
        Dirty => {
            let mut out = good.clone();
            for _ in 0..10 {
                let (x, y, r) =
                    (300.0 + 330.0 * noise.next(), 300.0 + 330.0 * noise.next(), 80.0 + 40.0 * noise.next());
                let inside = |c: usize, l: usize| (c as f64 - x).hypot(l as f64 - y) < r;
                out.indexed_iter_mut().filter(|((l, c), _)| inside(*c, *l)).for_each(|(_, v)| *v = 20);
            }
            out
        }
        OtherTissue => tissue(99, SIZE, 0.0),
    })
}

/// Mean over a square of `2 r + 1`, twice.
fn blurred(image: &Array2<u8>, r: usize) -> Array2<u8> {
    let along = |image: &Array2<f64>| {
        let (h, w) = image.dim();
        Array2::from_shape_fn((w, h), |(x, y)| {
            let range = x.saturating_sub(r)..(x + r + 1).min(w);
            let n = range.len() as f64;
            range.map(|c| image[[y, c]]).sum::<f64>() / n
        })
    };
    let once = |image: Array2<f64>| along(&along(&image));
    once(once(image.mapv(f64::from))).mapv(|v| v.clamp(1.0, 255.0) as u8)
}

fn run(at: usize, damage: Damage) -> Vec<Alignment> {
    let views = stack().into_iter().enumerate().map(|(z, (_, good))| {
        let image = if z == at { damaged(damage, &good) } else { Some(good) };
        image.map(|image| view(z as u32, &image, 2))
    });
    align_views(AlignConfig::default(), views.collect::<Vec<_>>())
}

/// How far each two neighbours among `sections` lie apart, px rms.
fn between(done: &[Alignment], sections: &[usize]) -> Vec<f64> {
    let stack = stack();
    let pair = |w: &[usize]| rms(&residuals((&done[w[0]], &stack[w[0]].0), (&done[w[1]], &stack[w[1]].0), SIZE));
    sections.windows(2).map(pair).collect()
}

#[test]
fn a_bad_section_is_named_and_those_around_it_lie_as_without_it() {
    let (good, doubtful, bad) = (Grade::Good, Grade::Doubtful, Grade::Bad);
    for at in [0, 3] {
        let others = (0..6).filter(|z| *z != at).collect::<Vec<usize>>();
        let without = between(&run(at, Missing), &others);
        for (damage, grade, placed, name) in [
            (Empty, bad, false, "of tissue"),
            (Resin, bad, false, "no place"),
            (Mirrored, bad, false, "mirrored"),
            (Magnified, bad, false, "times those of the others"),
            (OtherTissue, bad, false, "no place"),
            (OutOfFocus, bad, true, "out of focus"),
            (Torn, doubtful, true, "a part is gone"),
            (Smaller, doubtful, true, "% of the usual area"),
            // Nothing was laid onto anything yet where the first is dirty.
            (Dirty, if at == 0 { good } else { doubtful }, true, if at == 0 { "" } else { "of the common tissue" }),
        ] {
            let done = run(at, damage);
            let told = Quality::of(&done[at], &AlignConfig::default());
            let what = format!("{damage:?} at {at}: {:.2} {told:?}", done[at].confidence);
            assert_eq!((told.grade, done[at].map.is_some()), (grade, placed), "{what}");
            assert!(name.is_empty() || told.reasons.iter().any(|r| r.contains(name)), "{what}");
            for (z, off) in others[1..].iter().zip(between(&done, &others).iter().zip(&without)) {
                assert!(
                    *off.0 < off.1 + 0.25,
                    "{what}: section {z} is off by {:.2} px, without it {:.2}",
                    off.0,
                    off.1
                );
                let later = Quality::of(&done[*z], &AlignConfig::default());
                assert!(later.grade != bad, "{what}: section {z} {later:?}");
            }
        }
    }
}
