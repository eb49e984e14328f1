//! How far the line is, read from the moments of its sections: what waits to be drawn, and what waits for labels.
//!
//! Only sections that can be drawn count: those up to the first whose tiles are not all in. A section that is half in cannot
//! be drawn however long the head waits, so it must not keep the head from taking tiles.

use kinesin_backpressure::governor::{Reading, Rung};
use kinesin_stages::pipeline::{Moment, Telemetry};

/// Sections that are complete, drawn and labelled, each counted from z = 0 without a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LineProgress {
    pub(crate) complete: u32,
    pub(crate) drawn: u32,
    pub(crate) labelled: u32,
}

impl LineProgress {
    /// Counts on from where the last call ended.
    pub(crate) fn advance(&mut self, telemetry: &Telemetry, sections: u32) {
        let on = |from: &mut u32, moment| {
            while *from < sections && telemetry.times(*from).at(moment).is_some() {
                *from += 1;
            }
        };
        on(&mut self.complete, Moment::LastTile);
        on(&mut self.drawn, Moment::Image);
        on(&mut self.labelled, Moment::Labels);
        // A section of an earlier run can be drawn before this run has told that it is complete.
        self.complete = self.complete.max(self.drawn);
    }

    /// Complete and not drawn. `section` and `capacity` in bytes.
    pub(crate) fn line(&self, section: u64, capacity: u64) -> Reading {
        waiting("line", (self.complete, self.drawn), section, capacity, Rung::SpoolOnly)
    }

    /// Drawn and without labels; watched only where no capacity is given.
    pub(crate) fn labels(&self, section: u64, capacity: Option<u64>) -> Reading {
        let deepest = if capacity.is_some() { Rung::LighterSegmentation } else { Rung::Full };
        waiting("labels", (self.drawn, self.labelled), section, capacity.unwrap_or(u64::MAX), deepest)
    }
}

fn waiting(name: &str, (came, went): (u32, u32), section: u64, capacity: u64, deepest: Rung) -> Reading {
    let (in_total, out_total) = (u64::from(came) * section, u64::from(went) * section);
    let held = in_total.saturating_sub(out_total);
    Reading { name: name.into(), held, capacity, in_total, out_total, lump: section, deepest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sections_that_can_be_drawn_count_as_waiting() {
        let (telemetry, mut line) = (Telemetry::default(), LineProgress::default());
        for z in [0, 1, 3] {
            telemetry.mark(z, Moment::LastTile);
        }
        telemetry.mark(0, Moment::Image);
        line.advance(&telemetry, 5);
        assert_eq!(line, LineProgress { complete: 2, drawn: 1, labelled: 0 });
        assert_eq!(line.line(10, 80).held, 10, "section 3 waits for section 2, not for the line");
        telemetry.mark(2, Moment::LastTile);
        line.advance(&telemetry, 5);
        assert_eq!((line.complete, line.line(10, 80).held, line.labels(7, None).held), (4, 30, 7));
    }
}
