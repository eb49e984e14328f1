//! Tissue that was imaged before: any volume Kinesin can open, with its labels where there are some.
//!
//! Coordinates begin at the first voxel of the chosen box. Every section of the scope is read once into the scope's own
//! bounded cache; image folders keep their last decoded sections besides. Reading can fail in the middle of a run, and the
//! tissue interface has no place for an error: the first failure is kept and asked for by the scope before it says a tile.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kinesin_stream::geometry::{BoxXy, BoxZyx, VoxelSize, Zyx};
use kinesin_stream::volume::{self, Corners, VolumeError, VolumeSource};
use ndarray::{Array2, Array3, Axis};
use serde::{Deserialize, Serialize};

use super::Tissue;

/// The environment variable that says where data sets are.
const DATA_VARIABLE: &str = "KINESIN_DATA";
/// Where they are looked for without it.
const DATA_DEFAULT: &str = "../shared/data";

/// A recorded volume as tissue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedConfig {
    /// Folder of images, multi-page TIFF, Zarr or neuroglancer precomputed volume, 8-bit. A relative path is looked for
    /// under `$KINESIN_DATA` (by default `../shared/data`), then from here; it may also begin with `$KINESIN_DATA/`.
    pub volume: String,
    /// Labels of the same shape. Default none: there is no truth for labels then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Part to use, `[z0, y0, x0, z1, y1, x1]`, half-open, voxels. Default all.
    #[serde(default, rename = "box", skip_serializing_if = "Option::is_none")]
    pub bounds: Option<[i64; 6]>,
    /// Size of a voxel along z, y, x, nm. Default what the volume says; needed where it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voxel_size: Option<VoxelSize>,
}

/// A recorded volume that cannot serve as tissue.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    /// There is nothing at the path.
    #[error(
        "no data at {}; looked in {}. put the data set there, or set KINESIN_DATA to the folder that holds it",
        .path.display(),
        .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ")
    )]
    Absent {
        /// The path as given.
        path: PathBuf,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// It cannot be read as a volume.
    #[error("recorded tissue: {0}")]
    Volume(#[from] VolumeError),
    /// It can be read but not be used so.
    #[error("recorded tissue {path}: {what}")]
    Unfit {
        /// Which volume.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// A read failed on the way.
    #[error("recorded tissue: {0}")]
    Read(String),
}

/// Where a data set lies: see [`RecordedConfig::volume`].
///
/// # Errors
/// Where there is nothing; the message says where it was looked for and how to point at it.
pub fn data_path(path: impl AsRef<Path>) -> Result<PathBuf, RecordedError> {
    let root = std::env::var_os(DATA_VARIABLE).map_or_else(|| PathBuf::from(DATA_DEFAULT), PathBuf::from);
    data_path_under(path.as_ref(), &root)
}

fn data_path_under(path: &Path, root: &Path) -> Result<PathBuf, RecordedError> {
    let named = path.strip_prefix(format!("${DATA_VARIABLE}")).ok();
    let looked = match named {
        Some(rest) => vec![root.join(rest)],
        None if path.is_absolute() => vec![path.to_path_buf()],
        None => vec![root.join(path), path.to_path_buf()],
    };
    let found = looked.iter().find(|p| p.exists()).cloned();
    found.ok_or_else(|| RecordedError::Absent { path: path.to_path_buf(), looked })
}

/// A volume as tissue.
pub struct RecordedTissue {
    image: Box<dyn VolumeSource>,
    labels: Option<Box<dyn VolumeSource>>,
    bounds: BoxZyx,
    voxel_size: VoxelSize,
    failed: OnceLock<String>,
}

impl RecordedTissue {
    /// Opens the volume and its labels and checks that they fit.
    ///
    /// # Errors
    /// Where one is absent, unreadable, of the wrong type or shape, or of unknown voxel size.
    pub fn open(config: &RecordedConfig) -> Result<Self, RecordedError> {
        let path = data_path(&config.volume)?;
        let unfit = |what: String| RecordedError::Unfit { path: path.clone(), what };
        let image = volume::open(&path)?;
        let info = image.info();
        let bounds = match config.bounds {
            None => info.bounds(),
            Some([z0, y0, x0, z1, y1, x1]) => BoxZyx { min: Zyx::new(z0, y0, x0), max: Zyx::new(z1, y1, x1) },
        };
        if !info.bounds().contains(&bounds) {
            let (has, wanted) = (Corners(info.bounds()), Corners(bounds));
            return Err(unfit(format!("the box {wanted} is empty or leaves the volume, which is {has}")));
        }
        let voxel_size = config.voxel_size.or(info.voxel_size).ok_or_else(|| {
            unfit("it does not say how large its voxels are; give voxel_size = [z, y, x] in nm".into())
        })?;
        let VoxelSize(v) = voxel_size;
        if ![v.z, v.y, v.x].iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(unfit(format!("voxel_size = [{}, {}, {}]; give nm above 0 along z, y, x", v.z, v.y, v.x)));
        }
        let labels =
            config.labels.as_ref().map(|l| Ok::<_, RecordedError>(volume::open(&data_path(l)?)?)).transpose()?;
        if let Some(labels) = &labels
            && labels.info().shape != info.shape
        {
            let (a, b) = (labels.info().shape, info.shape);
            return Err(unfit(format!(
                "its labels are {} x {} x {} voxels (z, y, x), the image {} x {} x {}; give labels of the same shape",
                a.z, a.y, a.x, b.z, b.y, b.x
            )));
        }
        // One voxel shows whether the values can be read at all, before anything is promised.
        let one = BoxZyx { min: bounds.min, max: Zyx::new(bounds.min.z + 1, bounds.min.y + 1, bounds.min.x + 1) };
        image.read_u8(one)?;
        if let Some(labels) = &labels {
            labels.read_labels(one)?;
        }
        Ok(Self { image, labels, bounds, voxel_size, failed: OnceLock::new() })
    }

    /// Whether all reads so far have worked.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<(), RecordedError> {
        self.failed.get().map_or(Ok(()), |what| Err(RecordedError::Read(what.clone())))
    }

    /// A rectangle of section `z`, in voxels of the volume.
    fn place(&self, z: usize, rect: BoxXy) -> BoxZyx {
        let o = self.bounds.min;
        let z = o.z + z as i64;
        BoxZyx {
            min: Zyx::new(z, o.y + rect.min.y, o.x + rect.min.x),
            max: Zyx::new(z + 1, o.y + rect.max.y, o.x + rect.max.x),
        }
    }

    /// The plane that was read; zeros where reading failed, which [`Self::check`] tells.
    fn plane<T: Clone + Default>(&self, read: Result<Array3<T>, VolumeError>, rect: BoxXy) -> Array2<T> {
        match read {
            Ok(block) => block.index_axis_move(Axis(0), 0),
            Err(e) => {
                self.failed.get_or_init(|| e.to_string());
                Array2::from_elem((rect.size().y, rect.size().x), T::default())
            }
        }
    }
}

impl Tissue for RecordedTissue {
    fn shape(&self) -> Zyx<usize> {
        self.bounds.shape()
    }

    fn voxel_size(&self) -> VoxelSize {
        self.voxel_size
    }

    fn image(&self, z: usize, rect: BoxXy) -> Array2<u8> {
        self.plane(self.image.read_u8(self.place(z, rect)), rect)
    }

    fn labels(&self, z: usize, rect: BoxXy) -> Option<Array2<u64>> {
        let labels = self.labels.as_ref()?;
        Some(self.plane(labels.read_labels(self.place(z, rect)), rect))
    }

    fn classes(&self, _z: usize, _rect: BoxXy) -> Option<Array2<u8>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `sections` images of 6 x 5 px whose values tell their place.
    fn images(folder: &Path, sections: u8) {
        std::fs::create_dir_all(folder).unwrap();
        for z in 0..sections {
            let file = std::fs::File::create(folder.join(format!("z{z:03}.png"))).unwrap();
            let mut encoder = png::Encoder::new(file, 6, 5);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(png::BitDepth::Eight);
            let grey: Vec<u8> = (0..30).map(|i| z * 30 + i).collect();
            encoder.write_header().unwrap().write_image_data(&grey).unwrap();
        }
    }

    fn config(folder: &Path) -> RecordedConfig {
        RecordedConfig {
            volume: folder.join("raw").display().to_string(),
            labels: Some(folder.join("labels").display().to_string()),
            bounds: Some([1, 1, 2, 3, 5, 6]),
            voxel_size: Some(VoxelSize(Zyx::new(30.0, 6.0, 6.0))),
        }
    }

    #[test]
    fn a_box_of_a_recorded_volume_is_tissue_with_labels() {
        let dir = tempfile::tempdir().unwrap();
        images(&dir.path().join("raw"), 4);
        images(&dir.path().join("labels"), 4);
        let tissue = RecordedTissue::open(&config(dir.path())).unwrap();
        assert_eq!(tissue.shape(), Zyx::new(2, 4, 4));
        let rect = BoxXy { min: kinesin_stream::geometry::Xy::new(1, 2), max: kinesin_stream::geometry::Xy::new(3, 4) };
        // Section 1 + 1, row 1 + 2, column 2 + 1 of images six wide.
        assert_eq!(tissue.image(1, rect)[(0, 0)], 2 * 30 + 3 * 6 + 3);
        assert_eq!(tissue.labels(1, rect).unwrap()[(1, 1)], u64::from(2u8 * 30 + 4 * 6 + 4));
        assert!(tissue.classes(1, rect).is_none() && tissue.check().is_ok());
    }

    #[test]
    fn labels_of_another_shape_a_box_outside_and_an_unknown_voxel_size_are_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        images(&dir.path().join("raw"), 4);
        images(&dir.path().join("labels"), 3);
        let told = |c: &RecordedConfig| RecordedTissue::open(c).err().unwrap().to_string();
        assert!(told(&config(dir.path())).contains("give labels of the same shape"));
        assert!(told(&RecordedConfig { voxel_size: None, ..config(dir.path()) }).contains("give voxel_size"));
        let outside = RecordedConfig { bounds: Some([0, 0, 0, 9, 5, 6]), ..config(dir.path()) };
        assert!(told(&outside).contains("leaves the volume"));
    }

    #[test]
    fn a_relative_path_is_found_under_the_data_folder_and_an_absent_one_says_how_to_point_at_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("set")).unwrap();
        for path in ["set", "$KINESIN_DATA/set"] {
            assert_eq!(data_path_under(Path::new(path), dir.path()).unwrap(), dir.path().join("set"));
        }
        let told = data_path_under(Path::new("none"), dir.path()).unwrap_err().to_string();
        assert!(
            told.contains("KINESIN_DATA") && told.contains(&dir.path().join("none").display().to_string()),
            "{told}"
        );
    }

    #[test]
    fn a_section_that_cannot_be_read_later_is_told() {
        let dir = tempfile::tempdir().unwrap();
        images(&dir.path().join("raw"), 4);
        let tissue = RecordedTissue::open(&RecordedConfig { labels: None, ..config(dir.path()) }).unwrap();
        std::fs::write(dir.path().join("raw/z002.png"), b"no image").unwrap();
        let rect = BoxXy { min: Default::default(), max: kinesin_stream::geometry::Xy::new(2, 2) };
        tissue.image(1, rect);
        assert!(tissue.check().is_err());
    }
}
