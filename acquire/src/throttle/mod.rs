//! What holds a real instrument: a hook that says "wait" to the program which runs the microscope.
//!
//! ```text
//!  governor ── Hold·Slow·Go ──► Throttled<I> ──► the instrument itself, where it obeys
//!                                    │ latest wish only, never waits
//!                                    ▼
//!                                  worker ── ask, time-out, retry ──► SbemImage | HoldFile | Http | Command
//!                                    └──────────────► Status, HookEvent
//! ```
//! | module | holds |
//! |---|---|
//! | [`command`] | a program that is run |
//! | [`config`](mod@config) | `[instrument.throttle]` of a site file |
//! | [`hold_file`] | a file whose presence means "hold" |
//! | [`http`] | a POST to a URL |
//! | [`sbem`] | SBEMimage's exchange before every slice |
//! | [`throttled`] | [`Throttled`]: any instrument with a hook; the worker that asks |
//!
//! A hook that hangs, refuses or dies costs one event and is asked again with growing pauses; tiles are taken meanwhile, the
//! spool takes up what comes. `Go` means "Kinesin no longer asks you to wait"; it never undoes a pause that a person made.

pub mod command;
pub mod config;
pub mod hold_file;
pub mod http;
pub mod sbem;
pub mod throttled;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use config::{HookConfig, ThrottleConfig};
pub use throttled::{Monitor, Throttled};

/// What an instrument is asked to do at its next stopping point.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Nothing any more: full speed.
    Go,
    /// This fraction of full speed, above 0 and at most 1.
    Slow(f64),
    /// To wait.
    Hold,
}

impl Wish {
    /// One word: `go`, `slow`, `hold`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Slow(_) => "slow",
            Self::Hold => "hold",
        }
    }

    /// The fraction of full speed, for [`Self::Slow`].
    pub fn fraction(self) -> Option<f64> {
        if let Self::Slow(fraction) = self { Some(fraction) } else { None }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow(fraction) => write!(f, "slow {fraction}"),
            other => f.write_str(other.word()),
        }
    }
}

/// A wish and why, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What is asked.
    pub wish: Wish,
    /// One line.
    pub reason: Arc<str>,
}

/// Why a hook did not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ThrottleError {
    /// The instrument said no; it is as it was.
    #[error("{hook} refused to {wish}: {why}")]
    Refused {
        /// Which hook.
        hook: &'static str,
        /// What was asked.
        wish: Wish,
        /// In the instrument's words, and what to do.
        why: String,
    },
    /// No answer in time; the instrument may or may not have acted.
    #[error("{hook} did not answer to {wish} within {} s; see whether it hangs, or raise instrument.throttle.timeout_seconds", .after.as_secs_f64())]
    TimedOut {
        /// Which hook.
        hook: &'static str,
        /// What was asked.
        wish: Wish,
        /// How long it had.
        after: Duration,
    },
    /// It could not be asked, or its answer makes no sense.
    #[error("{hook} failed to {wish}: {why}")]
    Failed {
        /// Which hook.
        hook: &'static str,
        /// What was asked.
        wish: Wish,
        /// What happened, and what to do.
        why: String,
    },
}

/// A way to ask an instrument to wait. Its caller sets the time-out and asks again after an error.
pub trait Throttle: Send + 'static {
    /// For messages.
    fn name(&self) -> &'static str;

    /// Asks, and gives what the instrument said. Asking for what already holds is harmless.
    ///
    /// Cancel safety: when dropped the instrument may or may not have acted; nothing that was started is left running.
    fn ask(&mut self, request: &Request) -> impl Future<Output = Result<String, ThrottleError>> + Send;

    /// SBEMimage, where this hook is it.
    fn sbem(&self) -> Option<sbem::SbemHandle> {
        None
    }
}

/// What is known of the instrument.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// Never asked, or the last asking ended in a way that leaves it open.
    #[default]
    Unknown,
    /// Not asked to wait.
    Going,
    /// Asked to go at a fraction of full speed.
    Slowed(f64),
    /// Asked to wait, and the hook has taken it.
    Holding,
}

impl From<Wish> for Known {
    fn from(wish: Wish) -> Self {
        match wish {
            Wish::Go => Self::Going,
            Wish::Slow(fraction) => Self::Slowed(fraction),
            Wish::Hold => Self::Holding,
        }
    }
}

/// What is told of a hook, once each.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum HookEvent {
    /// It did as asked.
    Done {
        /// Which hook.
        hook: &'static str,
        /// What was asked.
        wish: Wish,
        /// Why.
        reason: String,
        /// What it said.
        said: String,
    },
    /// It did not; it is asked again until it does or something else is wanted. Told once, not for each try.
    Failing {
        /// Which hook.
        hook: &'static str,
        /// What was asked.
        wish: Wish,
        /// Why not, and what to do.
        error: String,
    },
    /// It works again.
    Recovered {
        /// Which hook.
        hook: &'static str,
        /// What was asked.
        wish: Wish,
        /// Times that it was asked in vain.
        tries: u32,
    },
    /// Something that the hook saw by itself.
    Seen {
        /// Which hook.
        hook: &'static str,
        /// What, and what to do.
        text: String,
    },
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { hook, wish, reason, said } => write!(f, "{hook}: {wish} ({reason}): {said}"),
            Self::Failing { error, .. } => write!(f, "{error}; the run goes on and it is asked again"),
            Self::Recovered { hook, wish, tries } => {
                write!(f, "{hook} works again: {wish} after {tries} tries in vain")
            }
            Self::Seen { hook, text } => write!(f, "{hook}: {text}"),
        }
    }
}

/// Who is told.
pub type Tell = Arc<dyn Fn(HookEvent) + Send + Sync>;

/// Tells the log.
pub fn to_log() -> Tell {
    Arc::new(|event| match &event {
        HookEvent::Failing { .. } | HookEvent::Seen { .. } => tracing::warn!("{event}"),
        HookEvent::Done { .. } | HookEvent::Recovered { .. } => tracing::info!("{event}"),
    })
}

/// The first line of what an instrument said, at most 200 characters, without control characters.
fn first_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}
