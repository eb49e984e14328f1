//! What a flood reads beside the image (masks, an initial segmentation, lists of start points, a reference histogram), and
//! what it leaves beside labels (probabilities, origins). Everything is opened and checked before any work.

use std::path::{Path, PathBuf};

use kinesin_stream::geometry::{BoxZyx, VoxelSize, Xy, Zyx};
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::commit_log::read_log;
use kinesin_stream::volume::{self, Equivalence, ImageSpec, ImageWriter, Reduce, VolumeError, VolumeSource};
use ndarray::{Array2, Axis};

use crate::agglomerate::UnionFind;
use crate::flood::{FloodConfig, FloodSection, MaskRule, SeedPolicy, WindowResult, ids};
use crate::publish::write_json;

/// Labels and their table of merges.
pub type KnownLabels = (Box<dyn VolumeSource>, UnionFind);

/// Labels at `path`: those of a run's folder with its table of merges, or a label volume without any.
///
/// # Errors
/// Where they cannot be read.
pub fn labels_at(path: &Path) -> Result<KnownLabels, VolumeError> {
    let labels = path.join("volume/labels");
    if !labels.is_dir() {
        return Ok((volume::open(path)?, UnionFind::default()));
    }
    let rows: Vec<Equivalence> = read_log(&path.join("volume/equivalences.jsonl"))?;
    Ok((volume::open(&labels)?, UnionFind::from_rows(rows.iter().map(|row| (row.a, row.b)))))
}

/// See the module.
pub(super) struct FloodExtras {
    masks: Vec<(MaskRule, Box<dyn VolumeSource>)>,
    initial: Option<KnownLabels>,
    probability: Option<ImageWriter>,
    /// Folder of probabilities, and of `origins`, one file a window.
    out: PathBuf,
}

impl FloodExtras {
    /// Reads the files that `config` names, for a volume of this shape whose results go to `out`; gives the config with their
    /// content. Writes nothing.
    ///
    /// # Errors
    /// Everything that cannot be read or does not fit, each with its key.
    pub(super) fn open(
        config: &FloodConfig,
        out: &Path,
        shape: Zyx<usize>,
    ) -> Result<(FloodConfig, Self), Vec<String>> {
        let (mut config, mut faults) = (config.clone(), Vec::new());
        for (i, policy) in config.seeds.iter_mut().enumerate() {
            if let SeedPolicy::List { file, points, .. } = policy {
                *points = keep(&mut faults, &format!("flood.seeds.{i}.file"), read_points(file, shape));
            }
        }
        if let Some(h) = &mut config.histogram {
            h.counts = keep(&mut faults, "flood.histogram.reference", histogram(&h.reference));
        }
        let mut masks = Vec::new();
        for (i, rule) in config.masks.iter().enumerate() {
            let Some(path) = &rule.volume else { continue };
            let opened = open_volume(path).and_then(|v| same_field(&*v, shape).map(|()| v));
            masks.extend(keep(&mut faults, &format!("flood.masks.{i}.volume"), opened).map(|v| (rule.clone(), v)));
        }
        let initial = config.initial.as_ref().and_then(|path| {
            let opened = labels_at(path).map_err(|e| e.to_string());
            keep(&mut faults, "flood.initial", opened.and_then(|v| same_shape(&*v.0, shape).map(|()| v)))
        });
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok((config, Self { masks, initial, probability: None, out: out.join("volume") }))
    }

    /// Begins the volume of probabilities, or goes on with it.
    pub(super) fn with_probability(mut self, shape: Zyx<usize>, voxel_size: VoxelSize) -> Result<Self, VolumeError> {
        let spec = ImageSpec { shape, voxel_size, levels: 1, chunk: Xy::new(256, 256), reduce: Reduce::Mean };
        self.probability = Some(ImageWriter::create(&self.out.join("probability"), spec)?);
        Ok(self)
    }

    /// Adds to section `z` what the masks and the initial segmentation say of it.
    pub(super) fn add(&self, z: usize, section: &mut FloodSection) -> Result<(), StopError> {
        let (rows, columns) = section.image.dim();
        for (rule, volume) in &self.masks {
            let values = labels_of(&**volume, z)?;
            let (high, wide) = values.dim();
            let at = |y: usize, x: usize| values[[y * high / rows, x * wide / columns]];
            rule.mark(at, &mut section.exclude, &mut section.barred);
        }
        if let Some((volume, merges)) = &self.initial {
            section.initial = Some(labels_of(&**volume, z)?.mapv(|l| ids::as_initial(merges.root(l))));
        }
        Ok(())
    }

    /// Writes what a window leaves beside its labels; writing the same again changes nothing.
    pub(super) fn publish(&self, result: &WindowResult) -> Result<(), StopError> {
        if let (Some(writer), Some(probability)) = (&self.probability, &result.probability) {
            for (z, section) in probability.outer_iter().enumerate() {
                writer.write_section(result.span.open + z, section)?;
            }
        }
        write_json(&self.out.join(format!("origins/{:05}.json", result.span.window)), &result.origins)?;
        Ok(())
    }
}

fn keep<T>(faults: &mut Vec<String>, key: &str, result: Result<T, String>) -> Option<T> {
    result.map_err(|e| faults.push(format!("{key}: {e}"))).ok()
}

fn open_volume(path: &Path) -> Result<Box<dyn VolumeSource>, String> {
    volume::open(path).map_err(|e| e.to_string())
}

fn said(s: Zyx<usize>) -> String {
    format!("{} x {} x {}", s.z, s.y, s.x)
}

fn same_shape(volume: &dyn VolumeSource, wanted: Zyx<usize>) -> Result<(), String> {
    let there = volume.info().shape;
    if there == wanted {
        return Ok(());
    }
    Err(format!(
        "{} has {} voxels, the volume {}; give one of the same box",
        volume.info().path.display(),
        said(there),
        said(wanted)
    ))
}

/// The same sections and the same field; its pixels may be larger or smaller.
fn same_field(volume: &dyn VolumeSource, wanted: Zyx<usize>) -> Result<(), String> {
    let there = volume.info().shape;
    let (y, x) = (wanted.y as f64 / there.y as f64, wanted.x as f64 / there.x as f64);
    if there.z == wanted.z && (y / x - 1.0).abs() < 0.02 {
        return Ok(());
    }
    Err(format!(
        "{} has {} voxels, the volume {}; give a mask of the same sections and the same field",
        volume.info().path.display(),
        said(there),
        said(wanted)
    ))
}

fn labels_of(volume: &dyn VolumeSource, z: usize) -> Result<Array2<u64>, StopError> {
    Ok(volume.read_labels(plane(volume, z))?.index_axis_move(Axis(0), 0))
}

fn plane(volume: &dyn VolumeSource, z: usize) -> BoxZyx {
    let (shape, z) = (volume.info().shape, z as i64);
    BoxZyx { min: Zyx::new(z, 0, 0), max: Zyx::new(z + 1, shape.y as i64, shape.x as i64) }
}

/// Voxels of each grey value.
fn histogram(path: &Path) -> Result<Vec<u64>, String> {
    let volume = open_volume(path)?;
    let mut counts = vec![0; 256];
    for z in 0..volume.info().shape.z {
        for v in volume.read_u8(plane(&*volume, z)).map_err(|e| e.to_string())? {
            counts[usize::from(v)] += 1;
        }
    }
    if counts[1..].iter().all(|n| *n == 0) {
        return Err(format!("{} is empty, it has no grey values to match", path.display()));
    }
    Ok(counts)
}

/// Start points of a file, all inside the volume.
fn read_points(path: &Path, shape: Zyx<usize>) -> Result<Vec<Zyx<usize>>, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {name}: {e}"))?;
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let points = if json { from_json(&text) } else { from_csv(&text) }.map_err(|e| format!("{name}: {e}"))?;
    let inside = |p: &Zyx<usize>| p.z < shape.z && p.y < shape.y && p.x < shape.x;
    if let Some((i, p)) = points.iter().enumerate().find(|(_, p)| !inside(p)) {
        let (n, volume) = (i + 1, said(shape));
        return Err(format!("{name}: point {n} ({}, {}, {}) is outside the volume of {volume} voxels", p.z, p.y, p.x));
    }
    if points.is_empty() { Err(format!("{name} holds no point")) } else { Ok(points) }
}

fn from_json(text: &str) -> Result<Vec<Zyx<usize>>, String> {
    let points: Vec<[usize; 3]> = serde_json::from_str(text).map_err(|e| format!("{e}; wanted [[z, y, x], ...]"))?;
    Ok(points.into_iter().map(Zyx::from).collect())
}

fn from_csv(text: &str) -> Result<Vec<Zyx<usize>>, String> {
    let mut lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let header: Vec<&str> = lines.next().map_or(Vec::new(), |(_, l)| l.split(',').map(str::trim).collect());
    let column = |name: &str| header.iter().position(|h| *h == name);
    let (Some(z), Some(y), Some(x)) = (column("z"), column("y"), column("x")) else {
        return Err("the first line must name the columns z, y and x".into());
    };
    lines
        .map(|(i, line)| {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let cell = |c: usize| cells.get(c).and_then(|t| t.parse().ok());
            match (cell(z), cell(y), cell(x)) {
                (Some(z), Some(y), Some(x)) => Ok(Zyx::new(z, y, x)),
                _ => Err(format!("line {}: {line:?} has no whole numbers for z, y, x", i + 1)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Zyx<usize> = Zyx::new(4, 5, 6);

    #[test]
    fn start_points_come_from_csv_or_json_and_lie_in_the_volume() {
        let place = tempfile::tempdir().expect("a folder");
        let read = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).expect("written");
            read_points(&path, SHAPE)
        };
        let wanted = vec![Zyx::new(1, 2, 3), Zyx::new(3, 4, 5)];
        assert_eq!(read("a.csv", "x,id,z,y\n3,9,1,2\n5,9,3,4\n"), Ok(wanted.clone()));
        assert_eq!(read("a.json", "[[1, 2, 3], [3, 4, 5]]"), Ok(wanted));
        let error = |name, text| read(name, text).expect_err("bad");
        assert!(error("b.csv", "1,2,3\n").contains("first line must name"));
        assert!(error("c.csv", "z,y,x\n1,2\n").contains("line 2"));
        assert!(error("d.csv", "z,y,x\n1,2,6\n").contains("point 1 (1, 2, 6) is outside the volume of 4 x 5 x 6"));
        assert!(error("e.json", "{}").contains("wanted [[z, y, x], ...]"));
    }

    #[test]
    fn all_files_that_do_not_fit_are_told_at_once() {
        let text = "initial = \"/no/initial\"\n[histogram]\nreference = \"/no/reference\"\n[[masks]]\nvolume = \"/no/mask\"\nvalues = [1]\n[[seeds]]\nkind = \"list\"\nfile = \"/no/list\"";
        let config: FloodConfig = toml::from_str(text).expect("valid");
        let place = tempfile::tempdir().expect("a folder");
        let faults = FloodExtras::open(&config, place.path(), SHAPE).err().expect("none is there");
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(faults[0].contains("flood.seeds.0.file: cannot read /no/list"), "{faults:?}");
        assert!(faults[2].contains("flood.masks.0.volume"), "{faults:?}");
        assert!(!place.path().join("volume").exists(), "nothing was begun");
    }
}
