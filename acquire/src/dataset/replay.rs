//! A data set as an instrument: the same events a scope gives, in order, as fast as they are taken.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use kinesin_stream::ids::{MfovId, TileKey};
use kinesin_stream::plan::{MfovPlan, RunPlan, SectionPlan};
use kinesin_stream::tile::Reason;

use super::Dataset;
use crate::instrument::{Command, Event, Instrument, InstrumentError, RawImage, RawTile};

/// Reads the tiles of a data set from disk, section by section in order of z, one file at a time. It stops between mFOVs
/// when told to hold. A file that is not there, or is recorded as lost, is a lost tile. Retakes that made a later version of a
/// section's result do so again: they are promised when the section has ended.
#[derive(Debug)]
pub struct Recorded {
    data: Arc<Dataset>,
    at: Place,
    skip: BTreeSet<MfovId>,
    held: bool,
}

/// The event that comes next.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    section: usize,
    revision: u32,
    mfov: usize,
    tile: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug, Default)]
enum Step {
    #[default]
    SectionBegins,
    MfovBegins,
    Tile,
    SectionEnds,
}

impl Recorded {
    /// From the first tile.
    pub fn new(data: Arc<Dataset>) -> Self {
        Self { data, at: Place::default(), skip: BTreeSet::new(), held: false }
    }

    /// What is replayed.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.data
    }

    /// The next event and the place after it; nothing is changed, so that a dropped call loses nothing.
    async fn peek(&self) -> Result<Option<(Event, Place)>, InstrumentError> {
        let mut next = self.at;
        let Some(section) = self.data.sections.get(self.at.section) else { return Ok(None) };
        let event = match self.at.step {
            Step::SectionBegins => {
                next.step = if section.mfovs.is_empty() { Step::SectionEnds } else { Step::MfovBegins };
                let whole = self.at.revision == section.last_revision();
                let plan = if whole { section.clone() } else { Arc::new(section.as_of(self.at.revision)) };
                if self.at.revision > 0 { Event::SectionAmended(plan) } else { Event::SectionBegins(plan) }
            }
            Step::MfovBegins => {
                next.step = Step::Tile;
                Event::MfovBegins(self.stop(section).id)
            }
            Step::Tile => return self.tile(section, next).await.map(Some),
            Step::SectionEnds => {
                next = match self.at.revision {
                    r if r < section.last_revision() => {
                        Place { section: self.at.section, revision: r + 1, ..Place::default() }
                    }
                    _ => Place { section: self.at.section + 1, ..Place::default() },
                };
                Event::SectionEnds(section.section)
            }
        };
        Ok(Some((event, next)))
    }

    /// Where the stage is.
    fn stop<'a>(&self, section: &'a SectionPlan) -> &'a MfovPlan {
        let mut stops = section.mfovs.iter().filter(|m| m.revision == self.at.revision);
        stops.nth(self.at.mfov).expect("the place is one of the plan")
    }

    async fn tile(&self, section: &SectionPlan, mut next: Place) -> Result<(Event, Place), InstrumentError> {
        let mfov = self.stop(section);
        let tile = mfov.tiles.get(self.at.tile).filter(|_| !self.skip.contains(&mfov.id));
        let Some(tile) = tile else {
            let stops = section.mfovs.iter().filter(|m| m.revision == self.at.revision).count();
            next.step = if self.at.mfov + 1 < stops { Step::MfovBegins } else { Step::SectionEnds };
            (next.mfov, next.tile) = (self.at.mfov + 1, 0);
            return Ok((Event::MfovEnds(mfov.id), next));
        };
        next.tile += 1;
        Ok((self.load(tile.key).await?, next))
    }

    async fn load(&self, key: TileKey) -> Result<Event, InstrumentError> {
        let Some(path) = self.data.path(key) else {
            let unknown = || Reason::NotAcquired("the data set has no file for it".into());
            return Ok(Event::TileLost(key, self.data.lost(key).cloned().unwrap_or_else(unknown)));
        };
        match tokio::fs::read(path).await {
            Ok(file) => Ok(Event::Tile(RawTile { key, image: RawImage::File(Bytes::from(file)) })),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Event::TileLost(key, Reason::NotAcquired(format!("no file {}", path.display()))))
            }
            Err(source) => Err(InstrumentError::Io { path: path.into(), source }),
        }
    }
}

impl Instrument for Recorded {
    fn plan(&self) -> &RunPlan {
        &self.data.plan
    }

    async fn next(&mut self) -> Result<Option<Event>, InstrumentError> {
        if self.held
            && matches!(self.at.step, Step::SectionBegins | Step::MfovBegins)
            && self.at.section < self.data.sections.len()
        {
            // Waits until the call is dropped for a command.
            std::future::pending::<()>().await;
        }
        let Some((event, next)) = self.peek().await? else { return Ok(None) };
        self.at = next;
        Ok(Some(event))
    }

    async fn command(&mut self, command: Command) -> Result<(), InstrumentError> {
        match command {
            Command::Hold => self.held = true,
            Command::Go => self.held = false,
            Command::Skip(mfov) => drop(self.skip.insert(mfov)),
            Command::Kept(_) => {}
            // It has no speed of its own: whoever takes the tiles sets the pace.
            Command::Slow(_) => return Err(InstrumentError::Refused { instrument: "a recorded data set", command }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kinesin_stream::ids::Attempt;

    use super::super::tests::recorded_run;
    use super::*;

    async fn told(instrument: &mut Recorded) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(event) = instrument.next().await.unwrap() {
            all.push(match event {
                Event::SectionBegins(s) => format!("begins {}", s.serial.0),
                Event::MfovBegins(m) => format!("stop {}", m.mfov),
                Event::Tile(t) => match t.image {
                    RawImage::File(f) => {
                        format!("tile {} {}", t.key.beam.0, crate::decode::decode(&f).unwrap().width())
                    }
                    RawImage::Pixels(_) => "pixels".into(),
                },
                Event::TileLost(key, reason) => format!("lost {} {reason}", key.beam.0),
                Event::MfovEnds(m) => format!("stopped {}", m.mfov),
                Event::SectionAmended(s) => format!("amended {} {}", s.serial.0, s.version),
                Event::SectionEnds(s) => format!("ended {}", s.0),
            });
        }
        all
    }

    #[tokio::test]
    async fn every_promised_tile_comes_or_is_lost_before_its_stop_ends() {
        let dir = tempfile::tempdir().unwrap();
        recorded_run(dir.path());
        std::fs::remove_file(dir.path().join("sections/0000/tiles/m1b1.png")).unwrap();
        let data = Arc::new(Dataset::open(dir.path()).unwrap());
        let mut instrument = Recorded::new(data.clone());
        let events = told(&mut instrument).await;
        let start =
            ["begins 0", "stop 0", "tile 0 8", "lost 1 not acquired: beam off", "stopped 0", "stop 1", "tile 0 8"];
        assert_eq!(events[..7], start);
        assert!(
            events[7].starts_with("lost 1 not acquired: no file") && events[7].ends_with("m1b1.png"),
            "{}",
            events[7]
        );
        assert_eq!(events[8..11], ["stopped 1", "ended 100", "begins 1"]);
        assert_eq!(events.len(), 2 * 10);
    }

    #[tokio::test(start_paused = true)]
    async fn it_holds_between_stops_skips_what_is_durable_and_refuses_to_be_slow() {
        let dir = tempfile::tempdir().unwrap();
        recorded_run(dir.path());
        let data = Arc::new(Dataset::open(dir.path()).unwrap());
        let mut instrument = Recorded::new(data.clone());
        for _ in 0..2 {
            instrument.next().await.unwrap().unwrap();
        }
        instrument.command(Command::Hold).await.unwrap();
        for _ in 0..3 {
            instrument.next().await.unwrap().unwrap();
        }
        let waiting = tokio::time::timeout(Duration::from_secs(3600), instrument.next()).await;
        assert!(waiting.is_err(), "held at the next stop");
        instrument.command(Command::Skip(data.sections()[0].mfovs[1].id)).await.unwrap();
        assert!(instrument.command(Command::Slow(0.5)).await.is_err());
        instrument.command(Command::Go).await.unwrap();
        assert_eq!(told(&mut instrument).await[..3], ["stop 1", "stopped 1", "ended 100"]);
    }

    #[tokio::test]
    async fn retakes_of_a_later_result_are_promised_when_the_section_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        recorded_run(dir.path());
        let path = dir.path().join("sections/0000/plan.json");
        let plan: SectionPlan = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut stop = plan.mfovs[1].clone();
        (stop.id.attempt, stop.revision) = (Attempt(1), 1);
        stop.tiles.truncate(1);
        (stop.tiles[0].key.mfov, stop.tiles[0].name) = (stop.id, "again.png".into());
        std::fs::copy(
            dir.path().join("sections/0000/tiles/m1b0.png"),
            dir.path().join("sections/0000/tiles/again.png"),
        )
        .unwrap();
        std::fs::write(&path, serde_json::to_vec(&plan.amended([stop])).unwrap()).unwrap();
        let mut instrument = Recorded::new(Arc::new(Dataset::open(dir.path()).unwrap()));
        let events = told(&mut instrument).await;
        let again = ["ended 100", "amended 0 1", "stop 1", "tile 0 8", "stopped 1", "ended 100", "begins 1"];
        assert_eq!(events[9..16], again);
    }

    #[test]
    fn a_recorded_run_with_a_wrong_plan_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        recorded_run(dir.path());
        let path = dir.path().join("sections/0001/plan.json");
        let plan = std::fs::read_to_string(&path).unwrap();
        for (from, to, told) in [
            ("m0b1.png", "m0b0.png", "two tiles are named m0b0.png"),
            ("m0b0.png", "../m0b0.png", "is not a plain file name"),
            ("\"serial\":1", "\"serial\":2", "serial is 2"),
            ("{\"x\":8,\"y\":6}", "{\"x\":9,\"y\":6}", "is 9 x 6 px"),
        ] {
            assert!(plan.contains(from), "{from} in {plan}");
            std::fs::write(&path, plan.replace(from, to)).unwrap();
            let error = Dataset::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
