//! Feeds a parser with damaged good files and counts what it says.
//!
//! `KINESIN_FUZZ_CASES` inputs for each parser (default 64), times its weight; `KINESIN_FUZZ_SEED` (default 1) chooses them. A
//! failure is shrunk to the fewest damages; the seed and the damages are in its message.

use std::cell::Cell;
use std::time::Instant;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// One damage to a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Number(Index, u64, u8),
    Cut(Index),
    Remove(Index, u8),
    Repeat(Index, u8),
    /// A piece of another good file.
    Splice(Index, Index, Index, u8),
    /// A word that texts stumble over.
    Word(Index, Index),
}

const WORDS: [&str; 22] = [
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "-1e308",
    "18446744073709551616",
    "4294967295",
    "9223372036854775807",
    "NaN",
    "\"\"",
    "{}",
    "[]",
    "[[[[[[[[",
    "\u{0}",
    "\u{fffd}",
    "..",
    "/",
    "\r\n",
    "\t",
    "\"",
    "65536",
];

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0..8u8).prop_map(|(i, bit)| Damage::Flip(i, bit)),
        (at(), prop_oneof![Just(0), Just(255), Just(127), Just(128), any::<u8>()]).prop_map(|(i, v)| Damage::Set(i, v)),
        (at(), prop_oneof![Just(0), Just(u64::MAX), Just(1 << 31), any::<u64>()], 1..=8u8)
            .prop_map(|(i, v, n)| Damage::Number(i, v, n)),
        at().prop_map(Damage::Cut),
        (at(), any::<u8>()).prop_map(|(i, n)| Damage::Remove(i, n)),
        (at(), any::<u8>()).prop_map(|(i, n)| Damage::Repeat(i, n)),
        (at(), at(), at(), any::<u8>()).prop_map(|(i, f, j, n)| Damage::Splice(i, f, j, n)),
        (at(), at()).prop_map(|(i, w)| Damage::Word(i, w)),
    ]
}

impl Damage {
    fn to(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        if bytes.is_empty() {
            return;
        }
        let end = |at: usize, n: u8, len: usize| (at + usize::from(n)).min(len);
        match self {
            Self::Flip(i, bit) => {
                let i = i.index(bytes.len());
                bytes[i] ^= 1 << bit;
            }
            Self::Set(i, v) => {
                let i = i.index(bytes.len());
                bytes[i] = *v;
            }
            Self::Number(i, v, n) => {
                let i = i.index(bytes.len());
                let to = end(i, *n, bytes.len());
                bytes[i..to].copy_from_slice(&v.to_le_bytes()[..to - i]);
            }
            Self::Cut(i) => bytes.truncate(i.index(bytes.len())),
            Self::Remove(i, n) => {
                let i = i.index(bytes.len());
                bytes.drain(i..end(i, *n, bytes.len()));
            }
            Self::Repeat(i, n) => {
                let i = i.index(bytes.len());
                let piece = bytes[i..end(i, *n, bytes.len())].to_vec();
                bytes.splice(i..i, piece);
            }
            Self::Splice(i, from, j, n) => {
                let other = &seeds[from.index(seeds.len())];
                let (i, j) = (i.index(bytes.len()), j.index(other.len()));
                let to = end(i, *n, bytes.len());
                bytes.splice(i..to, other[j..end(j, *n, other.len())].iter().copied());
            }
            Self::Word(i, w) => {
                let i = i.index(bytes.len());
                // In the place of a number or word, where there is one.
                let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                let to = i + bytes[i..].iter().take_while(|b| word(b)).count();
                bytes.splice(i..to, WORDS[w.index(WORDS.len())].bytes());
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

/// Runs the parser over damaged `seeds`; undamaged, it must take each. `weight`: inputs for each of `KINESIN_FUZZ_CASES`; below
/// 1 for parsers that touch the disk. The parser's error must say something.
pub(crate) fn fuzz(name: &str, weight: f64, seeds: &[Vec<u8>], parse: impl Fn(&[u8]) -> Result<(), String>) {
    for (i, seed) in seeds.iter().enumerate() {
        parse(seed).unwrap_or_else(|e| panic!("{name}: good file {i} is refused: {e}"));
    }
    let seed = number("KINESIN_FUZZ_SEED", 1);
    let cases = ((number("KINESIN_FUZZ_CASES", 64) as f64 * weight) as u32).max(8);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &key));
    let (taken, refused, slowest) = (Cell::new(0u64), Cell::new(0u64), Cell::new(0.0f64));
    let noise = proptest::collection::vec(any::<u8>(), 0..64);
    // Mostly one: what is broken in many places is refused at the first.
    let damages =
        prop_oneof![3 => proptest::collection::vec(damage(), 1), 1 => proptest::collection::vec(damage(), 2..6)];
    let strategy = (any::<Index>(), damages, proptest::option::weighted(0.05, noise));
    let outcome = runner.run(&strategy, |(which, damages, noise)| {
        let bytes = noise.unwrap_or_else(|| {
            let mut bytes = seeds[which.index(seeds.len())].clone();
            damages.iter().for_each(|d| d.to(&mut bytes, seeds));
            bytes
        });
        let began = Instant::now();
        let answer = parse(&bytes);
        slowest.set(slowest.get().max(began.elapsed().as_secs_f64()));
        match answer {
            Ok(()) => taken.set(taken.get() + 1),
            Err(text) if text.trim().is_empty() => return Err(TestCaseError::fail("refused without a word")),
            Err(_) => refused.set(refused.get() + 1),
        }
        Ok(())
    });
    let (taken, refused, slowest) = (taken.get(), refused.get(), slowest.get() * 1e3);
    let resident = resident_mib();
    println!(
        "fuzz {name}: {} inputs, {taken} taken, {refused} refused, slowest {slowest:.1} ms, resident at most {resident} MiB, seed {seed}",
        taken + refused
    );
    if let Err(error) = outcome {
        panic!("{name}, seed {seed}: {error}");
    }
    // Seeds are some KiB; a decoded image may be 256 MiB.
    assert!(resident < 1500, "{name}: {resident} MiB");
}

/// Most memory that this process held, MiB; 0 where the system does not say.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().map_or(0, |kib: u64| kib / 1024)
}
