//! A section that came late, or was imaged again: laid between sections that no longer move.
//!
//! ```text
//! z      3    4    5         4 came when 3 and 5 were final: it is laid onto both, with the same weight, and moves neither;
//!        #    ?    #         later ones were laid onto each other without it, and stay
//! ```

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Map, SectionToVolume};
use ndarray::Array2;

use super::placing::{Onto, Own};
use super::state::DrawnAs;
use super::{AlignConfig, AlignError, Aligner, Alignment, Drawn, Reference, SectionView, Verdict, plane, textured};

/// A section as it lies in the volume for good.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Its z.
    pub serial: SerialIndex,
    /// Grey values of the volume, reduced by [`AlignConfig::reduction`]; 0 = no data.
    pub image: Array2<u8>,
    /// Reduced volume pixel of the image's first column and row.
    pub origin: Xy<i64>,
}

/// Lays a section between `around`, nearest first; the map goes to the pixels that those lie in.
///
/// A section that cannot be placed is not an error: its verdict says so.
///
/// # Errors
/// Where a setting is out of range.
pub fn insert(view: &SectionView, around: Vec<Neighbour>, config: &AlignConfig) -> Result<Alignment, AlignError> {
    // Which of the two sides came first says nothing.
    let aligner = Aligner::new(AlignConfig { older_weight: 1.0, ..config.clone() })?;
    let placed = textured(&view.image).and_then(|()| {
        let drawn: Vec<(Drawn, DrawnAs)> = around.into_iter().map(drawn).collect();
        let onto: Vec<Onto<'_>> = drawn.iter().map(|(d, r)| (d, r)).collect();
        let own = Own::new(view, plane::comparable(&view.image), config.reduction);
        aligner.fit(&own, &onto).map(|fit| aligner.record(&own, &fit, None))
    });
    Ok(match placed {
        Ok(record) => Alignment { verdict: Verdict::Inserted, ..record },
        Err(reason) => Alignment::unplaced(view.serial, &view.name, Verdict::Failed { reason }),
    })
}

fn drawn(n: Neighbour) -> (Drawn, DrawnAs) {
    let as_reference = Reference { serial: n.serial, origin: n.origin, image: plane::comparable(&n.image) };
    let drawn = Drawn { own: Array2::zeros((0, 0)), origin: n.origin, as_reference };
    (drawn, DrawnAs { serial: n.serial, map: SectionToVolume(Map::IDENTITY) })
}
