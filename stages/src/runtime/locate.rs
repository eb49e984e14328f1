//! Finds libonnxruntime on this machine, or has pip put the exact hashed wheels into the cache.
//!
//! Order: `ORT_DYLIB_PATH`, our cache, the Python on the path, pip. A folder of the cache is complete or absent (installed
//! under another name, then renamed); a lock file keeps two processes from installing at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::RuntimeError;

/// Whether OpenVINO's plug-in is published for this platform.
pub(super) const PLUGIN_EXISTS: bool = cfg!(all(target_os = "linux", target_arch = "x86_64"));

const REQUIREMENTS: &str = include_str!("requirements.txt");
const OLDEST_MINOR: u32 = 24;
const PLUGIN: &str = "onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so";

/// A runtime that is there, and the plug-in that goes with it.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) dylib: PathBuf,
    pub(super) plugin: Option<PathBuf>,
    pub(super) how: &'static str,
}

/// Finds or installs. With `wants_plugin` a Python installation without the plug-in is used only if pip cannot do better.
pub(super) fn locate(cache: Option<&Path>, wants_plugin: bool) -> Result<Located, RuntimeError> {
    let mut tried = Vec::new();
    let site = cache_root(cache).map(|root| site_folder(&root));
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let dylib = PathBuf::from(path);
        if !dylib.is_file() {
            return Err(RuntimeError::Load { path: dylib, why: "ORT_DYLIB_PATH names no file".into() });
        }
        let beside = dylib.parent().and_then(Path::parent).and_then(Path::parent).map(|p| p.join(PLUGIN));
        let ours = site.as_ref().map(|s| s.join(PLUGIN));
        let plugin = beside.into_iter().chain(ours).find(|p| p.is_file());
        return Ok(Located { dylib, plugin, how: "ORT_DYLIB_PATH" });
    }
    if let Some(found) = site.as_deref().and_then(|s| in_site(s, "cache")) {
        return Ok(found);
    }
    let python = match python_site() {
        Ok(sites) => sites.iter().find_map(|s| in_site(s, "Python package")),
        Err(why) => {
            tried.push(why);
            None
        }
    };
    if let Some(found) = python.as_ref().filter(|p| p.plugin.is_some() || !wants_plugin) {
        return Ok(found.clone());
    }
    match site.as_deref().ok_or_else(|| "no cache folder (HOME is not set)".to_owned()).and_then(install) {
        Ok(found) => Ok(found),
        Err(why) => {
            tried.push(why);
            python.ok_or(RuntimeError::Missing { tried: tried.join("; ") })
        }
    }
}

/// Version text and minor number from a name such as `libonnxruntime.so.1.31.1` or `libonnxruntime.1.31.1.dylib`.
pub(super) fn version(dylib: &Path) -> Option<(String, u32)> {
    let real = fs::canonicalize(dylib).unwrap_or_else(|_| dylib.to_owned());
    let name = real.file_name()?.to_str()?;
    let numbers: Vec<&str> = name.split('.').filter(|p| p.parse::<u32>().is_ok()).collect();
    Some((numbers.join("."), numbers.get(1)?.parse().ok()?))
}

/// Whether Linux lists this flag for the processor.
pub(super) fn cpu_has(flag: &str) -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines().find(|l| l.starts_with("flags")).is_some_and(|l| l.split_whitespace().any(|f| f == flag))
}

fn cache_root(given: Option<&Path>) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    given
        .map(Path::to_owned)
        .or_else(|| set("KINESIN_CACHE"))
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("kinesin")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/kinesin")))
}

/// The folder's name changes with the pinned files, so an older pin is never taken for the present one.
fn site_folder(root: &Path) -> PathBuf {
    let digest = Sha256::digest(REQUIREMENTS.as_bytes());
    let short: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    root.join(format!("onnxruntime-{short}"))
}

fn in_site(site: &Path, how: &'static str) -> Option<Located> {
    let capi = fs::read_dir(site.join("onnxruntime/capi")).ok()?;
    let mut names: Vec<PathBuf> = capi.filter_map(|e| e.ok().map(|e| e.path())).collect();
    names.sort();
    let is_library = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        (name.starts_with("libonnxruntime.so") || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib")))
            && version(p).is_some_and(|(_, minor)| minor >= OLDEST_MINOR)
    };
    let dylib = names.into_iter().find(is_library)?;
    let plugin = Some(site.join(PLUGIN)).filter(|p| p.is_file());
    Some(Located { dylib, plugin, how })
}

/// Folders in which the Python on the path would look for the packages; nothing is imported.
fn python_site() -> Result<Vec<PathBuf>, String> {
    let code = "import importlib.util as u, os\ns = u.find_spec('onnxruntime')\nprint(os.path.dirname(os.path.dirname(s.origin)) if s and s.origin else '')";
    let out =
        Command::new("python3").args(["-c", code]).output().map_err(|e| format!("python3 does not start ({e})"))?;
    if !out.status.success() {
        return Err(format!("python3 fails ({})", last_line(&out.stderr)));
    }
    Ok(String::from_utf8_lossy(&out.stdout).lines().filter(|l| !l.is_empty()).map(PathBuf::from).collect())
}

fn install(site: &Path) -> Result<Located, String> {
    let root = site.parent().expect("the site folder has the cache as parent");
    let io = |what: &str, e: std::io::Error| format!("{what} {}: {e}", root.display());
    fs::create_dir_all(root).map_err(|e| io("cannot make", e))?;
    let lock = fs::File::create(root.join("runtime.lock")).map_err(|e| io("cannot write to", e))?;
    lock.lock().map_err(|e| io("cannot lock", e))?;
    if let Some(found) = in_site(site, "cache") {
        return Ok(found);
    }
    let partial = site.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(|e| io("cannot clear", e))?;
    }
    let list = root.join("requirements.txt");
    fs::write(&list, REQUIREMENTS).map_err(|e| io("cannot write to", e))?;
    tracing::info!(folder = %site.display(), "fetching the inference runtime with pip (once per machine)");
    let fixed =
        ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--no-compile"];
    let safe = ["--only-binary=:all:", "--require-hashes"];
    let mut pip = Command::new("python3");
    pip.args(fixed).args(safe).arg("--target").arg(&partial).arg("-r").arg(&list).env("PIP_USER", "0");
    let out = pip.output().map_err(|e| format!("python3 does not start ({e})"))?;
    if !out.status.success() {
        return Err(format!("pip could not install onnxruntime ({})", last_line(&out.stderr)));
    }
    if site.exists() {
        fs::remove_dir_all(site).map_err(|e| io("cannot replace the broken runtime in", e))?;
    }
    fs::rename(&partial, site).map_err(|e| io("cannot rename in", e))?;
    in_site(site, "fetched with pip").ok_or_else(|| format!("the package in {} holds no library", site.display()))
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .rev()
        .find(|l| l.to_lowercase().contains("error"))
        .or(text.lines().last())
        .unwrap_or("no message")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_linux_and_mac_names() {
        assert_eq!(version(Path::new("/x/libonnxruntime.so.1.31.1")), Some(("1.31.1".into(), 31)));
        assert_eq!(version(Path::new("/x/libonnxruntime.1.30.0.dylib")), Some(("1.30.0".into(), 30)));
        assert_eq!(version(Path::new("/x/libonnxruntime.so")), None);
    }

    #[test]
    fn every_pinned_package_has_a_hash() {
        let packages = REQUIREMENTS.lines().filter(|l| l.contains("==")).count();
        let blocks = REQUIREMENTS.split("==").skip(1).filter(|b| b.contains("--hash=sha256:")).count();
        assert_eq!((packages, blocks), (2, 2));
    }

    #[test]
    fn a_half_made_folder_is_not_taken_for_a_runtime() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("onnxruntime/capi")).unwrap();
        fs::write(dir.path().join("onnxruntime/capi/libonnxruntime.so.1.20.0"), b"").unwrap();
        assert!(in_site(dir.path(), "cache").is_none(), "1.20 is older than what is needed");
        fs::write(dir.path().join("onnxruntime/capi/libonnxruntime.so.1.31.1"), b"").unwrap();
        assert!(in_site(dir.path(), "cache").is_some_and(|l| l.plugin.is_none()));
    }
}
