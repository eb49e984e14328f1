//! Tiles from the microscope to the head, over QUIC.
//!
//! ```text
//! SCOPE (calls)                                                              HEAD (serves)
//!   Hello(protocol, digest of the plan) ─────────────────────────────────────►
//!   ◄─────────────────────────────────────────────────── Welcome | Refused(why)
//!   Section(plan) ─────────► ledger: all expected; ◄── Promised(mFOVs of it that are durable)
//!   spool ─ one stream an mFOV: frame, frame, … ═════════► lease, then read ═► edge ═► archive
//!   spool ◄ release ◄─────────────────────────────────── Durable(mFOV), after the archive's sync and the ledger's
//!   Status once a second ──────────────────────────────►   ◄── Beat once a second
//!   End ─────────────────────────────────────────────────►   ◄── Ended
//! ```
//! *Order.* What the spool holds is sent oldest first; mFOVs of a section once the head has entered its promise.
//!
//! *Admission.* The head reads the head of a frame, leases its bytes from the edge, and only then reads the body. While it
//! waits, QUIC's flow control stops the sender; what may be under way is the receive window, a line of the budget.
//!
//! *Durability.* "May I send?" and "may I forget?" are different messages: the scope's spool keeps an mFOV until `Durable`.
//! After a lost connection it calls again and sends what has no receipt; the head drops tiles that it already passed on.
//!
//! *Silence.* A peer whose connection is open but that says nothing, or does not go on with what it began while nothing keeps
//! it from it, for [`LinkSettings::stall_seconds`], is hung up on; the scope then calls again.
//!
//! *Trust.* Mutual TLS 1.3 with certificates of one private authority ([`make_keys`]). A stranger gets no byte of ours.

mod desk;
mod head;
mod keys;
mod line;
mod outbox;
mod queue;
mod read;
mod scope;
mod sending;
mod shared;
mod spare;
mod status;
mod tile_spool;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kinesin_backpressure::spool::SpoolError;
use kinesin_backpressure::{Bytes, Closed};
use quinn::{
    ConnectionError, EndpointConfig, MtuDiscoveryConfig, ReadError, ReadExactError, TransportConfig, VarInt, WriteError,
};
use serde::{Deserialize, Serialize};

pub use head::{Head, HeadConfig, HeadSummary, Receipts};
pub use keys::{Keys, Role, make_keys};
pub use scope::{Scope, ScopeConfig, ScopeSummary};
pub use status::{Asked, ScopeStatus};
pub use tile_spool::{KeptTile, Manifest, RestoredTiles, Shipment, TileSpool};
pub use wire::MAX_CONTROL;

use crate::ids::MfovId;
use crate::ledger::LedgerError;

/// Sizes and times of a link. The defaults suit one scope on a local network of 10 Gbit/s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSettings {
    /// Bytes of one mFOV that may be under way. Default 4 MiB: 10 Gbit/s times 3 ms.
    pub stream_window: Bytes,
    /// mFOVs under way at a time. Default 4, so that one that waits for a lease does not idle the line.
    pub streams: u32,
    /// Largest tile that the head accepts. Default 256 MiB: 16384 x 16384 px.
    pub max_tile: Bytes,
    /// Seconds without a sign of the other side after which a connection counts as lost. Default 3: shorter makes a busy
    /// machine look dead.
    pub idle_seconds: f64,
    /// Seconds for which a connection may be open without progress on what was begun, before it is given up and made again.
    /// Default 30: ten times what a slow disk takes for a sync. Waiting for room at the head does not count.
    pub stall_seconds: f64,
    /// Largest datagram that is tried, bytes: 1200 to 6500. Default 6500, which halves the processor time where the network
    /// carries jumbo frames and costs a few probes where it does not. More would not fit into a segmented send of 64 KiB.
    pub datagram: u16,
    /// Buffers of the socket. Default 8 MiB: a burst of a full window while the reader is busy. The system may grant less.
    pub socket_buffer: Bytes,
    /// Seconds that the scope goes on calling a head that does not answer. Default 3600: a head may be rebooted meanwhile.
    pub give_up_seconds: f64,
}

/// Why a link cannot be used. Lost connections are not among these: they are made again.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Keys cannot be read, written or used.
    #[error("link keys {path}: {what}; make them with `kinesin keys`, and give both sides files of the same making")]
    Keys {
        /// File or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Keys are there already.
    #[error("{path} exists; give --overwrite to make new keys, then copy them to both machines")]
    KeysExist {
        /// The first such file.
        path: PathBuf,
    },
    /// The address cannot be used.
    #[error("cannot listen or call at {addr}: {source}; is the address of this machine and the port free?")]
    Bind {
        /// Which address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The other side's keys, or ours in its eyes, are not of this link.
    #[error(
        "{peer} and this side do not trust each other: {what}; both need keys of the same making, each its own role"
    )]
    NotTrusted {
        /// Who.
        peer: SocketAddr,
        /// What TLS said.
        what: String,
    },
    /// The head runs something else.
    #[error("the head at {peer} refused: {why}")]
    Refused {
        /// Who.
        peer: SocketAddr,
        /// Its reason.
        why: String,
    },
    /// Nobody answers.
    #[error("no answer from {peer} for {seconds:.0} s ({last}); is the head running and the address right?")]
    Unreachable {
        /// Who.
        peer: SocketAddr,
        /// How long it was called.
        seconds: f64,
        /// What the last call said.
        last: String,
    },
    /// The other side says things that make no sense: a bug or another program.
    #[error("{peer} broke the protocol: {what}")]
    Protocol {
        /// Who.
        peer: SocketAddr,
        /// What it said.
        what: String,
    },
    /// The same mFOV arrived damaged again and again: memory or program at fault, not the line.
    #[error("{mfov} arrived damaged {times} times; check the memory of both machines")]
    Damaged {
        /// Which.
        mfov: MfovId,
        /// How often it was sent.
        times: u32,
    },
    /// The ledger refused.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The spool failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The run was stopped.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// The line is gone: call again.
    Lost(ConnectionError),
    /// The peer hung up: as agreed after the last word, otherwise call again.
    Done,
    /// The peer broke the protocol.
    Protocol(String),
    /// The head refused the hello.
    Refused(String),
    /// An edge is closed: the run stops.
    Closed(Closed),
    /// A frame's body does not have its hash.
    Damaged(MfovId),
    /// The peer does not go on.
    Stalled(String),
    /// Anything that must stop the run.
    Fatal(LinkError),
}

/// How often each side says that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// Application codes in a QUIC close.
const CODE_DONE: VarInt = VarInt::from_u32(0);
const CODE_STOPPED: VarInt = VarInt::from_u32(1);
const CODE_PROTOCOL: VarInt = VarInt::from_u32(2);
const CODE_REPLACED: VarInt = VarInt::from_u32(3);
const CODE_DAMAGED: VarInt = VarInt::from_u32(4);

/// Ten segments of it fit into one send of 64 KiB.
pub const LARGEST_DATAGRAM: u16 = 6500;

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            stream_window: Bytes::mib(4),
            streams: 4,
            max_tile: Bytes::mib(256),
            idle_seconds: 3.0,
            stall_seconds: 30.0,
            datagram: LARGEST_DATAGRAM,
            socket_buffer: Bytes::mib(8),
            give_up_seconds: 3600.0,
        }
    }
}

impl LinkSettings {
    /// Bytes that may be under way on a connection: every mFOV stream, and as much again as one of them for control, so that
    /// pixels waiting for a lease never hold up a message.
    pub fn window(&self) -> Bytes {
        self.stream_window * u64::from(self.streams + 1)
    }

    /// Lines that a side enters into the budget when it opens: for the sheet of `kinesin check`.
    pub fn budget_lines(&self, role: Role) -> [(&'static str, Bytes); 2] {
        match role {
            Role::Head => {
                [("link receive windows", self.window() + spare::Spare::MOST), ("link control messages", MAX_CONTROL)]
            }
            Role::Scope => {
                let pieces = Bytes(2 * sending::PIECE as u64) * u64::from(self.streams);
                [("link send windows", self.window() + pieces), ("scope control messages", MAX_CONTROL)]
            }
        }
    }

    /// Our side of the connection. `streams` is how many mFOV streams the other side may open.
    fn transport(&self, streams: u32, control: u32) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        let idle = self.idle_seconds.clamp(0.1, 3600.0);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.datagram.clamp(1200, LARGEST_DATAGRAM));
        let window = |bytes: Bytes| VarInt::from_u64(bytes.0).unwrap_or(VarInt::MAX);
        config
            .stream_receive_window(window(self.stream_window))
            .receive_window(window(self.window()))
            .send_window(self.window().0)
            .max_concurrent_uni_streams(VarInt::from_u32(streams))
            .max_concurrent_bidi_streams(VarInt::from_u32(control))
            .datagram_receive_buffer_size(None)
            // A lost first packet waits for about three of these; the default of 333 ms is made for the open internet.
            .initial_rtt(Duration::from_millis(20))
            .keep_alive_interval(Some(Duration::from_secs_f64(idle / 3.0)))
            .max_idle_timeout(Some(VarInt::from_u32((idle * 1000.0) as u32).into()))
            .mtu_discovery_config(Some(discovery))
            .congestion_controller_factory(Arc::new(quinn::congestion::CubicConfig::default()))
            .enable_segmentation_offload(true);
        Arc::new(config)
    }

    /// A socket and how it is used.
    fn socket(&self, bind: SocketAddr) -> std::io::Result<(std::net::UdpSocket, EndpointConfig)> {
        let socket = std::net::UdpSocket::bind(bind)?;
        let (buffers, bytes) = (socket2::SockRef::from(&socket), self.socket_buffer.0 as usize);
        // What the system does not grant is no fault: losses are sent again.
        if let Err(error) = buffers.set_recv_buffer_size(bytes).and_then(|()| buffers.set_send_buffer_size(bytes)) {
            tracing::debug!(%error, "the socket keeps its buffers");
        }
        let mut endpoint = EndpointConfig::default();
        // In bounds, so it cannot fail.
        endpoint.max_udp_payload_size(self.datagram.clamp(1472, LARGEST_DATAGRAM)).map_err(std::io::Error::other)?;
        Ok((socket, endpoint))
    }

    fn stall(&self) -> Duration {
        Duration::from_secs_f64(self.stall_seconds.clamp(0.05, 86400.0))
    }
}

impl LinkError {
    fn keys(path: &Path, what: impl ToString) -> Self {
        Self::Keys { path: path.to_owned(), what: what.to_string() }
    }

    /// TLS refused, on our side or on theirs.
    fn not_trusted(peer: SocketAddr, error: &ConnectionError) -> Option<Self> {
        let (code, what) = match error {
            ConnectionError::TransportError(e) => (e.code, e.reason.clone()),
            ConnectionError::ConnectionClosed(c) => {
                (c.error_code, format!("the other side says: {}", String::from_utf8_lossy(&c.reason)))
            }
            _ => return None,
        };
        // Codes 0x100 to 0x1ff carry TLS alerts.
        let code = u64::from(code);
        (0x100..0x200).contains(&code).then(|| {
            let alert = rustls::AlertDescription::from((code - 0x100) as u8);
            Self::NotTrusted { peer, what: format!("{what} ({alert:?})") }
        })
    }
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        match &error {
            ConnectionError::ApplicationClosed(close) if close.error_code == CODE_DONE => Self::Done,
            ConnectionError::ApplicationClosed(close) if close.error_code == CODE_PROTOCOL => {
                Self::Protocol(format!("it says: {}", String::from_utf8_lossy(&close.reason)))
            }
            _ => Self::Lost(error),
        }
    }
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(e) => e.into(),
            ReadError::Reset(_) => Self::Done,
            other => peer_said(format!("a stream that cannot be read: {other}")),
        }
    }
}

impl From<ReadExactError> for End {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::ReadError(e) => e.into(),
            // A peer that goes down drops its streams, which then look finished, before its close arrives.
            ReadExactError::FinishedEarly(_) => Self::Done,
        }
    }
}

impl From<WriteError> for End {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(e) => e.into(),
            WriteError::Stopped(_) => Self::Done,
            other => peer_said(format!("a stream that cannot be written: {other}")),
        }
    }
}

impl From<SpoolError> for End {
    fn from(error: SpoolError) -> Self {
        Self::Fatal(error.into())
    }
}

fn peer_said(what: impl Into<String>) -> End {
    End::Protocol(what.into())
}

#[cfg(test)]
mod tests;
