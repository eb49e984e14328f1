//! Memory of tiles that goes round: what the line has finished with holds the next tile. Fresh memory costs more than copying.

use std::sync::{Arc, Mutex};

use bytes::Bytes as Body;
use kinesin_backpressure::Bytes;

use super::shared::lock;

/// Free memory that is kept, at most. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub(super) struct Spare(Arc<Mutex<Free>>);

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// What a tile is in; goes back when its last clone drops.
struct Lent {
    data: Vec<u8>,
    spare: Spare,
}

impl Spare {
    /// Free bytes that are kept at most: a line of the budget.
    pub(super) const MOST: Bytes = Bytes::mib(32);

    /// Memory of so many bytes, whatever is in it.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut free = lock(&self.0);
        let fits = free.buffers.iter().rposition(|b| b.capacity() >= bytes && b.capacity() <= 2 * bytes);
        let Some(at) = fits else { return vec![0; bytes] };
        let mut buffer = free.buffers.swap_remove(at);
        free.bytes -= buffer.capacity();
        buffer.resize(bytes, 0);
        buffer
    }

    /// A body that gives its memory back.
    pub(super) fn lend(&self, data: Vec<u8>) -> Body {
        Body::from_owner(Lent { data, spare: self.clone() })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut free = lock(&self.spare.0);
        if free.bytes + data.capacity() <= Spare::MOST.0 as usize {
            free.bytes += data.capacity();
            free.buffers.push(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_used_again_for_what_fits() {
        let spare = Spare::default();
        let body = spare.lend(vec![7; 1 << 20]);
        let clone = body.clone();
        drop(body);
        assert_eq!(spare.take(1 << 20)[0], 0, "a clone still holds it");
        drop(clone);
        assert_eq!(spare.take(64).capacity(), 64, "too much for so little");
        let again = spare.take((1 << 20) - 5);
        assert_eq!((again.len(), again.capacity(), again[0]), ((1 << 20) - 5, 1 << 20, 7));
        let many: Vec<_> = (0..40).map(|_| spare.lend(vec![1; 1 << 20])).collect();
        drop(many);
        assert_eq!(lock(&spare.0).bytes, Spare::MOST.0 as usize);
    }
}
