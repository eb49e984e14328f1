//! Where half-done blocks are kept between runs; what keeps them (files, time) is the caller's.

use super::canvas::Keeper;

/// A block of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockKey {
    /// Number of the window.
    pub window: usize,
    /// Block row.
    pub y: usize,
    /// Block column.
    pub x: usize,
}

impl std::fmt::Display for BlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "window {}, block y {}, x {}", self.window, self.y, self.x)
    }
}

/// Keeps the states of blocks (see [`super::Canvas::state`]). What is kept changes how much a restart does again, never what
/// comes out.
pub trait BlockStore: Send + Sync {
    /// Takes the states of a block from now on.
    fn keeper(&self, key: BlockKey) -> Keeper;

    /// What an earlier run kept of a block.
    ///
    /// # Errors
    /// Where it is there and cannot be read.
    fn kept(&self, key: BlockKey) -> std::io::Result<Option<Vec<u8>>>;

    /// Drops what was kept of windows before this one: they are written.
    ///
    /// # Errors
    /// Where it cannot be removed.
    fn forget_before(&self, window: usize) -> std::io::Result<()>;
}
