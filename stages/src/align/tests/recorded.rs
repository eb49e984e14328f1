//! The same promises on recorded tissue, where it is there: looked for in `KINESIN_DATA`, by default `../shared/data` beside the checkout.

use std::path::{Path, PathBuf};

use super::*;

/// The data folder, or a line that says why the test does nothing.
fn data(part: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let path = std::env::var_os("KINESIN_DATA").map_or(default, PathBuf::from).join(part);
    if !path.exists() {
        eprintln!("skipped: {} is not there; point KINESIN_DATA at the folder that holds it", path.display());
        return None;
    }
    Some(path)
}

/// An image with one byte a pixel; 0 is made 1.
fn png8(file: &Path) -> Array2<u8> {
    let (w, h, data) = png(file);
    Array2::from_shape_vec((h, w), data).expect("one byte a pixel").mapv(|v| v.max(1))
}

/// An image with two bytes a pixel.
fn png16(file: &Path) -> Array2<u16> {
    let (w, h, data) = png(file);
    let values = data.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect();
    Array2::from_shape_vec((h, w), values).expect("two bytes a pixel")
}

fn png(file: &Path) -> (usize, usize, Vec<u8>) {
    let file = std::fs::File::open(file).expect("a section");
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().expect("a PNG");
    let mut data = vec![0; reader.output_buffer_size().expect("small")];
    let info = reader.next_frame(&mut data).expect("an image");
    data.truncate(info.buffer_size());
    (info.width as usize, info.height as usize, data)
}

/// Every `step`-th section of the block face stack at 10 nm.
fn block_face(file: &Path, step: usize) -> Vec<Array2<u8>> {
    let file = std::io::BufReader::new(std::fs::File::open(file).expect("readable"));
    let mut decoder = tiff::decoder::Decoder::new(file).expect("a TIFF");
    let mut out = vec![];
    loop {
        let (w, h) = decoder.dimensions().expect("a size");
        let tiff::decoder::DecodingResult::U8(data) = decoder.read_image().expect("a page") else { panic!("8 bits") };
        out.push(Array2::from_shape_vec((h as usize, w as usize), data).expect("one byte a pixel").mapv(|v| v.max(1)));
        if !decoder.more_images() {
            break;
        }
        decoder.next_image().expect("a page");
    }
    out.into_iter().step_by(step).collect()
}

/// Aligned sections with the deformation each had.
struct Run {
    done: Vec<Alignment>,
    warps: Vec<Deformation>,
    size: usize,
}

/// Deforms and aligns tissue.
fn run(tissue: &[Array2<u8>], (degrees, shift, sd): (f64, f64, f64), config: AlignConfig) -> Run {
    let (h, w) = tissue[0].dim();
    let warps: Vec<Deformation> =
        (100..).take(tissue.len()).map(|seed| Deformation::new(seed, Xy::new(w, h), degrees, shift, sd)).collect();
    let s = config.reduction;
    let views = tissue.iter().zip(&warps).zip(0u32..).map(|((t, d), z)| Some(view(z, &deformed(t, d), s)));
    let done = align_views(config, views);
    Run { done, warps, size: h.min(w) }
}

impl Run {
    /// Where a tissue point of section `z` lies in the volume; none where the section does not show it.
    fn place(&self, z: usize, t: Xy<f64>) -> Option<Xy<f64>> {
        let p = self.warps[z].to_section(t);
        let inside = |v: f64| v >= 0.0 && v < self.size as f64;
        (inside(p.x) && inside(p.y)).then(|| self.done[z].map.as_ref().expect("placed").0.apply(p))
    }

    /// The tissue point of section `z` that lies at a volume point.
    fn tissue_at(&self, z: usize, q: Xy<f64>) -> Option<Xy<f64>> {
        let p = self.done[z].map.as_ref().expect("placed").0.invert_at(q, q)?;
        Some(self.warps[z].to_tissue(p))
    }

    fn points(&self) -> Vec<Xy<f64>> {
        let at = |i: usize| (i * 16) as f64;
        let n = self.size / 16;
        (0..n).flat_map(|r| (0..n).map(move |c| Xy::new(at(c), at(r)))).collect()
    }

    /// How far section `z` is bent from its rest shape, rms pixels.
    fn bend(&self, z: usize) -> f64 {
        let placed = self.points().into_iter().filter_map(|t| Some((t, self.place(z, t)?)));
        let pairs: Vec<fit::Pair> = placed.map(|(from, to)| fit::Pair { from, to, weight: 1.0, fold: 0 }).collect();
        let stiff = fit::affine(&pairs).expect("many points");
        rms(&pairs.iter().map(|p| (stiff.apply(p.from) - p.to).norm()).collect::<Vec<_>>())
    }

    /// Share of tissue points of section `z` that lie on the same label in the section before.
    fn agreement(&self, labels: &[Array2<u16>], z: usize) -> f64 {
        let look = |z: usize, p: Xy<f64>| {
            labels[z].get((p.y.round() as i64 as usize, p.x.round() as i64 as usize)).copied().filter(|v| *v > 0)
        };
        let both = self.points().into_iter().filter_map(|t| {
            let below = self.tissue_at(z - 1, self.place(z, t)?)?;
            Some(look(z, t)? == look(z - 1, below)?)
        });
        let (same, all) = both.fold((0, 0), |(s, n), same| (s + usize::from(same), n + 1));
        f64::from(same as u32) / f64::from(all as u32)
    }
}

/// Root mean square and 99th percentile.
fn summary(mut off: Vec<f64>) -> (f64, f64) {
    off.sort_by(f64::total_cmp);
    (rms(&off), off[off.len() * 99 / 100])
}

#[test]
fn warped_cortex_sections_come_within_two_pixels_of_where_they_lie_unwarped() {
    let Some(folder) = data("kasthuri_ac4") else { return };
    let n = 8;
    let tissue: Vec<Array2<u8>> = (0..n).map(|z| png8(&folder.join(format!("raw/z{z:03}.png")))).collect();
    let labels: Vec<Array2<u16>> = (0..n).map(|z| png16(&folder.join(format!("labels/z{z:03}.png")))).collect();
    let still = run(&tissue, (0.0, 0.0, 0.0), AlignConfig::default());
    let warped = run(&tissue, (3.0, 40.0, 6.0), AlignConfig::default());
    let mut all = vec![];
    for z in 1..n {
        // Recorded neighbours do not lie on each other by themselves (3 to 6 px rms): the unwarped run says where they do.
        let mut off = vec![];
        for t in still.points() {
            let step = |r: &Run| Some(r.place(z, t)? - r.place(z - 1, t)?);
            if let (Some(a), Some(b)) = (step(&still), step(&warped)) {
                off.push((a - b).norm());
            }
        }
        let same = |p: Xy<f64>, z: usize| labels[z][[p.y as usize, p.x as usize]];
        let given: Vec<bool> = still
            .points()
            .iter()
            .filter(|p| same(**p, z) > 0 && same(**p, z - 1) > 0)
            .map(|p| same(*p, z) == same(*p, z - 1))
            .collect();
        let given = given.iter().filter(|s| **s).count() as f64 / given.len() as f64;
        all.extend(off.iter().copied());
        let (rms, p99) = summary(off);
        println!(
            "cortex {z}: bent {:.1} {:.1}, {rms:.2} px rms, p99 {p99:.2}; same label {:.3} as given, {:.3} unwarped, {:.3} warped; told {:?} {} {:?} / {:?} {} {:?}",
            still.bend(z),
            warped.bend(z),
            given,
            still.agreement(&labels, z),
            warped.agreement(&labels, z),
            warped.done[z].residual_px,
            warped.done[z].confidence,
            warped.done[z].stiffness,
            still.done[z].residual_px,
            still.done[z].confidence,
            still.done[z].stiffness,
        );
        assert_eq!(warped.done[z].verdict, Verdict::Aligned);
    }
    let (rms, p99) = summary(all);
    println!("cortex: {rms:.2} px rms, p99 {p99:.2}");
    assert!(rms < 2.0, "{rms} px rms");
}

#[test]
fn warped_block_face_sections_come_to_lie_on_each_other() {
    let Some(file) = data("fib25/raw_u8.tif") else { return };
    let tissue: Vec<Array2<u8>> = block_face(&file, 3).into_iter().take(12).collect();
    let config = AlignConfig {
        patch_px: 96,
        stride_px: 32,
        search_px: 24,
        coarse_px: 2,
        node_px: 48,
        reduction: 1,
        ..AlignConfig::default()
    };
    let warped = run(&tissue, (3.0, 20.0, 3.0), config);
    let mut all = vec![];
    for z in 1..tissue.len() {
        assert_eq!(warped.done[z].verdict, Verdict::Aligned);
        let apart = |t: Xy<f64>| Some((warped.place(z, t)? - warped.place(z - 1, t)?).norm());
        let off: Vec<f64> = warped.points().into_iter().filter_map(apart).collect();
        all.extend(off.iter().copied());
        let (rms, p99) = summary(off);
        println!(
            "block face {z}: {rms:.2} px rms, p99 {p99:.2}; told {:?} {} {:?}",
            warped.done[z].residual_px, warped.done[z].confidence, warped.done[z].stiffness
        );
    }
    let (rms, p99) = summary(all);
    println!("block face: {rms:.2} px rms, p99 {p99:.2}");
    assert!(rms < 2.5, "{rms} px rms");
}
