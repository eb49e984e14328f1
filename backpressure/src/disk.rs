//! What a disk is made to look like: a share of it, or a slower one than it is. For fault scenarios, and for disks that others use.

use std::time::Duration;

use crate::size::Bytes;

/// Limits on one store. The default is the disk as it is, and costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Most bytes that the store may hold; above, it is told that the disk is full.
    pub capacity: Option<Bytes>,
    /// What each write takes on top.
    pub write: Duration,
    /// What each wait for the disk takes on top.
    pub sync: Duration,
}

impl DiskLimits {
    /// Call it before each write.
    pub fn before_write(&self) {
        pause(self.write);
    }

    /// Call it before each sync.
    pub fn before_sync(&self) {
        pause(self.sync);
    }
}

fn pause(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}
