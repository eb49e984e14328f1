//! A small acquisition, the program, and what it left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder that goes with the test.
pub(crate) struct Place {
    dir: TempDir,
}

/// What ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Seven beams over twenty sections of simulated tissue, with faults: small enough for seconds, whole enough for every stage.
pub(crate) const SITE: &str = r#"
name = "promise"
[instrument.sim]
seed = 3
[instrument.sim.tissue.procedural]
seed = 3
shape = [20, 360, 400]
[instrument.sim.layout]
beams = 7
tile_px = { x = 176, y = 160 }
overlap = 0.12
mfovs = 1
[instrument.sim.optics]
stage_sd_px = 4.0
lens_px = 1.0
[instrument.sim.sections]
rotation_deg = 1.0
shift_px = 8.0
deformation_sd_px = 1.0
[instrument.sim.faults]
duplicated = 0.1
late = 0.1
"#;

/// Two sections of the same, for what needs no labels.
pub(crate) const SMALL: &str = r#"
name = "small"
[instrument.sim]
seed = 3
[instrument.sim.tissue.procedural]
seed = 3
shape = [2, 360, 400]
[instrument.sim.layout]
beams = 7
tile_px = { x = 176, y = 160 }
overlap = 0.12
"#;

/// An address on loopback that is free now.
pub(crate) fn free_address() -> String {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
    socket.local_addr().expect("bound").to_string()
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a site file.
    pub(crate) fn site(&self, text: &str) -> PathBuf {
        let path = self.path("site.toml");
        std::fs::write(&path, text).expect("writable");
        path
    }

    /// A site file of one side of a link.
    pub(crate) fn side(&self, site: &str, address: &str, keys: &Path, name: &str) -> PathBuf {
        let link = format!("[link]\naddress = {address:?}\nkeys = {:?}\n", text(keys));
        let path = self.path(name);
        let settings = "[link.settings]\ngive_up_seconds = 60.0\n";
        let spool = format!("[spool]\nfolder = {:?}\n", text(&self.path("spool")));
        std::fs::write(&path, format!("{site}\n{link}{settings}{spool}")).expect("writable");
        path
    }

    /// Runs the site to its end into `out`.
    pub(crate) fn run(&self, site: &str, out: &str, more: &[&str]) -> Ended {
        let site = self.site(site);
        let out = self.path(out);
        kinesin(&[&["run", text(&site), "--out", text(&out)], more].concat())
    }

    /// `report.json` of a finished run.
    pub(crate) fn report(&self, out: &str) -> Value {
        json(&self.path(out).join("report.json"))
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinesin-under-test"));
    // Paths in the site files are relative to the workspace.
    command.args(args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn kinesin(args: &[&str]) -> Ended {
    let Output { status, stdout, stderr } = command(args).output().expect("the program starts");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: status.code(), stdout: text(&stdout), stderr: text(&stderr) }
}

/// Starts the program without waiting.
pub(crate) fn start(args: &[&str]) -> Child {
    command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
}

impl Ended {
    /// Demands this exit status, and shows what was said otherwise.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Demands that standard error says each of these.
    #[track_caller]
    pub(crate) fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in:\n{}", self.stderr);
        }
    }
}

pub(crate) fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines of an `events.jsonl`; a last one that is still being written is left out.
pub(crate) fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// Every file of the result that others read, by its path: placements, alignment, image, mask, labels, equivalences.
pub(crate) fn result_bytes(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    collect(out, &out.join("volume"), &mut files);
    collect(out, &out.join("sections"), &mut files);
    collect(out, &out.join("alignment.json"), &mut files);
    assert!(files.len() > 10, "only {} files in {}", files.len(), out.display());
    files
}

fn collect(root: &Path, at: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    if at.is_file() {
        let name = at.strip_prefix(root).expect("below the root").to_path_buf();
        files.insert(name, std::fs::read(at).expect("readable"));
    } else if at.is_dir() {
        for entry in std::fs::read_dir(at).expect("readable") {
            collect(root, &entry.expect("readable").path(), files);
        }
    }
}

/// Demands the same files with the same bytes.
#[track_caller]
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (result_bytes(a), result_bytes(b));
    let names = |m: &BTreeMap<PathBuf, Vec<u8>>| m.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b), "other files");
    let differ: Vec<_> = a.iter().filter(|(name, bytes)| b[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(differ.is_empty(), "other bytes in {differ:?}");
}
