//! No text makes the reader of site files panic, hang, take much memory, or refuse without a word. See the harness for the
//! settings and the counts.

#[path = "../../acquire/tests/fuzz/harness.rs"]
mod harness;

use std::path::Path;

use harness::fuzz;
use kinesin::cli::Tune;
use kinesin::site::SiteFile;

/// In memory where the machine has it: many small files are written.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder")
}

const HOOKED: &str = r#"
name = "hooked"
out = "runs/hooked"
[instrument.recorded]
path = "data/013_S48R1"
[instrument.throttle]
timeout_seconds = 10
sbemimage = { listen = "127.0.0.1:8888", silence_seconds = 1800 }
[link]
address = "127.0.0.1:4433"
keys = "keys"
settings = { streams = 4, stream_window = "4 MiB", idle_seconds = 3.0, datagram = 1472 }
[spool]
folder = "spool"
capacity = "2 TiB"
segment = "256 MiB"
[stages.volume]
levels = 4
chunk_px = 512
[compute]
workers = 2
provider = "cpu"
precision = "f32"
batch = 4
[govern]
backlog = "1 GiB"
[govern.ladder]
slow_seconds = 60.0
[govern.drill]
script = [[3, "stitch_only"], [9, "full"]]
slow_render_ms = [[10, 2000], [20, 0]]
[metrics]
address = "127.0.0.1:9464"
"#;

#[test]
fn site_files() {
    let dir = folder();
    let path = dir.path().join("site.toml");
    let shipped = |name: &str| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/sites").join(name);
        std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    };
    let seeds = [shipped("demo.toml"), shipped("step_load.toml"), HOOKED.as_bytes().to_vec()];
    fuzz("site files", 8.0, &seeds, |bytes| {
        std::fs::write(&path, bytes).expect("writes");
        SiteFile::load(&path, &Tune::default()).map(drop).map_err(|e| e.to_string())
    });
}
