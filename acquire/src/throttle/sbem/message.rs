//! What SBEMimage says and what it may be told, as read from its source (`src/TCPRemote.py`, `src/Acquisition.py`, May 2026).
//!
//! *State*: one JSON object without any mark of its end; SBEMimage then only reads. `paused` is true in every message of a
//! running acquisition of that version (it compares a value that is `None` until a pause with 0), so nothing may be decided by
//! it. `number_ov` is a count; its documentation speaks of a list.
//!
//! *Reply*: one JSON object on one line. Each command needs all of `msg`, `args`, `kwargs`. SBEMimage ends its acquisition when
//! a command raises an exception: an unknown name, an overview that is not there, a mask that is no rectangle. So commands are
//! a type, and checked against the state before they go.

use serde_json::{Value, json};

/// Longest state that is read, bytes: paths and coordinates of some thousand overviews.
pub const LONGEST_STATE: usize = 256 << 10;
/// Most tiles-mask pixels in one command.
const LARGEST_MASK: usize = 1 << 16;

/// What SBEMimage says before a slice. What it leaves out or writes otherwise is `None`.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct State {
    /// As sent; see the module.
    pub paused: Option<bool>,
    /// Stage position along z, micrometres.
    pub z_depth_um: Option<f64>,
    /// Thickness of the next cut, nm.
    pub slice_thickness_nm: Option<f64>,
    /// How many overviews there are.
    pub overviews: Option<u64>,
}

impl State {
    /// Reads a whole message.
    pub fn parse(message: &[u8]) -> Result<Self, String> {
        let read: Read = serde_json::from_slice(message).map_err(|e| e.to_string())?;
        let count = read.overviews.number_ov;
        Ok(Self {
            paused: read.paused.as_bool(),
            z_depth_um: read.z_depth.as_f64(),
            slice_thickness_nm: read.slice_thickness.as_f64(),
            overviews: count.as_u64().or_else(|| count.as_array().map(|list| list.len() as u64)),
        })
    }
}

/// The message's form; what is not wanted is not kept.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Read {
    paused: Value,
    z_depth: Value,
    overviews: ReadOverviews,
    slice_thickness: Value,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ReadOverviews {
    number_ov: Value,
}

/// Finds the end of a JSON object that nothing marks, byte by byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct ObjectEnd {
    depth: usize,
    text: bool,
    escaped: bool,
}

/// What a byte did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is to come.
    Open,
    /// It was the last.
    Whole,
    /// No object begins like this.
    NoObject,
}

impl ObjectEnd {
    /// Takes the next byte.
    pub fn take(&mut self, byte: u8) -> Progress {
        if self.text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.text = false,
                _ => {}
            }
            return Progress::Open;
        }
        match byte {
            b'{' | b'[' if self.depth > 0 || byte == b'{' => self.depth += 1,
            b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => {}
            _ if self.depth == 0 => return Progress::NoObject,
            b'"' => self.text = true,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 && matches!(byte, b'}' | b']') { Progress::Whole } else { Progress::Open }
    }
}

/// When a pause takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseWhen {
    /// Before the slice is imaged.
    Now,
    /// After it is imaged and cut.
    AfterSlice,
}

/// A command of SBEMimage. Coordinates are micrometres in its own systems; overviews are numbered from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum SbemCommand {
    /// Ends the run. Only a person at the console can start it again: never a means of throttling.
    Pause(PauseWhen),
    /// Thickness of cuts from now on, nm.
    SetSliceThickness(u32),
    /// Takes an overview every so many slices.
    SetOverviewInterval {
        /// Which.
        overview: u32,
        /// Slices, 1 or more.
        slices: u32,
    },
    /// Takes an overview again.
    ActivateOverview(u32),
    /// Leaves an overview out.
    DeactivateOverview(u32),
    /// Images the grids of a region of interest again.
    ActivateGrids {
        /// Index of the region.
        roi: u32,
    },
    /// Leaves the grids of a region of interest out: a cheaper slice.
    DeactivateGrids {
        /// Index of the region.
        roi: u32,
    },
    /// Adds a grid over a region seen in an overview, or moves the one that is there.
    AddGrid {
        /// Index of the array.
        array: u32,
        /// Index of the region.
        roi: u32,
        /// Centre of the region.
        centre: [f64; 2],
        /// Width and height.
        size: [f64; 2],
        /// What the centre is relative to.
        reference: [f64; 2],
    },
    /// Images only the tiles of a grid on which the mask is set.
    UpdateTileMask {
        /// Index of the array.
        array: u32,
        /// Index of the region.
        roi: u32,
        /// Rows of equal length; 0 is off.
        mask: Vec<Vec<u8>>,
    },
    /// Removes the grids of all regions.
    DeleteGrids {
        /// Keeps the template grids.
        keep_templates: bool,
    },
}

impl SbemCommand {
    /// Whether it can be sent; with a state also whether it fits. Says what to do.
    pub fn check(&self, state: Option<&State>) -> Result<(), String> {
        match self {
            // The range of its own dialogue.
            Self::SetSliceThickness(nm) if !(5..=200).contains(nm) => Err(format!("a slice of {nm} nm; give 5 to 200")),
            Self::SetOverviewInterval { slices: 0, .. } => Err("an overview every 0 slices; give 1 or more".into()),
            Self::ActivateOverview(overview)
            | Self::DeactivateOverview(overview)
            | Self::SetOverviewInterval { overview, .. } => match state.map(|s| s.overviews) {
                None => Ok(()),
                Some(Some(count)) if u64::from(*overview) < count => Ok(()),
                Some(count) => {
                    let count = count.unwrap_or(0);
                    Err(format!("overview {overview}: SBEMimage has {count}, numbered from 0"))
                }
            },
            Self::AddGrid { centre, size, reference, .. } => {
                let finite = centre.iter().chain(size).chain(reference).all(|v| v.is_finite());
                let there = finite && size.iter().all(|v| *v > 0.0);
                there
                    .then_some(())
                    .ok_or_else(|| format!("a grid of {size:?} at {centre:?}; give finite numbers, sizes above 0"))
            }
            Self::UpdateTileMask { mask, .. } => {
                let width = mask.first().map_or(0, Vec::len);
                let right = (1..=LARGEST_MASK).contains(&(width * mask.len())) && mask.iter().all(|r| r.len() == width);
                right.then_some(()).ok_or_else(|| format!("a mask that is no rectangle of 1 to {LARGEST_MASK} pixels"))
            }
            _ => Ok(()),
        }
    }

    /// `{"msg", "args", "kwargs"}`.
    pub fn to_json(&self) -> Value {
        let (msg, args) = match self {
            Self::Pause(PauseWhen::Now) => ("PAUSE", json!([1])),
            Self::Pause(PauseWhen::AfterSlice) => ("PAUSE", json!([2])),
            Self::SetSliceThickness(nm) => ("SET SLICE THICKNESS", json!([nm])),
            Self::SetOverviewInterval { overview, slices } => ("SET OV INTERVAL", json!([overview, slices])),
            Self::ActivateOverview(overview) => ("ACTIVATE OV", json!([overview])),
            Self::DeactivateOverview(overview) => ("DEACTIVATE OV", json!([overview])),
            Self::ActivateGrids { roi } => ("ACTIVATE ARRAY GRID", json!([roi])),
            Self::DeactivateGrids { roi } => ("DEACTIVATE ARRAY GRID", json!([roi])),
            Self::AddGrid { array, roi, centre, size, reference } => {
                ("ADD ARRAY GRID", json!([array, roi, centre, size, reference]))
            }
            Self::UpdateTileMask { array, roi, mask } => ("UPDATE GRID TILES WITH MASK", json!([array, roi, mask])),
            Self::DeleteGrids { keep_templates } => {
                return json!({"msg": "DELETE ALL ARRAY GRIDS", "args": [],
                              "kwargs": {"keep_template_grids": keep_templates}});
            }
        };
        json!({"msg": msg, "args": args, "kwargs": {}})
    }
}

/// The reply: one line with its newline, after which SBEMimage stops reading.
pub fn reply(commands: &[SbemCommand]) -> Vec<u8> {
    let commands: Vec<Value> = commands.iter().map(SbemCommand::to_json).collect();
    let mut line = json!({"commands": commands}).to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python's `json.dumps` writes it.
    const STATE: &str = r#"{"paused": true, "z_depth": 7.85, "overviews": {"number_ov": 1, "ov_coords": [[-12.5, 3.0]], "ov_dirs": ["D:\\\\data\\\\{ov\"]}"]}, "slice_thickness": 25}"#;

    fn ends(text: &str) -> Option<usize> {
        let mut end = ObjectEnd::default();
        text.bytes().position(|b| end.take(b) == Progress::Whole)
    }

    #[test]
    fn the_end_of_a_state_is_found_although_nothing_marks_it() {
        assert_eq!(ends(STATE), Some(STATE.len() - 1));
        let two = format!(" \r\n{STATE}{STATE}");
        assert_eq!(ends(&two), Some(STATE.len() + 2));
        for cut in 0..STATE.len() {
            assert_eq!(ends(&STATE[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_object_is_told_at_its_first_byte() {
        for text in ["[1]", "GET / HTTP/1.1", "\"{}\"", "}", "null"] {
            assert_eq!(ObjectEnd::default().take(text.as_bytes()[0]), Progress::NoObject, "{text}");
        }
    }

    #[test]
    fn a_state_is_read_and_what_it_lacks_is_unknown() {
        let state = State::parse(STATE.as_bytes()).expect("a state");
        let wanted =
            State { paused: Some(true), z_depth_um: Some(7.85), slice_thickness_nm: Some(25.0), overviews: Some(1) };
        assert_eq!(state, wanted);
        let bare = State::parse(br#"{"z_depth": null, "overviews": {"number_ov": [0, 1]}}"#).expect("a state");
        assert_eq!(bare, State { overviews: Some(2), ..State::default() });
        assert!(State::parse(br#"{"z_depth": NaN}"#).is_err());
    }

    #[test]
    fn a_command_that_would_end_the_acquisition_with_an_exception_is_not_sent() {
        let state = State { overviews: Some(2), ..State::default() };
        let bad = [
            SbemCommand::ActivateOverview(2),
            SbemCommand::SetOverviewInterval { overview: 0, slices: 0 },
            SbemCommand::SetSliceThickness(0),
            SbemCommand::UpdateTileMask { array: 0, roi: 0, mask: vec![vec![1], vec![1, 0]] },
            SbemCommand::UpdateTileMask { array: 0, roi: 0, mask: vec![] },
            SbemCommand::AddGrid { array: 0, roi: 0, centre: [f64::NAN, 0.0], size: [1.0, 1.0], reference: [0.0; 2] },
        ];
        for command in bad {
            assert!(command.check(Some(&state)).is_err(), "{command:?}");
        }
        assert_eq!(SbemCommand::DeactivateOverview(1).check(Some(&state)), Ok(()));
    }

    #[test]
    fn a_reply_is_one_line_and_each_command_has_its_three_keys() {
        let commands = [
            SbemCommand::SetOverviewInterval { overview: 0, slices: 5 },
            SbemCommand::DeleteGrids { keep_templates: true },
            SbemCommand::UpdateTileMask { array: 1, roi: 2, mask: vec![vec![0, 1]] },
        ];
        let line = String::from_utf8(reply(&commands)).expect("text");
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        let wanted = r#"{"commands":[{"msg":"SET OV INTERVAL","args":[0,5],"kwargs":{}},{"msg":"DELETE ALL ARRAY GRIDS","args":[],"kwargs":{"keep_template_grids":true}},{"msg":"UPDATE GRID TILES WITH MASK","args":[1,2,[[0,1]]],"kwargs":{}}]}"#;
        assert_eq!(line.trim_end(), wanted);
        assert_eq!(reply(&[]), b"{\"commands\":[]}\n");
    }
}
