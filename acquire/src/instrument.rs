//! What an instrument says and what it obeys. The simulator implements the same trait as an adapter to a real scope.
//!
//! ```text
//! plan ─► SectionBegins ─► MfovBegins ─► Tile | TileLost … ─► MfovEnds ─► … ─► SectionEnds ─► … ─► end (None)
//! ```
//! Tiles of several mFOVs may interleave (late tiles), tiles may come twice (duplicates); every tile promised by a section's
//! plan is emitted or declared lost before its `MfovEnds`.

use std::future::Future;
use std::sync::Arc;

use kinesin_stream::ids::{MfovId, SectionId, TileKey};
use kinesin_stream::plan::{RunPlan, SectionPlan};
use kinesin_stream::tile::Reason;

/// A tile as the instrument gives it.
#[derive(Clone, Debug)]
pub struct RawTile {
    /// Who it is.
    pub key: TileKey,
    /// The image as acquired.
    pub image: RawImage,
}

/// Pixels, or a file that still has to be decoded.
#[derive(Clone, Debug)]
pub enum RawImage {
    /// Decoded.
    Pixels(kinesin_stream::pixels::Pixels),
    /// TIFF, PNG or BMP bytes as found on disk; decoded and checked at admission.
    File(bytes::Bytes),
}

/// What an instrument says.
#[derive(Clone, Debug)]
pub enum Event {
    /// The promise of a section.
    SectionBegins(Arc<SectionPlan>),
    /// The stage has stopped.
    MfovBegins(MfovId),
    /// A tile, in any order, possibly again.
    Tile(RawTile),
    /// A promised tile that will never come.
    TileLost(TileKey, Reason),
    /// Every promised tile of this stop was emitted or declared lost.
    MfovEnds(MfovId),
    /// Every mFOV of the section that was promised so far has ended. Said as soon as that is so.
    SectionEnds(SectionId),
    /// The section's promise again, one version on, with retakes beside all that was promised before
    /// ([`SectionPlan::amended`]). While a promised mFOV has not ended, retakes belong to the result that is being made; after
    /// [`Self::SectionEnds`] they make the next one, say so in their `revision`, and the section ends once more.
    SectionAmended(Arc<SectionPlan>),
}

/// What an instrument is asked to do; it acts at its next stopping point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Command {
    /// Stop at the next stopping point.
    Hold,
    /// Go at this fraction of full speed, above 0 and at most 1.
    Slow(f64),
    /// Go at full speed.
    Go,
    /// An mFOV that the head already has durable: its tiles need not be emitted again, only its begin and end.
    Skip(MfovId),
    /// Every tile of this mFOV would survive a power cut here: the instrument need not keep it.
    Kept(MfovId),
}

/// Why an instrument cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum InstrumentError {
    /// It cannot do this; it goes on as before.
    #[error("{instrument} does not support {command:?}")]
    Refused {
        /// Which instrument.
        instrument: &'static str,
        /// What was asked.
        command: Command,
    },
    /// Its input is bad; says what, where, what was expected and what to do.
    #[error("{0}")]
    Input(String),
    /// Reading failed.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A microscope, a simulator or a recorded run.
pub trait Instrument: Send + 'static {
    /// What is promised of the whole run. Known before the first event.
    fn plan(&self) -> &RunPlan;

    /// The next event, `None` when the run is over. Cancel-safe: a dropped call loses no event.
    fn next(&mut self) -> impl Future<Output = Result<Option<Event>, InstrumentError>> + Send;

    /// Hold, slow, go, skip, kept. A refusal is typed and leaves the instrument as it was.
    fn command(&mut self, command: Command) -> impl Future<Output = Result<(), InstrumentError>> + Send;
}
