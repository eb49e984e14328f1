//! Records at rest: four small binary ones an mFOV, so that a tile costs some ten bytes and a change touches few of them.
//!
//! | record | holds, of each tile in order of beam | written |
//! |---|---|---|
//! | standing | state, reason, time of each state | at every change |
//! | names | file name, as what differs from the one before | with the promise |
//! | contents | hash and place | when it is settled |
//! | qualities | what inspection measured, JSON | when it is settled |
//!
//! Integers are variable-length (`postcard`). Tiles of one mFOV mostly share their times: each distinct set of times is stored once.

use std::collections::BTreeMap;
use std::io::Read;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::row::{ContentHash, Place};
use super::state::{Counts, STATES, State, Times};
use crate::plan::MfovPlan;
use crate::tile::Reason;

/// What does not read back, or cannot be written.
pub(super) type Bad = String;

/// States of one mFOV.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Standing {
    /// Version of the section's plan that promised it.
    pub(super) since: u32,
    /// In order of beam.
    pub(super) tiles: Vec<Standpoint>,
}

/// State of one tile.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Standpoint {
    pub(super) beam: u16,
    pub(super) state: State,
    pub(super) reason: Option<Reason>,
    pub(super) times: Times,
}

/// [`Standing`] at rest. `left` comes first, so that it is read without the rest.
#[derive(Serialize, Deserialize)]
struct Rest {
    /// Tiles that are neither durable nor lost.
    left: u32,
    since: u32,
    beams: Vec<u16>,
    states: Vec<u8>,
    /// Of each tile: which of `times`; which of `reasons`, from 1, 0 for none.
    which: Vec<(u16, u16)>,
    times: Vec<[u64; STATES]>,
    reasons: Vec<String>,
}

impl Standing {
    /// All expected.
    pub(super) fn promised(plan: &MfovPlan, since: u32, unix_ms: u64) -> Self {
        let mut times = Times::default();
        times.enter(State::Expected, unix_ms);
        let tile = |t: &crate::plan::PlannedTile| Standpoint {
            beam: t.key.beam.0,
            state: State::Expected,
            reason: None,
            times,
        };
        Self { since, tiles: plan.tiles.iter().map(tile).collect() }
    }

    pub(super) fn find(&self, beam: u16) -> Option<usize> {
        self.tiles.binary_search_by_key(&beam, |t| t.beam).ok()
    }

    /// Tiles per state.
    pub(super) fn tally(&self) -> Counts {
        let mut counts = Counts::default();
        self.tiles.iter().for_each(|t| *counts.of(t.state) += 1);
        counts
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, Bad> {
        let mut rest = Rest {
            left: self.tiles.iter().filter(|t| t.state.is_open()).count() as u32,
            since: self.since,
            beams: self.tiles.iter().map(|t| t.beam).collect(),
            states: self.tiles.iter().map(|t| t.state as u8).collect(),
            which: Vec::with_capacity(self.tiles.len()),
            times: Vec::new(),
            reasons: Vec::new(),
        };
        for tile in &self.tiles {
            let times = index_of(&mut rest.times, tile.times.0);
            let reason = match &tile.reason {
                None => 0,
                Some(r) => 1 + index_of(&mut rest.reasons, serde_json::to_string(r).map_err(|e| e.to_string())?),
            };
            rest.which.push((times, reason));
        }
        encode(&rest)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let rest: Rest = decode(bytes)?;
        let (beams, states, which) = (rest.beams.len(), rest.states.len(), rest.which.len());
        if beams != states || beams != which {
            return Err(format!("{beams} beams, {states} states and {which} times"));
        }
        let reasons: Vec<Reason> = rest
            .reasons
            .iter()
            .map(|r| serde_json::from_str(r).map_err(|e| e.to_string()))
            .collect::<Result<_, Bad>>()?;
        let tiles = rest.beams.iter().zip(&rest.states).zip(&rest.which).map(|((beam, state), (times, reason))| {
            let state = State::from_index(*state).ok_or_else(|| format!("a state {state}"))?;
            let times = rest.times.get(usize::from(*times)).ok_or_else(|| format!("no times {times}"))?;
            let reason = match reason.checked_sub(1) {
                None => None,
                Some(i) => Some(reasons.get(usize::from(i)).ok_or_else(|| format!("no reason {i}"))?.clone()),
            };
            Ok(Standpoint { beam: *beam, state, reason, times: Times(*times) })
        });
        Ok(Self { since: rest.since, tiles: tiles.collect::<Result<_, Bad>>()? })
    }

    /// Whether every tile is durable or lost, from the record.
    pub(super) fn is_settled(bytes: &[u8]) -> Result<bool, Bad> {
        postcard::take_from_bytes::<u32>(bytes).map(|(left, _)| left == 0).map_err(|e| e.to_string())
    }

    /// The version that promised it, from the record.
    pub(super) fn since(bytes: &[u8]) -> Result<u32, Bad> {
        postcard::take_from_bytes::<(u32, u32)>(bytes).map(|((_, since), _)| since).map_err(|e| e.to_string())
    }
}

/// Where `item` is in `all`; appended if it is not there. Few are distinct.
fn index_of<T: PartialEq>(all: &mut Vec<T>, item: T) -> u16 {
    let at = all.iter().position(|known| *known == item).unwrap_or_else(|| {
        all.push(item);
        all.len() - 1
    });
    at as u16
}

/// Names of one mFOV's tiles, each as the length it shares with the one before, and the rest.
pub(super) fn encode_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<u8>, Bad> {
    let mut before = "";
    let mut rest: Vec<(u8, &str)> = Vec::new();
    for name in names {
        let same = name.bytes().zip(before.bytes()).take(255).take_while(|(a, b)| a == b).count();
        let same = (0..=same).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
        rest.push((same as u8, &name[same..]));
        before = name;
    }
    encode(&rest)
}

/// Inverse of [`encode_names`].
pub(super) fn decode_names(bytes: &[u8]) -> Result<Vec<String>, Bad> {
    let rest: Vec<(u8, String)> = decode(bytes)?;
    let mut names: Vec<String> = Vec::with_capacity(rest.len());
    for (same, rest) in rest {
        let before = names.last().map_or("", String::as_str);
        let start = before.get(..usize::from(same)).ok_or("a name that continues nothing")?;
        names.push(format!("{start}{rest}"));
    }
    Ok(names)
}

/// Hash and place of each tile that has them, by beam.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Contents(BTreeMap<u16, ([u8; 32], u64, u32, u32)>);

impl Contents {
    pub(super) fn insert(&mut self, beam: u16, hash: ContentHash, place: Place) {
        self.0.insert(beam, (hash.0, place.offset, place.width, place.height));
    }

    pub(super) fn get(&self, beam: u16) -> Option<(ContentHash, Place)> {
        let (hash, offset, width, height) = *self.0.get(&beam)?;
        Some((ContentHash(hash), Place { offset, width, height }))
    }
}

/// JSON of each tile that was measured, by beam.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Qualities(BTreeMap<u16, String>);

impl Qualities {
    pub(super) fn insert(&mut self, beam: u16, quality: &serde_json::Value) {
        self.0.insert(beam, quality.to_string());
    }

    pub(super) fn get(&self, beam: u16) -> Result<Option<serde_json::Value>, Bad> {
        self.0.get(&beam).map(|q| serde_json::from_str(q)).transpose().map_err(|e| e.to_string())
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Bad> {
    postcard::to_stdvec(value).map_err(|e| e.to_string())
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Bad> {
    postcard::from_bytes(bytes).map_err(|e| e.to_string())
}

/// Longest record that is decompressed, bytes: many times the plan of a section of some thousand mFOVs.
const LONGEST: u64 = 1 << 28;

/// Compressed, for what repeats itself and is read seldom: plans and qualities.
pub(super) fn squeeze(bytes: &[u8]) -> Result<Vec<u8>, Bad> {
    zstd::bulk::compress(bytes, 1).map_err(|e| e.to_string())
}

/// Inverse of [`squeeze`].
pub(super) fn unsqueeze(bytes: &[u8]) -> Result<Vec<u8>, Bad> {
    let mut plain = Vec::new();
    let decoder = zstd::stream::Decoder::new(bytes).map_err(|e| e.to_string())?;
    decoder.take(LONGEST + 1).read_to_end(&mut plain).map_err(|e| e.to_string())?;
    if plain.len() as u64 > LONGEST { Err(format!("more than {LONGEST} bytes")) } else { Ok(plain) }
}
