//! One mFOV on its way: what is kept until the receipt, and how it is written.

use bytes::Bytes as Body;
use kinesin_backpressure::Credit;
use quinn::{Connection, SendStream, WriteError};

use super::End;
use super::wire::{FrameHead, Kind, opening};
use crate::ids::{BeamId, MfovId, TileKey};
use crate::ledger::ContentHash;
use crate::pixels::Pixels;
use crate::tile::Reason;

/// One mFOV, whole: a frame for each promised tile, and marks for those that came again. It is kept until its receipt; then
/// its credits go back.
#[derive(Debug)]
pub struct Shipment {
    /// Which.
    pub mfov: MfovId,
    /// First what came again, then at most one tile or loss a key, in key order.
    pub frames: Vec<Frame>,
    /// The memory that its pixels hold.
    pub credits: Vec<Credit>,
}

/// Part of a shipment.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Pixels.
    Tile {
        /// Who it is.
        key: TileKey,
        /// The image.
        pixels: Pixels,
        /// BLAKE3 of the pixels; checked by the head.
        hash: ContentHash,
    },
    /// A promised tile that will never come.
    Lost {
        /// Who it is.
        key: TileKey,
        /// Why.
        reason: Reason,
    },
    /// The tile came again; only counted.
    Again {
        /// Who it is.
        key: TileKey,
        /// Whether with the same content.
        same: bool,
    },
}

/// Sends it on a stream of its own.
pub(super) async fn send_mfov(connection: &Connection, shipment: &Shipment) -> Result<(), End> {
    let mut stream = connection.open_uni().await?;
    match write_mfov(&mut stream, shipment).await {
        Ok(()) => {
            // Fails only where the head has stopped the stream; it then asks for it again.
            stream.finish().ok();
            Ok(())
        }
        Err(WriteError::Stopped(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn write_mfov(stream: &mut SendStream, shipment: &Shipment) -> Result<(), WriteError> {
    stream.write_all(&opening(shipment.mfov)).await?;
    for frame in &shipment.frames {
        let (head, body) = encode(frame);
        stream.write_all(&head.encode()).await?;
        stream.write_chunk(body).await?;
    }
    let nobody = TileKey { mfov: shipment.mfov, beam: BeamId(0) };
    let end = FrameHead { kind: Kind::End, key: nobody, width: 0, height: 0, body: 0, hash: ContentHash([0; 32]) };
    stream.write_all(&end.encode()).await
}

fn encode(frame: &Frame) -> (FrameHead, Body) {
    match frame {
        Frame::Tile { key, pixels, hash } => {
            let (width, height) = (pixels.width() as u32, pixels.height() as u32);
            let body = pixels.bytes();
            let head = FrameHead { kind: Kind::Tile, key: *key, width, height, body: body.len() as u32, hash: *hash };
            (head, body)
        }
        Frame::Lost { key, reason } => {
            let json = serde_json::to_vec(reason).expect("a reason is strings");
            let hash = ContentHash(*blake3::hash(&json).as_bytes());
            let body = json.len() as u32;
            (FrameHead { kind: Kind::Lost, key: *key, width: 0, height: 0, body, hash }, json.into())
        }
        Frame::Again { key, same } => {
            let kind = if *same { Kind::Again } else { Kind::Other };
            let head = FrameHead { kind, key: *key, width: 0, height: 0, body: 0, hash: ContentHash([0; 32]) };
            (head, Body::new())
        }
    }
}
