//! Promises of the hooks together: a wrapped instrument is never slower than without, whatever its hook does.

use std::sync::Mutex;

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::plan::RunPlan;
use tokio::runtime::Handle;

use super::*;
use crate::instrument::{Command, Event, Instrument, InstrumentError};

/// Gives section ends without number, and obeys only where told so.
struct Endless {
    plan: RunPlan,
    left: u32,
    obeys: bool,
    told: Arc<Mutex<Vec<Command>>>,
}

fn endless(left: u32, obeys: bool) -> (Endless, Arc<Mutex<Vec<Command>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let plan = RunPlan {
        name: "endless".into(),
        beams: 1,
        tile_px: Xy::new(8, 8),
        pixel_size_nm: 4.0,
        thickness_nm: 30.0,
        sections: 1,
        mfovs_per_section: 1,
        extent: BoxXy::default(),
        peak_tiles_per_second: 0.0,
    };
    (Endless { plan, left, obeys, told: told.clone() }, told)
}

impl Instrument for Endless {
    fn plan(&self) -> &RunPlan {
        &self.plan
    }
    async fn next(&mut self) -> Result<Option<Event>, InstrumentError> {
        self.left = self.left.saturating_sub(1);
        Ok((self.left > 0).then_some(Event::SectionEnds(kinesin_stream::ids::SectionId(0))))
    }
    async fn command(&mut self, command: Command) -> Result<(), InstrumentError> {
        if !self.obeys {
            return Err(InstrumentError::Refused { instrument: "endless", command });
        }
        self.told.lock().expect("no panic").push(command);
        Ok(())
    }
}

/// Answers from a script, then always yes.
struct Scripted {
    answers: std::collections::VecDeque<Answer>,
    asked: Arc<Mutex<Vec<Wish>>>,
}

enum Answer {
    Hang,
    Refuse,
    Yes,
}

impl Throttle for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }
    async fn ask(&mut self, request: &Request) -> Result<String, ThrottleError> {
        let wish = request.wish;
        self.asked.lock().expect("no panic").push(wish);
        match self.answers.pop_front() {
            Some(Answer::Hang) => std::future::pending().await,
            Some(Answer::Refuse) => {
                Err(ThrottleError::Refused { hook: "scripted", wish, why: "the door is open".into() })
            }
            Some(Answer::Yes) | None => Ok("yes".into()),
        }
    }
}

type Told = Arc<Mutex<Vec<HookEvent>>>;
type AskedOf = Arc<Mutex<Vec<Wish>>>;

fn throttled(inner: Endless, answers: Vec<Answer>) -> (Throttled<Endless>, AskedOf, Told) {
    let (asked, told) = (AskedOf::default(), Told::default());
    let hook = Scripted { answers: answers.into(), asked: asked.clone() };
    let events = told.clone();
    let tell = Arc::new(move |event| events.lock().expect("no panic").push(event));
    (Throttled::new(inner, hook, Duration::from_secs(10), &Handle::current(), tell), asked, told)
}

fn failing(told: &Told) -> usize {
    told.lock().expect("no panic").iter().filter(|e| matches!(e, HookEvent::Failing { .. })).count()
}

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_hangs_stops_neither_tiles_nor_commands_and_is_told_once() {
    let hang = (0..5).map(|_| Answer::Hang).collect();
    let (mut scope, asked, told) = throttled(endless(1000, false).0, hang);
    let began = tokio::time::Instant::now();
    for command in [Command::Hold, Command::Slow(0.5), Command::Hold] {
        scope.command(command).await.expect("the hook takes it");
        for _ in 0..100 {
            scope.next().await.expect("runs").expect("more");
        }
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    // Five times 10 s, with at most 1 + 2 + 4 + 8 + 16 s between.
    seconds(90).await;
    assert_eq!(failing(&told), 1, "{told:?}");
    assert_eq!(asked.lock().expect("no panic").last(), Some(&Wish::Hold));
    let status = scope.monitor().status().expect("a hook");
    assert_eq!((status.known, status.failures), (Known::Holding, 0));
    let recovered = |e: &HookEvent| matches!(e, HookEvent::Recovered { tries: 5, .. });
    assert!(told.lock().expect("no panic").iter().any(recovered), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_leaves_the_known_state_and_a_time_out_makes_it_unknown() {
    let (mut scope, _, told) = throttled(endless(9, false).0, vec![Answer::Yes, Answer::Refuse, Answer::Hang]);
    seconds(1).await;
    scope.command(Command::Hold).await.expect("the hook takes it");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = scope.monitor().status().expect("a hook");
    assert_eq!((status.known, status.wanted), (Known::Going, Wish::Hold));
    assert!(status.said.contains("the door is open"), "{}", status.said);
    seconds(11).await;
    let status = scope.monitor().status().expect("a hook");
    assert_eq!((status.known, status.failures), (Known::Unknown, 2));
    assert!(status.said.contains("within 10 s"), "{}", status.said);
    assert_eq!(failing(&told), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_thing_asked_is_to_go_and_so_is_the_last() {
    let (mut scope, asked, _) = throttled(endless(2, false).0, vec![]);
    seconds(1).await;
    scope.monitor().explain("the spool is 93 % full");
    scope.command(Command::Hold).await.expect("the hook takes it");
    seconds(1).await;
    while scope.next().await.expect("runs").is_some() {}
    // It has been asked when the run ends, not some time after.
    assert_eq!(*asked.lock().expect("no panic"), [Wish::Go, Wish::Hold, Wish::Go]);
}

#[tokio::test(start_paused = true)]
async fn an_instrument_that_is_dropped_while_held_is_released() {
    let (mut scope, asked, told) = throttled(endless(2, false).0, vec![]);
    scope.command(Command::Hold).await.expect("the hook takes it");
    seconds(1).await;
    let hook = scope.monitor();
    drop(scope);
    hook.released().await;
    assert_eq!(asked.lock().expect("no panic").last(), Some(&Wish::Go));
    let reasons: Vec<String> = told.lock().expect("no panic").iter().map(ToString::to_string).collect();
    assert!(reasons.last().is_some_and(|r| r.contains("the run is over")), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn of_wishes_that_come_and_go_only_the_last_is_asked() {
    let (mut scope, asked, _) = throttled(endless(2, false).0, vec![]);
    seconds(1).await;
    for _ in 0..1000 {
        scope.command(Command::Hold).await.expect("the hook takes it");
        scope.command(Command::Go).await.expect("the hook takes it");
    }
    scope.command(Command::Slow(0.5)).await.expect("the hook takes it");
    seconds(1).await;
    assert_eq!(*asked.lock().expect("no panic"), [Wish::Go, Wish::Slow(0.5)]);
}

#[tokio::test(start_paused = true)]
async fn an_instrument_that_obeys_is_told_too_and_all_else_passes_through() {
    let (inner, told) = endless(2, true);
    let (mut scope, asked, _) = throttled(inner, vec![]);
    let kept = Command::Kept(kinesin_stream::ids::MfovId::new(
        kinesin_stream::ids::SectionId(0),
        kinesin_stream::ids::RegionId(0),
        0,
    ));
    for command in [Command::Hold, kept] {
        scope.command(command).await.expect("obeys");
    }
    assert_eq!(*told.lock().expect("no panic"), [Command::Hold, kept]);
    seconds(1).await;
    assert_eq!(asked.lock().expect("no panic").last(), Some(&Wish::Hold));
    for fraction in [0.0, -1.0, 1.5, f64::NAN] {
        assert!(scope.command(Command::Slow(fraction)).await.is_err(), "{fraction}");
    }
    let (inner, _) = endless(2, false);
    assert!(Throttled::plain(inner).command(Command::Hold).await.is_err());
}

#[test]
fn exactly_one_hook_is_wanted_and_every_mistake_is_told() {
    let read = |text: &str| toml::from_str::<ThrottleConfig>(text);
    let keys = |text| match read(text).expect("the right form").hook() {
        Ok(hook) => panic!("{hook:?}"),
        Err(faults) => faults.iter().map(|f| f.key).collect::<Vec<_>>(),
    };
    assert_eq!(keys(""), [""]);
    assert_eq!(
        keys("timeout_seconds = 0\nhttp.url = 'scope'\nsbemimage.listen = '[::1]:8888'"),
        ["timeout_seconds", "sbemimage", "http.url", ""]
    );
    assert_eq!(keys("hold_file.path = '..'"), ["hold_file.path"]);
    assert_eq!(keys("command.program = ''"), ["command.program"]);
    for unknown in ["retries = 3", "http = { url = 'http://a', method = 'GET' }", "hold_file = { file = 'a' }"] {
        assert!(read(unknown).is_err(), "{unknown}");
    }
    for right in [
        "sbemimage = {}",
        "sbemimage.listen = '0.0.0.0:8888'",
        "hold_file.path = 'D:/scope/kinesin.hold'",
        "http.url = 'http://scope:8080/throttle'",
        "command = { program = 'scopectl', args = ['-q'] }",
    ] {
        read(right).expect("the right form").hook().expect(right);
    }
}
