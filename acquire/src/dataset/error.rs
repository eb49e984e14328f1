//! Why a recorded data set cannot be used: what, where, what was found, what was wanted, what to do.

use std::path::PathBuf;

use kinesin_stream::geometry::Xy;

use crate::decode::DecodeError;

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The path is none of the known forms.
    #[error(
        "{path}: not a recorded data set: {found}; wanted a TileSpec JSON or a folder of them, a FEABAS section text file or a folder of \
         them, a MultiSEM region folder, or a recorded run (a folder with run.json)"
    )]
    Unknown {
        /// What was opened.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not say what it should.
    #[error("{path}: {what}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where in it, what was found, what was wanted.
        what: String,
    },
    /// Two tiles of one name.
    #[error("{section}: two tiles are named {name}; every name may be there once, because results are given by name")]
    Duplicate {
        /// In which section.
        section: String,
        /// Which name.
        name: String,
    },
    /// Tiles of several sizes.
    #[error(
        "{section}: tile {name} is {} x {} px, tiles before it {} x {} px; one run holds tiles of one size: split it",
        got.x, got.y, wanted.x, wanted.y
    )]
    Sizes {
        /// In which section.
        section: String,
        /// Which tile.
        name: String,
        /// Its size.
        got: Xy<u32>,
        /// The size of the others.
        wanted: Xy<u32>,
    },
    /// No image is where the data set says.
    #[error(
        "none of the {tiles} image files of {section} is there; the first would be {first}: check the folder that the paths start from"
    )]
    NoImages {
        /// In which section.
        section: String,
        /// How many were looked for.
        tiles: usize,
        /// The first of them.
        first: PathBuf,
    },
    /// The size of tiles has to be taken from an image that is not one.
    #[error("{path}: {source}")]
    FirstImage {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
}
