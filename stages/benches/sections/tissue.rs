//! Planes of tissue: mosaics of a recorded cube, recorded sections, or drawn cells.

use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, Axis};

use super::Noise;

/// A path of `KINESIN_DATA`, where it is there.
fn data(name: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    Some(std::env::var_os("KINESIN_DATA").map_or(default, PathBuf::from).join(name)).filter(|f| f.exists())
}

/// The block face cube at 10 nm (z, y, x); grey values from 1 on.
pub(crate) fn cube() -> Option<Array3<u8>> {
    let file = std::io::BufReader::new(std::fs::File::open(data("fib25/raw_u8.tif")?).expect("readable"));
    let mut decoder = tiff::decoder::Decoder::new(file).expect("a TIFF");
    let (w, h) = decoder.dimensions().expect("a size");
    let (mut all, mut pages) = (vec![], 0);
    loop {
        let tiff::decoder::DecodingResult::U8(page) = decoder.read_image().expect("a page") else { panic!("8 bits") };
        all.extend(page.into_iter().map(|v| v.max(1)));
        pages += 1;
        if !decoder.more_images() {
            return Some(Array3::from_shape_vec((pages, h as usize, w as usize), all).expect("equal pages"));
        }
        decoder.next_image().expect("a page");
    }
}

/// Every `step`-th of the cortex sections at 6 nm from `first` on.
pub(crate) fn cortex(first: usize, n: usize, step: usize) -> Option<Vec<Array2<u8>>> {
    let folder = data("kasthuri_ac4/raw")?;
    Some((0..n).map(|i| png(&folder.join(format!("z{:03}.png", first + i * step)))).collect())
}

fn png(path: &Path) -> Array2<u8> {
    let mut decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).expect("a section")));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().expect("a PNG");
    let mut data = vec![0; reader.output_buffer_size().expect("small")];
    let info = reader.next_frame(&mut data).expect("an image");
    data.truncate(info.buffer_size());
    Array2::from_shape_vec((info.height as usize, info.width as usize), data).expect("grey").mapv(|v| v.max(1))
}

/// `n` planes `step` apart, `squares` squared squares of the cube's side, each from its own depth, axis, turn and flip.
pub(crate) fn mosaic(cube: &Array3<u8>, squares: usize, n: usize, step: usize) -> Vec<Array2<u8>> {
    let side = cube.dim().0;
    let ranges = side / (n * step);
    assert!(ranges > 0, "{n} planes {step} apart are more than the cube has");
    let plane = |z: usize| {
        let mut out = Array2::zeros((squares * side, squares * side));
        for s in 0..squares * squares {
            // Depth and axis first, so that flips come in only where those are used up.
            let (depth, axis, flip) = (s % ranges, s / ranges % 3, s / (3 * ranges) * 3 + s % 8);
            let from = cube.index_axis(Axis(axis), (depth * n + z) * step);
            let (r, c) = (s / squares * side, s % squares * side);
            let mut to = out.slice_mut(ndarray::s![r..r + side, c..c + side]);
            to.indexed_iter_mut().for_each(|((y, x), v)| {
                let (y, x) = if flip & 1 == 0 { (y, x) } else { (x, y) };
                let at = |v: usize, bit: usize| if flip & bit == 0 { v } else { side - 1 - v };
                *v = from[[at(y, 2), at(x, 4)]];
            });
        }
        out
    };
    (0..n).map(plane).collect()
}

/// `n` planes of drawn cells, `side` squared.
pub(crate) fn drawn(side: usize, n: usize) -> Vec<Array2<u8>> {
    let cells = side / 28 + 2;
    let mut noise = Noise::new(4242);
    let centres: Vec<[f64; 4]> = (0..cells * cells).map(|_| [0; 4].map(|_| noise.even())).collect();
    let plane = |z: usize| {
        let centre = |c: usize, r: usize| {
            let [a, b, u, v] = centres[r * cells + c];
            // Wanders around its place in a circle of its own phase.
            let turn = 0.12 * z as f64 * u.signum() + 3.0 * v;
            ((c as f64 + 0.35 * a) * 28.0 + 5.0 * turn.sin(), (r as f64 + 0.35 * b) * 28.0 + 5.0 * turn.cos())
        };
        Array2::from_shape_fn((side, side), |(y, x)| {
            let (c, r) = (x / 28, y / 28);
            let (mut first, mut second, mut own) = (f64::MAX, f64::MAX, 0.0);
            for j in r.saturating_sub(1)..(r + 3).min(cells) {
                for i in c.saturating_sub(1)..(c + 3).min(cells) {
                    let (u, v) = centre(i, j);
                    let d = (u - x as f64).hypot(v - y as f64);
                    if d < first {
                        (second, first, own) = (first, d, centres[j * cells + i][2]);
                    } else if d < second {
                        second = d;
                    }
                }
            }
            let wall = 1.0 - ((second - first) / 4.0).min(1.0);
            (160.0 + 25.0 * own - 110.0 * wall).clamp(1.0, 255.0) as u8
        })
    };
    (0..n).map(plane).collect()
}
