//! Which promises a driven run kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kinesin_stages::archive::Archive;
use kinesin_stream::ledger::{Ledger, State};

use super::acquisition::Acquisition;
use crate::harness::{json, result_bytes};

/// I1 to I5 at the end: `codes` are the exit statuses of head and scope.
/// `spoiled` tells that tiles were damaged before the head had them: those may be lost, with the reason.
pub(crate) fn promises(
    out: &Path,
    undisturbed: &Acquisition,
    codes: [Option<i32>; 2],
    spoiled: bool,
) -> Result<(), String> {
    if !out.join("report.json").is_file() {
        return Err(format!("there is no report; head and scope ended with {codes:?}"));
    }
    if summed(out)? == undisturbed.tiles["lost"].as_u64() || !spoiled {
        conserved(out, undisturbed)?;
        same_bytes(out, undisturbed)?;
    }
    committed(out, undisturbed)?;
    within_budget(out)?;
    tidy(out)
}

/// I3: each of these mFOVs is settled in the ledger, and its tiles read back whole. Gives how many were checked.
pub(crate) fn receipts(
    out: &Path,
    receipts: &BTreeSet<String>,
    damaged: &[(PathBuf, Vec<u8>)],
) -> Result<usize, String> {
    if receipts.is_empty() {
        return Ok(0);
    }
    let ledger = Ledger::inspect(out).map_err(|e| format!("after receipts: {e}"))?;
    let mut settled = BTreeSet::new();
    for mfov in ledger.settled_mfovs().map_err(|e| e.to_string())? {
        if receipts.contains(&mfov.to_string()) {
            settled.insert(mfov);
        }
    }
    if settled.len() != receipts.len() {
        return Err(format!("the scope was told that {receipts:?} are durable; the ledger knows {settled:?}"));
    }
    let archive = Archive::open(out, ledger.clone()).map_err(|e| e.to_string())?;
    for mfov in &settled {
        for (key, row) in ledger.section(mfov.section).map_err(|e| e.to_string())? {
            if key.mfov == *mfov && row.state != State::Lost && damaged.is_empty() {
                archive.read(&key).map_err(|e| format!("the scope was told that it is durable: {e}"))?;
            }
        }
    }
    Ok(settled.len())
}

/// I1: promised = durable + lost, each with its reason. Gives how many are lost.
fn summed(out: &Path) -> Result<Option<u64>, String> {
    let report = json(&out.join("report.json"));
    let tiles = &report["tiles"];
    let n = |key: &str| tiles[key].as_u64().unwrap_or(u64::MAX);
    let reasons = tiles["lost_by_reason"].as_object().map_or(0, |r| r.values().filter_map(|v| v.as_u64()).sum());
    if n("promised") != n("durable") + n("lost") || reasons != n("lost") {
        return Err(format!("the sums do not agree: {tiles}"));
    }
    let ledger = Ledger::inspect(out).map_err(|e| e.to_string())?;
    let counts = ledger.counts().map_err(|e| e.to_string())?;
    if counts.open() != 0 || counts.lost != n("lost") {
        return Err(format!("the ledger has {counts:?}, the report {tiles}"));
    }
    Ok(Some(n("lost")))
}

/// As many of each as without faults, for the same reasons.
fn conserved(out: &Path, undisturbed: &Acquisition) -> Result<(), String> {
    let report = json(&out.join("report.json"));
    let (tiles, wanted) = (&report["tiles"], &undisturbed.tiles);
    for key in ["promised", "durable", "lost", "lost_by_reason"] {
        if tiles[key] != wanted[key] {
            return Err(format!("{key} is {}, without faults {}", tiles[key], wanted[key]));
        }
    }
    Ok(())
}

/// I5: every file of the result, byte by byte.
fn same_bytes(out: &Path, undisturbed: &Acquisition) -> Result<(), String> {
    let files = result_bytes(out);
    let names = |files: &std::collections::BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
    let (have, want) = (names(&files), names(&undisturbed.files));
    if have != want {
        let only = |a: &BTreeSet<PathBuf>, b: &BTreeSet<PathBuf>| a.difference(b).cloned().collect::<Vec<_>>();
        return Err(format!("files too many: {:?}; missing: {:?}", only(&have, &want), only(&want, &have)));
    }
    let differ: Vec<_> = files.iter().filter(|(name, bytes)| undisturbed.files[*name] != **bytes).collect();
    let differ: Vec<_> = differ.into_iter().map(|(name, _)| name).collect();
    if differ.is_empty() { Ok(()) } else { Err(format!("other bytes than without faults in {differ:?}")) }
}

/// Everything is published, and nothing twice.
fn committed(out: &Path, undisturbed: &Acquisition) -> Result<(), String> {
    let text = fs::read_to_string(out.join("commits.jsonl")).map_err(|e| e.to_string())?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let set: BTreeSet<String> = lines.iter().cloned().collect();
    if set != undisturbed.commits {
        return Err(format!("commits.jsonl holds {set:?}, without faults {:?}", undisturbed.commits));
    }
    if lines.len() > set.len() { Err(format!("published twice: {lines:?}")) } else { Ok(()) }
}

/// I2, of the head's last process.
fn within_budget(out: &Path) -> Result<(), String> {
    let memory = json(&out.join("report.json"))["memory"].clone();
    let n = |key: &str| memory[key].as_u64().unwrap_or(0);
    if n("peak_leased_bytes") > n("budget_bytes") || n("budget_bytes") == 0 {
        return Err(format!("{} bytes were leased, of a budget of {}", n("peak_leased_bytes"), n("budget_bytes")));
    }
    Ok(())
}

/// Nothing half written is left, and no tiles that the ledger does not know.
fn tidy(out: &Path) -> Result<(), String> {
    let mut left = Vec::new();
    let mut folders = vec![out.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| e.to_string())?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".part") || name.ends_with(".partial") || name.ends_with(".tmp") {
                left.push(path);
            }
        }
    }
    if !left.is_empty() {
        return Err(format!("half written files are left: {left:?}"));
    }
    let ledger = Ledger::inspect(out).map_err(|e| e.to_string())?;
    let mut stored = BTreeSet::new();
    for section in ledger.section_ids().map_err(|e| e.to_string())? {
        let rows = ledger.section(section).map_err(|e| e.to_string())?;
        stored.extend(rows.into_iter().filter(|(_, row)| row.place.is_some()).map(|(key, _)| key.mfov));
    }
    let files = fs::read_dir(out.join("archive")).map_err(|e| e.to_string())?.count();
    if files != stored.len() {
        return Err(format!("{files} files in the archive, {} mFOVs with tiles in the ledger", stored.len()));
    }
    Ok(())
}
