//! Inner loops on the widest vectors that the processor at hand has.
//!
//! The program is built for any processor of its family; a [`Kernel`] that goes through [`wide`] is compiled once more for AVX2
//! and taken where there is such. The compiler neither reorders sums nor fuses products with sums, so the bytes that come out
//! are the same everywhere.

use pulp::{Arch, Simd, WithSimd};

/// A loop over much. Only what is inlined is compiled for other vectors: [`run`](Self::run) and all that it calls are to be
/// marked `#[inline(always)]`; what is given to a closure is not.
pub(crate) trait Kernel {
    /// What comes out.
    type Out;

    /// Does it.
    fn run(self) -> Self::Out;
}

/// Runs `kernel` on the widest vectors there are. To find out takes some nanoseconds: for planes, not for single rows.
#[inline]
pub(crate) fn wide<K: Kernel>(kernel: K) -> K::Out {
    Arch::new().dispatch(Wide(kernel))
}

struct Wide<K>(K);

impl<K: Kernel> WithSimd for Wide<K> {
    type Output = K::Out;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> K::Out {
        self.0.run()
    }
}
