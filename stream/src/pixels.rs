//! One 8-bit grey image. In rendered images 0 means "no data"; tissue is 1 to 255.

use bytes::Bytes;

/// Grey values in rows; cheap to clone, never changed once made.
#[derive(Clone, PartialEq, Eq)]
pub struct Pixels {
    width: usize,
    height: usize,
    data: Bytes,
}

impl Pixels {
    /// Wraps `width * height` grey values, row by row.
    ///
    /// # Panics
    /// Where the number of values does not fit the size: callers check what comes from outside.
    pub fn new(width: usize, height: usize, data: impl Into<Bytes>) -> Self {
        let data = data.into();
        assert_eq!(data.len(), width * height, "an image of {width} x {height} px needs that many values");
        Self { width, height, data }
    }

    /// Columns.
    #[inline]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[inline]
    pub fn height(&self) -> usize {
        self.height
    }

    /// All values, row by row.
    #[inline]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The values as shared bytes, without a copy.
    pub fn bytes(&self) -> Bytes {
        self.data.clone()
    }

    /// Row `y`.
    #[inline]
    pub fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.width..(y + 1) * self.width]
    }

    /// BLAKE3 of the values: the identity of the content.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.data).as_bytes()
    }
}

impl std::fmt::Debug for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pixels({} x {})", self.width, self.height)
    }
}
