//! Models as folders: `model.toml` (what the network needs and does) and an ONNX file, checked against each other on loading.
//!
//! Units: thresholds are probabilities, voxel sizes nm; axes z, y, x. A bare `.onnx` file with the interface of the published
//! FIB-25 flood-filling network (Januszewski et al., Nature Methods 2018) loads with the settings of its published run.

mod normalise;
mod onnx;
mod shipped;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_stream::geometry::{VoxelSize, Zyx};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::normalise::{GreyTable, Normalisation};
pub use self::onnx::{Graph, GraphError, GraphPort};
pub use self::shipped::{shipped, shipped_names};

/// What kind of work a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Flood filling: inputs `image` and `seed`, output `logits`, all `[N, 1, z, y, x]`.
    Ffn,
    /// Tissue classes of a section: input `image` `[N, 1, y, x]`, output `logits` `[N, classes, y, x]`.
    Mask,
}

/// Rules of flood filling that belong to a network, `[ffn]` in model.toml. All required.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FfnRules {
    /// Step of the field of view along z, y, x, in voxels.
    pub deltas: Zyx<usize>,
    /// Probability written at the start voxel.
    pub init_activation: f64,
    /// Probability fed for voxels not yet visited.
    pub pad_value: f64,
    /// Least probability at the new centre for a move.
    pub move_threshold: f64,
    /// Least probability of a voxel of the object.
    pub segment_threshold: f64,
    /// Objects with fewer voxels are dropped.
    pub min_segment_size: usize,
    /// No object starts within this distance of another, voxels along z, y, x.
    pub min_boundary_dist: Zyx<usize>,
    /// A voxel below one half may not rise again once the share of movable voxels exceeds this; negative switches it off.
    pub disco_seed_threshold: f64,
}

/// `[mask]` in model.toml.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskRules {
    /// Names of the classes, in channel order; the first is the tissue to segment.
    pub classes: Vec<String>,
    /// Least probability of a class other than the first for it to be taken.
    pub threshold: f64,
}

/// model.toml, as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name, as given to `--model` for models that ship with the product.
    pub name: String,
    /// What it does.
    pub kind: ModelKind,
    /// The ONNX file, relative to model.toml.
    pub file: PathBuf,
    /// SHA-256 of that file, hexadecimal.
    pub sha256: String,
    /// Licence of the weights.
    pub licence: String,
    /// One line for people.
    pub description: String,
    /// Axis order of everything below; only `zyx` exists.
    pub axes: String,
    /// Voxel size the network was trained for, nm along z, y, x.
    pub voxel_size_nm: Zyx<f64>,
    /// Field of view in voxels along z, y, x; z is 1 for a mask network.
    pub shape: Zyx<usize>,
    /// How grey values reach the network.
    pub normalisation: Normalisation,
    /// For kind `ffn`.
    pub ffn: Option<FfnRules>,
    /// For kind `mask`.
    pub mask: Option<MaskRules>,
    /// How it was trained; for people.
    #[serde(default)]
    pub training: toml::Table,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("cannot read {}: {why}; --model takes a folder with model.toml, an .onnx file, or one of: {}", path.display(), shipped_names().join(", "))]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// model.toml does not parse.
    #[error("{}: {why}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        why: String,
    },
    /// The ONNX file is not the one the manifest was written for.
    #[error("{}: sha256 is {got}, model.toml wants {wanted}; fetch the model again", path.display())]
    Hash {
        /// The ONNX file.
        path: PathBuf,
        /// Of the file.
        got: String,
        /// Of the manifest.
        wanted: String,
    },
    /// The ONNX file cannot be used.
    #[error("{}: {source}", path.display())]
    Graph {
        /// The ONNX file.
        path: PathBuf,
        /// What is wrong.
        source: GraphError,
    },
    /// Manifest and graph, or settings among themselves, contradict each other; all faults at once.
    #[error("model {name} does not fit: {}", faults.join("; "))]
    Misfit {
        /// Its name.
        name: String,
        /// Everything found.
        faults: Vec<String>,
    },
}

/// A model that is ready to use: manifest, interface and bytes agree. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Model {
    manifest: Arc<Manifest>,
    graph: Arc<Graph>,
    onnx: Arc<[u8]>,
    digest: Arc<str>,
}

impl Model {
    /// Loads a folder with model.toml, or a bare `.onnx` with the FIB-25 interface.
    ///
    /// # Errors
    /// One error that names the file and, for contradictions, all of them.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        if path.extension().is_some_and(|e| e == "onnx") {
            let onnx = read(path)?;
            let manifest = fib25(path, digest(&onnx));
            return Self::from_parts(manifest, onnx, path);
        }
        let card = path.join("model.toml");
        let text = String::from_utf8_lossy(&read(&card)?).into_owned();
        let manifest: Manifest = parse(&text, &card)?;
        let file = path.join(&manifest.file);
        Self::from_parts(manifest, read(&file)?, &file)
    }

    fn from_parts(manifest: Manifest, onnx: Vec<u8>, file: &Path) -> Result<Self, ModelError> {
        let got = digest(&onnx);
        if !got.eq_ignore_ascii_case(&manifest.sha256) {
            return Err(ModelError::Hash { path: file.to_owned(), got, wanted: manifest.sha256 });
        }
        let graph = Graph::parse(&onnx).map_err(|source| ModelError::Graph { path: file.to_owned(), source })?;
        let faults = faults(&manifest, &graph);
        if !faults.is_empty() {
            return Err(ModelError::Misfit { name: manifest.name, faults });
        }
        Ok(Self { manifest: Arc::new(manifest), graph: Arc::new(graph), onnx: onnx.into(), digest: got.into() })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// SHA-256 of the ONNX file, hexadecimal; part of what identifies a result.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Interface of the network.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Bytes of the ONNX file.
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    /// Voxel size the network was trained for.
    pub fn voxel_size(&self) -> VoxelSize {
        VoxelSize(self.manifest.voxel_size_nm)
    }

    /// Flood-filling rules; an error that says so for a mask model.
    ///
    /// # Errors
    /// [`ModelError::Misfit`] for another kind of model.
    pub fn ffn(&self) -> Result<&FfnRules, ModelError> {
        self.manifest.ffn.as_ref().ok_or_else(|| self.wrong_kind("flood filling needs a model of kind \"ffn\""))
    }

    /// Mask rules; an error that says so for a flood-filling model.
    ///
    /// # Errors
    /// [`ModelError::Misfit`] for another kind of model.
    pub fn mask(&self) -> Result<&MaskRules, ModelError> {
        self.manifest.mask.as_ref().ok_or_else(|| self.wrong_kind("masks need a model of kind \"mask\""))
    }

    /// A model without a graph, for tests that bring their own network.
    #[cfg(test)]
    pub(crate) fn for_tests(manifest: Manifest) -> Self {
        let graph = Graph { inputs: Vec::new(), outputs: Vec::new(), batch_name: None };
        Self { manifest: Arc::new(manifest), graph: Arc::new(graph), onnx: Vec::new().into(), digest: "".into() }
    }

    fn wrong_kind(&self, what: &str) -> ModelError {
        ModelError::Misfit { name: self.name().to_owned(), faults: vec![what.to_owned()] }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|e| ModelError::Read { path: path.to_owned(), why: e.to_string() })
}

fn parse(text: &str, path: &Path) -> Result<Manifest, ModelError> {
    toml::from_str(text)
        .map_err(|e| ModelError::Manifest { path: path.to_owned(), why: e.to_string().trim().replace('\n', " ") })
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The published FIB-25 run; its shape is checked against the file like any other.
fn fib25(path: &Path, sha256: String) -> Manifest {
    Manifest {
        name: path.file_stem().map_or("onnx".into(), |n| n.to_string_lossy().into_owned()),
        kind: ModelKind::Ffn,
        file: path.to_owned(),
        sha256,
        licence: "see where the file came from".into(),
        description: "bare ONNX file, run with the settings of the published FIB-25 segmentation".into(),
        axes: "zyx".into(),
        voxel_size_nm: Zyx::new(10.0, 10.0, 10.0),
        shape: Zyx::new(33, 33, 33),
        normalisation: Normalisation::Fixed { mean: 128.0, sd: 33.0 },
        ffn: Some(FfnRules {
            deltas: Zyx::new(8, 8, 8),
            init_activation: 0.95,
            pad_value: 0.05,
            move_threshold: 0.9,
            segment_threshold: 0.6,
            min_segment_size: 1000,
            min_boundary_dist: Zyx::new(1, 1, 1),
            disco_seed_threshold: 0.0,
        }),
        mask: None,
        training: toml::Table::new(),
    }
}

/// Everything that contradicts, so that one look repairs all.
fn faults(m: &Manifest, graph: &Graph) -> Vec<String> {
    let mut faults = Vec::new();
    let mut want = |ok: bool, fault: String| {
        if !ok {
            faults.push(fault);
        }
    };
    let size = m.voxel_size_nm;
    want(m.axes == "zyx", format!("axes is \"{}\", only \"zyx\" is supported", m.axes));
    want(
        [size.z, size.y, size.x].iter().all(|v| v.is_finite() && *v > 0.0),
        format!("voxel_size_nm {size:?} must be positive"),
    );
    if let Normalisation::Fixed { mean, sd } = m.normalisation {
        want(
            mean.is_finite() && sd.is_finite() && sd > 0.0,
            format!("normalisation mean {mean}, sd {sd}: sd must be positive"),
        );
    }
    match m.kind {
        ModelKind::Ffn => ffn_faults(m, graph, &mut want),
        ModelKind::Mask => mask_faults(m, graph, &mut want),
    }
    faults
}

fn ffn_faults(m: &Manifest, graph: &Graph, want: &mut impl FnMut(bool, String)) {
    let item = vec![1, m.shape.z, m.shape.y, m.shape.x];
    check_ports("inputs", &graph.inputs, &[("image", item.clone()), ("seed", item.clone())], want);
    check_ports("outputs", &graph.outputs, &[("logits", item)], want);
    let Some(f) = &m.ffn else {
        return want(false, "kind is \"ffn\" but there is no [ffn] table".into());
    };
    for (axis, n, d) in [("z", m.shape.z, f.deltas.z), ("y", m.shape.y, f.deltas.y), ("x", m.shape.x, f.deltas.x)] {
        want(
            n % 2 == 1,
            format!("shape along {axis} is {n}, an odd number is needed (the field of view has a centre)"),
        );
        want(d <= n / 2, format!("delta along {axis} is {d}, at most {} fits a field of view of {n}", n / 2));
    }
    want(f.deltas.z + f.deltas.y + f.deltas.x > 0, "all deltas are 0, the field of view could not move".into());
    let probabilities = [
        ("init_activation", f.init_activation),
        ("pad_value", f.pad_value),
        ("move_threshold", f.move_threshold),
        ("segment_threshold", f.segment_threshold),
    ];
    for (name, p) in probabilities {
        want(p > 0.0 && p < 1.0, format!("{name} is {p}, a probability between 0 and 1 is needed"));
    }
    want(
        f.init_activation >= f.move_threshold,
        "init_activation is below move_threshold, no object could start".into(),
    );
    let (b, h) = (f.min_boundary_dist, m.shape);
    want(
        b.z <= h.z / 2 && b.y <= h.y / 2 && b.x <= h.x / 2,
        format!("min_boundary_dist {b:?} exceeds half the field of view {h:?}"),
    );
}

fn mask_faults(m: &Manifest, graph: &Graph, want: &mut impl FnMut(bool, String)) {
    let Some(k) = &m.mask else {
        return want(false, "kind is \"mask\" but there is no [mask] table".into());
    };
    want(m.shape.z == 1, format!("a mask network works on one section, shape along z is {}", m.shape.z));
    want(k.classes.len() >= 2, format!("{} classes given, at least 2 are needed", k.classes.len()));
    want(k.classes.len() <= 255, format!("{} classes given, at most 255 are possible", k.classes.len()));
    want(
        k.threshold > 0.0 && k.threshold < 1.0,
        format!("threshold is {}, a probability between 0 and 1 is needed", k.threshold),
    );
    check_ports("inputs", &graph.inputs, &[("image", vec![1, m.shape.y, m.shape.x])], want);
    check_ports("outputs", &graph.outputs, &[("logits", vec![k.classes.len(), m.shape.y, m.shape.x])], want);
}

fn check_ports(what: &str, got: &[GraphPort], wanted: &[(&str, Vec<usize>)], want: &mut impl FnMut(bool, String)) {
    let same = got.len() == wanted.len()
        && got.iter().zip(wanted).all(|(g, (name, item))| g.name == *name && fits(&g.item, item));
    let show = |list: Vec<(&str, &Vec<usize>)>| {
        let parts: Vec<String> = list
            .iter()
            .map(|(name, item)| {
                format!("{name} [N, {}]", item.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
            })
            .collect();
        parts.join(" and ")
    };
    let got_text = show(got.iter().map(|p| (p.name.as_str(), &p.item)).collect());
    let wanted_text = show(wanted.iter().map(|(n, i)| (*n, i)).collect());
    want(same, format!("the graph's {what} are {got_text}, wanted {wanted_text}"));
}

/// Axes that the exporter left open (0) are checked when the network runs.
fn fits(got: &[usize], wanted: &[usize]) -> bool {
    got.len() == wanted.len() && got.iter().zip(wanted).all(|(g, w)| *g == 0 || g == w)
}

#[cfg(test)]
mod tests;
