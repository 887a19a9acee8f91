//! Durations as Go and Kubernetes write them: `250ms`, `1m30s`, `1.5h`.

use std::{fmt, str::FromStr, time::Duration};

use concordat_protocol::Millis;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{PartialSchema, ToSchema, openapi};

/// A span of time in milliseconds, read and written as Go does; parts of a millisecond are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Millis);

/// Why a text is no duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write a number and a unit, as in \"250ms\", \"15s\" or \"1m30s\"")]
pub struct NotADuration(String);

const UNITS: [(&str, f64); 7] =
    [("ns", 1e-6), ("us", 1e-3), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3_600e3)];

/// A hundred years: longer ones are mistakes, and sums of what is shorter never overflow.
const LONGEST: f64 = 100.0 * 365.0 * 24.0 * 3_600e3;

impl FromStr for GoDuration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let refused = || NotADuration(text.chars().take(64).collect());
        if text == "0" {
            return Ok(Self(0));
        }
        let (mut rest, mut sum) = (text, 0.0);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refused)?;
            let (number, after) = rest.split_at(digits);
            let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
            sum += number.parse::<f64>().map_err(|_| refused())? * factor;
            rest = after;
        }
        if text.is_empty() || sum > LONGEST {
            return Err(refused());
        }
        Ok(Self(sum as Millis))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0s"),
            ms if ms % 1000 != 0 => write!(f, "{ms}ms"),
            ms if ms % 60_000 != 0 => write!(f, "{}s", ms / 1000),
            ms if ms % 3_600_000 != 0 => write!(f, "{}m", ms / 60_000),
            ms => write!(f, "{}h", ms / 3_600_000),
        }
    }
}

impl From<GoDuration> for Duration {
    fn from(span: GoDuration) -> Self {
        Self::from_millis(span.0)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PartialSchema for GoDuration {
    fn schema() -> openapi::RefOr<openapi::Schema> {
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .description(Some("A duration as Go and Kubernetes write it"))
            .examples(["15s"])
            .into()
    }
}

impl ToSchema for GoDuration {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("15s", 15_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1500us", 1),
            ("2µs", 0),
            ("1m0.25s", 60_250),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration(millis)), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "", "5", "s", "-1s", "+1s", "1 s", " 1s", "1S", "1d", "1s2", "1..5s", ".s", "1e3s", "NaNs",
            "9e99h",
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
        assert!(format!("{}h", "9".repeat(400)).parse::<GoDuration>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(millis in 0u64..1 << 40) {
            prop_assert_eq!(GoDuration(millis).to_string().parse(), Ok(GoDuration(millis)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
