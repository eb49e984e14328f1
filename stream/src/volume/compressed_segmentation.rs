//! The `compressed_segmentation` encoding of label chunks (neuroglancer,
//! `src/sliceview/compressed_segmentation/README.md`): each block of the chunk is a table of its labels and, for each
//! voxel, the place in that table in as few bits as it takes.
//!
//! ```text
//! word 0      where the channel begins, in words: 1
//! then, in words of 32 bits from there:
//!   2 words a block (x fastest): [table offset: 24 bits | bits per voxel: 8 bits] [offset of the voxels]
//!   voxels and tables; equal tables are stored once
//! ```
//! One channel; voxels x fastest, which is an array of axes z, y, x. Encoding and decoding are linear in the voxels.

use std::collections::HashMap;

use ndarray::{Array3, ArrayView3, ArrayViewMut3, s};

use crate::geometry::Zyx;

/// The block of every file that Kinesin writes.
pub const BLOCK: Zyx<usize> = Zyx::new(8, 8, 8);

/// Most voxels of a chunk: table offsets have 24 bits, and a voxel may take two and a half words.
pub const MOST_VOXELS: usize = (1 << 24) / 5 * 2;

/// Labels of one word or two.
pub(super) trait Label: Copy + Ord + std::hash::Hash + Default + Send + Sync {
    /// Words of a label.
    const WORDS: usize;
    fn push(self, out: &mut Vec<u32>);
    /// From [`Self::WORDS`] words.
    fn from_words(words: &[u32]) -> Self;
}

impl Label for u32 {
    const WORDS: usize = 1;
    fn push(self, out: &mut Vec<u32>) {
        out.push(self);
    }
    fn from_words(words: &[u32]) -> Self {
        words[0]
    }
}

impl Label for u64 {
    const WORDS: usize = 2;
    fn push(self, out: &mut Vec<u32>) {
        out.extend([self as u32, (self >> 32) as u32]);
    }
    fn from_words(words: &[u32]) -> Self {
        u64::from(words[0]) | u64::from(words[1]) << 32
    }
}

/// Bytes that are no chunk of this encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its own offsets say.
    #[error("compressed_segmentation: truncated; offset {at} of {words} words")]
    Truncated {
        /// Word wanted.
        at: usize,
        /// Words there are.
        words: usize,
    },
    /// A number of bits that the encoding does not have.
    #[error("compressed_segmentation: {0} bits a voxel; wanted 0, 1, 2, 4, 8, 16 or 32")]
    Bits(u32),
}

/// Encodes 64-bit labels, axes z, y, x. The same labels give the same bytes.
pub fn encode(labels: ArrayView3<'_, u64>, block: Zyx<usize>) -> Vec<u8> {
    encode_words(labels, block).into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Decodes 64-bit labels of this shape.
///
/// # Errors
/// Where the bytes end early or are of another encoding.
pub fn decode(bytes: &[u8], shape: Zyx<usize>, block: Zyx<usize>) -> Result<Array3<u64>, DecodeError> {
    decode_words(bytes, shape, block)
}

fn blocks(shape: (usize, usize, usize), block: Zyx<usize>) -> impl Iterator<Item = Zyx<std::ops::Range<usize>>> {
    let ranges = |n: usize, b: usize| (0..n.div_ceil(b)).map(move |i| i * b..((i + 1) * b).min(n));
    ranges(shape.0, block.z).flat_map(move |z| {
        ranges(shape.1, block.y).flat_map(move |y| {
            let z = z.clone();
            ranges(shape.2, block.x).map(move |x| Zyx::new(z.clone(), y.clone(), x))
        })
    })
}

pub(super) fn encode_words<T: Label>(labels: ArrayView3<'_, T>, block: Zyx<usize>) -> Vec<u32> {
    let headers = 2 * blocks(labels.dim(), block).count();
    let mut words = vec![0; headers];
    let mut tables: HashMap<Vec<T>, u32> = HashMap::new();
    for (i, b) in blocks(labels.dim(), block).enumerate() {
        let part = labels.slice(s![b.z, b.y, b.x]);
        let mut table: Vec<T> = Vec::with_capacity(8);
        let mut last = None;
        for &v in part {
            if last != Some(v) {
                last = Some(v);
                table.push(v);
            }
        }
        table.sort_unstable();
        table.dedup();
        let bits = bits_for(table.len());
        let voxels_at = words.len();
        push_voxels(part, block, &table, bits, &mut words);
        let table_at = *tables.entry(table).or_insert_with_key(|table| {
            let at = words.len() as u32;
            table.iter().for_each(|&v| v.push(&mut words));
            at
        });
        words[2 * i] = table_at | bits << 24;
        words[2 * i + 1] = voxels_at as u32;
    }
    words.insert(0, 1);
    words
}

/// The fewest of 0, 1, 2, 4, 8, 16, 32 bits that count this many labels.
fn bits_for(labels: usize) -> u32 {
    match usize::BITS - labels.saturating_sub(1).leading_zeros() {
        bits @ 0..=2 => bits,
        bits => bits.next_power_of_two(),
    }
}

/// Appends the place in `table` of each voxel; a block at the rim takes as much room as a whole one.
fn push_voxels<T: Label>(part: ArrayView3<'_, T>, block: Zyx<usize>, table: &[T], bits: u32, words: &mut Vec<u32>) {
    let begin = words.len();
    words.resize(begin + (bits as usize * block.voxels()).div_ceil(32), 0);
    if bits == 0 {
        return;
    }
    let mut last = (table[0], 0);
    for ((z, y, x), &v) in part.indexed_iter() {
        if last.0 != v {
            last = (v, table.partition_point(|t| *t < v) as u32);
        }
        let bit = bits as usize * (x + block.x * (y + block.y * z));
        words[begin + bit / 32] |= last.1 << (bit % 32);
    }
}

pub(super) fn decode_words<T: Label>(
    bytes: &[u8],
    shape: Zyx<usize>,
    block: Zyx<usize>,
) -> Result<Array3<T>, DecodeError> {
    let all: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let channel = *all.first().ok_or(DecodeError::Truncated { at: 0, words: 0 })? as usize;
    let words = all.get(channel..).ok_or(DecodeError::Truncated { at: channel, words: all.len() })?;
    let slice = |at: usize, n: usize| {
        words.get(at..at + n).ok_or(DecodeError::Truncated { at: channel + at + n, words: all.len() })
    };
    let mut out = Array3::default((shape.z, shape.y, shape.x));
    for (i, b) in blocks(out.dim(), block).enumerate() {
        let header = slice(2 * i, 2)?;
        let (table_at, bits) = ((header[0] & 0x00ff_ffff) as usize, header[0] >> 24);
        if !matches!(bits, 0 | 1 | 2 | 4 | 8 | 16 | 32) {
            return Err(DecodeError::Bits(bits));
        }
        let voxels = slice(header[1] as usize, (bits as usize * block.voxels()).div_ceil(32))?;
        let label = |place: usize| slice(table_at + place * T::WORDS, T::WORDS).map(T::from_words);
        unpack(out.slice_mut(s![b.z, b.y, b.x]), block, bits, voxels, label)?;
    }
    Ok(out)
}

fn unpack<T: Label>(
    mut part: ArrayViewMut3<'_, T>,
    block: Zyx<usize>,
    bits: u32,
    voxels: &[u32],
    label: impl Fn(usize) -> Result<T, DecodeError>,
) -> Result<(), DecodeError> {
    if bits == 0 {
        part.fill(label(0)?);
        return Ok(());
    }
    let mask = u32::MAX >> (32 - bits);
    let mut last = (0, label(0)?);
    for ((z, y, x), v) in part.indexed_iter_mut() {
        let bit = bits as usize * (x + block.x * (y + block.y * z));
        let place = (voxels[bit / 32] >> (bit % 32)) & mask;
        if place != last.0 {
            last = (place, label(place as usize)?);
        }
        *v = last.1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_known_chunk_has_the_bytes_that_the_format_describes() {
        // Two labels in a 2 x 1 x 1 (x, y, z) chunk: one block of one header, 16 words of 1-bit voxels, one table.
        let labels = Array3::from_shape_vec((1, 1, 2), vec![7u64, 1 << 40]).unwrap();
        let mut words = vec![1u32, 18 | 1 << 24, 2, 0b10];
        words.extend([0; 15]);
        words.extend([7, 0, 0, 1 << 8]);
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(encode(labels.view(), BLOCK), bytes);
        assert_eq!(decode(&bytes, Zyx::new(1, 1, 2), BLOCK).unwrap(), labels);
    }

    #[test]
    fn every_width_of_voxel_comes_back() {
        for kinds in [1u64, 2, 3, 5, 17, 200, 300, 512] {
            let labels = Array3::from_shape_fn((8, 8, 8), |(z, y, x)| (x + 8 * (y + 8 * z)) as u64 % kinds * 3);
            let bytes = encode(labels.view(), BLOCK);
            assert_eq!(decode(&bytes, Zyx::new(8, 8, 8), BLOCK).unwrap(), labels, "{kinds} labels");
        }
    }

    #[test]
    fn damaged_bytes_are_an_error_and_never_a_panic() {
        let labels = Array3::from_shape_fn((9, 8, 8), |(z, y, x)| (z * y * x) as u64);
        let bytes = encode(labels.view(), BLOCK);
        let shape = Zyx::new(9, 8, 8);
        for end in (0..bytes.len()).step_by(4) {
            assert!(decode(&bytes[..end], shape, BLOCK).is_err(), "cut at {end}");
        }
        let mut wrong = bytes.clone();
        wrong[7] = 3;
        assert_eq!(decode(&wrong, shape, BLOCK), Err(DecodeError::Bits(3)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_labels_of_any_shape_come_back(
            (z, y, x) in (1usize..20, 1usize..20, 1usize..20),
            (bz, by, bx) in (1usize..9, 1usize..9, 1usize..9),
            kinds in 1u64..600,
            seed in any::<u64>(),
        ) {
            let mut state = seed | 1;
            let labels = Array3::from_shape_simple_fn((z, y, x), || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) % kinds * 0x1_0000_0001
            });
            let block = Zyx::new(bz, by, bx);
            let bytes = encode(labels.view(), block);
            prop_assert_eq!(&encode(labels.view(), block), &bytes);
            prop_assert_eq!(decode(&bytes, Zyx::new(z, y, x), block).unwrap(), labels);
        }
    }
}
