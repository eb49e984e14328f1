//! `volume/reslice_x.pgm`, `reslice_y.pgm`: of every section the middle row and the middle column, one below the other, so that a jump
//! between sections is seen at a glance.
//!
//! Binary PGM of the planned size from the start, one row a section in order of z; rows that have not come, and missing sections, are 0.
//! A section is written at its place, so writing it again changes nothing.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use kinesin_stream::geometry::Zyx;
use ndarray::ArrayView2;

/// The two files.
#[derive(Debug)]
pub(super) struct Reslice {
    along_x: Strip,
    along_y: Strip,
    shape: Zyx<usize>,
}

#[derive(Debug)]
struct Strip {
    file: File,
    header: u64,
    width: u64,
}

/// The two rows of a section as it is drawn band by band.
#[derive(Debug, Default)]
pub(super) struct Rows {
    seen: usize,
    middle: Vec<u8>,
    column: Vec<u8>,
}

impl Reslice {
    /// Opens both files in `folder`, or begins them, for a volume of this shape.
    pub(super) fn open(folder: &Path, shape: Zyx<usize>) -> std::io::Result<Self> {
        let along_x = Strip::open(&folder.join("reslice_x.pgm"), shape.x, shape.z)?;
        Ok(Self { along_x, along_y: Strip::open(&folder.join("reslice_y.pgm"), shape.y, shape.z)?, shape })
    }

    /// Takes the next band of a section.
    pub(super) fn gather(&self, rows: &mut Rows, band: ArrayView2<'_, u8>) {
        let middle = (self.shape.y / 2).checked_sub(rows.seen).filter(|r| *r < band.nrows());
        rows.middle.extend(middle.into_iter().flat_map(|r| band.row(r).to_vec()));
        rows.column.extend(band.column(self.shape.x / 2));
        rows.seen += band.nrows();
    }

    /// Writes what was gathered of section `z`.
    pub(super) fn write(&mut self, z: u32, rows: &Rows) -> std::io::Result<()> {
        self.along_x.write(z, &rows.middle)?;
        self.along_y.write(z, &rows.column)
    }
}

impl Strip {
    fn open(path: &Path, width: usize, sections: usize) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        let header = format!("P5\n{width} {sections}\n255\n");
        file.write_all(header.as_bytes())?;
        file.set_len((header.len() + width * sections) as u64)?;
        Ok(Self { file, header: header.len() as u64, width: width as u64 })
    }

    fn write(&mut self, z: u32, row: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(self.header + u64::from(z) * self.width))?;
        self.file.write_all(row)?;
        // Before the section counts as published.
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;

    #[test]
    fn the_middle_row_and_column_of_a_section_lie_at_its_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let image = Array2::from_shape_fn((5, 4), |(y, x)| (10 * y + x) as u8);
        for _ in 0..2 {
            let mut reslice = Reslice::open(dir.path(), Zyx::new(3, 5, 4)).expect("writable");
            let mut rows = Rows::default();
            for band in [0..2, 2..4, 4..5] {
                reslice.gather(&mut rows, image.slice(s![band, ..]));
            }
            reslice.write(1, &rows).expect("writable");
        }
        let read = |name: &str| std::fs::read(dir.path().join(name)).expect("there");
        assert_eq!(read("reslice_x.pgm"), [&b"P5\n4 3\n255\n"[..], &[0; 4], &[20, 21, 22, 23], &[0; 4]].concat());
        assert_eq!(read("reslice_y.pgm"), [&b"P5\n5 3\n255\n"[..], &[0; 5], &[2, 12, 22, 32, 42], &[0; 5]].concat());
    }
}
