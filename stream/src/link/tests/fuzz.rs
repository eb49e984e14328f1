//! No bytes of a peer make the link panic, take much memory, or be refused without a word: frames, and the control messages of
//! both directions. What is taken is written and read back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::status::ScopeStatus;
use super::super::wire::{FRAME, FrameHead, Kind, Step, ToHead, ToScope};
use super::plan;
use crate::fuzz::fuzz;
use crate::ids::{BeamId, MfovId, RegionId, SectionId, TileKey};
use crate::ledger::ContentHash;
use crate::tile::Reason;

fn key() -> TileKey {
    TileKey { mfov: MfovId::new(SectionId(7), RegionId(1), 3), beam: BeamId(60) }
}

#[test]
fn no_bytes_make_a_frame_panic() {
    let frame = |kind, (width, height, body)| {
        FrameHead { kind, key: key(), width, height, body, hash: ContentHash([5; 32]) }.encode().to_vec()
    };
    let seeds = [
        frame(Kind::Tile, (16, 12, 192)),
        frame(Kind::Lost, (0, 0, 30)),
        frame(Kind::Again, (2, 0, 0)),
        frame(Kind::Other, (1, 0, 0)),
        frame(Kind::End, (0, 0, 0)),
    ];
    fuzz("link frames", 256.0, &seeds, |bytes| {
        let bytes: &[u8; FRAME] = bytes.get(..FRAME).and_then(|b| b.try_into().ok()).ok_or("shorter than a frame")?;
        let head = FrameHead::decode(bytes)?;
        assert_eq!(FrameHead::decode(&head.encode()), Ok(head));
        Ok(())
    });
    let reasons = [Reason::NotAcquired("beam off".into()), Reason::SectionMissing, Reason::NoRoom("full".into())];
    let seeds: Vec<_> = reasons.iter().map(|r| serde_json::to_vec(r).expect("writes")).collect();
    fuzz("reasons of a loss", 64.0, &seeds, read_and_write::<Reason>);
}

#[test]
fn no_bytes_make_a_control_message_panic() {
    let write = |m: &ToHead| serde_json::to_vec(m).expect("writes");
    let (hash, mfov) = (ContentHash([5; 32]), key().mfov);
    let seeds = [
        write(&ToHead::Hello { protocol: 2, digest: hash }),
        write(&ToHead::Section(plan(7, 2, 3))),
        write(&ToHead::Reached { step: Step::Spooled, mfovs: vec![mfov] }),
        write(&ToHead::Status(ScopeStatus::default())),
        write(&ToHead::Again { key: key(), hash }),
        write(&ToHead::Foreign { key: key() }),
        write(&ToHead::End),
    ];
    fuzz("messages to the head", 128.0, &seeds, read_and_write::<ToHead>);
    let write = |m: &ToScope| serde_json::to_vec(m).expect("writes");
    let seeds = [
        write(&ToScope::Welcome),
        write(&ToScope::Refused { why: "another run".into() }),
        write(&ToScope::Promised { section: mfov.section, durable: vec![mfov] }),
        write(&ToScope::Beat { waiting: true }),
        write(&ToScope::Durable(mfov)),
        write(&ToScope::Again(mfov)),
        write(&ToScope::Ended),
    ];
    fuzz("messages to the scope", 128.0, &seeds, read_and_write::<ToScope>);
}

/// What is taken is written in a form that is taken again.
fn read_and_write<M: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<(), String> {
    let read: M = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: M = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("writes"), written);
    Ok(())
}
