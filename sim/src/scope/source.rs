//! Where the tissue under the simulated scope comes from.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::SimConfig;
use crate::tissue::Tissue;
use crate::tissue::config::TissueConfig;
use crate::tissue::procedural::Procedural;
use crate::tissue::recorded::{RecordedConfig, RecordedTissue};

/// Grown or recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TissueSource {
    /// Grown from a seed.
    Procedural(TissueConfig),
    /// Any volume that was imaged before, with its labels where there are some.
    Recorded(RecordedConfig),
}

impl Default for TissueSource {
    fn default() -> Self {
        Self::Procedural(TissueConfig::default())
    }
}

/// Tissue ready to be looked at.
pub(crate) struct OpenTissue {
    pub(crate) tissue: Arc<dyn Tissue>,
    /// The same tissue where it is read from disk: asked afterwards whether a read has failed.
    pub(crate) recorded: Option<Arc<RecordedTissue>>,
}

/// A simulated acquisition that cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Settings that cannot be used, one a line.
    #[error("the simulated scope cannot start:\n  {}", .0.join("\n  "))]
    Config(Vec<String>),
    /// The recorded tissue cannot be read.
    #[error("{0}")]
    Recorded(#[from] crate::tissue::recorded::RecordedError),
    /// The truth's volumes cannot be written.
    #[error("cannot write the truth: {0}")]
    Volume(#[from] kinesin_stream::volume::VolumeError),
    /// A file of the recording or the truth cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which file or folder.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl OpenTissue {
    pub(crate) fn open(config: &SimConfig) -> Result<Self, SimError> {
        match &config.tissue {
            TissueSource::Procedural(tissue) => {
                let grown = Procedural::new(tissue.clone()).map_err(|e| SimError::Config(vec![e.to_string()]))?;
                Ok(Self { tissue: Arc::new(grown), recorded: None })
            }
            TissueSource::Recorded(recorded) => {
                let recorded = Arc::new(RecordedTissue::open(recorded)?);
                Ok(Self { tissue: recorded.clone(), recorded: Some(recorded) })
            }
        }
    }
}
