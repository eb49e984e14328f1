//! Sections whose alignment somebody should look at, for the report and the terminal.

use std::fmt;
use std::path::Path;

use kinesin_stages::align::{Grade, Verdict};
use kinesin_stages::pipeline::AlignmentFile;
use kinesin_stages::publish::{SectionFiles, read_json};
use serde::Serialize;
use serde_json::Value;

use crate::outcome::Failure;

/// Sections that the report names at most; all are in their own files.
const MOST: usize = 200;

/// A section that is not well aligned.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Doubt {
    /// Its z.
    pub z: u32,
    /// Its name.
    pub name: String,
    /// How bad it is.
    pub grade: Grade,
    /// What was measured.
    pub reasons: Vec<String>,
    /// Whether the volume is broken before it: no object crosses from there.
    pub broken_before: bool,
}

impl Doubt {
    /// Whether the section is lost to what follows.
    pub(crate) fn is_bad(&self) -> bool {
        self.grade == Grade::Bad
    }

    /// Whether something of the volume is lost by it: the section, or what crosses to those before.
    pub(crate) fn is_loss(&self) -> bool {
        self.is_bad() || self.broken_before
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = if self.is_bad() { "bad" } else { "doubtful" };
        write!(f, "section z = {} ({}) is {grade}: {}", self.z, self.name, self.reasons.join("; "))
    }
}

/// Those of a run, in order, bad ones first where there are too many.
pub(crate) fn of(out: &Path, sections: u32) -> Result<Vec<Doubt>, Failure> {
    let mut doubts = Vec::new();
    for z in 0..sections {
        let file: Option<AlignmentFile> = read_json(&SectionFiles::new(out, z).alignment()).map_err(Failure::fault)?;
        let Some(AlignmentFile { section: name, mut quality, record, .. }) = file else { continue };
        if record.verdict == Verdict::Missing {
            quality.reasons.extend(lost(out, z)?);
        }
        if quality.grade != Grade::Good {
            doubts.push(Doubt {
                z,
                name,
                grade: quality.grade,
                reasons: quality.reasons,
                broken_before: record.broken_before,
            });
        }
    }
    if doubts.len() > MOST {
        doubts.sort_by_key(|d| (!d.is_loss(), d.z));
        doubts.truncate(MOST);
        doubts.sort_by_key(|d| d.z);
    }
    Ok(doubts)
}

/// Why the first tile of a section was lost; none where none was.
fn lost(out: &Path, z: u32) -> Result<Option<String>, Failure> {
    let quality: Option<Value> = read_json(&SectionFiles::new(out, z).quality()).map_err(Failure::fault)?;
    let why = |q: Value| q["lost"].as_object()?.values().next()?.as_str().map(str::to_owned);
    Ok(quality.and_then(why))
}
