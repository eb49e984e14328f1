//! The listening side: one conversation per slice.
//!
//! ```text
//!  accept ─► read until the object ends ─► wait as wished ─► reply ─► close
//!                │ unreadable, late            │ hung up: forget      whatever ends early: "no commands", so that nobody
//!                └► reply at once              │ stale: reply          waits for a reply that never comes
//! ```

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::message::{LONGEST_STATE, ObjectEnd, Progress, SbemCommand, State, reply};
use super::{NAME, SLICES, SbemHandle, Waiting, delay};
use crate::throttle::{HookEvent, Tell, Wish, first_line};

/// Conversations at a time; SBEMimage has one, or two with its test.
const CONVERSATIONS: usize = 8;
/// How often silence is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// What every conversation needs.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) handle: SbemHandle,
    pub(super) wishes: watch::Receiver<Wish>,
    pub(super) tell: Tell,
    pub(super) patience: Duration,
    pub(super) silence: Duration,
}

/// Until it is aborted.
pub(super) async fn serve(listener: TcpListener, desk: Desk) {
    let mut conversations = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    let mut silence = Silence::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.and_then(|(stream, peer)| Ok((Line::new(stream)?, peer))) {
                // A line that is dropped answers.
                Ok((line, _)) if conversations.len() >= CONVERSATIONS => drop(line),
                Ok((line, peer)) => drop(conversations.spawn(converse(line, peer, desk.clone()))),
                Err(error) => {
                    desk.seen(format!("cannot take a call: {error}"));
                    tokio::time::sleep(LOOK).await;
                }
            },
            Some(_ended) = conversations.join_next() => {}
            _ = look.tick() => silence.look(&desk),
        }
    }
}

impl Desk {
    fn seen(&self, text: String) {
        (self.tell)(HookEvent::Seen { hook: NAME, text });
    }

    /// Told once until a message could be read again.
    fn unreadable(&self, peer: SocketAddr, what: &str) {
        if !std::mem::replace(&mut self.handle.lock().unreadable_told, true) {
            self.seen(format!(
                "a message from {peer} {what}; it is told to go on, and cannot be held while this lasts; wanted is SBEMimage's state"
            ));
        }
    }
}

/// Notices that a wish has no effect because nobody calls.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
    told: bool,
}

impl Silence {
    fn look(&mut self, desk: &Desk) {
        let (called, waiting) = {
            let shared = desk.handle.lock();
            (shared.called, shared.waiting.is_some())
        };
        if *desk.wishes.borrow() == Wish::Go || waiting {
            *self = Self::default();
            return;
        }
        let wanted = *self.since.get_or_insert_with(Instant::now);
        let since = called.map_or(wanted, |at| at.max(wanted));
        if since.elapsed() < desk.silence {
            self.told = false;
        } else if !std::mem::replace(&mut self.told, true) {
            let wish = *desk.wishes.borrow();
            desk.seen(format!(
                "it has not called for {:.0} s, so that '{wish}' has no effect; see whether it runs, and whether \"Use TCP\" is ticked with this host and port",
                since.elapsed().as_secs_f64()
            ));
        }
    }
}

/// A connection that is never closed without an answer, unless the other side hung up.
struct Line {
    stream: TcpStream,
    /// The same socket, for a farewell that needs no runtime; `None` once answered.
    farewell: Option<std::net::TcpStream>,
}

impl Line {
    fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let farewell = Some(stream.try_clone()?);
        Ok(Self { stream: TcpStream::from_std(stream)?, farewell })
    }

    /// Reads a state, or says why not; `None` when nobody is there any more.
    async fn state(&mut self, patience: Duration) -> Option<Result<State, String>> {
        let mut message = Vec::new();
        let outcome = timeout(patience, self.object(&mut message)).await;
        match outcome {
            Ok(Ok(())) => Some(State::parse(&message)),
            Ok(Err(why)) => why.map(Err),
            Err(_late) => Some(Err(format!("has not come whole within {} s", patience.as_secs_f64()))),
        }
        .map(|state| state.map_err(|why| format!("cannot be read: {why}: {:?}", first_line(&message))))
    }

    /// Reads until the object ends; the error is `None` when the other side hung up before it said anything.
    async fn object(&mut self, message: &mut Vec<u8>) -> Result<(), Option<String>> {
        let mut end = ObjectEnd::default();
        let mut part = [0; 4096];
        loop {
            let n = match self.stream.read(&mut part).await {
                Ok(n @ 1..) => n,
                _ => {
                    self.farewell = None;
                    return Err((!message.is_empty()).then(|| "its sender hung up in the middle".into()));
                }
            };
            let read = message.len();
            message.extend(&part[..n]);
            for (i, byte) in part[..n].iter().enumerate() {
                match end.take(*byte) {
                    Progress::Whole => {
                        message.truncate(read + i + 1);
                        return Ok(());
                    }
                    Progress::NoObject => return Err(Some("it does not begin with {".into())),
                    Progress::Open => {}
                }
            }
            if message.len() >= LONGEST_STATE {
                return Err(Some(format!("it is longer than {LONGEST_STATE} bytes")));
            }
        }
    }

    /// Returns when the other side has hung up; what it says more is not read for meaning.
    async fn hung_up(&mut self) {
        let mut more = [0; 256];
        while let Ok(1..) = self.stream.read(&mut more).await {}
        self.farewell = None;
    }

    async fn answer(mut self, commands: &[SbemCommand], patience: Duration) -> bool {
        let sent = timeout(patience, self.stream.write_all(&reply(commands))).await;
        let sent = matches!(sent, Ok(Ok(())));
        if sent {
            self.farewell = None;
        }
        sent
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(mut socket) = self.farewell.take() {
            // Whoever is gone need not hear it; its few bytes fit any socket's buffer.
            drop(socket.write_all(&reply(&[])));
        }
    }
}

async fn converse(mut line: Line, peer: SocketAddr, desk: Desk) {
    let Some(state) = line.state(desk.patience).await else { return };
    let state = match state {
        Ok(state) => state,
        Err(what) => {
            desk.unreadable(peer, &what);
            return;
        }
    };
    let Some(turn) = Turn::take(&desk, &state, peer) else { return };
    let called = Instant::now();
    let mut wishes = desk.wishes.clone();
    loop {
        let wish = *wishes.borrow_and_update();
        let until = delay(wish, desk.handle.lock().slice_time()).map(|d| called + d);
        let due = async {
            match until {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => break,
            changed = wishes.changed() => if changed.is_err() { break },
            () = turn.give_up.notified() => return,
            () = line.hung_up() => {
                let waited = called.elapsed().as_secs_f64();
                desk.seen(format!("it hung up after its slice had waited {waited:.1} s"));
                return;
            }
        }
    }
    let commands = turn.commands(&desk, &state);
    let sent = line.answer(&commands, desk.patience).await;
    turn.end(sent, commands);
}

/// The right to hold the slice; given back when dropped.
struct Turn {
    handle: SbemHandle,
    number: u64,
    give_up: Arc<Notify>,
}

impl Turn {
    /// `None` while another conversation about the same slice waits. One about another slice is left over from a SBEMimage that
    /// is gone (power cut, cable), for a held one cannot move on: it is ended.
    fn take(desk: &Desk, state: &State, peer: SocketAddr) -> Option<Self> {
        let mut shared = desk.handle.lock();
        shared.unreadable_told = false;
        if let Some(waiting) = &shared.waiting {
            if waiting.z_depth_um == state.z_depth_um {
                drop(shared);
                desk.seen(format!(
                    "{peer} called while the slice waits already (its \"Test connection\"?); it is answered at once"
                ));
                return None;
            }
            waiting.give_up.notify_one();
        }
        let first = shared.slices == 0;
        shared.slices += 1;
        shared.called = Some(Instant::now());
        if let Some(busy) = shared.replied.take().map(|at| at.elapsed()) {
            shared.busy.push_back(busy);
            if shared.busy.len() > SLICES {
                shared.busy.pop_front();
            }
        }
        shared.state = Some(state.clone());
        let (number, give_up) = (shared.slices, Arc::new(Notify::new()));
        shared.waiting = Some(Waiting { number, z_depth_um: state.z_depth_um, give_up: give_up.clone() });
        drop(shared);
        if first {
            desk.seen(format!("{peer} calls: {state:?}"));
        }
        Some(Self { handle: desk.handle.clone(), number, give_up })
    }

    /// Those that wait and fit the state; the others are told and left out.
    fn commands(&self, desk: &Desk, state: &State) -> Vec<SbemCommand> {
        let queued = std::mem::take(&mut self.handle.lock().queue);
        let (fit, unfit): (Vec<_>, Vec<_>) =
            queued.into_iter().map(|c| (c.check(Some(state)), c)).partition(|c| c.0.is_ok());
        for (why, command) in unfit {
            let why = why.err().unwrap_or_default();
            desk.seen(format!("{} is not sent: {why}", command.to_json()["msg"]));
        }
        fit.into_iter().map(|(_, command)| command).collect()
    }

    /// Commands that could not be sent wait for the next slice, before those that came meanwhile.
    fn end(self, sent: bool, commands: Vec<SbemCommand>) {
        let mut shared = self.handle.lock();
        if sent {
            shared.replied = Some(Instant::now());
        } else {
            commands.into_iter().rev().for_each(|command| shared.queue.push_front(command));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut shared = self.handle.lock();
        if shared.waiting.as_ref().is_some_and(|w| w.number == self.number) {
            shared.waiting = None;
        }
    }
}
