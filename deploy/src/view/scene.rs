//! What there is to see, and the state of neuroglancer that shows it.
//!
//! Layers from the bottom up: the image, the newest version of each section that was taken again, the mask, provisional labels
//! (both hidden at first), the labels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use kinesin_stream::geometry::{VoxelSize, Zyx};
use kinesin_stream::volume::commit_log::read_log;
use kinesin_stream::volume::{self, Equivalence};
use serde_json::{Value, json};

use super::ViewError;

/// Where the link leads: the public neuroglancer, which runs in the browser and takes its data from here.
const CLIENT: &str = "https://neuroglancer-demo.appspot.com/";
/// Merges that fit into a link; with more the labels are shown unmerged there, and `/state.json` has them all.
pub(super) const MERGES_IN_LINK: usize = 2000;
/// Layers of later versions; each costs the browser memory and the link length.
const REVISIONS: usize = 20;

/// How a layer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Image,
    Revision,
    Mask,
    Provisional,
    Labels,
}

/// A folder of `DIR/volume`.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) name: String,
    kind: Kind,
}

const BELOW: [(&str, Kind); 1] = [("image", Kind::Image)];
const ABOVE: [(&str, Kind); 3] = [("mask", Kind::Mask), ("labels_light", Kind::Provisional), ("labels", Kind::Labels)];

impl Layer {
    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind }
    }
}

/// Names of the newest version of each section, `<z>_v<n>`, by z.
fn revisions(folder: &Path) -> Result<Vec<String>, std::io::Error> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut newest: BTreeMap<u32, u32> = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let parts = name.to_str().and_then(|n| n.split_once("_v"));
        if let Some((Ok(z), Ok(n))) = parts.map(|(z, n)| (z.parse(), n.parse())) {
            let version = newest.entry(z).or_insert(n);
            *version = n.max(*version);
        }
    }
    Ok(newest.into_iter().map(|(z, n)| format!("{z}_v{n}")).collect())
}

/// What there is to see.
#[derive(Debug)]
pub(super) struct Scene {
    base: String,
    pub(super) shape: Zyx<usize>,
    pub(super) voxel: VoxelSize,
    /// What is there, from the bottom up.
    pub(super) layers: Vec<Layer>,
    /// Newest versions of sections that have no layer, because there are too many.
    hidden: usize,
    /// Labels that are one object, sorted.
    merged: Vec<Vec<u64>>,
    merges: usize,
}

impl Scene {
    pub(super) fn of(dir: &Path, base: &str) -> Result<Self, ViewError> {
        let root = dir.join("volume");
        let there = |(name, kind): &(&str, Kind)| root.join(name).is_dir().then(|| Layer::new(name, *kind));
        let mut layers: Vec<Layer> = BELOW.iter().filter_map(there).collect();
        let newest = revisions(&root.join("revisions"))?;
        let hidden = newest.len().saturating_sub(REVISIONS);
        layers.extend(
            newest.into_iter().skip(hidden).map(|name| Layer::new(&format!("revisions/{name}"), Kind::Revision)),
        );
        layers.extend(ABOVE.iter().filter_map(there));
        let first = layers.first().ok_or_else(|| ViewError::Nothing(dir.to_path_buf()))?;
        let info = volume::open(&root.join(&first.name))?.info().clone();
        let rows = read_log::<Equivalence>(&root.join("equivalences.jsonl"))?;
        Ok(Self {
            base: base.to_owned(),
            shape: info.shape,
            voxel: info.voxel_size.unwrap_or(VoxelSize(Zyx::new(1.0, 1.0, 1.0))),
            layers,
            hidden,
            merges: rows.len(),
            merged: sets(&rows),
        })
    }

    /// The link, with the merges in it where they are few.
    pub(super) fn link(&self) -> String {
        format!("{CLIENT}#!{}", percent(&self.state(self.merges <= MERGES_IN_LINK).to_string()))
    }

    pub(super) fn note(&self) -> Option<String> {
        let mut notes = Vec::new();
        if self.merges > MERGES_IN_LINK && self.layers.iter().any(|l| l.name == "labels") {
            notes.push(format!(
                "{} merges are too many for that link, which shows base labels; all of them: {CLIENT}#!{}/state.json",
                self.merges, self.base
            ));
        }
        if self.hidden > 0 {
            notes.push(format!("{} more sections have later versions: volume/revisions has them all", self.hidden));
        }
        (!notes.is_empty()).then(|| notes.join("\n"))
    }

    /// The state of neuroglancer: layers, place, scale.
    pub(super) fn state(&self, with_merges: bool) -> Value {
        let VoxelSize(nm) = self.voxel;
        let Zyx { z, y, x } = self.shape;
        let (mid_z, mid_y, mid_x) = ((z / 2) as f64 + 0.5, y as f64 / 2.0, x as f64 / 2.0);
        json!({
            "dimensions": {"x": metres(nm.x), "y": metres(nm.y), "z": metres(nm.z)},
            "position": [mid_x, mid_y, mid_z],
            // Voxels a screen pixel: the whole section in about 800 of them.
            "crossSectionScale": (x.max(y) as f64 / 800.0).max(0.05),
            "projectionScale": x.max(y) as f64 * 1.5,
            "layers": self.layers.iter().map(|l| self.layer(l, with_merges)).collect::<Vec<_>>(),
            "selectedLayer": {"layer": self.layers.last().map(|l| &l.name), "visible": false},
            "layout": "4panel",
        })
    }

    fn layer(&self, Layer { name, kind }: &Layer, with_merges: bool) -> Value {
        let url = |scheme: &str| format!("{scheme}://{}/volume/{name}", self.base);
        let VoxelSize(nm) = self.voxel;
        let half_voxel = json!({
            "outputDimensions": {"z": metres(nm.z), "y": metres(nm.y), "x": metres(nm.x)},
            "matrix": [[1, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, 0.5]],
        });
        match kind {
            Kind::Image => json!({
                "type": "image",
                "name": name,
                "source": {"url": url("zarr"), "transform": half_voxel},
            }),
            Kind::Revision => json!({
                "type": "image",
                "name": name,
                "source": {"url": url("zarr"), "transform": half_voxel},
                // 0 is "as in the version before".
                "shader": "void main() { float v = toNormalized(getDataValue()); if (v == 0.0) discard; emitGrayscale(v); }",
            }),
            Kind::Mask => json!({
                "type": "segmentation",
                "name": name,
                "source": {"url": url("zarr"), "transform": half_voxel},
                "visible": false,
                "selectedAlpha": 0.3,
            }),
            Kind::Provisional => json!({
                "type": "segmentation",
                "name": name,
                "source": url("precomputed"),
                "visible": false,
                "selectedAlpha": 0.4,
            }),
            Kind::Labels => {
                let mut layer = json!({
                    "type": "segmentation",
                    "name": name,
                    "source": url("precomputed"),
                    "selectedAlpha": 0.4,
                });
                if with_merges && !self.merged.is_empty() {
                    // As text: numbers of JavaScript end at 2^53.
                    let text = |set: &Vec<u64>| set.iter().map(u64::to_string).collect::<Vec<_>>();
                    layer["equivalences"] = self.merged.iter().map(text).collect();
                }
                layer
            }
        }
    }
}

/// A voxel's side as neuroglancer takes it; through text, so that 4 nm is 4e-9 m and not its neighbour.
fn metres(nm: f64) -> Value {
    json!([format!("{nm}e-9").parse().unwrap_or(nm * 1e-9), "m"])
}

/// Labels that are connected by rows, each set sorted, sets by their first.
fn sets(rows: &[Equivalence]) -> Vec<Vec<u64>> {
    let mut parent: BTreeMap<u64, u64> = BTreeMap::new();
    fn root(parent: &mut BTreeMap<u64, u64>, label: u64) -> u64 {
        let mut at = label;
        while let Some(&up) = parent.get(&at).filter(|&&up| up != at) {
            let next = parent.get(&up).copied().unwrap_or(up);
            parent.insert(at, next);
            at = next;
        }
        at
    }
    for row in rows {
        let (a, b) = (root(&mut parent, row.a), root(&mut parent, row.b));
        parent.entry(a.min(b)).or_insert(a.min(b));
        parent.insert(a.max(b), a.min(b));
    }
    let labels: Vec<u64> = parent.keys().copied().collect();
    let mut sets: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for label in labels {
        sets.entry(root(&mut parent, label)).or_default().push(label);
    }
    sets.into_values().filter(|s| s.len() > 1).collect()
}

/// Percent-encodes what a fragment may not hold.
fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-_.~:,/!".contains(&b) {
            out.push(char::from(b));
        } else {
            write!(out, "%{b:02X}").expect("writing to a String does not fail");
        }
        out
    })
}
