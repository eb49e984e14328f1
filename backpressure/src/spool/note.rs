//! Small named bytes beside the records: what the owner needs to make sense of them. One file each, replaced as a whole.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use super::error::{NoRoom, SpoolError, is_full};
use super::{Spool, lock};

const CHECK: usize = 16;
const END: &str = ".note";

impl Spool {
    /// Writes a note, or replaces it. On disk for certain after the next [`Spool::sync`]. `Some` says why it was not written.
    pub fn put_note(&self, key: &[u8], bytes: &[u8]) -> Result<Option<NoRoom>, SpoolError> {
        let (path, part) = (self.note_path(key), self.0.config.folder.join("part"));
        let write = || -> io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(&self.note_check(key, bytes))?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&part, &path)
        };
        // One writer at a time: they share the name of the part.
        let mut writer = lock(&self.0.writer);
        match write() {
            Ok(()) => writer.new_names = true,
            Err(e) if is_full(&e) => {
                std::fs::remove_file(&part).ok();
                return Ok(Some(NoRoom::Disk));
            }
            Err(e) => return Err(SpoolError::io("write", &path)(e)),
        }
        Ok(None)
    }

    /// Reads a note; `None` where there is none.
    pub fn note(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SpoolError> {
        let path = self.note_path(key);
        let mut bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(SpoolError::io("read", &path)(e)),
        };
        if bytes.len() < CHECK || bytes[..CHECK] != self.note_check(key, &bytes[CHECK..]) {
            return Err(SpoolError::Damaged { path, offset: 0, what: "a note that does not have its checksum" });
        }
        Ok(Some(bytes.split_off(CHECK)))
    }

    /// Removes a note.
    pub fn forget_note(&self, key: &[u8]) -> Result<(), SpoolError> {
        let path = self.note_path(key);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SpoolError::io("delete", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Keys of all notes, in order.
    pub fn notes(&self) -> Result<Vec<Vec<u8>>, SpoolError> {
        let folder = &self.0.config.folder;
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(SpoolError::io("read", folder))? {
            let name = entry.map_err(SpoolError::io("read", folder))?.file_name();
            if let Some(hex) = name.to_str().and_then(|n| n.strip_suffix(END)) {
                let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
                keys.extend((0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>());
            }
        }
        keys.sort();
        Ok(keys)
    }

    fn note_path(&self, key: &[u8]) -> PathBuf {
        let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
        self.0.config.folder.join(hex + END)
    }

    fn note_check(&self, key: &[u8], bytes: &[u8]) -> [u8; CHECK] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0.config.identity);
        hasher.update(key).update(bytes);
        let mut check = [0; CHECK];
        check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK]);
        check
    }
}
