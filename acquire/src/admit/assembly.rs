//! One mFOV while its tiles come, in any order and possibly again.

use std::collections::BTreeMap;

use kinesin_backpressure::{Bytes, Credit};
use kinesin_stream::ids::TileKey;
use kinesin_stream::ledger::ContentHash;
use kinesin_stream::link::{Frame, Shipment};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::MfovPlan;
use kinesin_stream::tile::Reason;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    tiles: BTreeMap<TileKey, Held>,
    lost: BTreeMap<TileKey, Reason>,
    credits: Vec<Credit>,
}

#[derive(Debug)]
struct Held {
    pixels: Pixels,
    hash: ContentHash,
    /// Contents of the others of this key.
    again: Vec<ContentHash>,
}

/// What a tile is to the assembly.
pub(super) enum Taken {
    /// The first of its key: lease, then [`Assembly::add`].
    New,
    /// Another of its key: noted, and nothing more to do.
    Again,
}

impl Assembly {
    /// Notes a tile that came before. Of different contents the one with the smaller hash is kept, so that the order in
    /// which they come does not matter; it takes the place and the lease of the other.
    pub(super) fn repeated(&mut self, key: TileKey, pixels: &Pixels, hash: ContentHash) -> Taken {
        let Some(held) = self.tiles.get_mut(&key) else { return Taken::New };
        if hash < held.hash {
            tracing::warn!(%key, "came twice with different content; the one with the smaller hash is kept");
            held.again.push(std::mem::replace(&mut held.hash, hash));
            held.pixels = pixels.clone();
        } else {
            held.again.push(hash);
        }
        Taken::Again
    }

    /// Takes the first tile of a key. Pixels win over the news of a loss.
    pub(super) fn add(&mut self, key: TileKey, pixels: Pixels, hash: ContentHash, credit: Credit) {
        self.lost.remove(&key);
        self.tiles.insert(key, Held { pixels, hash, again: Vec::new() });
        self.credits.push(credit);
    }

    /// Memory that its tiles hold.
    pub(super) fn held(&self) -> Bytes {
        self.credits.iter().map(Credit::bytes).sum()
    }

    /// Notes a loss. Of several reasons the smallest text is kept, whatever the order.
    pub(super) fn lost(&mut self, key: TileKey, reason: Reason) {
        if self.tiles.contains_key(&key) {
            return;
        }
        let kept = self.lost.entry(key).or_insert_with(|| reason.clone());
        if reason.to_string() < kept.to_string() {
            *kept = reason;
        }
    }

    /// The whole mFOV in key order; what is missing is lost because `why`.
    pub(super) fn shipment(mut self, mfov: &MfovPlan, why: &str) -> Shipment {
        let mut frames = Vec::with_capacity(mfov.tiles.len());
        for (key, held) in &self.tiles {
            frames.extend(held.again.iter().map(|hash| Frame::Again { key: *key, same: *hash == held.hash }));
        }
        for planned in &mfov.tiles {
            let key = planned.key;
            if let Some(held) = self.tiles.remove(&key) {
                frames.push(Frame::Tile { key, pixels: held.pixels, hash: held.hash });
            } else {
                let reason = self.lost.remove(&key).unwrap_or_else(|| Reason::NotAcquired(why.to_owned()));
                frames.push(Frame::Lost { key, reason });
            }
        }
        Shipment { mfov: mfov.id, frames, credits: self.credits }
    }
}
