//! The keys of the ladder. Seconds are seconds until a buffer overflows at the rates that are measured; shares are of a
//! buffer's capacity.

use serde::{Deserialize, Serialize};

use super::Rung;

/// When the governor leaves and enters its rungs. Site keys `[govern.ladder]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GovernConfig {
    /// The full flood pauses when a buffer overflows within this many seconds. Default 300: a paused flood still has to
    /// finish the evaluation in hand, and five minutes are about one section of a wide stage tour.
    pub lighter_seconds: f64,
    /// No segmentation at all from this many seconds on. Default 120: what the first rung did not stop within three minutes
    /// it will not stop.
    pub stitch_only_seconds: f64,
    /// The head takes no more tiles from this many seconds on. Default 30: long enough to finish the mFOVs that are open.
    pub spool_only_seconds: f64,
    /// The instrument is asked to go slower from this many seconds before its spool is full, and the spool fills up to its
    /// reserve over about the same time. Default 60: slower than any filter here, faster than a section.
    pub slow_seconds: f64,
    /// The instrument is held from this many seconds before its spool is full. Default 5: holding is the last resort, but
    /// an instrument stops only at its next stopping point.
    pub hold_seconds: f64,
    /// Time in which a command to the instrument takes effect: one mFOV of a multi-beam scope, one slice of a block-face
    /// one. With less room than the instrument fills in this time (2 to 40 % of the spool) it is held. Default 4 s.
    pub reaction_seconds: f64,
    /// A loss that nothing can prevent is announced this many seconds before it comes. Default 300: somebody has to walk
    /// to the microscope.
    pub announce_seconds: f64,
    /// A buffer less full than this asks for nothing, however fast it fills. Default 0.3: the prediction from a nearly empty
    /// buffer is mostly noise.
    pub act_above: f64,
    /// A buffer must be emptied to this share before its rung is left. Default 0.2: enough is left for whoever drains it
    /// to be busy until the flow is back.
    pub low_water: f64,
    /// At `spool_only` the head takes tiles only while the line is less full than this. Default 0.5: the line always has
    /// something to do, and what was spooled comes as fast as it is worked off, not as fast as the link is.
    pub intake_below: f64,
    /// How much better than on entering the prediction must be for leaving. Default 2.
    pub leave_factor: f64,
    /// Shortest time on a rung, in seconds; only imminent overflow (`hold_seconds`) ends it sooner. Default 20: the rates
    /// have then forgotten the rung before.
    pub dwell_seconds: f64,
    /// A second fall within this time goes to the deepest rung that helps: what did not help is not tried again in
    /// smaller steps. Default 120.
    pub episode_seconds: f64,
    /// Time constant of the rates, in seconds. Default 8: tiles come in bursts of one mFOV.
    pub rate_seconds: f64,
    /// A gap between two steps longer than this (or a negative one) is a clock that jumped: the rates sit it out.
    /// Default 30.
    pub longest_gap_seconds: f64,
    /// The slowest that the instrument is asked to go, as a share of its own speed. Default 0.05; below that it is held.
    pub slowest_pace: f64,
}

impl Default for GovernConfig {
    fn default() -> Self {
        Self {
            lighter_seconds: 300.0,
            stitch_only_seconds: 120.0,
            spool_only_seconds: 30.0,
            slow_seconds: 60.0,
            hold_seconds: 5.0,
            reaction_seconds: 4.0,
            announce_seconds: 300.0,
            act_above: 0.3,
            low_water: 0.2,
            intake_below: 0.5,
            leave_factor: 2.0,
            dwell_seconds: 20.0,
            episode_seconds: 120.0,
            rate_seconds: 8.0,
            longest_gap_seconds: 30.0,
            slowest_pace: 0.05,
        }
    }
}

impl GovernConfig {
    /// Seconds before overflow at which `rung` is entered.
    pub(crate) fn enter_seconds(&self, rung: Rung) -> f64 {
        match rung {
            Rung::Full => f64::INFINITY,
            Rung::LighterSegmentation => self.lighter_seconds,
            Rung::StitchOnly => self.stitch_only_seconds,
            Rung::SpoolOnly => self.spool_only_seconds,
            Rung::Slow => self.slow_seconds,
            Rung::Hold => self.hold_seconds,
        }
    }

    /// Everything that is wrong with the keys, as (key, what is wrong and what to write).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let seconds = [
            ("hold_seconds", self.hold_seconds),
            ("slow_seconds", self.slow_seconds),
            ("spool_only_seconds", self.spool_only_seconds),
            ("stitch_only_seconds", self.stitch_only_seconds),
            ("lighter_seconds", self.lighter_seconds),
            ("reaction_seconds", self.reaction_seconds),
            ("announce_seconds", self.announce_seconds),
            ("dwell_seconds", self.dwell_seconds),
            ("episode_seconds", self.episode_seconds),
            ("rate_seconds", self.rate_seconds),
            ("longest_gap_seconds", self.longest_gap_seconds),
        ];
        for (key, value) in seconds {
            if !(value > 0.0 && value.is_finite()) {
                found.push((key, format!("{value} s; write a number of seconds above 0")));
            }
        }
        if !(self.lighter_seconds >= self.stitch_only_seconds && self.stitch_only_seconds >= self.spool_only_seconds) {
            found
                .push(("lighter_seconds", "the rungs must come in order: lighter >= stitch_only >= spool_only".into()));
        }
        if self.slow_seconds < self.hold_seconds {
            found.push(("slow_seconds", "slowing must come before holding: slow_seconds >= hold_seconds".into()));
        }
        if !(self.low_water > 0.0 && self.low_water < self.act_above && self.act_above < 1.0) {
            found.push(("low_water", "write 0 < low_water < act_above < 1".into()));
        }
        if !(self.intake_below > self.low_water && self.intake_below < 1.0) {
            found.push(("intake_below", format!("{}; write a share above low_water and below 1", self.intake_below)));
        }
        if !(self.leave_factor >= 1.0 && self.leave_factor.is_finite()) {
            found.push(("leave_factor", format!("{}; write at least 1", self.leave_factor)));
        }
        if !(self.slowest_pace > 0.0 && self.slowest_pace <= 1.0) {
            found.push(("slowest_pace", format!("{}; write a share of the full speed in (0, 1]", self.slowest_pace)));
        }
        found
    }
}
