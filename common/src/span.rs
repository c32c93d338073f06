//! Spans of time as people type them: `90s`, `15m`, `1h`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use thiserror::Error;

/// Units, largest first, in seconds.
const UNITS: [(&str, u64); 3] = [("h", 3600), ("m", 60), ("s", 1)];
/// A year: whatever is added to it, clocks can still say.
const SECONDS_MAX: u64 = 365 * 24 * 3600;

/// A span of time in whole seconds, at most a year. Its text has the largest unit that leaves a whole number, and is read back
/// as the same span.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span(pub Duration);

/// Text is not a span of time.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected a whole number and s, m or h, such as 90s, 15m or 1h, at most 8760h, found {found:?}")]
pub struct ParseSpanError {
    found: String,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let fits = |(_, unit): &&(&str, u64)| seconds >= *unit && seconds.is_multiple_of(*unit);
        match UNITS.iter().find(fits) {
            Some((name, unit)) => write!(f, "{}{name}", seconds / unit),
            None => write!(f, "0s"),
        }
    }
}

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseSpanError { found: text.to_owned() };
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &text[digits.len()..]).ok_or_else(refused)?;
        let number: u64 = digits.parse().map_err(|_| refused())?;
        let seconds = number.checked_mul(*unit).filter(|seconds| *seconds <= SECONDS_MAX).ok_or_else(refused)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Takes a span of time as text alone: a number does not say its unit.
struct Text;

impl Visitor<'_> for Text {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time such as \"90s\", \"15m\" or \"1h\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_read_with_its_unit_and_written_as_it_is_typed() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("15m", 900), ("1h", 3600), ("8760h", SECONDS_MAX)] {
            let span = Span(Duration::from_secs(seconds));
            assert_eq!(text.parse(), Ok(span));
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("3600s".parse::<Span>().unwrap().to_string(), "1h");
        assert_eq!("60m".parse(), "1h".parse::<Span>());
    }

    #[test]
    fn other_text_is_refused_with_what_is_expected() {
        let too_much = format!("{}h", u64::MAX);
        for text in ["", "5", "s", "1d", "1.5h", "-1s", "1 h", "1h30m", "8761h", "31536001s", &too_much] {
            let error = text.parse::<Span>().unwrap_err();
            assert_eq!(error, ParseSpanError { found: text.to_owned() });
            let expected =
                format!("expected a whole number and s, m or h, such as 90s, 15m or 1h, at most 8760h, found {text:?}");
            assert_eq!(error.to_string(), expected);
        }
    }
}
