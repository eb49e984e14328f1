//! Live progress for people: one line that is rewritten on a terminal, one line every few seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the line is rewritten on a terminal, and written elsewhere.
const REFRESH: Duration = Duration::from_millis(300);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A progress line that ends when it is dropped.
#[derive(Debug)]
pub struct Progress {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows what `line` says until dropped. Shows nothing with `quiet`, nor for work that is over within a second.
    pub fn start(quiet: bool, line: impl Fn() -> String + Send + 'static) -> Self {
        let done = Arc::new(AtomicBool::new(quiet));
        let seen = done.clone();
        let show = move || {
            let terminal = std::io::stderr().is_terminal();
            let bar = if terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
            bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a fixed template"));
            let mut last = Instant::now();
            std::thread::park_timeout(Duration::from_secs(1));
            while !seen.load(Ordering::Relaxed) {
                if terminal {
                    bar.set_message(line());
                    bar.tick();
                } else if last.elapsed() >= LINE_EVERY {
                    last = Instant::now();
                    eprintln!("{}", line());
                }
                std::thread::park_timeout(REFRESH);
            }
            bar.finish_and_clear();
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(show).ok();
        Self { done, thread }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the progress line must not take the run with it.
            drop(thread.join());
        }
    }
}
