//! Identities. Order of a key is the order in which results are solved and written, so that nothing depends on arrival.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One physical cut. Stable; says nothing about order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SectionId(pub u32);

/// Order in which sections were cut; the z of the section in the volume, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SerialIndex(pub u32);

/// An imaged area on one section, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegionId(pub u16);

/// The tiles of one stage stop: the unit of admission and of durable receipts. A retake is a stage stop of its own: same place,
/// next attempt, and as few tiles as were taken again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MfovId {
    /// The section it belongs to.
    pub section: SectionId,
    /// The region of that section.
    pub region: RegionId,
    /// Number within the region, from 0.
    pub mfov: u32,
    /// Which exposure of this place.
    #[serde(default)]
    pub attempt: Attempt,
}

/// One probe of the microscope, from 0 at the centre outward along the hexagonal spiral.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BeamId(pub u16);

/// Which exposure of the same place; 0 is the first, more are retakes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u16);

/// One beam at one stage stop: the attempt is that of the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TileKey {
    /// The stage stop.
    pub mfov: MfovId,
    /// The probe.
    pub beam: BeamId,
}

impl MfovId {
    /// The first exposure of a place.
    pub fn new(section: SectionId, region: RegionId, mfov: u32) -> Self {
        Self { section, region, mfov, attempt: Attempt(0) }
    }

    /// The same place at this exposure.
    pub fn at(self, attempt: Attempt) -> Self {
        Self { attempt, ..self }
    }
}

impl TileKey {
    /// The same tile at its first exposure: equal for all attempts.
    pub fn first(self) -> Self {
        Self { mfov: self.mfov.at(Attempt(0)), ..self }
    }
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {}", self.0)
    }
}

impl fmt::Display for MfovId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} region {} mFOV {}", self.section, self.region.0, self.mfov)?;
        if self.attempt > Attempt(0) { write!(f, " attempt {}", self.attempt.0) } else { Ok(()) }
    }
}

impl fmt::Display for BeamId {
    /// As scopes print it: three digits, from 001.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03}", u32::from(self.0) + 1)
    }
}

impl fmt::Display for TileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} beam {}", self.mfov, self.beam)
    }
}
