//! Runs canvases through a network, several to a call.

use super::canvas::{Canvas, CanvasResult};
use super::counters::FloodCounters;
use super::rules::FloodRules;
use crate::runtime::{Network, NetworkError};

/// What a caller may watch and stop. Time comes from outside because stages have no clock.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told what was counted since the last call, and the seconds spent in the network; `false` stops the flood.
    pub progress: &'a (dyn Fn(&FloodCounters, f64) -> bool + Sync),
    /// Seconds since some fixed moment; a constant where nobody asks.
    pub seconds: &'a (dyn Fn() -> f64 + Sync),
}

impl Watch<'static> {
    /// Watches nothing.
    pub fn nothing() -> Self {
        Self { progress: &|_, _| true, seconds: &|| 0.0 }
    }
}

/// Why a flood ended early.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The caller asked for it.
    #[error("stopped on request")]
    Stopped,
}

/// Floods all canvases, at most `batch` at a time in one network call; results come in the order of `canvases`, the same
/// for every `batch`.
///
/// # Errors
/// Where the network fails or the watch says stop.
pub fn drive(
    rules: &FloodRules,
    canvases: impl IntoIterator<Item = Canvas>,
    network: &mut dyn Network,
    batch: usize,
    watch: &Watch<'_>,
) -> Result<Vec<CanvasResult>, DriveError> {
    let n: usize = rules.fov.iter().product();
    let batch = batch.max(1);
    let mut waiting = canvases.into_iter().enumerate();
    let mut active: Vec<(usize, Canvas)> = Vec::new();
    let mut done: Vec<(usize, CanvasResult)> = Vec::new();
    let (mut image, mut seed, mut logits) = (vec![0.0; n * batch], vec![0.0; n * batch], vec![0.0; n * batch]);
    loop {
        let mut counted = FloodCounters::default();
        let mut asked = 0;
        while asked < batch {
            if asked == active.len() {
                match waiting.next() {
                    Some(next) => active.push(next),
                    None => break,
                }
            }
            let at = asked * n..(asked + 1) * n;
            let canvas = &mut active[asked].1;
            let before = *canvas.counters();
            let goes_on = canvas.request(&mut image[at.clone()], &mut seed[at]);
            counted.add(&canvas.counters().since(&before));
            if goes_on {
                asked += 1;
            } else {
                let (order, canvas) = active.remove(asked);
                done.push((order, canvas.finish()));
            }
        }
        if asked == 0 {
            // what the last objects counted; there is nothing left to stop
            (watch.progress)(&counted, 0.0);
            break;
        }
        let before = (watch.seconds)();
        network.run(&[&image[..asked * n], &seed[..asked * n]], asked, &mut logits[..asked * n])?;
        let spent = (watch.seconds)() - before;
        for ((_, canvas), answer) in active.iter_mut().zip(logits.chunks_exact_mut(n)) {
            let before = *canvas.counters();
            canvas.apply(answer);
            counted.add(&canvas.counters().since(&before));
        }
        if !(watch.progress)(&counted, spent) {
            return Err(DriveError::Stopped);
        }
    }
    done.sort_by_key(|(order, _)| *order);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
