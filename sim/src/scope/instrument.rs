//! The simulated scope as an instrument: pace, look-ahead, hold, slow, go, skip.
//!
//! It stops between mFOVs. Tiles are made ahead on threads of the scope's own, as many as fit into the look-ahead; which
//! tiles, and what is in them, does not depend on those threads.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use kinesin_acquire::instrument::{Command, Event, Instrument, InstrumentError, RawImage, RawTile};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::RunPlan;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::config::SimConfig;
use super::scene::Scene;
use super::source::SimError;
use super::transport::{Transport, Word};

/// Words with their tiles in the making.
type Coming = (Word, Option<JoinHandle<Pixels>>);

/// The simulated scope.
pub struct SimulatedScope {
    scene: Arc<Scene>,
    transport: Transport,
    /// What is said next, in order; the first `ahead` tiles of it are in the making.
    coming: VecDeque<Coming>,
    threads: Arc<rayon::ThreadPool>,
    look_ahead: usize,
    held: bool,
    /// Fraction of full speed.
    pace: f64,
    /// Earliest time of the next tile.
    due: Option<Instant>,
}

impl SimulatedScope {
    /// Opens the scope.
    ///
    /// # Errors
    /// As [`Scene::open`].
    pub fn open(config: SimConfig) -> Result<Self, SimError> {
        Self::over(Scene::open(config)?)
    }

    /// A scope over this scene.
    ///
    /// # Errors
    /// Where its threads cannot be made.
    pub fn over(scene: Arc<Scene>) -> Result<Self, SimError> {
        let pace = &scene.config().pace;
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(pace.threads)
            .thread_name(|i| format!("scope-{i}"))
            .build()
            .map_err(|e| SimError::Config(vec![format!("pace.threads = {}: {e}; use fewer", pace.threads)]))?;
        let tile = scene.plan().tile_px;
        // A tile in the making holds its light as 32-bit numbers beside its pixels.
        let tile_bytes = 5 * tile.x as usize * tile.y as usize;
        Ok(Self {
            transport: Transport::new(scene.clone()),
            look_ahead: ((pace.look_ahead_mib as usize * (1 << 20)) / tile_bytes).max(1),
            scene,
            coming: VecDeque::new(),
            threads: Arc::new(threads),
            held: false,
            pace: 1.0,
            due: None,
        })
    }

    /// Everything that is true of what this scope shows.
    pub fn scene(&self) -> &Arc<Scene> {
        &self.scene
    }

    /// Between two tiles at the present speed, `None` where there is no limit.
    fn interval(&self) -> Option<Duration> {
        let pace = &self.scene.config().pace;
        let speed = match (pace.speed, self.pace) {
            (s, p) if s > 0.0 => s * p,
            // Without a set speed, a slowed scope goes at that fraction of the nominal rate.
            (_, p) if p < 1.0 => p,
            _ => return None,
        };
        let tile = self.scene.plan().tile_px;
        let mpx = f64::from(tile.x) * f64::from(tile.y) / 1e6;
        Some(Duration::from_secs_f64(mpx / (pace.scope_mpx_per_s * speed)))
    }

    /// Starts the making of the first tiles to come.
    fn make_ahead(&mut self) {
        let tiles = self.coming.iter_mut().filter_map(|(word, making)| match word {
            Word::Tile(key) => Some((*key, making)),
            _ => None,
        });
        for (key, making) in tiles.take(self.look_ahead) {
            if making.is_none() {
                let (scene, threads) = (self.scene.clone(), self.threads.clone());
                *making = Some(tokio::task::spawn_blocking(move || threads.install(|| scene.tile(key))));
            }
        }
    }

    /// The event of a word that needs no pixels.
    fn event(word: &Word) -> Option<Event> {
        Some(match word {
            Word::SectionBegins(plan) => Event::SectionBegins(plan.clone()),
            Word::SectionAmended(plan) => Event::SectionAmended(plan.clone()),
            Word::MfovBegins(id) => Event::MfovBegins(*id),
            Word::Lost(key, reason) => Event::TileLost(*key, reason.clone()),
            Word::MfovEnds(id) => Event::MfovEnds(*id),
            Word::SectionEnds(id) => Event::SectionEnds(*id),
            Word::Tile(_) => return None,
        })
    }
}

impl Instrument for SimulatedScope {
    fn plan(&self) -> &RunPlan {
        self.scene.plan()
    }

    async fn next(&mut self) -> Result<Option<Event>, InstrumentError> {
        if self.coming.is_empty() {
            if self.held && !self.transport.at_last_stop() {
                // Only a command ends this, and a command can come only once this call is dropped.
                return pending().await;
            }
            self.coming = self.transport.next_stop().into_iter().map(|w| (w, None)).collect();
        }
        self.make_ahead();
        let interval = self.interval();
        let Some((word, making)) = self.coming.front_mut() else { return Ok(None) };
        if let Some(making) = making {
            if let (Some(due), Some(_)) = (self.due, interval) {
                sleep_until(due).await;
            }
            let pixels = making
                .await
                .map_err(|e| InstrumentError::Input(format!("the simulated scope could not make a tile: {e}")))?;
            let Word::Tile(key) = *word else { unreachable!("only tiles are made") };
            self.coming.pop_front();
            self.scene.check().map_err(|e| InstrumentError::Input(e.to_string()))?;
            let now = Instant::now();
            self.due = interval.map(|i| (self.due.unwrap_or(now) + i).max(now));
            return Ok(Some(Event::Tile(RawTile { key, image: RawImage::Pixels(pixels) })));
        }
        let event = Self::event(word);
        self.coming.pop_front();
        Ok(event)
    }

    async fn command(&mut self, command: Command) -> Result<(), InstrumentError> {
        match command {
            Command::Hold | Command::Slow(_) if !self.scene.config().pace.obeys => {
                return Err(InstrumentError::Refused { instrument: "simulated scope", command });
            }
            Command::Hold => self.held = true,
            Command::Go => (self.held, self.pace) = (false, 1.0),
            Command::Slow(fraction) if fraction > 0.0 && fraction <= 1.0 => {
                (self.held, self.pace) = (false, fraction);
            }
            Command::Slow(_) => return Err(InstrumentError::Refused { instrument: "simulated scope", command }),
            Command::Skip(mfov) => self.transport.skip(mfov),
            Command::Kept(_) => {}
        }
        Ok(())
    }
}
