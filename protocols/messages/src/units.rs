//! Sizes and durations as people write them: `10GiB`, `50MiB/s`, `14d`.
//!
//! Settings are stored and signed as plain numbers. Wherever a person types one, in JSON or TOML, a number may also be a
//! text with its unit. A text without a unit is refused: it does not say what it counts.

use std::fmt;

use bytesize::ByteSize;
use serde::{
    Deserializer,
    de::{self, Visitor},
};

/// The quantity that a number stands for, and so the texts that it may be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Bytes: `512MiB`, `10GB`.
    Bytes,
    /// Bytes per second: `50MiB/s`; the `/s` may be left out.
    BytesPerSecond,
    /// A duration, counted in milliseconds: `500ms`, `15m`, `14d`.
    Milliseconds,
    /// A duration, counted in seconds: `90s`, `1day`.
    Seconds,
}

impl Quantity {
    /// Reads a text with its unit.
    ///
    /// # Errors
    /// A sentence that says what is expected, with an example.
    pub fn parse(self, text: &str) -> Result<u64, String> {
        let expected = || format!("{text:?} is not {}", self.example());
        if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(format!("{text:?} has no unit; write {}", self.example()));
        }
        match self {
            Self::Bytes => text.parse().map(|ByteSize(bytes)| bytes).map_err(|_| expected()),
            Self::BytesPerSecond => Self::Bytes.parse(text.strip_suffix("/s").unwrap_or(text)).map_err(|_| expected()),
            Self::Milliseconds | Self::Seconds => {
                let duration = humantime::parse_duration(text).map_err(|_| expected())?;
                let unit_nanos = if self == Self::Seconds { 1_000_000_000 } else { 1_000_000 };
                if duration.as_nanos() % unit_nanos != 0 {
                    return Err(format!("{text:?} is not a whole number of {}", self.counted()));
                }
                u64::try_from(duration.as_nanos() / unit_nanos).map_err(|_| expected())
            }
        }
    }

    /// The unit of the plain number.
    const fn counted(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes per second",
            Self::Milliseconds => "milliseconds",
            Self::Seconds => "seconds",
        }
    }

    /// An example of such a text, with its kind: "a size such as 10GiB".
    pub const fn example(self) -> &'static str {
        match self {
            Self::Bytes => "a size such as 10GiB",
            Self::BytesPerSecond => "a rate such as 50MiB/s",
            Self::Milliseconds | Self::Seconds => "a duration such as 90s, 15m or 14d",
        }
    }
}

/// A number, or a text of this quantity.
impl Visitor<'_> for Quantity {
    type Value = u64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a number of {}, or {}", self.counted(), self.example())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        self.parse(text).map_err(E::custom)
    }
}

/// For `#[serde(deserialize_with)]` of a number of bytes.
///
/// # Errors
/// Those of the deserializer, and a text that is not a size.
pub fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Quantity::Bytes)
}

/// For `#[serde(deserialize_with)]` of a number of bytes per second.
///
/// # Errors
/// Those of the deserializer, and a text that is not a rate.
pub fn bytes_per_second<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Quantity::BytesPerSecond)
}

/// For `#[serde(deserialize_with)]` of a number of milliseconds.
///
/// # Errors
/// Those of the deserializer, and a text that is not a duration of whole milliseconds.
pub fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Quantity::Milliseconds)
}

/// For `#[serde(deserialize_with)]` of a number of seconds.
///
/// # Errors
/// Those of the deserializer, and a text that is not a duration of whole seconds.
pub fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Quantity::Seconds)
}

/// The same as [`seconds`], where there may be none.
///
/// # Errors
/// Those of [`seconds`].
pub fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Optional;

    impl<'de> Visitor<'de> for Optional {
        type Value = Option<u64>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            Quantity::Seconds.expecting(formatter)
        }

        fn visit_none<E: de::Error>(self) -> Result<Option<u64>, E> {
            Ok(None)
        }

        fn visit_unit<E: de::Error>(self) -> Result<Option<u64>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u64>, D::Error> {
            seconds(deserializer).map(Some)
        }
    }

    deserializer.deserialize_option(Optional)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_with_their_unit() {
        use Quantity::{Bytes, BytesPerSecond, Milliseconds, Seconds};
        let table = [
            (Bytes, "10GiB", Some(10 << 30), "binary"),
            (Bytes, "10GB", Some(10_000_000_000), "decimal"),
            (Bytes, "1.5 KiB", Some(1536), "a fraction and a space"),
            (Bytes, "7B", Some(7), "bytes"),
            (Bytes, "10", None, "no unit"),
            (Bytes, "", None, "empty"),
            (Bytes, "14d", None, "a duration"),
            (Bytes, "-1GiB", None, "negative"),
            (Bytes, "99999999999TiB", Some(u64::MAX), "the range is checked by who reads it"),
            (BytesPerSecond, "50MiB/s", Some(50 << 20), "with /s"),
            (BytesPerSecond, "50MiB", Some(50 << 20), "without"),
            (BytesPerSecond, "50MiB/h", None, "another time"),
            (Milliseconds, "14d", Some(14 * 24 * 3_600_000), "days"),
            (Milliseconds, "1h 30m", Some(5_400_000), "two parts"),
            (Milliseconds, "1us", None, "less than a millisecond"),
            (Milliseconds, "-5s", None, "negative"),
            (Seconds, "1day", Some(86_400), "a day"),
            (Seconds, "1500ms", None, "no whole seconds"),
            (Seconds, "soon", None, "no number"),
        ];
        for (quantity, text, expected, reason) in table {
            assert_eq!(quantity.parse(text).ok(), expected, "{text:?}: {reason}");
        }
    }

    #[test]
    fn what_is_refused_says_what_is_expected() {
        let of = |quantity: Quantity, text| quantity.parse(text).expect_err(text);
        assert_eq!(of(Quantity::Bytes, "10"), "\"10\" has no unit; write a size such as 10GiB");
        assert_eq!(of(Quantity::Bytes, "much"), "\"much\" is not a size such as 10GiB");
        assert_eq!(of(Quantity::Milliseconds, "14"), "\"14\" has no unit; write a duration such as 90s, 15m or 14d");
    }

    #[test]
    fn numbers_and_texts_are_read_from_json() {
        #[derive(serde::Deserialize)]
        struct Given {
            #[serde(deserialize_with = "bytes")]
            size: u64,
            #[serde(default, deserialize_with = "optional_seconds")]
            ttl: Option<u64>,
        }
        let read = |json: &str| serde_json::from_str::<Given>(json).map(|given| (given.size, given.ttl));
        assert_eq!(read(r#"{"size":5}"#).ok(), Some((5, None)));
        assert_eq!(read(r#"{"size":"1KiB","ttl":"1h"}"#).ok(), Some((1024, Some(3600))));
        assert_eq!(read(r#"{"size":5,"ttl":null}"#).ok(), Some((5, None)));
        for wrong in
            [r#"{"size":-1}"#, r#"{"size":1.5}"#, r#"{"size":null}"#, r#"{"size":[1]}"#, r#"{"size":1,"ttl":"x"}"#]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
