//! Amounts of memory, and what an item costs.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. Printed and written with binary units: `512 MiB`, `1.5 GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// Bytes that an item keeps alive: its pixels, above all. Small parts may be left out; never zero for what has a body.
pub trait Cost {
    /// The bytes.
    fn cost(&self) -> Bytes;
}

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Bytes {
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The exact text: the largest unit in which it is a whole number.
    fn exact(self) -> String {
        let (unit, size) =
            UNITS.into_iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size)).unwrap_or(("B", 1));
        format!("{} {unit}", self.0 / size)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = UNITS.into_iter().find(|(_, size)| self.0 >= *size).unwrap_or(("B", 1));
        let text = format!("{:.2}", self.0 as f64 / size as f64);
        let short = text.trim_end_matches('0').trim_end_matches('.');
        f.pad(&format!("{short} {unit}"))
    }
}

/// A size that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a size; write a number and B, KiB, MiB, GiB or TiB, for example \"512 MiB\" or \"1.5 GiB\"")]
pub struct ParseBytesError(String);

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseBytesError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim();
        let size = UNITS.into_iter().find(|(name, _)| *name == unit).map(|(_, size)| size).ok_or_else(bad)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(size).map(Self).ok_or_else(bad);
        }
        let value = number.parse::<f64>().ok().map(|n| n * size as f64).filter(|v| *v < 9e18);
        value.map(|v| Self(v.round() as u64)).ok_or_else(bad)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.exact())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self(0), Add::add)
    }
}

impl<T: Cost> Cost for Box<T> {
    fn cost(&self) -> Bytes {
        (**self).cost()
    }
}

impl<T: Cost> Cost for std::sync::Arc<T> {
    fn cost(&self) -> Bytes {
        (**self).cost()
    }
}

impl Cost for Vec<u8> {
    fn cost(&self) -> Bytes {
        Bytes(self.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!("512 MiB".parse(), Ok(Bytes::mib(512)));
        assert_eq!("1.5GiB".parse(), Ok(Bytes::mib(1536)));
        assert_eq!("7 B".parse(), Ok(Bytes(7)));
        for bad in ["", "12", "1.5.2 GiB", "3 GB", "-1 B", "99999999999 TiB"] {
            let error = bad.parse::<Bytes>().expect_err(bad);
            assert!(error.to_string().contains("512 MiB"), "{error}");
        }
    }

    #[test]
    fn what_is_printed_is_short_and_what_is_stored_is_exact() {
        assert_eq!(Bytes::mib(1536).to_string(), "1.5 GiB");
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        for n in [0, 1, 4096, (1 << 30) + 1, 3 << 29] {
            assert_eq!(Bytes(n).exact().parse(), Ok(Bytes(n)));
        }
    }
}
