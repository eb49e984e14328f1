//! Reads mFOV streams: lease, then read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kinesin_backpressure::{Bytes, Cost, Sender};
use quinn::{Connection, RecvStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::shared::{Shared, lock};
use super::wire::{FrameHead, Kind, Step, ToScope, read_frame, read_opening};
use super::{CODE_DAMAGED, End, peer_said};
use crate::ids::TileKey;
use crate::ledger::{ContentHash, Duplicates};
use crate::pixels::Pixels;
use crate::plan::SectionPlan;
use crate::stage::Flow;
use crate::tile::{Loss, Reason, Tile};

/// Reads every mFOV stream that the scope opens; QUIC bounds how many there are.
pub(super) async fn mfovs(shared: &Arc<Shared>, connection: &Connection, tiles: &Sender<Flow<Tile>>) -> End {
    let mut reading = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    let (shared, tiles) = (shared.clone(), tiles.clone());
                    reading.spawn(async move { read_mfov(&shared, stream, &tiles).await });
                }
                Err(error) => return error.into(),
            },
            Some(done) = reading.join_next() => match done {
                Ok(Ok(())) => {}
                Ok(Err(End::Damaged(mfov))) => {
                    tracing::warn!(%mfov, "arrived damaged; it is sent again");
                    lock(&shared.summary).damaged += 1;
                    shared.desk.say(ToScope::Again(mfov));
                }
                // The scope gave this stream up, or is going down: then the connection says so next.
                Ok(Err(End::Done)) => {}
                Ok(Err(end)) => return end,
                Err(error) => return peer_said(format!("a frame that the reader failed on: {error}")),
            },
        }
    }
}

async fn read_mfov(shared: &Shared, mut stream: RecvStream, tiles: &Sender<Flow<Tile>>) -> Result<(), End> {
    let mfov = patient(shared, read_opening(&mut stream)).await?;
    let plan = patient(shared, shared.plan(mfov.section)).await?;
    let at = plan.mfovs.binary_search_by_key(&mfov, |m| m.id);
    let promised: BTreeSet<TileKey> = at.into_iter().flat_map(|at| &plan.mfovs[at].tiles).map(|t| t.key).collect();
    let settled = || tokio::task::block_in_place(|| shared.ledger.is_settled(mfov));
    let _reading = shared.desk.begin(mfov, settled).map_err(|e| End::Fatal(e.into()))?;
    shared.reached(vec![mfov], Step::Sent).await?;
    let mut seen = BTreeSet::new();
    let mut repeated = BTreeMap::new();
    loop {
        let frame = patient(shared, read_frame(&mut stream)).await?;
        if frame.kind == Kind::End {
            break;
        }
        if !promised.contains(&frame.key) {
            return Err(peer_said(format!("{} in the stream of {mfov}, whose plan does not hold it", frame.key)));
        }
        if matches!(frame.kind, Kind::Again | Kind::Other) {
            if !seen.is_empty() {
                return Err(peer_said(format!("a repeated {} after the first tile of {mfov}", frame.key)));
            }
            let count = repeated.entry(frame.key).or_insert_with(Duplicates::default);
            *(if frame.kind == Kind::Again { &mut count.same } else { &mut count.other }) += u64::from(frame.width);
            continue;
        }
        if seen.is_empty() && !shared.desk.is_settled(mfov) {
            // Before any of its tiles goes on: the mFOV cannot be settled without them.
            shared.ledger.note_repeated(mfov, std::mem::take(&mut repeated).into_iter().collect());
        }
        let body = match frame.kind {
            Kind::Tile => tile(shared, &mut stream, tiles, &plan, &frame).await,
            _ => loss(shared, &mut stream, tiles, &plan, &frame).await,
        };
        if matches!(body, Err(End::Damaged(_))) {
            // Nothing more of it is wanted; it comes again whole. Stopping a stream that has ended is no fault.
            stream.stop(CODE_DAMAGED).ok();
        }
        body?;
        seen.insert(frame.key);
    }
    if seen.len() < promised.len() {
        return Err(peer_said(format!("a stream of {mfov} without {} of its tiles", promised.len() - seen.len())));
    }
    if shared.desk.is_settled(mfov) {
        shared.desk.say(ToScope::Durable(mfov));
    }
    Ok(())
}

async fn tile(
    shared: &Shared,
    stream: &mut RecvStream,
    tiles: &Sender<Flow<Tile>>,
    plan: &Arc<SectionPlan>,
    frame: &FrameHead,
) -> Result<(), End> {
    let bytes = Bytes(u64::from(frame.body));
    let most = shared.config.settings.max_tile;
    if bytes > most {
        return Err(peer_said(format!("{} of {bytes}; at most {most} are accepted (link.max_tile)", frame.key)));
    }
    if !shared.desk.wants(frame.key) {
        return skip(shared, stream, frame.body).await;
    }
    let slot = {
        let _waiting = shared.waits();
        tiles.reserve(bytes).await.map_err(End::Closed)?
    };
    let mut data = shared.spare.take(frame.body as usize);
    let found = read_body(shared, stream, &mut data).await?;
    let data = shared.spare.lend(data);
    if found != frame.hash {
        return Err(End::Damaged(frame.key.mfov));
    }
    let pixels = Pixels::new(frame.width as usize, frame.height as usize, data);
    let tile = Tile { key: frame.key, plan: plan.clone(), pixels, hash: found };
    let passed = shared.desk.pass(frame.key, || slot.send(Flow::Item(tile))).map_err(End::Closed)?;
    let mut summary = lock(&shared.summary);
    if passed {
        summary.tiles += 1;
        summary.bytes += bytes.0;
    } else {
        summary.sent_again += 1;
    }
    Ok(())
}

async fn loss(
    shared: &Shared,
    stream: &mut RecvStream,
    tiles: &Sender<Flow<Tile>>,
    plan: &Arc<SectionPlan>,
    frame: &FrameHead,
) -> Result<(), End> {
    const LONGEST: u32 = 64 << 10;
    if frame.body > LONGEST {
        return Err(peer_said(format!("a reason of {} bytes for the loss of {}", frame.body, frame.key)));
    }
    if !shared.desk.wants(frame.key) {
        return skip(shared, stream, frame.body).await;
    }
    let mut json = vec![0; frame.body as usize];
    if read_body(shared, stream, &mut json).await? != frame.hash {
        return Err(End::Damaged(frame.key.mfov));
    }
    let reason: Reason = serde_json::from_slice(&json).map_err(|e| peer_said(format!("an unknown reason: {e}")))?;
    let loss = Loss { key: frame.key, plan: plan.clone(), reason };
    let slot = {
        let _waiting = shared.waits();
        tiles.reserve(loss.cost()).await.map_err(End::Closed)?
    };
    if shared.desk.pass(frame.key, || slot.send(Flow::Lost(loss))).map_err(End::Closed)? {
        lock(&shared.summary).losses += 1;
    }
    Ok(())
}

/// Reads over a body that came before.
async fn skip(shared: &Shared, stream: &mut RecvStream, bytes: u32) -> Result<(), End> {
    let mut left = bytes as usize;
    while left > 0 {
        let chunk = patient(shared, async { Ok(stream.read_chunk(left, true).await?) }).await?;
        let chunk = chunk.ok_or(End::Done)?;
        left -= chunk.bytes.len();
    }
    lock(&shared.summary).sent_again += 1;
    Ok(())
}

/// Reads a body into all of `body`, whose bytes were leased, and gives its BLAKE3. In pieces: few enough that asking for them
/// costs nothing, short enough that they are hashed while they are still in the processor's cache.
async fn read_body(shared: &Shared, stream: &mut RecvStream, body: &mut [u8]) -> Result<ContentHash, End> {
    const PIECE: usize = 128 << 10;
    let mut hasher = blake3::Hasher::new();
    for piece in body.chunks_mut(PIECE) {
        let mut done = 0;
        while done < piece.len() {
            let got = patient(shared, async { Ok(stream.read(&mut piece[done..]).await?) }).await?;
            done += got.ok_or(End::Done)?;
        }
        hasher.update(piece);
    }
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}

/// Waits for what the scope has begun, but not for ever.
async fn patient<T>(shared: &Shared, what: impl Future<Output = Result<T, End>>) -> Result<T, End> {
    let stall = shared.config.settings.stall();
    let stalled =
        |_elapsed| End::Stalled(format!("it began an mFOV and sent nothing of it for {:.0} s", stall.as_secs_f64()));
    timeout(stall, what).await.map_err(stalled)?
}
