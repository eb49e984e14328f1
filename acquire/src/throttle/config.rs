//! `[instrument.throttle]` of a site file: exactly one hook.
//!
//! ```toml
//! [instrument.throttle]
//! timeout_seconds = 10
//! sbemimage = { listen = "127.0.0.1:8888" }
//! # or: hold_file = { path = "D:/scope/kinesin.hold" }
//! # or: http = { url = "http://scope:8080/throttle" }
//! # or: command = { program = "scopectl", args = ["--quiet"] }
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kinesin_backpressure::{Budget, Bytes};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::command::CommandHook;
use super::hold_file::HoldFile;
use super::http::{HttpHook, Target};
use super::sbem::{SbemConfig, SbemImage};
use super::{Tell, Throttled};
use crate::instrument::Instrument;

/// What holds the instrument.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThrottleConfig {
    /// Longest time that the hook may take to answer, seconds. Default 10: slower than any local exchange, and short beside
    /// the minutes in which a spool fills.
    pub timeout_seconds: f64,
    /// SBEMimage's exchange before every slice.
    pub sbemimage: Option<SbemConfig>,
    /// A file whose presence means "hold".
    pub hold_file: Option<HoldFileConfig>,
    /// A POST to a URL.
    pub http: Option<HttpConfig>,
    /// A program that is run.
    pub command: Option<CommandConfig>,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self { timeout_seconds: 10.0, sbemimage: None, hold_file: None, http: None, command: None }
    }
}

/// `hold_file`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldFileConfig {
    /// The file: there while the instrument shall wait. A fraction of full speed is written beside it, with `.slow` added to
    /// the name. Its folder must exist. No default.
    pub path: PathBuf,
}

/// `http`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Where to POST; plain `http://`. No default.
    pub url: String,
}

/// `command`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program. No default.
    pub program: PathBuf,
    /// Its arguments; `hold`, `slow` or `go` is added as the last. Default: none.
    #[serde(default)]
    pub args: Vec<String>,
}

/// A checked hook, not yet opened.
#[derive(Clone, Debug)]
pub enum HookConfig {
    /// SBEMimage.
    SbemImage(SbemConfig, SocketAddr),
    /// A file.
    HoldFile(PathBuf),
    /// A URL.
    Http(Target),
    /// A program.
    Command(CommandConfig),
}

/// Why a hook cannot be opened: what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[error("instrument.throttle.{key}: {text}")]
pub struct OpenError {
    /// Key under `[instrument.throttle]`.
    pub key: &'static str,
    /// What is wrong.
    pub text: String,
}

impl ThrottleConfig {
    /// The one hook, or every mistake as key and text. Touches nothing.
    pub fn hook(&self) -> Result<HookConfig, Vec<OpenError>> {
        let mut faults = Vec::new();
        if !(0.1..=600.0).contains(&self.timeout_seconds) {
            let text = format!("{} s\nuse 0.1 to 600, default 10", self.timeout_seconds);
            faults.push(OpenError { key: "timeout_seconds", text });
        }
        let mut hooks = Vec::new();
        let mut keep = |key, hook: Result<HookConfig, String>| match hook {
            Ok(hook) => hooks.push(hook),
            Err(text) => faults.push(OpenError { key, text }),
        };
        if let Some(sbem) = &self.sbemimage {
            keep("sbemimage", sbem.address().map(|at| HookConfig::SbemImage(sbem.clone(), at)));
        }
        if let Some(file) = &self.hold_file {
            let named = file.path.file_name().is_some();
            let text = || format!("{} names no file\ngive the path of a file to make", file.path.display());
            keep("hold_file.path", named.then(|| HookConfig::HoldFile(file.path.clone())).ok_or_else(text));
        }
        if let Some(http) = &self.http {
            keep("http.url", http.url.parse().map(HookConfig::Http));
        }
        if let Some(command) = &self.command {
            let named = !command.program.as_os_str().is_empty();
            let text = || "no program\ngive its path, or its name where PATH finds it".to_owned();
            keep("command.program", named.then(|| HookConfig::Command(command.clone())).ok_or_else(text));
        }
        let given = [self.sbemimage.is_some(), self.hold_file.is_some(), self.http.is_some(), self.command.is_some()];
        let given = given.iter().filter(|g| **g).count();
        if given != 1 {
            let text = format!("{given} hooks\ngive exactly one of sbemimage, hold_file, http, command");
            faults.push(OpenError { key: "", text });
        }
        match hooks.pop() {
            Some(hook) if faults.is_empty() => Ok(hook),
            _ => Err(faults),
        }
    }

    /// Memory that the hook may take at most.
    pub fn memory(&self) -> Bytes {
        if self.sbemimage.is_some() { SbemImage::MEMORY } else { Bytes(64 << 10) }
    }

    /// Enters the hook's memory.
    pub fn enter(&self, budget: &Budget) {
        budget.fixed("throttle hook", self.memory());
    }

    /// Opens the hook around an instrument. `name` is that of the acquisition: it marks what is ours.
    pub fn open<I: Instrument>(
        &self,
        inner: I,
        name: &str,
        runtime: &Handle,
        tell: Tell,
    ) -> Result<Throttled<I>, OpenError> {
        let hook = self.hook().map_err(|mut faults| faults.remove(0))?;
        let timeout = Duration::from_secs_f64(self.timeout_seconds);
        Ok(match hook {
            HookConfig::SbemImage(config, at) => {
                let hook = SbemImage::listen(&config, at, timeout, runtime, tell.clone())
                    .map_err(|text| OpenError { key: "sbemimage.listen", text })?;
                Throttled::new(inner, hook, timeout, runtime, tell)
            }
            HookConfig::HoldFile(path) => {
                let hook = HoldFile::new(path, name).map_err(|text| OpenError { key: "hold_file.path", text })?;
                Throttled::new(inner, hook, timeout, runtime, tell)
            }
            HookConfig::Http(target) => Throttled::new(inner, HttpHook::new(target, name), timeout, runtime, tell),
            HookConfig::Command(c) => {
                Throttled::new(inner, CommandHook::new(c.program, c.args, name), timeout, runtime, tell)
            }
        })
    }
}
