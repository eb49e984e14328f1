//! Room in the spool: who waits for it, and what the instrument is asked meanwhile.

use std::time::{Duration, Instant};

use kinesin_backpressure::Bytes;
use kinesin_backpressure::governor::Pace;
use kinesin_backpressure::spool::NoRoom;
use kinesin_stream::link::Asked;
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::admission::Admission;
use super::{AdmitError, AdmitEvent, AdmitSummary, mfov_bytes, tell, tile_bytes};
use crate::instrument::{Command, Instrument};

/// How fast the instrument goes, and why.
pub(super) struct Flow {
    releases: watch::Receiver<u64>,
    governor: Option<watch::Receiver<Pace>>,
    /// What the governor wants.
    wish: Pace,
    /// There is no room, and the instrument was asked to hold.
    full: Option<NoRoom>,
    /// It refused to hold.
    refused: bool,
    /// It refused to go slower.
    refused_slow: bool,
    /// That tiles will be lost was said, and no tile fitted since.
    announced: bool,
    /// Since when it is held.
    since: Option<Instant>,
    /// Reminds people that there is no room.
    reminder: Reminder,
}

/// Says when people are told once more that there is no room: a minute after it began, and each minute from then on.
#[derive(Debug, Default)]
struct Reminder {
    began: Option<Duration>,
    told: Duration,
}

/// Why something did not go into the spool.
#[derive(Debug)]
pub(super) enum Roomless {
    /// The link ended while there was no room.
    LinkEnded,
    /// The instrument cannot be held.
    CannotHold(NoRoom),
}

/// How often a full spool is looked at again, so that people are reminded in time.
const LOOK: Duration = Duration::from_secs(1);
/// How often a full disk is tried: nobody tells when others make room on it.
const DISK: Duration = Duration::from_millis(250);

/// Time between two reminders.
const REMIND: Duration = Duration::from_secs(60);

impl Reminder {
    /// There is no room at `now`, a time since any beginning. `Some` is for how long, where people are to be told.
    fn no_room(&mut self, now: Duration) -> Option<Duration> {
        let began = *self.began.get_or_insert_with(|| {
            self.told = now;
            now
        });
        (now.saturating_sub(self.told) >= REMIND).then(|| {
            self.told = now;
            now.saturating_sub(began)
        })
    }

    /// There is room again.
    fn room(&mut self) {
        self.began = None;
    }
}

impl Flow {
    pub(super) fn new(releases: watch::Receiver<u64>, governor: Option<watch::Receiver<Pace>>) -> Self {
        Self {
            releases,
            governor,
            wish: Pace::Go,
            full: None,
            refused: false,
            refused_slow: false,
            announced: false,
            since: None,
            reminder: Reminder::default(),
        }
    }

    /// Waits until there is a reason to [`Admission::steer`]. Cancel-safe.
    pub(super) async fn turned(&mut self) {
        let never = std::future::pending::<()>;
        let released = async {
            if self.full.is_none() || self.releases.changed().await.is_err() {
                never().await;
            }
        };
        let governed = async {
            let Some(pace) = &mut self.governor else { return never().await };
            if pace.changed().await.is_err() {
                // Whoever governed is gone: it goes on as told last.
                never().await;
            }
        };
        tokio::select! {
            () = released => {}
            () = governed => {}
        }
    }

    /// Ends the count of the time for which the instrument was held.
    pub(super) fn stop_counting(&mut self, summary: &mut AdmitSummary) -> Option<Duration> {
        let held = self.since.take()?.elapsed();
        summary.hold_seconds += held.as_secs_f64();
        Some(held)
    }
}

impl Admission {
    /// Puts something into the spool; waits for room, with the instrument held meanwhile. Where that cannot be held, it waits
    /// only for what `must` go in.
    pub(super) async fn with_room<I: Instrument, T>(
        &mut self,
        instrument: &mut I,
        put: impl Fn(&Self) -> Result<Result<T, NoRoom>, AdmitError>,
        must: bool,
    ) -> Result<Result<T, Roomless>, AdmitError> {
        let began = Instant::now();
        loop {
            self.flow.releases.mark_unchanged();
            let why = match block_in_place(|| put(self))? {
                Ok(done) => {
                    // The table of an mFOV may pass the capacity: that it fits says nothing.
                    self.flow.announced &= must;
                    self.flow.reminder.room();
                    self.steer(instrument).await?;
                    return Ok(Ok(done));
                }
                Err(why) => why,
            };
            let ends = why == NoRoom::Disk || self.is_coming() || self.flow.releases.has_changed().unwrap_or(false);
            if !ends {
                return Err(self.too_small());
            }
            if !self.hold(instrument, why).await? && !must {
                return Ok(Err(Roomless::CannotHold(why)));
            }
            if let Some(waited) = self.flow.reminder.no_room(began.elapsed()) {
                self.remind(why, waited);
            }
            tokio::select! {
                _ = self.flow.releases.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
                synced = Self::synced(&mut self.syncing) => self.kept(synced?, instrument).await?,
                () = tokio::time::sleep(DISK), if why == NoRoom::Disk => {}
                () = self.scope.closed() => return Ok(Err(Roomless::LinkEnded)),
            }
        }
    }

    /// Asks the instrument for what is right now: hold while there is no room, else what the governor wants.
    pub(super) async fn steer<I: Instrument>(&mut self, instrument: &mut I) -> Result<(), AdmitError> {
        if self.flow.full.is_some() && self.may_go() {
            self.flow.full = None;
            let seconds = self.flow.stop_counting(&mut self.summary).unwrap_or_default().as_secs_f64();
            self.config.on_event.tell(&AdmitEvent::Going { seconds });
            self.ask_wish(instrument).await?;
        }
        let wanted = self.flow.governor.as_mut().map_or(Pace::Go, |pace| *pace.borrow_and_update());
        if wanted != self.flow.wish {
            self.flow.wish = wanted;
            if self.flow.full.is_none() {
                self.ask_wish(instrument).await?;
            }
        }
        Ok(())
    }

    /// Nobody waits for room any more: an instrument that is held is let go.
    pub(super) async fn let_go<I: Instrument>(&mut self, instrument: &mut I) -> Result<(), AdmitError> {
        if self.flow.full.take().is_some() || self.flow.wish == Pace::Hold {
            (self.flow.wish, self.flow.governor) = (Pace::Go, None);
            self.ask_wish(instrument).await?;
        }
        Ok(())
    }

    async fn ask_wish<I: Instrument>(&mut self, instrument: &mut I) -> Result<(), AdmitError> {
        let obeyed = match self.flow.wish {
            Pace::Go => tell(instrument, Command::Go).await?,
            Pace::Slow(share) => tell(instrument, Command::Slow(share)).await?,
            Pace::Hold => tell(instrument, Command::Hold).await?,
        };
        if self.flow.wish == Pace::Hold && obeyed {
            self.start_counting();
        } else {
            self.flow.stop_counting(&mut self.summary);
        }
        self.flow.refused |= self.flow.wish == Pace::Hold && !obeyed;
        if matches!(self.flow.wish, Pace::Slow(_)) && !obeyed && !std::mem::replace(&mut self.flow.refused_slow, true) {
            // Whether it can stop at all decides whether a loss is to be announced: asked now, while there is room.
            self.flow.refused |= !tell(instrument, Command::Hold).await?;
            tell(instrument, Command::Go).await?;
        }
        self.say_asked();
        Ok(())
    }

    /// There is no room: holds the instrument; `false` where it cannot be held, which is announced.
    async fn hold<I: Instrument>(&mut self, instrument: &mut I, why: NoRoom) -> Result<bool, AdmitError> {
        if self.flow.full.is_some() {
            return Ok(true);
        }
        let (held, capacity) = (self.tiles.spool().held().0, self.tiles.spool().capacity().0);
        self.flow.refused = self.flow.refused || !tell(instrument, Command::Hold).await?;
        if self.flow.refused {
            if !std::mem::replace(&mut self.flow.announced, true) {
                let bytes_per_minute = (60.0 * self.plan.peak_tiles_per_second * tile_bytes(&self.plan) as f64) as u64;
                self.config.on_event.tell(&AdmitEvent::LossComing { why, held, capacity, bytes_per_minute });
            }
        } else {
            self.flow.full = Some(why);
            self.start_counting();
            self.config.on_event.tell(&AdmitEvent::Held { why, held, capacity });
        }
        self.say_asked();
        Ok(!self.flow.refused)
    }

    fn remind(&self, why: NoRoom, waited: Duration) {
        let spool = self.tiles.spool();
        let (held, capacity, folder) = (spool.held().0, spool.capacity().0, spool.folder().to_path_buf());
        let seconds = waited.as_secs_f64();
        self.config.on_event.tell(&AdmitEvent::StillFull { why, folder, held, capacity, seconds });
    }

    fn start_counting(&mut self) {
        if self.flow.since.is_none() {
            self.flow.since = Some(Instant::now());
            self.summary.holds += 1;
        }
    }

    /// Whether there is room for another mFOV, so that the instrument is not held again at its next tile.
    fn may_go(&self) -> bool {
        let spool = self.tiles.spool();
        let room = spool.capacity().0.saturating_sub(spool.held().0);
        // Of a disk it is not known; its next refusal holds again.
        self.flow.full == Some(NoRoom::Disk) || room >= mfov_bytes(&self.plan).0 || !self.is_coming()
    }

    /// Whether something in the spool will be released without more from the instrument.
    fn is_coming(&self) -> bool {
        self.syncing.is_some() || !self.ended.is_empty() || self.tiles.spool().ended_groups() > 0
    }

    fn too_small(&self) -> AdmitError {
        let open = self.open.len();
        let needed = Bytes(mfov_bytes(&self.plan).0 * (open as u64 + 1));
        AdmitError::SpoolTooSmall { open, capacity: self.tiles.spool().capacity(), needed }
    }

    fn say_asked(&self) {
        let held = self.flow.full.is_some() || (self.flow.wish == Pace::Hold && !self.flow.refused);
        let (holdable, slowable) = (!self.flow.refused, !self.flow.refused_slow);
        let obeyed = slowable || !matches!(self.flow.wish, Pace::Slow(_));
        let pace = if obeyed { self.flow.wish.share() } else { 1.0 };
        self.scope.asked(Asked { held, holdable, slowable, pace });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_without_room_is_told_once_a_minute_and_anew_when_it_fills_again() {
        let mut reminder = Reminder::default();
        let mut told = |range: std::ops::Range<u64>| -> Vec<u64> {
            let of = range.filter_map(|ms| reminder.no_room(Duration::from_millis(ms)));
            of.map(|d| d.as_secs()).collect()
        };
        assert_eq!(told(0..190_000), [60, 120, 180]);
        reminder.room();
        assert_eq!(reminder.no_room(Duration::from_secs(500)), None);
        assert_eq!(reminder.no_room(Duration::from_secs(560)), Some(REMIND));
    }
}
