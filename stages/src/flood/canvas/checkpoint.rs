//! A block half done, as bytes, so that a killed run loses seconds and not a block.
//!
//! ```text
//! "KINFLOOD" | length of head, u64 | head, JSON | labels, runs of (u32 length, i32) | probability, runs of (u32, u8)
//!            | activation of the present object, f32 | BLAKE3 of all before
//! ```
//!
//! Little-endian. The head has what is small: counts, the queue of start points, the object being flooded. The activation is
//! that of the cuboid which the object has reached; elsewhere it is as a fresh block has it. Image, masks and start points are
//! made again from the volume. A block restored from these bytes goes on with the same next request and ends in the same bytes.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Canvas, KnownOverlap, Present};
use crate::flood::counters::{FloodCounters, Origin};
use crate::flood::queue::SeedState;

/// Takes a state.
type Keep = dyn Fn(&[u8]) + Send + Sync;

/// Where the half-done state of a block goes. Time and files are the caller's.
#[derive(Clone)]
pub struct Keeper {
    /// Whether a state is wanted now; asked before every request.
    pub due: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Takes it; replaces the one before.
    pub keep: Arc<Keep>,
}

/// A state that cannot be taken up.
#[derive(Debug, thiserror::Error)]
#[error("{0}; remove it to flood the block from its beginning")]
pub struct CheckpointError(pub String);

const MAGIC: &[u8; 8] = b"KINFLOOD";
const HASH: usize = 32;

#[derive(Serialize, Deserialize)]
struct Head {
    shape: [usize; 3],
    open: usize,
    last_label: i32,
    highest_known: i32,
    seeds: SeedState,
    continuations_left: usize,
    counters: FloodCounters,
    overlaps: Vec<KnownOverlap>,
    origins: Vec<Origin>,
    lost_in_a_row: u32,
    present: Option<SavedPresent>,
    label_runs: usize,
    probability_runs: usize,
}

#[derive(Serialize, Deserialize)]
struct SavedPresent {
    start: [usize; 3],
    label: Option<i32>,
    queue: VecDeque<[usize; 3]>,
    visited: Vec<[i64; 3]>,
    aside: VecDeque<[usize; 3]>,
    at: [usize; 3],
    low: [usize; 3],
    high: [usize; 3],
    steps: u64,
}

impl Canvas {
    /// With someone who keeps the state from time to time.
    #[must_use]
    pub fn kept_by(mut self, keeper: Keeper) -> Self {
        self.keeper = Some(keeper);
        self
    }

    pub(super) fn keep_if_due(&self) {
        if let Some(keeper) = self.keeper.as_ref().filter(|k| (k.due)()) {
            (keeper.keep)(&self.state());
        }
    }

    /// The state between two requests.
    pub fn state(&self) -> Vec<u8> {
        // every field by name: what is added to a canvas has to be thought of here
        let Self {
            rules: _,
            shape,
            image: _,
            tables: _,
            closed: _,
            labels,
            open,
            activation: _,
            seeds,
            continuations,
            highest_known,
            last_label,
            present,
            overlaps,
            counters,
            origins,
            barred: _,
            probability,
            lost_in_a_row,
            keeper: _,
        } = self;
        let (label_runs, probability_runs) = (runs(labels), runs(probability));
        let head = Head {
            shape: *shape,
            open: *open,
            last_label: *last_label,
            highest_known: *highest_known,
            seeds: seeds.state(),
            continuations_left: continuations.len(),
            counters: *counters,
            overlaps: overlaps.clone(),
            origins: origins.clone(),
            lost_in_a_row: *lost_in_a_row,
            present: present.as_ref().map(SavedPresent::of),
            label_runs: label_runs.len(),
            probability_runs: probability_runs.len(),
        };
        let head = serde_json::to_vec(&head).expect("numbers and lists");
        let mut bytes = MAGIC.to_vec();
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(head);
        for (n, label) in label_runs {
            bytes.extend(n.to_le_bytes());
            bytes.extend(label.to_le_bytes());
        }
        for (n, p) in probability_runs {
            bytes.extend(n.to_le_bytes());
            bytes.push(p);
        }
        if let Some(present) = present {
            self.reached(present, |i| bytes.extend(self.activation[i].to_le_bytes()));
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    /// Puts a block that was just made where [`Canvas::state`] left another.
    ///
    /// # Errors
    /// Where the bytes are damaged or those of another block.
    pub fn restore(mut self, state: &[u8]) -> Result<Self, CheckpointError> {
        let (head, mut rest) = read_head(state)?;
        if head.shape != self.shape || head.open != self.open || head.highest_known != self.highest_known {
            return Err(CheckpointError(format!(
                "the checkpoint is of a block of {:?} voxels, not of this one",
                head.shape
            )));
        }
        let voxels = self.labels.len();
        self.labels = spread(&mut rest, head.label_runs, voxels, i32::from_le_bytes)?;
        let asked = self.probability.len();
        self.probability = spread(&mut rest, head.probability_runs, asked, |[p]: [u8; 1]| p)?;
        self.seeds.restore(head.seeds);
        let gone = self.continuations.len().saturating_sub(head.continuations_left);
        self.continuations.drain(..gone);
        self.last_label = head.last_label;
        self.overlaps = head.overlaps;
        self.counters = head.counters;
        self.origins = head.origins;
        self.lost_in_a_row = head.lost_in_a_row;
        if let Some(saved) = head.present {
            let present = saved.present();
            if let Some(label) = present.label {
                self.fill_known(label);
            }
            let mut places = Vec::new();
            self.reached(&present, |i| places.push(i));
            for i in places {
                self.activation[i] = f32::from_le_bytes(take(&mut rest)?);
            }
            self.present = Some(present);
        }
        Ok(self)
    }

    /// Visits the voxels of the cuboid that the object has reached.
    fn reached(&self, present: &Present, mut visit: impl FnMut(usize)) {
        let (low, high) = self.reach(present);
        for z in low[0]..high[0] {
            for y in low[1]..high[1] {
                let row = self.index([z, y, 0]);
                (row + low[2]..row + high[2]).for_each(&mut visit);
            }
        }
    }
}

impl SavedPresent {
    fn of(p: &Present) -> Self {
        let Present { start, label, queue, visited, aside, at, low, high, steps } = p;
        let mut visited: Vec<_> = visited.iter().copied().collect();
        visited.sort_unstable();
        Self {
            start: *start,
            label: *label,
            queue: queue.clone(),
            visited,
            aside: aside.clone(),
            at: *at,
            low: *low,
            high: *high,
            steps: *steps,
        }
    }

    fn present(self) -> Present {
        let visited: HashSet<_> = self.visited.into_iter().collect();
        let Self { start, label, queue, aside, at, low, high, steps, .. } = self;
        Present { start, label, queue, visited, aside, at, low, high, steps }
    }
}

fn read_head(state: &[u8]) -> Result<(Head, &[u8]), CheckpointError> {
    let damaged = || CheckpointError("the checkpoint is damaged".into());
    let body = state.len().checked_sub(HASH).ok_or_else(damaged)?;
    let (body, hash) = state.split_at(body);
    if blake3::hash(body).as_bytes() != hash {
        return Err(damaged());
    }
    let mut rest = body.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let length = u64::from_le_bytes(take(&mut rest)?) as usize;
    let head = rest.get(..length).ok_or_else(damaged)?;
    let head = serde_json::from_slice(head).map_err(|e| CheckpointError(format!("the checkpoint's head: {e}")))?;
    Ok((head, &rest[length..]))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], CheckpointError> {
    let Some((head, tail)) = rest.split_first_chunk::<N>() else {
        return Err(CheckpointError("the checkpoint is too short".into()));
    };
    *rest = tail;
    Ok(*head)
}

/// Equal values in a row as one.
fn runs<T: Copy + PartialEq>(values: &[T]) -> Vec<(u32, T)> {
    let mut runs: Vec<(u32, T)> = Vec::new();
    for &v in values {
        match runs.last_mut() {
            Some((n, last)) if *last == v && *n < u32::MAX => *n += 1,
            _ => runs.push((1, v)),
        }
    }
    runs
}

fn spread<T: Copy, const N: usize>(
    rest: &mut &[u8],
    runs: usize,
    wanted: usize,
    value: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, CheckpointError> {
    let mut values = Vec::with_capacity(wanted);
    for _ in 0..runs {
        let n = u32::from_le_bytes(take(rest)?) as usize;
        let v = value(take(rest)?);
        if values.len() + n > wanted {
            break;
        }
        values.resize(values.len() + n, v);
    }
    if values.len() == wanted {
        return Ok(values);
    }
    Err(CheckpointError(format!("the checkpoint has values for another number of voxels than {wanted}")))
}
