//! Disks that can fill up and lose their power. Both need root; without it the driver says what it does instead.
//!
//! A disk that can lose power is a file system in a file: what a process wrote and did not sync is in memory only, so a copy of
//! that file, taken right after the process was killed, is what a power cut leaves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::harness::text;

/// A mounted folder; unmounted when dropped.
pub(crate) struct Disk {
    at: PathBuf,
    image: Option<PathBuf>,
    cuts: u32,
}

/// Room on a disk that can lose power; sparse.
const IMAGE_BYTES: u64 = 48 << 20;

impl Disk {
    /// Whether this machine lets us mount file systems in files.
    pub(crate) fn can_lose_power() -> bool {
        static CAN: OnceLock<bool> = OnceLock::new();
        *CAN.get_or_init(|| {
            let Ok(dir) = tempfile::tempdir() else { return false };
            Self::losing_power(dir.path(), "probe").is_some()
        })
    }

    /// Whether this machine lets us mount small file systems in memory.
    pub(crate) fn can_be_small() -> bool {
        static CAN: OnceLock<bool> = OnceLock::new();
        *CAN.get_or_init(|| {
            let Ok(dir) = tempfile::tempdir() else { return false };
            Self::small(dir.path(), "probe", 1 << 20).is_some()
        })
    }

    /// A disk in a file at `folder/name`.
    pub(crate) fn losing_power(folder: &Path, name: &str) -> Option<Self> {
        let (at, image) = (folder.join(name), folder.join(format!("{name}.0.image")));
        std::fs::create_dir_all(&at).ok()?;
        let file = std::fs::File::create(&image).ok()?;
        file.set_len(IMAGE_BYTES).ok()?;
        // Journal and tables are made at once: nothing is written later that would take part of a cut.
        let quick = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", quick]).arg(&image));
        (made && mount_image(&image, &at)).then_some(Self { at, image: Some(image), cuts: 0 })
    }

    /// A disk of so many bytes at `folder/name`.
    pub(crate) fn small(folder: &Path, name: &str, bytes: u64) -> Option<Self> {
        let at = folder.join(name);
        std::fs::create_dir_all(&at).ok()?;
        let size = format!("size={bytes}");
        ran(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none", text(&at)])).then_some(Self {
            at,
            image: None,
            cuts: 0,
        })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Makes room on a small one.
    pub(crate) fn free(&self) {
        if self.image.is_some() {
            return;
        }
        assert!(ran(Command::new("mount").args(["-o", "remount,size=400m", text(&self.at)])), "the disk grows");
    }

    /// The power goes and comes back. No process may use the disk.
    pub(crate) fn cut_power(&mut self) {
        let Some(image) = &self.image else { return };
        self.cuts += 1;
        let left = image.with_extension(format!("{}.image", self.cuts));
        assert!(ran(Command::new("cp").args(["--sparse=always"]).arg(image).arg(&left)), "the image is copied");
        assert!(unmount(&self.at), "{} is in use", self.at.display());
        std::fs::remove_file(image).expect("ours");
        assert!(mount_image(&left, &self.at), "what a power cut left cannot be mounted");
        self.image = Some(left);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

fn mount_image(image: &Path, at: &Path) -> bool {
    ran(Command::new("mount").args(["-o", "loop", text(image), text(at)]))
}

fn unmount(at: &Path) -> bool {
    ran(Command::new("umount").arg(at)) || ran(Command::new("umount").arg("-l").arg(at))
}

fn ran(command: &mut Command) -> bool {
    command.output().is_ok_and(|done| done.status.success())
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(mut disk) = Disk::losing_power(dir.path(), "disk") else {
        println!("skipped: only root may mount a file system in a file");
        return;
    };
    let kept = disk.path().join("kept");
    std::fs::write(&kept, "kept").expect("writable");
    std::fs::File::open(&kept).and_then(|f| f.sync_all()).expect("synced");
    std::fs::File::open(disk.path()).and_then(|f| f.sync_all()).expect("synced");
    std::fs::write(disk.path().join("gone"), "gone").expect("writable");
    disk.cut_power();
    assert_eq!(std::fs::read_to_string(&kept).expect("there"), "kept");
    assert!(!disk.path().join("gone").exists(), "what was not synced is gone");
}
