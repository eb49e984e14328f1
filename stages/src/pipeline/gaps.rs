//! Sections of a volume that a flood cannot rely on, and what it gets in their place.
//!
//! ```text
//! z      4  5  6  7  8  9 10 11           with `bridge = 1`
//!        #  #  .  #  .  .  #  #           # usable   . no data, or laid where its neighbours do not confirm it
//! seen   4  5  5  7  7  .  10 11          a short gap shows the section before it, and nothing is labelled there
//!                         |               after a longer one every object ends: no field of view lies on both sides
//! ```
//! Every object ends also where the alignment says that the volume is broken before a section. All follows from the volume and the records
//! of its sections, so a restart and any order of work see the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kinesin_stream::stage::StopError;
use ndarray::Array2;

use super::aligning::AlignmentFile;
use super::segmenting::{Exclusion, Reduced};
use crate::flood::FloodSection;
use crate::publish::{SectionFiles, read_json};

/// Reads sections for a flood.
pub(super) struct Gaps {
    /// Longest gap that is bridged, sections.
    pub(super) bridge: usize,
    /// The run whose records say which sections are doubtful; none for a volume without any.
    pub(super) records: Option<PathBuf>,
    /// Whether the last sections looked at can be relied on.
    known: BTreeMap<usize, bool>,
}

impl Gaps {
    pub(super) fn new(bridge: usize, records: Option<PathBuf>) -> Self {
        Self { bridge, records, known: BTreeMap::new() }
    }

    /// Section `z` as a flood sees it.
    pub(super) fn section(
        &mut self,
        image: &Reduced,
        mask: Option<&Exclusion>,
        z: usize,
    ) -> Result<FloodSection, StopError> {
        let own = image.section(z)?;
        let (usable, broken) = self.judge(z, &own)?;
        let gap = self.gap_before(image, z)?;
        if usable {
            let exclude = match mask {
                None => Array2::from_elem(own.dim(), false),
                Some(mask) => mask.section(z, own.dim())?,
            };
            // A break before a section that cannot be relied on is one before the next that can.
            let mut ends_objects = broken || gap > self.bridge && gap < z;
            for at in z - gap..z {
                ends_objects |= self.told(at)?.1;
            }
            return Ok(FloodSection { ends_objects, ..FloodSection::new(own, exclude) });
        }
        let shown = if gap < self.bridge && gap < z { image.section(z - gap - 1)? } else { own };
        let exclude = Array2::from_elem(shown.dim(), true);
        Ok(FloodSection::new(shown, exclude))
    }

    /// Sections before `z` in a row that cannot be relied on, as far as it matters; `z` where there is no other.
    fn gap_before(&mut self, image: &Reduced, z: usize) -> Result<usize, StopError> {
        let mut gap = 0;
        while gap < z && gap <= self.bridge {
            let at = z - gap - 1;
            let usable = match self.known.get(&at) {
                Some(usable) => *usable,
                None => self.judge(at, &image.section(at)?)?.0,
            };
            if usable {
                break;
            }
            gap += 1;
        }
        Ok(gap)
    }

    /// Whether a section can be relied on, and whether the volume is broken before it.
    fn judge(&mut self, z: usize, image: &Array2<u8>) -> Result<(bool, bool), StopError> {
        let (doubtful, broken) = self.told(z)?;
        let usable = image.iter().any(|v| *v > 0) && !doubtful;
        self.known.insert(z, usable);
        while self.known.len() > self.bridge + 2 {
            self.known.pop_first();
        }
        Ok((usable, broken))
    }

    /// What its record says of both.
    fn told(&self, z: usize) -> Result<(bool, bool), StopError> {
        let Some(run) = &self.records else { return Ok((false, false)) };
        let file: Option<AlignmentFile> = read_json(&SectionFiles::new(run, z as u32).alignment())?;
        Ok(file.map_or((false, false), |f| (f.is_doubtful(), f.record.broken_before)))
    }
}

#[cfg(test)]
mod tests {
    use kinesin_stream::geometry::Zyx;
    use kinesin_stream::ids::SerialIndex;
    use kinesin_stream::volume::{Dtype, VolumeError, VolumeInfo, VolumeSource};
    use ndarray::{Array3, s};

    use super::*;
    use crate::align::{AlignConfig, Alignment, Quality};

    /// Sections of one grey value each; 0 is no data.
    struct Greys(Vec<u8>, VolumeInfo);

    impl VolumeSource for Greys {
        fn info(&self) -> &VolumeInfo {
            &self.1
        }

        fn read_u8(&self, b: kinesin_stream::geometry::BoxZyx) -> Result<Array3<u8>, VolumeError> {
            let all = Array3::from_shape_fn((self.0.len(), 2, 2), |(z, _, _)| self.0[z]);
            Ok(all.slice(s![b.min.z as usize..b.max.z as usize, .., ..]).to_owned())
        }

        fn read_labels(&self, _: kinesin_stream::geometry::BoxZyx) -> Result<Array3<u64>, VolumeError> {
            panic!("grey values only")
        }
    }

    fn info(sections: usize) -> VolumeInfo {
        VolumeInfo {
            path: PathBuf::new(),
            shape: Zyx::new(sections, 2, 2),
            voxel_size: None,
            dtype: Dtype::U8,
            origin: Zyx::default(),
        }
    }

    fn seen(greys: &[u8], bridge: usize) -> Vec<(u8, bool, bool)> {
        let image = Reduced::whole(Box::new(Greys(greys.to_vec(), info(greys.len()))));
        let mut gaps = Gaps::new(bridge, None);
        let told = |z| {
            let s = gaps.section(&image, None, z).expect("readable");
            (s.image[[0, 0]], s.exclude[[0, 0]], s.ends_objects)
        };
        (0..greys.len()).map(told).collect()
    }

    #[test]
    fn a_short_gap_is_bridged_and_a_long_one_ends_every_object() {
        let (no, yes) = (false, true);
        let told = seen(&[0, 4, 5, 0, 7, 0, 0, 10, 11], 1);
        let wanted = [
            (0, yes, no),
            (4, no, no),
            (5, no, no),
            (5, yes, no),
            (7, no, no),
            (7, yes, no),
            (0, yes, no),
            (10, no, yes),
            (11, no, no),
        ];
        assert_eq!(told, wanted);
        assert_eq!(seen(&[4, 0, 6], 0), [(4, no, no), (0, yes, no), (6, no, yes)]);
    }

    #[test]
    fn a_break_before_a_section_that_cannot_be_relied_on_ends_objects_at_the_next() {
        let run = tempfile::tempdir().expect("a folder");
        let blank = Alignment::failed(SerialIndex(1), "s", "blank".into());
        let record = Alignment { broken_before: true, ..blank };
        let quality = Quality::of(&record, &AlignConfig::default());
        let file = AlignmentFile { section: "s".into(), z: 1, map: None, quality, record };
        let path = SectionFiles::new(run.path(), 1).alignment();
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        std::fs::write(&path, serde_json::to_vec(&file).expect("JSON")).expect("writable");
        let image = || Reduced::whole(Box::new(Greys(vec![4, 0, 6], info(3))));
        let ends = |records| {
            let mut gaps = Gaps::new(1, records);
            (0..3).map(|z| gaps.section(&image(), None, z).expect("readable").ends_objects).collect::<Vec<bool>>()
        };
        assert_eq!(ends(Some(run.path().to_path_buf())), [false, false, true]);
        assert_eq!(ends(None), [false, false, false]);
    }

    #[test]
    fn what_is_seen_does_not_depend_on_where_one_begins() {
        let whole = seen(&[4, 0, 0, 7, 0, 9], 1);
        for first in 0..6 {
            let image = Reduced::whole(Box::new(Greys(vec![4, 0, 0, 7, 0, 9], info(6))));
            let mut gaps = Gaps::new(1, None);
            for (z, wanted) in whole.iter().enumerate().skip(first) {
                let s = gaps.section(&image, None, z).expect("readable");
                assert_eq!((s.image[[0, 0]], s.exclude[[0, 0]], s.ends_objects), *wanted, "{z} from {first}");
            }
        }
    }
}
