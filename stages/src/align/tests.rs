//! Sections are made from tissue by known warps; what counts is where the aligned places of one tissue point lie in neighbours.

use std::sync::OnceLock;

use kinesin_stream::map::{Affine, Grid};

use super::*;

mod breaks;
mod damaged;
mod recorded;

/// Sequence of numbers from -1 to 1 that depends on the seed alone.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    }

    /// Sum of three: mean 0, sd 1.
    fn normal(&mut self) -> f64 {
        self.next() + self.next() + self.next()
    }
}

/// How a section is deformed: section pixel to tissue pixel.
#[derive(Clone)]
struct Deformation {
    stiff: Affine,
    field: Grid,
}

impl Deformation {
    /// Turned by up to `degrees`, moved by up to `shift` px, bent by a smooth field of sd `sd` px with nodes 400 px apart.
    fn new(seed: u64, size: Xy<usize>, degrees: f64, shift: f64, sd: f64) -> Self {
        let mut noise = Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 77);
        for _ in 0..8 {
            noise.next();
        }
        let centre = Xy::new(size.x as f64 / 2.0, size.y as f64 / 2.0);
        let turn = Affine::rotation((degrees * noise.next()).to_radians(), centre);
        let stiff = turn.then(&Affine::translation(Xy::new(shift * noise.next(), shift * noise.next())));
        let n = |v: usize| v / 400 + 5;
        let (nx, ny) = (n(size.x), n(size.y));
        let nodes: Vec<Xy<f64>> = (0..nx * ny).map(|_| Xy::new(sd * noise.normal(), sd * noise.normal())).collect();
        // Cubic B-spline through the random nodes would shrink them; Catmull-Rom keeps their sd and is smooth.
        let spline = |p: Xy<f64>| {
            let (u, v) = (p.x / 400.0 + 1.5, p.y / 400.0 + 1.5);
            let (c, r) = (u.floor(), v.floor());
            let weights = |t: f64| {
                [
                    0.5 * (-t + 2.0 * t * t - t * t * t),
                    0.5 * (2.0 - 5.0 * t * t + 3.0 * t * t * t),
                    0.5 * (t + 4.0 * t * t - 3.0 * t * t * t),
                    0.5 * (-t * t + t * t * t),
                ]
            };
            let (wx, wy) = (weights(u - c), weights(v - r));
            let mut sum = Xy::default();
            for (j, b) in wy.iter().enumerate() {
                for (i, a) in wx.iter().enumerate() {
                    let column = (c as i64 - 1 + i as i64).clamp(0, nx as i64 - 1) as usize;
                    let row = (r as i64 - 1 + j as i64).clamp(0, ny as i64 - 1) as usize;
                    sum = sum + nodes[row * nx + column] * (a * b);
                }
            }
            sum
        };
        let axis = |n: usize| (0..=n / 10 + 20).map(|i| i as f64 * 10.0 - 100.0).collect::<Vec<f64>>();
        let field = Grid::from_fn(axis(size.x), axis(size.y), spline).expect("axes increase");
        Self { stiff, field }
    }

    fn none() -> Self {
        Self::new(0, Xy::new(800, 800), 0.0, 0.0, 0.0)
    }

    /// Section pixel to tissue pixel.
    fn to_tissue(&self, p: Xy<f64>) -> Xy<f64> {
        self.stiff.apply(p + self.field.apply(p))
    }

    /// Tissue pixel to section pixel.
    fn to_section(&self, t: Xy<f64>) -> Xy<f64> {
        let goal = self.stiff.inverse().expect("a turn").apply(t);
        (0..20).fold(goal, |p, _| goal - self.field.apply(p))
    }
}

/// The section at full resolution; 0 where there is no tissue.
fn deformed(tissue: &Array2<u8>, d: &Deformation) -> Array2<u8> {
    let (h, w) = tissue.dim();
    Array2::from_shape_fn((h, w), |(y, x)| {
        let p = d.to_tissue(Xy::new(x as f64, y as f64));
        let (c, r) = (p.x.floor(), p.y.floor());
        if c < 0.0 || r < 0.0 || c + 1.0 >= w as f64 || r + 1.0 >= h as f64 {
            return 0;
        }
        let (c, r, u, v) = (c as usize, r as usize, p.x - c, p.y - r);
        let at = |y: usize, x: usize| f64::from(tissue[[y, x]]);
        let value = (at(r, c) * (1.0 - u) + at(r, c + 1) * u) * (1.0 - v)
            + (at(r + 1, c) * (1.0 - u) + at(r + 1, c + 1) * u) * v;
        (value + 0.5).clamp(1.0, 255.0) as u8
    })
}

/// Box mean over filled pixels.
fn reduce(image: &Array2<u8>, s: usize) -> Array2<u8> {
    Array2::from_shape_fn((image.nrows() / s, image.ncols() / s), |(y, x)| {
        let part = image.slice(ndarray::s![y * s..(y + 1) * s, x * s..(x + 1) * s]);
        let filled = part.iter().filter(|v| **v > 0).count();
        if 2 * filled < s * s {
            0
        } else {
            (part.iter().map(|v| f64::from(*v)).sum::<f64>() / filled as f64).round() as u8
        }
    })
}

fn view(serial: u32, image: &Array2<u8>, s: u32) -> SectionView {
    let image = reduce(image, s as usize);
    SectionView { serial: SerialIndex(serial), name: format!("s{serial:03}"), image, origin: Xy::new(0, 0) }
}

/// Cells with dark borders (a random Voronoi pattern) whose centres wander from section to section: tissue.
fn cells(size: usize, z: f64) -> Array2<u8> {
    tissue(4242, size, z)
}

/// Another tissue for each seed.
fn tissue(seed: u64, size: usize, z: f64) -> Array2<u8> {
    let n = size / 28;
    let mut noise = Noise(seed);
    let mut centres = vec![];
    for r in 0..n as i64 + 2 {
        for c in 0..n as i64 + 2 {
            let (x, y) = (c as f64 + 0.6 * noise.next() - 0.5, r as f64 + 0.6 * noise.next() - 0.5);
            let (px, py) = (noise.next() * 3.0, noise.next() * 3.0);
            let wander = Xy::new((0.11 * z + px).sin() * 5.0, (0.13 * z + py).sin() * 5.0);
            centres.push((Xy::new(x * 28.0, y * 28.0) + wander, 110.0 + 50.0 * noise.next()));
        }
    }
    let columns = n as i64 + 2;
    Array2::from_shape_fn((size, size), |(y, x)| {
        let p = Xy::new(x as f64, y as f64);
        let (c, r) = ((p.x / 28.0 + 0.5) as i64, (p.y / 28.0 + 0.5) as i64);
        let (mut first, mut second, mut grey) = (f64::MAX, f64::MAX, 0.0);
        for row in (r - 2).max(0)..(r + 3).min(columns) {
            for column in (c - 2).max(0)..(c + 3).min(columns) {
                let (centre, tone) = centres[(row * columns + column) as usize];
                let d = (centre - p).norm();
                if d < first {
                    (second, first, grey) = (first, d, tone);
                } else {
                    second = second.min(d);
                }
            }
        }
        let border = ((second - first) / 3.0).min(1.0);
        (40.0 + (grey - 40.0) * border + 6.0 * noise.next()).clamp(1.0, 255.0) as u8
    })
}

/// Distances between the aligned places of tissue points in two sections, over tissue that both show.
fn residuals(a: (&Alignment, &Deformation), b: (&Alignment, &Deformation), size: usize) -> Vec<f64> {
    let mut out = vec![];
    for y in (0..size).step_by(20) {
        for x in (0..size).step_by(20) {
            let t = Xy::new(x as f64, y as f64);
            let (p, q) = (a.1.to_section(t), b.1.to_section(t));
            let inside = |p: Xy<f64>| p.x >= 0.0 && p.y >= 0.0 && p.x < size as f64 && p.y < size as f64;
            if inside(p) && inside(q) {
                let at = |a: &Alignment, p| a.map.as_ref().expect("placed").0.apply(p);
                out.push((at(a.0, p) - at(b.0, q)).norm());
            }
        }
    }
    out.sort_by(f64::total_cmp);
    out
}

fn rms(v: &[f64]) -> f64 {
    (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt()
}

const SIZE: usize = 640;

/// Six sections of wandering cells, each deformed; made once.
fn stack() -> Vec<(Deformation, Array2<u8>)> {
    static STACK: OnceLock<Vec<(Deformation, Array2<u8>)>> = OnceLock::new();
    let made = STACK.get_or_init(|| {
        let d = |z: u64| Deformation::new(z + 1, Xy::new(SIZE, SIZE), 3.0, 40.0, 4.0);
        (0..6).map(|z| (d(z), deformed(&cells(SIZE, z as f64), &d(z)))).collect()
    });
    made.clone()
}

fn aligner() -> Aligner {
    Aligner::new(AlignConfig::default()).expect("the default is allowed")
}

fn align_all(sections: &[(Deformation, Array2<u8>)]) -> Vec<Alignment> {
    let views = sections.iter().zip(0u32..).map(|(s, z)| Some(view(z, &s.1, 2)));
    align_views(AlignConfig::default(), views)
}

/// All records in order; `None` is a section that is missing.
fn align_views(config: AlignConfig, views: impl IntoIterator<Item = Option<SectionView>>) -> Vec<Alignment> {
    let mut aligner = Aligner::new(config).expect("allowed");
    let mut done = vec![];
    for (view, z) in views.into_iter().zip(0u32..) {
        done.extend(match view {
            Some(view) => aligner.push(&view).expect("in order"),
            None => aligner.missing(SerialIndex(z), &format!("s{z:03}")).expect("in order"),
        });
    }
    done.extend(aligner.finish());
    done
}

#[test]
fn turned_moved_and_bent_sections_come_to_lie_on_each_other() {
    let sections = stack();
    let done = align_all(&sections);
    assert_eq!(done[0].verdict, Verdict::Reference);
    for z in 1..sections.len() {
        assert_eq!(done[z].verdict, Verdict::Aligned, "{:?}", done[z]);
        let off = residuals((&done[z - 1], &sections[z - 1].0), (&done[z], &sections[z].0), SIZE);
        // Cells wander by 5 * 0.12 = 0.6 px a section at most, in all directions; the rest is the aligner's.
        assert!(rms(&off) < 1.0, "section {z}: {} px rms, {:?}", rms(&off), done[z].residual_px);
        assert!(done[z].confidence > 0.8, "{}", done[z].confidence);
    }
}

#[test]
fn a_missing_and_a_ruined_section_are_bridged() {
    let mut sections = stack();
    let mut noise = Noise(9);
    sections[3].1.mapv_inplace(|_| (128.0 + 60.0 * noise.next()) as u8);
    let views = sections.iter().zip(0u32..).map(|(s, z)| (z != 2).then(|| view(z, &s.1, 2)));
    let done = align_views(AlignConfig::default(), views);
    assert_eq!(done[2].verdict, Verdict::Missing);
    assert!(matches!(done[3].verdict, Verdict::Failed { .. }), "{:?}", done[3].verdict);
    assert_eq!(done[4].verdict, Verdict::Bridged { from: SerialIndex(1) });
    assert_eq!(done[5].verdict, Verdict::Aligned);
    let off = residuals((&done[1], &sections[1].0), (&done[4], &sections[4].0), SIZE);
    // Three sections of wandering, 0.6 px each.
    assert!(rms(&off) < 2.0, "{}", rms(&off));
}

#[test]
fn a_restart_at_any_section_continues_with_the_same_bits() {
    let sections = stack();
    let whole = align_all(&sections);
    let config = AlignConfig { key_every: 1, ..AlignConfig::default() };
    let view_of = |z: u32| view(z, &sections[z as usize].1, 2);
    let (mut straight, mut done) = (Aligner::new(config.clone()).expect("allowed"), vec![]);
    let mut resumed: Vec<(usize, Aligner)> = vec![];
    for z in 0..6 {
        for (at, aligner) in &mut resumed {
            let mut again = done[..*at].to_vec();
            again.extend(aligner.push(&view_of(z)).expect("in order"));
            *at = again.len();
        }
        done.extend(straight.push(&view_of(z)).expect("in order"));
        assert!(resumed.iter().all(|(n, a)| *n == done.len() && a.state() == straight.state()), "after section {z}");
        let text = serde_json::to_string(straight.state()).expect("a plain record");
        let state: AlignerState = serde_json::from_str(&text).expect("our own text");
        assert_eq!(&state, straight.state(), "the state survives being written");
        let views: Vec<SectionView> = state.views_needed().iter().map(|s| view_of(s.0)).collect();
        let lacking = Aligner::resume(config.clone(), state.clone(), &views[1..]);
        assert!(matches!(lacking, Err(AlignError::Resume { .. })));
        resumed.push((done.len(), Aligner::resume(config.clone(), state, &views).expect("all there")));
    }
    let last = straight.finish();
    assert!(resumed.iter_mut().all(|(_, a)| a.finish() == last));
    assert_eq!(done.len() + last.len(), whole.len());
}

#[test]
fn a_section_is_final_when_as_many_as_the_lag_have_come_after_it() {
    let sections = stack();
    for lag in [0u32, 2] {
        let mut aligner = Aligner::new(AlignConfig { lag, ..AlignConfig::default() }).expect("allowed");
        for z in 0..4 {
            let out = aligner.push(&view(z, &sections[z as usize].1, 2)).expect("in order");
            let serials: Vec<u32> = out.iter().map(|a| a.serial.0).collect();
            assert_eq!(serials, z.checked_sub(lag).into_iter().collect::<Vec<u32>>());
        }
        assert_eq!(aligner.finish().len(), lag as usize);
        assert!(aligner.finish().is_empty());
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let sections = &stack()[..3];
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| align_all(sections))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn a_section_picked_up_turned_around_is_found() {
    let mut sections = stack();
    sections.truncate(2);
    // By 180 degrees: rows and columns backwards.
    sections[1].1 = sections[1].1.slice(ndarray::s![..;-1, ..;-1]).to_owned();
    let done = align_all(&sections);
    assert_eq!(done[1].verdict, Verdict::Aligned, "{:?}", done[1].verdict);
    let jacobian = done[1].map.as_ref().expect("placed").0.jacobian(Xy::new(320.0, 320.0));
    assert!(
        jacobian[0][0] < -0.9 && jacobian[1][1] < -0.9,
        "{jacobian:?} {} {:?}",
        done[1].confidence,
        done[1].residual_px
    );
}

#[test]
fn undeformed_sections_stay_in_place() {
    let sections: Vec<_> = (0..3).map(|z| (Deformation::none(), cells(SIZE, f64::from(z)))).collect();
    let done = align_all(&sections);
    for a in &done[1..] {
        let map = &a.map.as_ref().expect("placed").0;
        for (x, y) in [(20.0, 20.0), (320.0, 320.0), (600.0, 30.0), (610.0, 600.0)] {
            let p = Xy::new(x, y);
            assert!((map.apply(p) - p).norm() < 1.0, "{p:?} moved to {:?}", map.apply(p));
        }
    }
}

#[test]
fn blank_sections_and_wrong_order_are_told() {
    let mut aligner = aligner();
    let blank = Array2::from_elem((400, 400), 100u8);
    let mut first = aligner.push(&view(5, &blank, 2)).expect("any first serial");
    first.extend(aligner.finish());
    let first = &first[0];
    assert!(matches!(&first.verdict, Verdict::Failed { reason } if reason.contains("blank")), "{:?}", first.verdict);
    let error = aligner.push(&view(7, &blank, 2)).expect_err("6 is due");
    assert_eq!(error, AlignError::Order { got: 7, wanted: 6 });
    let config: Result<AlignConfig, _> = toml::from_str("reductoin = 2");
    assert!(config.is_err(), "a misspelled key is refused");
    let bad = AlignConfig { references: 0, ..AlignConfig::default() };
    assert!(matches!(Aligner::new(bad), Err(AlignError::Config { key: "references", .. })));
}
