//! Durations as Kubernetes and Go write them.

use std::{fmt, str::FromStr, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written as in Kubernetes and Go: `250ms`, `15s`, `1m30s`, `168h`.
///
/// Never negative, exact to the nanosecond, at most 2^63 − 1 ns (292 years, as in Go).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(time::Duration);

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseDurationError(String);

const LONGEST: time::Duration = time::Duration::from_nanos(i64::MAX.unsigned_abs());

/// Units by length in nanoseconds, longest first.
const UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl Duration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// So many milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(time::Duration::from_millis(milliseconds))
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl From<time::Duration> for Duration {
    /// Cut off at the longest duration that can be read again.
    fn from(duration: time::Duration) -> Self {
        Self(duration.min(LONGEST))
    }
}

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self).ok_or_else(|| ParseDurationError(text.into()))
    }
}

fn parse(text: &str) -> Option<time::Duration> {
    let mut nanos: u64 = 0;
    let mut rest = text;
    loop {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos = nanos.checked_add(scaled(number, *scale)?)?;
        if tail.is_empty() {
            break;
        }
        rest = tail;
    }
    Some(time::Duration::from_nanos(nanos)).filter(|duration| *duration <= LONGEST)
}

/// `number` (digits, optionally a point and digits) times `scale`; what is finer than a nanosecond is cut off.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let mut nanos = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.chars() {
        place /= 10;
        nanos = nanos.checked_add(u64::from(digit.to_digit(10)?) * place)?;
    }
    Some(nanos)
}

impl fmt::Display for Duration {
    /// The shortest form in whole units: `1m30s`, `168h`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in UNITS {
            let count = nanos / u128::from(scale);
            nanos %= u128::from(scale);
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$",
        })
    }
}

impl fmt::Display for ParseDurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a duration: write it as 250ms, 15s, 1m30s or 168h", self.0)
    }
}

impl std::error::Error for ParseDurationError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanos) in [
            ("0s", 0),
            ("1ns", 1),
            ("250ms", 250_000_000),
            ("1.5h", 5_400_000_000_000),
            ("1m30s", 90_000_000_000),
            ("30s1m", 90_000_000_000),
            ("168h", 604_800_000_000_000),
            ("0.0000000019s", 1),
            ("9223372036854775807ns", i64::MAX as u64),
        ] {
            assert_eq!(text.parse(), Ok(Duration(time::Duration::from_nanos(nanos))), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "15",
            "s",
            "-1s",
            "+1s",
            " 1s",
            "1s ",
            "1 s",
            "1d",
            "1S",
            "1.s",
            ".5s",
            "1..5s",
            "1.2.3s",
            "1e3s",
            "1s2",
            "1µs",
            "٣s",
            "9223372036854775808ns",
            "99999999999999999999h",
            "2562048h",
        ] {
            assert_eq!(text.parse::<Duration>(), Err(ParseDurationError(text.into())));
        }
    }

    #[test]
    fn cuts_off_what_could_not_be_read_again() {
        let longest = Duration::from(time::Duration::MAX);
        assert_eq!(longest.to_string().parse(), Ok(longest));
    }

    #[test]
    fn writes_what_it_reads() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_001_000_001, "1s1ms1ns"),
            (90_000_000_000, "1m30s"),
            (604_800_000_000_000, "168h"),
            (250_000_000, "250ms"),
        ] {
            let duration = Duration(time::Duration::from_nanos(nanos));
            assert_eq!(duration.to_string(), text);
            assert_eq!(text.parse(), Ok(duration));
        }
    }

    /// Any text is read or refused, and what is read is written so that it reads the same.
    #[test]
    fn fuzz() {
        const LETTERS: &str = "0019.hmsnu-µ";
        bolero::check!().with_type::<Vec<u8>>().for_each(|choices| {
            let letter = |choice: &u8| LETTERS.chars().nth(usize::from(*choice) % LETTERS.chars().count());
            let text: String = choices.iter().filter_map(letter).collect();
            if let Ok(read) = text.parse::<Duration>() {
                assert_eq!(read.to_string().parse(), Ok(read), "{text}");
            }
        });
    }
}
