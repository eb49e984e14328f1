//! Reads a site file so that *all* its mistakes are told at once.
//!
//! The parser stops at its first mistake. So the mistake is noted with its line, the lines of that entry are blanked, and the
//! text is read again until nothing is left to say. Blanking never hides a second mistake on another line.

use serde::de::DeserializeOwned;

/// One mistake in a file: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file from 1, or the dotted key.
    pub place: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "  {}", self.place)?;
        for line in self.text.lines() {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}

/// More mistakes than this are not worth reading at once.
const MOST: usize = 50;

/// Parses TOML into `T`, or tells every mistake. The value is also given when only entries with a default were wrong,
/// so that the cross-checks can add theirs.
pub fn read<T: DeserializeOwned>(text: &str) -> (Option<T>, Vec<Problem>) {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut problems = Vec::new();
    loop {
        let now = lines.join("\n");
        let error = match toml::from_str::<T>(&now) {
            Ok(value) => return (Some(value), problems),
            Err(error) => error,
        };
        let message = error.message().trim().to_owned();
        let Some(span) = error.span().filter(|s| s.start < now.len()) else {
            problems.push(Problem { place: "whole file".into(), text: message });
            return (None, problems);
        };
        let first = now[..span.start].matches('\n').count();
        let last = first + now[span.clone()].trim_end().matches('\n').count();
        let shown = lines[first].trim().to_owned();
        let repeated = shown.is_empty() || shown.starts_with('[');
        problems.push(Problem { place: format!("line {}: {shown}", first + 1), text: message });
        if repeated || problems.len() >= MOST {
            return (None, problems);
        }
        for line in &mut lines[first..=last] {
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Part {
        width: u32,
        names: Vec<String>,
    }

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Whole {
        depth: u32,
        part: Part,
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let text = "depht = 3\n[part]\nwidth = \"wide\"\nnames = [\n 1,\n]\ncolour = 2\n";
        let (value, problems) = read::<Whole>(text);
        let places: Vec<&str> = problems.iter().map(|p| &p.place[..6]).collect();
        assert!(value.is_some() || problems.len() >= 3, "{problems:?}");
        for line in ["line 1", "line 3", "line 7"] {
            assert!(places.contains(&line), "{line} is missing: {problems:?}");
        }
    }

    #[test]
    fn a_right_file_has_no_problems() {
        let (value, problems) = read::<Whole>("depth = 3\n[part]\nwidth = 4\n");
        assert!(problems.is_empty());
        let value = value.expect("right");
        assert_eq!((value.depth, value.part.width), (3, 4));
    }
}
