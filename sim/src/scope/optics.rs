//! Tile pixel to section pixel as it really is: lens, start of the scan, affine error, place of beam and stage.
//!
//! For tile pixel `p`, middle of the tile `m`, ideal place of the middle `c`:
//!
//! ```text
//! section px = c + stage(mFOV) + offset(beam) + jitter(tile) + (I + E(tile)) (p - m + lens(p) + scan(p))
//! lens(p)    = quadratic and cubic monomials of p scaled to -1..1, two thirds shared by the beams, one third of the beam
//! scan(p)    = (a exp(-row / rows), 0)
//! ```
//! The map *is* a [`Grid`] with these values at its nodes, rounded to 1e-4 px: what is written as truth is exactly what the
//! pixels were sampled through. Cells are at most 64 px wide, and narrow where the scan starts.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::Grid;

use super::config::OpticsConfig;
use super::draw::{Draws, What, Whose};
use super::layout::Layout;

/// Widest cell of a tile's grid, px.
const CELL_PX: f64 = 64.0;
/// Part of the lens distortion that all beams share: they pass the same lenses.
const SHARED_LENS: f64 = 2.0 / 3.0;

/// Coefficients of u^2, uv, v^2, u^3, u^2 v, u v^2, v^3, for x and y.
type Lens = [Xy<f64>; 7];

/// The true map of one tile.
pub(crate) fn tile_map(config: &OpticsConfig, layout: &Layout, seed: u64, tile: Whose) -> Grid {
    let draw = |what, whose| Draws::new(seed, what, whose);
    let pair = |mut d: Draws, sd: f64| Xy::new(d.normal(sd), d.normal(sd));
    let stop = Whose { beam: 0, ..tile };
    let beam = Whose::beam(tile.beam);
    let place = layout.tile_centre(tile.mfov, tile.beam as u16)
        + pair(draw(What::StageError, stop), config.stage_sd_px)
        + pair(draw(What::BeamOffset, beam), config.beam_offset_sd_px)
        + pair(draw(What::BeamJitter, tile), config.beam_jitter_sd_px);
    let mut affine = draw(What::Affine, tile);
    let [a, b, c, d] = std::array::from_fn(|_| affine.normal(config.affine_sd));
    let lens = lens_of(config, seed, tile.beam);
    let scan = config.scan_start_px * draw(What::ScanStart, beam).even(0.8, 1.2);

    let half = layout.half_tile();
    let image = |p: Xy<f64>| {
        let q = p - half;
        let drift = Xy::new(scan * (-p.y / config.scan_start_rows).exp(), 0.0);
        let w = q + bend(&lens, Xy::new(q.x / half.x, q.y / half.y)) + drift;
        let s = place + Xy::new(w.x + a * w.x + b * w.y, w.y + c * w.x + d * w.y);
        Xy::new(rounded(s.x), rounded(s.y))
    };
    let (xs, ys) = (axis(layout.tile.x, &[]), axis(layout.tile.y, &scan_rows(config)));
    Grid::from_fn(xs, ys, image).expect("the axes grow and finite settings give finite places")
}

/// To 1e-4 px: below anything that can be measured, and short in a file.
pub(crate) fn rounded(v: f64) -> f64 {
    (v * 1e4).round() / 1e4
}

/// Lens of a beam, so scaled that the farthest corner is displaced by `lens_px`.
fn lens_of(config: &OpticsConfig, seed: u64, beam: u32) -> Lens {
    let unit = |mut d: Draws| -> Lens { std::array::from_fn(|_| Xy::new(d.normal(1.0), d.normal(1.0))) };
    let scaled = |lens: Lens, to: f64| {
        let corners = [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)];
        let most = corners.iter().map(|&(u, v)| bend(&lens, Xy::new(u, v)).norm()).fold(1e-9, f64::max);
        lens.map(|c| c * (to / most))
    };
    let shared = scaled(unit(Draws::new(seed, What::SharedLens, Whose::default())), SHARED_LENS);
    let own = scaled(unit(Draws::new(seed, What::Lens, Whose::beam(beam))), 1.0 - SHARED_LENS);
    scaled(std::array::from_fn(|i| shared[i] + own[i]), config.lens_px)
}

/// Displacement at `at`, which runs from -1 to 1 over the tile.
fn bend(lens: &Lens, at: Xy<f64>) -> Xy<f64> {
    let (u, v) = (at.x, at.y);
    let monomials = [u * u, u * v, v * v, u * u * u, u * u * v, u * v * v, v * v * v];
    lens.iter().zip(monomials).fold(Xy::default(), |sum, (c, m)| sum + *c * m)
}

/// Node rows where the scan starts: the exponential is straight to a few percent of its height between them.
fn scan_rows(config: &OpticsConfig) -> Vec<f64> {
    if config.scan_start_px == 0.0 {
        return Vec::new();
    }
    [0.2, 0.4, 0.7, 1.0, 1.4, 1.8, 2.3, 3.0, 4.0, 6.0].map(|t| (t * config.scan_start_rows).round()).to_vec()
}

/// Nodes from the first to the last pixel, evenly, with `more` between.
fn axis(side: u32, more: &[f64]) -> Vec<f64> {
    let last = f64::from(side) - 1.0;
    let cells = (last / CELL_PX).ceil().max(1.0);
    let mut nodes: Vec<f64> = (0..=cells as u32).map(|i| (f64::from(i) * last / cells).round()).collect();
    nodes.extend(more.iter().filter(|&&v| v > 0.0 && v < last));
    nodes.sort_by(f64::total_cmp);
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::config::LayoutConfig;

    fn layout() -> Layout {
        let config = LayoutConfig { beams: 7, tile_px: Xy::new(300, 260), ..LayoutConfig::default() };
        Layout::new(&config, Xy::new(900.0, 800.0))
    }

    fn whose(mfov: u32, beam: u32) -> Whose {
        Whose { mfov, beam, ..Whose::default() }
    }

    #[test]
    fn perfect_optics_put_every_tile_where_the_scope_believes_it_to_be() {
        let l = layout();
        let map = tile_map(&OpticsConfig::IDEAL, &l, 1, whose(0, 3));
        let p = Xy::new(17.0, 201.0);
        assert!((map.apply(p) - (l.nominal(0, 3) + p)).norm() < 2e-4);
    }

    #[test]
    fn the_lens_bends_the_farthest_corner_by_the_asked_length_and_is_the_same_in_every_mfov() {
        let l = layout();
        let config = OpticsConfig { lens_px: 2.0, ..OpticsConfig::IDEAL };
        let corner = |mfov, beam| {
            let map = tile_map(&config, &l, 5, whose(mfov, beam));
            let at = |x, y| map.apply(Xy::new(x, y)) - l.nominal(mfov, beam as u16) - Xy::new(x, y);
            [at(0.0, 0.0), at(299.0, 0.0), at(0.0, 259.0), at(299.0, 259.0)]
        };
        let most = corner(0, 2).iter().map(|d| d.norm()).fold(0.0, f64::max);
        assert!((most - 2.0).abs() < 1e-3, "{most}");
        assert!(corner(0, 2).iter().zip(corner(1, 2)).all(|(a, b)| (*a - b).norm() < 1e-3));
        assert!(corner(0, 2).iter().zip(corner(0, 3)).any(|(a, b)| (*a - b).norm() > 0.01));
    }

    #[test]
    fn the_scan_drifts_in_the_first_rows_and_settles() {
        let l = layout();
        let config = OpticsConfig { scan_start_px: 3.0, scan_start_rows: 10.0, ..OpticsConfig::IDEAL };
        let map = tile_map(&config, &l, 5, whose(0, 0));
        let drift = |y| (map.apply(Xy::new(100.0, y)) - l.nominal(0, 0) - Xy::new(100.0, y)).x;
        assert!(drift(0.0) >= 2.4 && drift(0.0) <= 3.6);
        assert!((drift(10.0) / drift(0.0) - (-1f64).exp()).abs() < 1e-3 && drift(200.0).abs() < 1e-3);
    }
}
