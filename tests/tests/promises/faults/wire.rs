//! What joins the two processes: the relay on loopback, or, where the machine allows it, real interfaces: each side in a network
//! namespace of its own, a cable from each to this machine, and the relay between the two. There a cut is an interface that
//! goes down. Loss and delay are the relay's in both cases: the queueing discipline for them (`netem`) is not in every kernel.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use kinesin_sim::scenario::{Side, Weather};

use super::relay::Relay;

pub(crate) struct Wire {
    relay: Relay,
    nets: Option<Nets>,
}

/// Two namespaces with a cable each.
struct Nets {
    number: u32,
}

impl Wire {
    /// The relay on loopback.
    pub(crate) fn loopback(seed: u64) -> Self {
        Self { relay: Relay::start(seed, "127.0.0.1:0", "127.0.0.1:0").expect("loopback"), nets: None }
    }

    /// Real interfaces; `None` where this machine does not let us make them.
    pub(crate) fn interfaces(seed: u64) -> Option<Self> {
        let nets = Nets::new()?;
        let [front, back] = [Side::Scope, Side::Head].map(|side| format!("{}:0", nets.ours(side)));
        let relay = Relay::start(seed, &front, &back).ok()?;
        Some(Self { relay, nets: Some(nets) })
    }

    /// What it is, for the reader of a test's output.
    pub(crate) fn kind(&self) -> &'static str {
        match self.nets {
            None => "a relay on loopback",
            Some(_) => "real interfaces in network namespaces, with the relay between them",
        }
    }

    /// An address for the head to listen at; the relay passes packets to it from now on.
    pub(crate) fn head_address(&self) -> SocketAddr {
        let address = match &self.nets {
            None => lasting_address(),
            Some(nets) => format!("{}:{}", nets.theirs(Side::Head), 40_000 + next_port()),
        };
        let address = address.parse().expect("an address");
        self.relay.head_is_at(address);
        address
    }

    /// Where the scope calls.
    pub(crate) fn scope_calls(&self) -> SocketAddr {
        self.relay.address()
    }

    /// The program to start a side with, and its first arguments.
    pub(crate) fn prefix(&self, side: Side) -> Option<[String; 4]> {
        let nets = self.nets.as_ref()?;
        Some(["ip".into(), "netns".into(), "exec".into(), nets.name(side)])
    }

    pub(crate) fn weather(&self, weather: Weather) {
        self.relay.weather(weather);
    }

    pub(crate) fn cut(&self, cut: bool) {
        match &self.nets {
            None => self.relay.cut(cut),
            Some(nets) => {
                let state = if cut { "down" } else { "up" };
                assert!(ip(&format!("link set {} {state}", nets.cable(Side::Head))), "the interface goes {state}");
            }
        }
    }

    /// Packets that went through.
    pub(crate) fn passed(&self) -> u64 {
        self.relay.passed()
    }
}

impl Nets {
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Two of the three numbers that a private address leaves us, and names that no other test has.
        let number = (std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed)) % 16_000;
        let nets = Self { number };
        let made = [Side::Scope, Side::Head].into_iter().all(|side| {
            let (net, ours, theirs) = (nets.name(side), nets.cable(side), format!("{}p", nets.cable(side)));
            ip(&format!("netns add {net}"))
                && ip(&format!("link add {ours} type veth peer name {theirs}"))
                && ip(&format!("link set {theirs} netns {net}"))
                && ip(&format!("addr add {}/30 dev {ours}", nets.ours(side)))
                && ip(&format!("link set {ours} up"))
                && ip(&format!("-n {net} addr add {}/30 dev {theirs}", nets.theirs(side)))
                && ip(&format!("-n {net} link set {theirs} up"))
                && ip(&format!("-n {net} link set lo up"))
        });
        made.then_some(nets)
    }

    fn name(&self, side: Side) -> String {
        format!("kinesin-{}-{}", self.number, side.name())
    }

    fn cable(&self, side: Side) -> String {
        format!("k{}{}", &side.name()[..1], self.number)
    }

    /// Of a cable's network of four addresses, those of its two ends.
    fn address(&self, side: Side, end: u32) -> String {
        let n = self.number * 2 + u32::from(side == Side::Head);
        format!("10.{}.{}.{}", 80 + n / 64 / 256, n / 64 % 256, n % 64 * 4 + end)
    }

    fn ours(&self, side: Side) -> String {
        self.address(side, 1)
    }

    fn theirs(&self, side: Side) -> String {
        self.address(side, 2)
    }
}

impl Drop for Nets {
    fn drop(&mut self) {
        for side in [Side::Scope, Side::Head] {
            ip(&format!("link del {}", self.cable(side)));
            ip(&format!("netns del {}", self.name(side)));
        }
    }
}

fn next_port() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed) % 10_000
}

/// An address on loopback that nobody else is given while a killed head is down: below the ports that the system hands out.
fn lasting_address() -> String {
    loop {
        let address = format!("127.0.0.1:{}", 11_000 + (std::process::id() * 97 + next_port()) % 20_000);
        if std::net::UdpSocket::bind(&address).is_ok() {
            return address;
        }
    }
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).output().is_ok_and(|done| done.status.success())
}
