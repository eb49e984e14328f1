//! A link that can be bad: passes UDP packets between scope and head, and loses, delays, doubles, spoils or cuts off as told.
//!
//! ```text
//! scope ──► front ──► (chance, seeded) ──► back ──► head, wherever it listens now
//! ```
//! The chance is drawn packet by packet from the seed; which packet is the n-th depends on the two processes.

use std::collections::BinaryHeap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kinesin_sim::scenario::Weather;

/// Two threads that pass packets on and one that keeps what is late.
pub(crate) struct Relay {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
    front: SocketAddr,
}

struct State {
    front: UdpSocket,
    back: UdpSocket,
    over: AtomicBool,
    conditions: Mutex<Conditions>,
    late: Mutex<BinaryHeap<Late>>,
    wake: Condvar,
    passed: AtomicU64,
}

struct Conditions {
    head: Option<SocketAddr>,
    scope: Option<SocketAddr>,
    weather: Weather,
    cut: bool,
    chance: u64,
}

struct Late {
    due: Instant,
    to_head: bool,
    packet: Vec<u8>,
}

/// How long a packet is held back so that others overtake it.
const OVERTAKEN: Duration = Duration::from_millis(8);

impl Relay {
    /// On these two addresses of this machine, port 0 for any.
    pub(crate) fn start(seed: u64, front: &str, back: &str) -> std::io::Result<Self> {
        let (front, back) = (UdpSocket::bind(front)?, UdpSocket::bind(back)?);
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        }
        let address = front.local_addr()?;
        let chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let conditions = Conditions { head: None, scope: None, weather: Weather::default(), cut: false, chance };
        let state = Arc::new(State {
            front,
            back,
            over: AtomicBool::new(false),
            conditions: Mutex::new(conditions),
            late: Mutex::default(),
            wake: Condvar::new(),
            passed: AtomicU64::new(0),
        });
        let thread = |work: fn(&State)| {
            let state = state.clone();
            std::thread::spawn(move || work(&state))
        };
        let threads = vec![thread(|s| s.pass(true)), thread(|s| s.pass(false)), thread(State::deliver)];
        Ok(Self { state, threads, front: address })
    }

    /// Where the scope calls.
    pub(crate) fn address(&self) -> SocketAddr {
        self.front
    }

    /// Where the head listens now.
    pub(crate) fn head_is_at(&self, head: SocketAddr) {
        self.state.conditions().head = Some(head);
    }

    pub(crate) fn weather(&self, weather: Weather) {
        self.state.conditions().weather = weather;
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.state.conditions().cut = cut;
    }

    /// Packets that went through.
    pub(crate) fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        self.state.wake.notify_all();
        for thread in self.threads.drain(..) {
            thread.join().expect("no panic");
        }
    }
}

impl State {
    fn conditions(&self) -> std::sync::MutexGuard<'_, Conditions> {
        self.conditions.lock().expect("no panic")
    }

    fn pass(&self, to_head: bool) {
        let from = if to_head { &self.front } else { &self.back };
        let mut buffer = vec![0; 65_536];
        while !self.over.load(Ordering::Relaxed) {
            // Nothing, or the system says that nobody listens there: both are for QUIC to find out.
            let Ok((length, sender)) = from.recv_from(&mut buffer) else { continue };
            let copies = {
                let mut conditions = self.conditions();
                if to_head {
                    conditions.scope = Some(sender);
                } else if conditions.head != Some(sender) {
                    // A head that has moved away.
                    continue;
                }
                conditions.fate(&mut buffer[..length])
            };
            for wait in copies {
                if wait.is_zero() {
                    self.send(to_head, &buffer[..length]);
                } else {
                    let late = Late { due: Instant::now() + wait, to_head, packet: buffer[..length].to_vec() };
                    self.late.lock().expect("no panic").push(late);
                    self.wake.notify_all();
                }
            }
        }
    }

    fn send(&self, to_head: bool, packet: &[u8]) {
        let (head, scope) = {
            let conditions = self.conditions();
            (conditions.head, conditions.scope)
        };
        let (socket, to) = if to_head { (&self.back, head) } else { (&self.front, scope) };
        if to.is_some_and(|to| socket.send_to(packet, to).is_ok()) {
            self.passed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends what is late when it is due.
    fn deliver(&self) {
        let mut late = self.late.lock().expect("no panic");
        while !self.over.load(Ordering::Relaxed) {
            let now = Instant::now();
            let wait = match late.peek() {
                Some(first) if first.due <= now => {
                    let first = late.pop().expect("peeked");
                    drop(late);
                    self.send(first.to_head, &first.packet);
                    late = self.late.lock().expect("no panic");
                    continue;
                }
                Some(first) => first.due - now,
                None => Duration::from_millis(50),
            };
            late = self.wake.wait_timeout(late, wait).expect("no panic").0;
        }
    }
}

impl Conditions {
    /// When each copy of a packet goes on; none where it is lost. May spoil it.
    fn fate(&mut self, packet: &mut [u8]) -> Vec<Duration> {
        let weather = self.weather;
        if self.cut || self.draw() < weather.loss {
            return Vec::new();
        }
        if self.draw() < weather.corrupt && !packet.is_empty() {
            let at = (self.draw() * packet.len() as f64) as usize;
            packet[at] ^= 1 << (self.draw() * 8.0) as u32;
        }
        let mut wait = Duration::from_secs_f64((weather.delay_ms + weather.jitter_ms * self.draw()) / 1e3);
        if self.draw() < weather.reorder {
            wait += OVERTAKEN;
        }
        if self.draw() < weather.duplicate { vec![wait, wait] } else { vec![wait] }
    }

    /// From 0 to below 1.
    fn draw(&mut self) -> f64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Ord for Late {
    /// The heap gives the greatest: the one that is due first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Late {}

#[test]
fn a_relay_loses_doubles_and_spoils_about_as_many_packets_as_it_is_told_to() {
    let fates = |weather: Weather| {
        let mut conditions = Conditions { head: None, scope: None, weather, cut: false, chance: 77 };
        let (mut copies, mut spoiled) = (0, 0);
        for _ in 0..10_000 {
            let mut packet = [0_u8; 50];
            copies += conditions.fate(&mut packet).len();
            spoiled += usize::from(packet != [0; 50]);
        }
        (copies, spoiled)
    };
    assert_eq!(fates(Weather::default()), (10_000, 0));
    let (copies, _) = fates(Weather { loss: 0.2, ..Weather::default() });
    assert!((7_800..8_200).contains(&copies), "{copies} of 10000 came through a loss of 0.2");
    let (copies, spoiled) = fates(Weather { duplicate: 0.3, corrupt: 0.1, ..Weather::default() });
    assert!((12_800..13_200).contains(&copies) && (850..1_150).contains(&spoiled), "{copies}, {spoiled}");
}
