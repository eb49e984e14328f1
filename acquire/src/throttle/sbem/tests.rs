//! The exchange against a client that does what SBEMimage's source does: connects before every slice, sends its state without a
//! mark of its end, reads until a newline or the end, has no time-out, pauses where the connection is refused, and ends its
//! acquisition on any other exception.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::*;

/// What the stand-in for SBEMimage notes, in order.
#[derive(Clone, Debug, PartialEq)]
enum Note {
    /// A command of a reply.
    Command(Value),
    /// A slice was imaged.
    Imaged(u32),
    /// The slice was cut off.
    Cut(u32),
    /// "TCP Connection refused. Pausing acquisition.": a person must start it again.
    Paused,
    /// An exception ended the acquisition: a person must start it again.
    Exception(String),
}

/// Starts an acquisition of some slices in a thread of its own.
fn sbemimage(at: SocketAddr, slices: u32) -> (mpsc::Receiver<Note>, JoinHandle<()>) {
    let (notes, read) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for slice in 0..slices {
            match exchange(at, 10.0 + 0.025 * f64::from(slice)) {
                Ok(reply) => {
                    for command in reply["commands"].as_array().expect("a list") {
                        // The source indexes all three, and calls only what it knows.
                        assert!(command["args"].is_array() && command["kwargs"].is_object(), "{command}");
                        let paused = command["msg"] == "PAUSE";
                        notes.send(Note::Command(command.clone())).expect("read");
                        if paused {
                            return;
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => return notes.send(Note::Paused).expect("read"),
                Err(e) => return notes.send(Note::Exception(e.to_string())).expect("read"),
            }
            notes.send(Note::Imaged(slice)).expect("read");
            notes.send(Note::Cut(slice)).expect("read");
        }
    });
    (read, thread)
}

fn exchange(at: SocketAddr, z: f64) -> std::io::Result<Value> {
    let mut socket = TcpStream::connect(at)?;
    let overviews = json!({"number_ov": 2, "ov_coords": [[0.0, 1.5], [2.0, 3.0]], "ov_dirs": ["D:\\a", "D:\\b"]});
    let state = json!({"paused": true, "z_depth": z, "overviews": overviews, "slice_thickness": 25});
    socket.write_all(state.to_string().as_bytes())?;
    let (mut reply, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        let n = socket.read(&mut chunk)?;
        reply.extend(&chunk[..n]);
        if n == 0 || chunk[..n].contains(&b'\n') {
            return Ok(serde_json::from_slice(&reply)?);
        }
    }
}

struct Site {
    runtime: tokio::runtime::Runtime,
    hook: Option<SbemImage>,
    at: SocketAddr,
    events: mpsc::Receiver<HookEvent>,
}

impl Site {
    fn new() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), Duration::from_secs(20))
    }

    fn at(at: SocketAddr, patience: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runs");
        let (tell, events) = mpsc::channel();
        let tell = Arc::new(move |event| drop(tell.send(event)));
        let hook = SbemImage::listen(&SbemConfig::default(), at, patience, runtime.handle(), tell).expect("listens");
        Self { at: hook.local_addr(), runtime, hook: Some(hook), events }
    }

    fn ask(&mut self, wish: Wish) -> String {
        let hook = self.hook.as_mut().expect("open");
        self.runtime.block_on(hook.ask(&Request { wish, reason: "test".into() })).expect("taken")
    }

    fn handle(&self) -> SbemHandle {
        self.hook.as_ref().expect("open").handle()
    }

    fn until_waiting(&self, slices: u64) {
        until(|| self.handle().sight().waiting && self.handle().sight().slices == slices);
    }

    /// The next event that has the word.
    fn told(&self, word: &str) -> String {
        self.events.iter().map(|e| e.to_string()).find(|e| e.contains(word)).expect("told")
    }
}

fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        std::thread::yield_now();
    }
}

fn command(msg: &str, args: Value) -> Note {
    Note::Command(json!({"msg": msg, "args": args, "kwargs": {}}))
}

#[test]
fn hold_delays_the_slice_and_its_cut_and_go_resumes_without_a_person() {
    let mut site = Site::new();
    assert!(site.ask(Wish::Hold).contains("has not called yet"));
    let (notes, scope) = sbemimage(site.at, 2);
    site.until_waiting(1);
    assert!(site.ask(Wish::Hold).contains("a slice waits"));
    // Queued only now: that it comes before the first image shows that the reply waited for `Go`.
    site.handle().queue(SbemCommand::SetOverviewInterval { overview: 1, slices: 5 }).expect("fits");
    site.ask(Wish::Go);
    scope.join().expect("no panic");
    let notes: Vec<Note> = notes.iter().collect();
    let wanted =
        [command("SET OV INTERVAL", json!([1, 5])), Note::Imaged(0), Note::Cut(0), Note::Imaged(1), Note::Cut(1)];
    assert_eq!(notes, wanted);
    let sight = site.handle().sight();
    let state = sight.state.expect("seen");
    assert_eq!((sight.slices, state.paused, state.slice_thickness_nm), (2, Some(true), Some(25.0)));
    assert_eq!(state.z_depth_um, Some(10.025));
}

#[test]
fn the_reply_waits_as_long_as_the_fraction_asks_and_no_longer_than_the_longest() {
    let s = Duration::from_secs;
    assert_eq!(delay(Wish::Slow(0.5), Some(s(60))), Some(s(60)));
    assert_eq!(delay(Wish::Slow(0.75), Some(s(60))), Some(s(20)));
    assert_eq!(delay(Wish::Slow(1.0), Some(s(60))), Some(s(0)));
    assert_eq!(delay(Wish::Slow(0.01), Some(s(3600))), Some(LONGEST_DELAY));
    assert_eq!(delay(Wish::Slow(f64::MIN_POSITIVE), Some(s(1))), Some(LONGEST_DELAY));
    assert_eq!(delay(Wish::Slow(0.5), None), Some(s(0)));
    assert_eq!(delay(Wish::Hold, Some(s(60))), None);
    // One pause of an operator among the measured times changes nothing.
    let busy = [60, 61, 36_000, 59, 60].map(s).into();
    assert_eq!(Shared { busy, ..Shared::default() }.slice_time(), Some(s(60)));
}

#[test]
fn a_kinesin_that_ends_in_order_answers_first_and_sbemimage_pauses_at_the_next_slice() {
    let mut site = Site::new();
    site.ask(Wish::Hold);
    let (notes, scope) = sbemimage(site.at, 3);
    site.until_waiting(1);
    // As at the end of the process: the hook and then the runtime.
    site.hook = None;
    drop(site);
    scope.join().expect("no panic");
    assert_eq!(notes.iter().collect::<Vec<_>>(), [Note::Imaged(0), Note::Cut(0), Note::Paused]);
}

#[test]
fn a_runtime_that_goes_first_still_answers() {
    let mut site = Site::new();
    site.ask(Wish::Hold);
    let (notes, scope) = sbemimage(site.at, 1);
    site.until_waiting(1);
    site.runtime.shutdown_background();
    scope.join().expect("no panic");
    assert_eq!(notes.iter().collect::<Vec<_>>(), [Note::Imaged(0), Note::Cut(0)]);
}

/// This test is two processes: the parent kills the child with SIGKILL while it holds a slice.
#[test]
#[cfg(unix)]
fn a_killed_kinesin_ends_the_acquisition_with_an_exception_then_refuses_and_the_next_run_sees_it_call() {
    const CHILD: &str = "KINESIN_TEST_SBEM_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let mut site = Site::new();
        site.ask(Wish::Hold);
        println!("\n{}", site.at);
        site.until_waiting(1);
        println!("held");
        loop {
            std::thread::park();
        }
    }
    let name = "throttle::sbem::tests::a_killed_kinesin_ends_the_acquisition_with_an_exception_then_refuses_and_the_next_run_sees_it_call";
    let mut child = std::process::Command::new(std::env::current_exe().expect("runs"))
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
    let at: SocketAddr = said.find_map(|line| line.parse().ok()).expect("an address");
    let (notes, scope) = sbemimage(at, 3);
    said.find(|line| line == "held").expect("held");
    child.kill().expect("killed");
    child.wait().expect("ended");
    scope.join().expect("no panic");
    let notes: Vec<Note> = notes.iter().collect();
    assert!(matches!(&notes[..], [Note::Exception(_)]), "{notes:?}");
    // A person starts SBEMimage again while Kinesin is still away: it pauses before it images anything.
    let (again, scope) = sbemimage(at, 3);
    scope.join().expect("no panic");
    assert_eq!(again.iter().collect::<Vec<_>>(), [Note::Paused]);
    // The next run says where it listens and that it is called.
    let site = Site::at(at, Duration::from_secs(20));
    assert!(site.told("listens at").contains(&at.to_string()));
    let (notes, scope) = sbemimage(at, 1);
    assert!(site.told("calls").contains("z_depth_um: Some(10.0)"));
    scope.join().expect("no panic");
    assert_eq!(notes.iter().collect::<Vec<_>>(), [Note::Imaged(0), Note::Cut(0)]);
}

#[test]
fn what_cannot_be_read_is_answered_at_once_and_told_once() {
    let mut site = Site::new();
    site.ask(Wish::Hold);
    for text in ["GET / HTTP/1.1\r\n\r\n", "{\"z_depth\": NaN}", "[]", "{]"] {
        let mut socket = TcpStream::connect(site.at).expect("connects");
        socket.write_all(text.as_bytes()).expect("sends");
        let mut reply = String::new();
        BufReader::new(socket).read_line(&mut reply).expect("answered");
        assert_eq!(reply, "{\"commands\":[]}\n", "{text}");
    }
    assert!(site.told("cannot be read").contains("GET / HTTP/1.1"));
    let (notes, scope) = sbemimage(site.at, 1);
    site.until_waiting(1);
    site.ask(Wish::Go);
    scope.join().expect("no panic");
    assert_eq!(notes.iter().count(), 2);
    assert!(!site.events.try_iter().any(|e| e.to_string().contains("cannot be read")), "told twice");
}

#[test]
fn who_hangs_up_in_the_middle_of_a_message_or_before_it_stops_nothing() {
    let site = Site::new();
    drop(TcpStream::connect(site.at).expect("connects"));
    TcpStream::connect(site.at).expect("connects").write_all(b"{\"z_depth\": 7").expect("sends");
    assert!(site.told("cannot be read").contains("hung up in the middle"));
    let (notes, scope) = sbemimage(site.at, 1);
    scope.join().expect("no panic");
    assert_eq!(notes.iter().count(), 2);
    assert_eq!(site.handle().sight().slices, 1);
}

#[test]
fn a_message_that_never_ends_is_answered_when_patience_or_length_is_over() {
    let site = Site::at((Ipv4Addr::LOCALHOST, 0).into(), Duration::from_millis(10));
    let mut socket = TcpStream::connect(site.at).expect("connects");
    socket.write_all(b"{\"z_depth\": ").expect("sends");
    let mut reply = String::new();
    BufReader::new(&socket).read_line(&mut reply).expect("answered");
    assert_eq!(reply, "{\"commands\":[]}\n");
    assert!(site.told("has not come whole").contains("z_depth"));
    let site = Site::new();
    let mut socket = TcpStream::connect(site.at).expect("connects");
    // It may be cut off before all is sent.
    socket.write_all(&[b"{\"ov_dirs\": \"".as_slice(), &vec![b'a'; LONGEST_STATE]].concat()).ok();
    site.told("longer than");
}

#[test]
fn a_second_message_about_the_held_slice_is_answered_at_once_and_one_about_the_next_takes_over() {
    let mut site = Site::new();
    site.ask(Wish::Hold);
    let (notes, scope) = sbemimage(site.at, 1);
    site.until_waiting(1);
    // "Test connection" during the hold: the same z, from its window.
    assert_eq!(exchange(site.at, 10.0).expect("answered"), json!({"commands": []}));
    site.told("Test connection");
    assert!(site.handle().sight().waiting);
    // A SBEMimage that was started again further down while the old connection hangs on.
    let fresh = std::thread::spawn({
        let at = site.at;
        move || exchange(at, 12.5)
    });
    until(|| site.handle().sight().state.and_then(|s| s.z_depth_um) == Some(12.5));
    assert_eq!((notes.recv(), notes.recv()), (Ok(Note::Imaged(0)), Ok(Note::Cut(0))));
    site.ask(Wish::Go);
    fresh.join().expect("no panic").expect("answered");
    scope.join().expect("no panic");
}

#[test]
fn an_instrument_that_hangs_up_while_it_is_held_is_forgotten_and_told() {
    let mut site = Site::new();
    site.ask(Wish::Hold);
    let mut socket = TcpStream::connect(site.at).expect("connects");
    socket.write_all(b"{\"z_depth\": 1}").expect("sends");
    site.until_waiting(1);
    drop(socket);
    site.told("hung up");
    until(|| !site.handle().sight().waiting);
}

#[test]
fn a_command_that_no_longer_fits_is_left_out_and_told_and_pause_is_only_sent_when_queued() {
    let site = Site::new();
    // Nothing is known yet, so it is taken; the state then says that there are two overviews.
    site.handle().queue(SbemCommand::ActivateOverview(7)).expect("taken");
    site.handle().queue(SbemCommand::Pause(PauseWhen::Now)).expect("taken");
    let (notes, scope) = sbemimage(site.at, 2);
    scope.join().expect("no panic");
    assert_eq!(notes.iter().collect::<Vec<_>>(), [command("PAUSE", json!([1]))]);
    assert!(site.told("is not sent").contains("overview 7"));
    assert!(site.handle().queue(SbemCommand::ActivateOverview(7)).is_err());
    for _ in 0..QUEUE {
        site.handle().queue(SbemCommand::DeactivateGrids { roi: 0 }).expect("room");
    }
    assert!(site.handle().queue(SbemCommand::DeactivateGrids { roi: 0 }).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_nobody_calls_for_is_told_once() {
    let (tell, events) = mpsc::channel();
    let tell: Tell = Arc::new(move |event| drop(tell.send(event)));
    let config = SbemConfig { silence_seconds: 60.0, ..SbemConfig::default() };
    let at = (Ipv4Addr::LOCALHOST, 0).into();
    let runtime = Handle::current();
    let mut hook = SbemImage::listen(&config, at, Duration::from_secs(1), &runtime, tell).expect("listens");
    hook.ask(&Request { wish: Wish::Hold, reason: "test".into() }).await.expect("taken");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let told = events.try_iter().filter(|e| e.to_string().contains("no effect")).count();
    assert_eq!(told, 1);
}

#[test]
fn a_port_that_is_taken_is_told_with_what_to_do() {
    let site = Site::new();
    let error =
        SbemImage::listen(&SbemConfig::default(), site.at, Duration::ZERO, site.runtime.handle(), Arc::new(|_| {}))
            .err()
            .expect("taken");
    assert!(error.contains("another port"), "{error}");
}
