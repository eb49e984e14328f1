//! A data set as an instrument: the same events a scope gives, in order, as fast as they are taken.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use kinesin_stream::ids::{MfovId, TileKey};
use kinesin_stream::plan::{RunPlan, SectionPlan};
use kinesin_stream::tile::Reason;

use super::Dataset;
use crate::instrument::{Command, Event, Instrument, InstrumentError, RawImage, RawTile};

/// Reads the tiles of a data set from disk, section by section in order of z, one file at a time. It stops between mFOVs
/// when told to hold. A file that is not there, or is recorded as lost, is a lost tile.
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
                Event::SectionBegins(section.clone())
            }
            Step::MfovBegins => {
                next.step = Step::Tile;
                Event::MfovBegins(section.mfovs[self.at.mfov].id)
            }
            Step::Tile => return self.tile(section, next).await.map(Some),
            Step::SectionEnds => {
                next = Place { section: self.at.section + 1, ..Place::default() };
                Event::SectionEnds(section.section)
            }
        };
        Ok(Some((event, next)))
    }

    async fn tile(&self, section: &SectionPlan, mut next: Place) -> Result<(Event, Place), InstrumentError> {
        let mfov = &section.mfovs[self.at.mfov];
        let tile = mfov.tiles.get(self.at.tile).filter(|_| !self.skip.contains(&mfov.id));
        let Some(tile) = tile else {
            let more = self.at.mfov + 1 < section.mfovs.len();
            next.step = if more { Step::MfovBegins } else { Step::SectionEnds };
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
                Event::SectionAmended(_) => panic!("nothing is taken again"),
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
