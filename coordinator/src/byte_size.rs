//! Sizes as people type them: `512MiB`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

/// Units, largest first.
const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes. Its text has the largest unit that leaves a whole number, and is read back as the same size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ByteSize(pub u64);

/// Text is not a size.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected a size such as 512MiB, 1GiB or 0, found {found:?}")]
pub struct ParseByteSizeError {
    found: String,
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "0"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseByteSizeError { found: text.to_owned() };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let bytes = match unit {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?.1,
        };
        let number: u64 = number.parse().map_err(|_| refused())?;
        number.checked_mul(bytes).map(Self).ok_or_else(refused)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_with_its_unit_and_written_as_it_is_typed() {
        for (text, bytes) in
            [("0", 0), ("1B", 1), ("1000B", 1000), ("1KiB", 1024), ("512MiB", 512 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!("5".parse(), Ok(ByteSize(5)));
        assert_eq!("1 GiB".parse(), Ok(ByteSize(1 << 30)));
        assert_eq!("1024MiB".parse::<ByteSize>().unwrap().to_string(), "1GiB");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GiB", "1GB", "1.5GiB", "-1", "1 gib", "1GiBs", "17000000TiB", "18446744073709551616"] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.to_string().contains("512MiB"), "{error}");
        }
    }
}
