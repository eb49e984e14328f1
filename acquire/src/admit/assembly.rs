//! One mFOV while its tiles come, in any order and possibly again. The pixels are in the spool.

use std::collections::BTreeMap;

use kinesin_stream::ids::TileKey;
use kinesin_stream::ledger::{ContentHash, Duplicates};
use kinesin_stream::link::{KeptTile, Manifest};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, PlannedTile};
use kinesin_stream::tile::Reason;

use crate::decode::decode;
use crate::instrument::RawImage;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    tiles: BTreeMap<TileKey, Held>,
    lost: BTreeMap<TileKey, Reason>,
}

#[derive(Debug)]
struct Held {
    tile: KeptTile,
    /// How often others of this key came, by content.
    again: BTreeMap<ContentHash, u64>,
    /// From a run before: an instrument that gives it once more does not repeat itself.
    restored: bool,
}

/// What a tile is to the assembly.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The first of its key: spool it, then [`Assembly::add`].
    New,
    /// It comes once more after a restart: nothing to do.
    Restored,
    /// Another of its key: noted, and nothing more to do.
    Again,
    /// Another of its key whose content is to be kept instead of that of the first, which was noted: spool it, then
    /// [`Assembly::add`].
    Better,
}

impl Assembly {
    /// What a run before left of it.
    pub(super) fn restored(tiles: BTreeMap<TileKey, KeptTile>) -> Self {
        let held = |tile| Held { tile, again: BTreeMap::new(), restored: true };
        Self { tiles: tiles.into_iter().map(|(key, tile)| (key, held(tile))).collect(), lost: BTreeMap::new() }
    }

    /// Judges a tile, and notes one that came before. Of different contents the one with the smaller hash is kept, so that the
    /// order in which they come does not matter.
    pub(super) fn judge(&mut self, key: TileKey, hash: ContentHash) -> Taken {
        let Some(held) = self.tiles.get_mut(&key) else { return Taken::New };
        if std::mem::take(&mut held.restored) && held.tile.hash == hash {
            return Taken::Restored;
        }
        let better = hash < held.tile.hash;
        *held.again.entry(if better { held.tile.hash } else { hash }).or_default() += 1;
        if better {
            tracing::debug!(%key, "came twice with different content; the one with the smaller hash is kept");
            return Taken::Better;
        }
        Taken::Again
    }

    /// Takes a tile that is in the spool; gives back the one whose place it took. Pixels win over the news of a loss.
    pub(super) fn add(&mut self, key: TileKey, tile: KeptTile) -> Option<KeptTile> {
        self.lost.remove(&key);
        match self.tiles.get_mut(&key) {
            Some(held) => Some(std::mem::replace(&mut held.tile, tile)),
            None => {
                self.tiles.insert(key, Held { tile, again: BTreeMap::new(), restored: false });
                None
            }
        }
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
    pub(super) fn manifest(mut self, mfov: &MfovPlan, why: &str) -> Manifest {
        let mut manifest = Manifest::default();
        for (key, held) in &self.tiles {
            let mut count = Duplicates::default();
            for (hash, times) in &held.again {
                *(if *hash == held.tile.hash { &mut count.same } else { &mut count.other }) += times;
            }
            if count != Duplicates::default() {
                manifest.repeated.push((*key, count));
            }
        }
        for planned in &mfov.tiles {
            let key = planned.key;
            let lost = || self.lost.remove(&key).unwrap_or_else(|| Reason::NotAcquired(why.to_owned()));
            manifest.tiles.push((key, self.tiles.get(&key).map(|held| held.tile).ok_or_else(lost)));
        }
        manifest
    }
}

/// Decodes and checks; the reason is what is entered in the ledger.
pub(super) fn read(image: RawImage, promised: &PlannedTile) -> Result<(Pixels, ContentHash), Reason> {
    let pixels = match image {
        RawImage::Pixels(pixels) => pixels,
        RawImage::File(file) => decode(&file)?,
    };
    let (width, height) = (promised.size.x as usize, promised.size.y as usize);
    if (pixels.width(), pixels.height()) != (width, height) {
        let (w, h) = (pixels.width(), pixels.height());
        return Err(Reason::WrongShape(format!("{} is {w} x {h} px, promised were {width} x {height}", promised.name)));
    }
    let hash = ContentHash(pixels.hash());
    Ok((pixels, hash))
}
