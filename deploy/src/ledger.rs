//! `kinesin ledger`: where every tile of a run stands.
//!
//! Without a filter a table by section and state; with one, the rows it admits. Rows are read and written one after the other,
//! so that ten million of them take no more memory than ten.

mod entry;
mod export;

use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kinesin_stream::ids::{BeamId, SectionId};
use kinesin_stream::ledger::{Counts, Duplicates, Filter, Ledger, LedgerError, State};
use serde_json::json;

use crate::cli::LedgerArgs;
use crate::outcome::{Failure, Outcome};
use crate::progress::Progress;
use entry::{Entry, utc};

/// Answers; [`Outcome::WithLosses`] where there are lost tiles among what was asked for.
pub fn ledger(args: &LedgerArgs, as_json: bool) -> Result<Outcome, Failure> {
    let ledger = Ledger::inspect(&args.dir).map_err(refused)?;
    let filter = filter(args, &ledger)?;
    let mut lost = 0;
    for (path, write) in [(&args.csv, export::csv as Export), (&args.parquet, export::parquet)] {
        if let Some(path) = path {
            lost = file(&ledger, &filter, path, write, as_json)?;
        }
    }
    if args.csv.is_none() && args.parquet.is_none() {
        let mut out = BufWriter::new(std::io::stdout().lock());
        let written = if filter == Filter::default() {
            summary(&ledger, &mut out, as_json)
        } else {
            rows(&ledger, &filter, &mut out, as_json)
        };
        lost = match written {
            Ok(lost) => lost,
            // Whoever reads has seen enough.
            Err(Stopped::Output(e)) if e.kind() == ErrorKind::BrokenPipe => 0,
            Err(Stopped::Output(e)) => return Err(Failure::fault(e)),
            Err(Stopped::Ledger(e)) => return Err(refused(e)),
        };
    }
    Ok(if lost == 0 { Outcome::Complete } else { Outcome::WithLosses })
}

/// Writes entries into a file.
type Export = fn(&Path, &mut dyn Iterator<Item = Result<Entry, LedgerError>>) -> Result<(), export::ExportError>;

#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Output(#[from] std::io::Error),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

fn refused(error: LedgerError) -> Failure {
    match error {
        LedgerError::Store { .. } | LedgerError::Damaged { .. } => Failure::fault(error),
        other => Failure::input(other),
    }
}

fn filter(args: &LedgerArgs, ledger: &Ledger) -> Result<Filter, Failure> {
    let section = args.section.as_deref().map(|asked| section(asked, ledger)).transpose()?;
    let beam = args.beam.map(|b| BeamId(b - 1));
    Ok(Filter { section, beam, state: args.state, reason: args.reason.clone() })
}

/// The section that is meant: its number, also as this program prints it (`section 3`), or its name in the plan.
fn section(asked: &str, ledger: &Ledger) -> Result<SectionId, Failure> {
    let known = ledger.section_ids().map_err(refused)?;
    let number = asked.trim().strip_prefix("section").unwrap_or(asked).trim().parse().map(SectionId);
    if let Some(id) = number.ok().filter(|id| known.binary_search(id).is_ok()) {
        return Ok(id);
    }
    let mut names = Vec::new();
    for id in &known {
        match ledger.section_plan(*id).map_err(refused)? {
            Some(plan) if plan.name == asked => return Ok(*id),
            Some(plan) if names.len() < 3 => names.push(format!("{:?}", plan.name)),
            _ => {}
        }
    }
    let (path, range) = (ledger.path().display(), known.first().zip(known.last()));
    let range = range.map_or("none".into(), |(a, b)| format!("{} to {}", a.0, b.0));
    Err(Failure::Input(format!(
        "section {asked} is in no plan of {path}, which has sections {range}, by name {}, ..; give a number or a name",
        names.join(", ")
    )))
}

/// Exports; the file appears whole or not at all. Gives the number of lost tiles in it.
fn file(ledger: &Ledger, filter: &Filter, path: &Path, write: Export, as_json: bool) -> Result<u64, Failure> {
    let (written, mut lost) = (Arc::new(AtomicU64::new(0)), 0);
    let seen = written.clone();
    let progress = Progress::start(as_json, move || format!("{} tiles written", seen.load(Relaxed)));
    let mut entries = ledger.query(filter).map_err(refused)?.map(|row| {
        let entry = row.map(|(key, row)| Entry::new(key, &row))?;
        written.fetch_add(1, Relaxed);
        lost += u64::from(entry.state == State::Lost);
        Ok(entry)
    });
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = std::path::PathBuf::from(part);
    write(&part, &mut entries).map_err(|e| Failure::Fault(format!("cannot write {}: {e}", path.display())))?;
    drop(entries);
    std::fs::rename(&part, path).map_err(|e| Failure::Fault(format!("cannot write {}: {e}", path.display())))?;
    drop(progress);
    let tiles = written.load(Relaxed);
    if as_json {
        println!("{}", json!({"file": path, "tiles": tiles, "lost": lost}));
    } else {
        println!("{tiles} tiles written to {}", path.display());
    }
    Ok(lost)
}

/// The rows that the filter admits: a table, or JSON lines.
fn rows(ledger: &Ledger, filter: &Filter, out: &mut impl Write, as_json: bool) -> Result<u64, Stopped> {
    let (mut tiles, mut lost) = (0u64, 0);
    if !as_json {
        writeln!(
            out,
            "{:>7} {:>6} {:>6} {:>7} {:>4}  {:<10}  {:<19}  {:<16}  name, reason",
            "section", "region", "mFOV", "attempt", "beam", "state", "since (UTC)", "hash"
        )?;
    }
    for row in ledger.query(filter)? {
        let (key, row) = row?;
        let entry = Entry::new(key, &row);
        tiles += 1;
        lost += u64::from(entry.state == State::Lost);
        if as_json {
            writeln!(out, "{}", json!(entry))?;
            continue;
        }
        let since = row.times.at(row.state).map_or(String::new(), utc);
        let hash = entry.hash.as_deref().map_or("", |h| &h[..16]);
        let reason = entry.reason.map_or(String::new(), |r| format!(": {r}"));
        writeln!(
            out,
            "{:>7} {:>6} {:>6} {:>7} {:>4}  {:<10}  {since:<19}  {hash:<16}  {}{reason}",
            entry.section,
            entry.region,
            entry.mfov,
            entry.attempt,
            key.beam.to_string(),
            entry.state,
            entry.name
        )?;
    }
    if !as_json {
        writeln!(out, "{tiles} tiles")?;
    }
    out.flush()?;
    Ok(lost)
}

/// Tiles by section and state with their sums: a table, or one JSON document.
fn summary(ledger: &Ledger, out: &mut impl Write, as_json: bool) -> Result<u64, Stopped> {
    let (sections, total) = (ledger.counts_by_section()?, ledger.counts()?);
    let (again, foreign) = (ledger.duplicate_sum()?, ledger.foreign_tiles()?);
    if as_json {
        let with = |counts: &Counts| {
            let mut counts = json!(counts);
            counts["promised"] = json!(State::ALL.iter().filter_map(|s| counts[s.name()].as_u64()).sum::<u64>());
            counts
        };
        let sections: Vec<_> = sections.iter().map(|(s, c)| json!({"section": s, "tiles": with(c)})).collect();
        let answer = json!({"sections": sections, "total": with(&total), "duplicates": again, "foreign": foreign});
        writeln!(out, "{answer}")?;
    } else {
        let shown: Vec<State> = State::ALL.into_iter().filter(|s| total.get(*s) > 0).collect();
        let line = |name: &str, counts: &Counts| {
            let cells: String = shown.iter().map(|s| format!(" {:>10}", counts.get(*s))).collect();
            format!("{name:>8} {:>10} ={cells}", counts.promised())
        };
        let names: String = shown.iter().map(|s| format!(" {s:>10}")).collect();
        writeln!(out, "{:>8} {:>10}  {names}", "section", "promised")?;
        for (section, counts) in &sections {
            writeln!(out, "{}", line(&section.0.to_string(), counts))?;
        }
        writeln!(out, "{}", line("sum", &total))?;
        let Duplicates { same, other } = again;
        writeln!(out, "came again: {same} with the same content, {other} with other; {foreign} foreign tiles")?;
    }
    out.flush()?;
    Ok(total.lost)
}

#[cfg(test)]
mod tests;
