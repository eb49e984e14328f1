//! From what a voxel is to how an electron microscope shows it: grey values of heavy-metal stained tissue, membranes dark.

use super::field::{Kind, Segment, V3, dot, sub};
use super::noise::{hash, unit};
use super::organelle::Part;
use super::procedural::{Section, Spot};

/// Grey of a membrane.
const MEMBRANE: f32 = 62.0;
/// Thickness of the section that a pixel averages over, half, nm.
const HALF_SECTION: f32 = 13.0;
/// Thickness of a vessel's wall, nm.
const WALL: f32 = 320.0;

/// Whether the voxel lies in the empty inside of a vessel.
pub(super) fn in_lumen(spot: &Spot) -> bool {
    spot.owner.kind == Kind::Vessel && spot.field < -WALL
}

/// Grey value of a voxel, 1 to 255.
pub(super) fn grey(section: &Section, spot: &Spot, inside: &[(Part, Segment)]) -> u8 {
    let [_, y, x] = spot.place;
    let grain = unit(hash(section.seed, section.index, spot.pixel[0], spot.pixel[1])) - 0.5;
    let blur = section.half * spot.upright + HALF_SECTION * (1.0 - spot.upright * spot.upright).max(0.0).sqrt();
    let fine = section.fine.at(y, x);
    let mut v = match spot.owner.kind {
        Kind::Vessel => vessel(section, spot, fine),
        Kind::Body => body(section, spot, inside, fine),
        Kind::Axon | Kind::Dendrite => cytoplasm(section, spot, fine),
    };
    v = organelles(section, spot, inside, v, fine);
    let dark = MEMBRANE + 5.0 * fine;
    v += (dark - v) * 0.96 * covered(spot.border, section.membrane, blur);
    if spot.resin > -15.0 {
        let bare = 203.0 + 1.5 * section.coarse.at(y, x);
        let edge = (dark - bare) * covered(spot.resin.abs(), 10.0, section.half);
        v = if spot.resin > 0.0 { bare + edge } else { v.min(bare + edge) };
    }
    (v + 9.0 * grain).round().clamp(1.0, 255.0) as u8
}

/// Share of a pixel of half width `blur` at distance `d` from the middle of a band of half width `h` that the band covers.
fn covered(d: f32, h: f32, blur: f32) -> f32 {
    (((d + blur).min(h) - (d - blur).max(-h)) / (2.0 * blur)).clamp(0.0, 1.0)
}

/// Share of a pixel inside an outline at signed distance `f`.
fn within(f: f32, blur: f32) -> f32 {
    (0.5 - f / (2.0 * blur)).clamp(0.0, 1.0)
}

fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

fn cytoplasm(section: &Section, spot: &Spot, fine: f32) -> f32 {
    let [_, y, x] = spot.place;
    let own = unit(hash(section.seed, spot.owner.id, 7, 1));
    let base = if spot.owner.kind == Kind::Dendrite { 172.0 } else { 163.0 };
    let medium = section.medium.at(y, x);
    let mut v = base + 22.0 * (own - 0.5) + 6.0 * fine + 5.0 * medium + 3.0 * section.coarse.at(y, x);
    // Endoplasmic reticulum and filaments: thin dark wisps, here and there.
    if medium.abs() < 0.07 && section.coarse.at(x, y) > 0.6 {
        v -= 38.0;
    }
    if fine > 2.0 {
        v -= 30.0;
    }
    v
}

fn vessel(section: &Section, spot: &Spot, fine: f32) -> f32 {
    let [_, y, x] = spot.place;
    if in_lumen(spot) {
        let line = covered(-WALL - spot.field, 9.0, section.half);
        return mix(212.0 + 2.0 * section.coarse.at(y, x), MEMBRANE, line);
    }
    140.0 + 8.0 * fine + 7.0 * section.medium.at(y, x)
}

fn body(section: &Section, spot: &Spot, inside: &[(Part, Segment)], fine: f32) -> f32 {
    let [_, y, x] = spot.place;
    let (medium, coarse) = (section.medium.at(y, x), section.coarse.at(y, x));
    let nucleus = inside.iter().filter(|(p, s)| *p == Part::Nucleus && s.id == spot.owner.id);
    let f = nucleus.map(|(_, s)| s.field(spot.warped)).fold(f32::MAX, f32::min) + 40.0 * coarse.clamp(-2.0, 2.0);
    if f > 20.0 {
        let mut v = 152.0 + 8.0 * fine + 7.0 * medium;
        // Stacks of rough endoplasmic reticulum: lines of equal height of the coarse noise.
        let lines = coarse * 4.0 + medium * 0.3;
        if (lines - lines.round()).abs() < 0.1 && section.coarse.at(x, y) > -0.3 {
            v -= 45.0;
        }
        return v;
    }
    let chromatin = ((coarse * 0.6 + medium * 0.8 - 0.75) * 3.0).clamp(0.0, 1.0).max(within(-f - 90.0, 60.0) * 0.8);
    let v = mix(180.0, 128.0, chromatin) + 6.0 * fine + 3.0 * medium;
    let envelope = covered((f + 4.0).abs(), 7.0, section.half).max(covered((f - 18.0).abs(), 6.0, section.half));
    mix(v, MEMBRANE + 10.0, envelope)
}

fn organelles(section: &Section, spot: &Spot, inside: &[(Part, Segment)], mut v: f32, fine: f32) -> f32 {
    let mut mitochondrion = (f32::MAX, None);
    for (part, s) in inside {
        match part {
            Part::Mitochondrion if s.id == spot.owner.id => {
                let f = s.field(spot.warped);
                if f < mitochondrion.0 {
                    mitochondrion = (f, Some(s));
                }
            }
            Part::Vesicles if s.id == spot.owner.id && spot.border > 28.0 && s.field(spot.warped) < 0.0 => {
                v = vesicle(section, spot, v);
            }
            Part::Density { target } => v = density(spot, s, *target, v),
            _ => {}
        }
    }
    if let (f, Some(s)) = mitochondrion {
        // Stays off the plasma membrane.
        let f = f.max(26.0 - spot.border);
        let seed = hash(section.seed, s.id, 3, 3);
        let matrix = matrix(section, spot, s, seed) + 6.0 * fine;
        v = mix(v, matrix, within(f, section.half));
        v = mix(v, 66.0, 0.9 * covered((f + 5.0).abs(), 9.0, section.half));
    }
    v
}

/// Inside of a mitochondrion: dark matrix with stripes of cristae, bent and broken by noise.
fn matrix(section: &Section, spot: &Spot, s: &Segment, seed: u32) -> f32 {
    let [_, y, x] = spot.place;
    let turn = unit(seed) * std::f32::consts::PI;
    let (out, _) = s.normal(spot.warped);
    let across = y * turn.sin() + x * turn.cos() + 14.0 * section.medium.at(y, x) + 12.0 * out[0];
    let stripe = (across * (std::f32::consts::TAU / 44.0)).sin();
    108.0 + 24.0 * stripe * (0.6 + 0.4 * section.medium.at(x, y)).clamp(0.0, 1.0)
}

/// Round vesicles of 40 nm on a shaken lattice.
fn vesicle(section: &Section, spot: &Spot, v: f32) -> f32 {
    const PITCH: f32 = 52.0;
    let p = spot.warped;
    let cell: [i32; 3] = std::array::from_fn(|k| (p[k] / PITCH - 0.5).floor() as i32);
    let mut nearest = f32::MAX;
    for corner in 0..8 {
        let at: [i32; 3] = std::array::from_fn(|k| cell[k] + (corner >> k & 1));
        let h = hash(at[0] as u32, at[1] as u32, at[2] as u32, section.seed);
        let shake = |k: u32| (unit(hash(h, k, 0, 0)) - 0.5) * 0.45;
        let centre: V3 = std::array::from_fn(|k| (at[k] as f32 + 0.5 + shake(k as u32)) * PITCH);
        let d = sub(p, centre);
        nearest = nearest.min(dot(d, d));
    }
    let d = nearest.sqrt();
    let ring = covered((d - 15.0).abs(), 6.0, section.half.max(4.0));
    mix(v, 84.0, ring)
}

/// Thick dark membrane on the target's side of a synapse, a thinner line on the owner's.
fn density(spot: &Spot, s: &Segment, target: u32, v: f32) -> f32 {
    let (post, pre) = (spot.owner.id == target && spot.other == s.id, spot.owner.id == s.id && spot.other == target);
    if !post && !pre {
        return v;
    }
    let near = within(s.field(spot.warped), 25.0);
    let thick = if post { 44.0 } else { 22.0 };
    mix(v, 42.0, near * within(spot.border - thick, 8.0))
}
