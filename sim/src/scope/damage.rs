//! Broken sections: missing, folded, cracked, dirty.
//!
//! ```text
//! fold  of s px:  section px  ──── dark band, s/2 wide ────       the two sides have moved together: s px of tissue are hidden
//! crack of s px:  section px  ──── empty gap,  s wide  ────       the two sides have moved apart: nothing is hidden
//! ```
//! Both run straight through the section. In section px, before the smooth deformation.

use kinesin_stream::geometry::{BoxXy, Xy};
use serde::{Deserialize, Serialize};

use super::config::{Damage, DamageConfig, DamageKind};
use super::draw::{Draws, What, Whose};

/// Part of the light that is left in a fold.
const FOLD_SHADE: f32 = 0.35;
/// Part of the light that is left beneath dirt.
const DIRT_SHADE: f32 = 0.12;

/// One damage with everything decided, as it is written to the truth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrueDamage {
    /// What happened.
    pub kind: DamageKind,
    /// Tissue swallowed, width of the gap, or radius, px.
    pub size_px: f64,
    /// A point of the line or the middle of the dirt, section px.
    pub at: Xy<f64>,
    /// Unit normal of the line.
    pub normal: Xy<f64>,
}

impl TrueDamage {
    /// Half the width, from the line, of what is no longer tissue in its place, px.
    pub fn reach(&self) -> f64 {
        match self.kind {
            DamageKind::Fold => self.size_px / 4.0,
            DamageKind::Crack => self.size_px / 2.0,
            DamageKind::Missing | DamageKind::Dirt => 0.0,
        }
    }

    /// Signed distance of section pixel `p` from the line, px.
    pub fn distance(&self, p: Xy<f64>) -> f64 {
        (p.x - self.at.x) * self.normal.x + (p.y - self.at.y) * self.normal.y
    }

    /// Where `p` would lie had the section not been torn or folded here.
    pub(crate) fn undone(&self, p: Xy<f64>) -> Xy<f64> {
        let half = match self.kind {
            DamageKind::Fold => self.size_px / 2.0,
            DamageKind::Crack => -self.size_px / 2.0,
            DamageKind::Missing | DamageKind::Dirt => return p,
        };
        p + self.normal * (half * self.distance(p).signum())
    }

    /// Part of the light left at `p`.
    pub(crate) fn shade(&self, p: Xy<f64>) -> f32 {
        match self.kind {
            DamageKind::Fold if self.distance(p).abs() < self.reach() => FOLD_SHADE,
            DamageKind::Dirt => {
                // A soft rim of a fifth of the radius.
                let inside = (1.0 - (p - self.at).norm() / self.size_px) * 5.0;
                1.0 - (1.0 - DIRT_SHADE) * inside.clamp(0.0, 1.0) as f32
            }
            _ => 1.0,
        }
    }

    /// Whether `p` lies in a gap.
    pub(crate) fn gapes(&self, p: Xy<f64>) -> bool {
        self.kind == DamageKind::Crack && self.distance(p).abs() < self.reach()
    }
}

/// All damage of a section: that listed and that drawn. `within` is where drawn damage may lie.
pub(crate) fn damage_of(config: &DamageConfig, seed: u64, section: u32, within: BoxXy) -> Vec<TrueDamage> {
    let mut draws = Draws::new(seed, What::Damage, Whose::section(section));
    let kinds = [
        (DamageKind::Missing, config.missing),
        (DamageKind::Fold, config.fold),
        (DamageKind::Crack, config.crack),
        (DamageKind::Dirt, config.dirt),
    ];
    let drawn = kinds.map(|(kind, p)| (kind, draws.chance(p))).into_iter().filter(|&(_, happens)| happens);
    let drawn = drawn.map(|(kind, _)| Damage { section, kind, size_px: None, angle_deg: None, at: None });
    let listed = config.list.iter().filter(|d| d.section == section).cloned();
    listed.chain(drawn).enumerate().map(|(i, d)| decided(config, seed, &d, i as u32, within)).collect()
}

fn decided(config: &DamageConfig, seed: u64, damage: &Damage, number: u32, within: BoxXy) -> TrueDamage {
    let whose = Whose { section: damage.section, mfov: damage.kind as u32, beam: number, attempt: 0 };
    let mut draws = Draws::new(seed, What::DamageShape, whose);
    let size = Xy::new((within.max.x - within.min.x) as f64, (within.max.y - within.min.y) as f64);
    let drawn_at = Xy::new(
        within.min.x as f64 + size.x * draws.even(0.3, 0.7),
        within.min.y as f64 + size.y * draws.even(0.3, 0.7),
    );
    let drawn_angle = draws.even(0.0, 180.0);
    let along = damage.angle_deg.unwrap_or(drawn_angle).to_radians();
    let usual = match damage.kind {
        DamageKind::Missing => 0.0,
        DamageKind::Fold => config.fold_px,
        DamageKind::Crack => config.crack_px,
        DamageKind::Dirt => config.dirt_px,
    };
    TrueDamage {
        kind: damage.kind,
        size_px: damage.size_px.unwrap_or(usual),
        at: damage.at.unwrap_or(drawn_at),
        normal: Xy::new(-along.sin(), along.cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: BoxXy = BoxXy { min: Xy::new(0, 0), max: Xy::new(100, 100) };

    fn one(kind: DamageKind, size: f64) -> TrueDamage {
        let list =
            vec![Damage { section: 3, kind, size_px: Some(size), angle_deg: Some(90.0), at: Some(Xy::new(50.0, 0.0)) }];
        damage_of(&DamageConfig { list, ..DamageConfig::default() }, 1, 3, WITHIN)[0]
    }

    #[test]
    fn a_crack_moves_its_sides_apart_and_hides_nothing() {
        let crack = one(DamageKind::Crack, 10.0);
        // The line runs along y at x = 50: the lips at 45 and 55 both show the tissue of x = 50.
        assert!((crack.undone(Xy::new(45.0, 7.0)).x - 50.0).abs() < 1e-9);
        assert!((crack.undone(Xy::new(55.0, 7.0)).x - 50.0).abs() < 1e-9);
        assert!(crack.gapes(Xy::new(50.0, 7.0)) && !crack.gapes(Xy::new(44.9, 7.0)));
    }

    #[test]
    fn a_fold_moves_its_sides_together_and_hides_its_size() {
        let fold = one(DamageKind::Fold, 24.0);
        let (left, right) = (fold.undone(Xy::new(49.999, 0.0)), fold.undone(Xy::new(50.001, 0.0)));
        assert!((right.x - left.x - 24.0).abs() < 0.01 && fold.shade(Xy::new(50.0, 3.0)) == FOLD_SHADE);
        assert_eq!(fold.shade(Xy::new(70.0, 3.0)), 1.0);
    }

    #[test]
    fn certain_damage_is_in_every_section_and_listed_damage_only_in_its_own() {
        let config = DamageConfig { dirt: 1.0, ..DamageConfig::default() };
        assert!((0..5).all(|s| damage_of(&config, 9, s, WITHIN).len() == 1));
        assert!(damage_of(&DamageConfig::default(), 9, 3, WITHIN).is_empty());
    }
}
