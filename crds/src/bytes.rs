//! Sizes as Kubernetes writes them.

use std::{fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written as a whole Kubernetes quantity: `262144`, `256Ki`, `1G`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

/// The text is not a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseBytesError(String);

/// Units by size, largest first within each system.
const BINARY: [(&str, u64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
const DECIMAL: [(&str, u64); 5] =
    [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000), ("", 1)];

impl Bytes {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many KiB.
    pub const fn kibi(count: u64) -> Self {
        Self(count << 10)
    }

    /// So many MiB.
    pub const fn mebi(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self).ok_or_else(|| ParseBytesError(text.into()))
    }
}

fn parse(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, scale) = BINARY.iter().chain(&DECIMAL).find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

impl fmt::Display for Bytes {
    /// In the largest binary unit that divides it: `256Ki`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BINARY.iter().find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Bytes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 20,
            "pattern": "^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$",
        })
    }
}

impl fmt::Display for ParseBytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a number of bytes: write it as 262144, 256Ki or 1G", self.0)
    }
}

impl std::error::Error for ParseBytesError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_quantities() {
        for (text, bytes) in
            [("0", 0), ("1", 1), ("256Ki", 262_144), ("256Mi", 268_435_456), ("1k", 1_000), ("2Ti", 2 << 40)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in
            ["", "Ki", "-1", "+1", "1.5Ki", "1 Ki", "1K", "1ki", "1m", "1e3", "٣", "18446744073709551616"]
        {
            assert_eq!(text.parse::<Bytes>(), Err(ParseBytesError(text.into())));
        }
        assert_eq!("99999999Ti".parse::<Bytes>(), Err(ParseBytesError("99999999Ti".into())));
    }

    #[test]
    fn writes_what_it_reads() {
        for (bytes, text) in
            [(0, "0"), (1_000, "1000"), (262_144, "256Ki"), (1 << 40, "1Ti"), (3 << 29, "1536Mi")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
        }
    }

    /// Any text is read or refused, and what is read is written so that it reads the same.
    #[test]
    fn fuzz() {
        const LETTERS: &str = "00199.KMGTik-";
        bolero::check!().with_type::<Vec<u8>>().for_each(|choices| {
            let letter = |choice: &u8| LETTERS.chars().nth(usize::from(*choice) % LETTERS.chars().count());
            let text: String = choices.iter().filter_map(letter).collect();
            if let Ok(read) = text.parse::<Bytes>() {
                assert_eq!(read.to_string().parse(), Ok(read), "{text}");
            }
        });
    }
}
