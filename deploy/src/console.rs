//! What the program says on standard error beside its progress line: one plain line a message.
//!
//! `warning: section 3 region 0 mFOV 0: a.bmp lost: not acquired`. Where `KINESIN_LOG` or `RUST_LOG` asks for more, lines have
//! time, level and module. Colours only on a terminal, and not with `NO_COLOR`.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Level, colon, message.
struct Plain {
    /// Begins each line by wiping the progress line.
    wipe: bool,
}

/// From now on; once in a process.
pub fn init() {
    let terminal = std::io::stderr().is_terminal();
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let asked = ["KINESIN_LOG", "RUST_LOG"].into_iter().find_map(|name| EnvFilter::try_from_env(name).ok());
    let lines = tracing_subscriber::fmt().with_ansi(colours).with_writer(std::io::stderr);
    match asked {
        Some(filter) => lines.with_env_filter(filter).init(),
        None => {
            let plain = lines.with_env_filter(EnvFilter::new("warn")).event_format(Plain { wipe: terminal });
            plain.init();
        }
    }
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.wipe {
            line.write_str("\r\x1b[K")?;
        }
        line.write_str(match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "note: ",
        })?;
        context.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}
