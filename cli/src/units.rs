//! Sizes, rates, durations and times, read and written.

use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;

/// The last second of the year 9999: what RFC 3339 can say.
const LAST_UNIX_MS: u64 = 253_402_300_799_000;

/// Reads a rate such as `64MiB/s`; the `/s` may be left out, the unit may not.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text);
    let has_unit = size.ends_with(|last: char| last.is_ascii_alphabetic());
    match size.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("the rate must be more than 0".into()),
        Ok(ByteSize(bytes)) if has_unit => Ok(bytes),
        Ok(_) | Err(_) => Err("expected a size with its unit per second, such as 64MiB/s".into()),
    }
}

/// Reads a duration such as `90s` or `1h 30m`, of at least a millisecond.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration < Duration::from_millis(1) => Err("the duration must be more than 0".into()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("expected a duration with its unit, such as 90s, 15m or 2days".into()),
    }
}

/// Whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A size for people, such as `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A rate for people; empty when the time is too short to say.
pub fn rate(bytes: u64, seconds: f64) -> Option<String> {
    // A float to integer cast saturates, and a rate needs no more than 53 bits.
    (seconds > 0.001).then(|| format!("{}/s", size((bytes as f64 / seconds) as u64)))
}

/// Seconds for people.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 120.0 => format!("{s:.1} s"),
        s => humantime::format_duration(Duration::from_secs(s as u64)).to_string(),
    }
}

/// A time in RFC 3339; `None` for 0, which stands for "none" on the wire.
pub fn rfc3339(unix_ms: u64) -> Option<String> {
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_UNIX_MS));
    (unix_ms > 0).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let rows = [
            ("64MiB/s", Some(64 << 20), "as documented"),
            ("64MiB", Some(64 << 20), "without /s"),
            ("10MB/s", Some(10_000_000), "decimal units"),
            ("1.5KiB/s", Some(1536), "fractions"),
            ("500B/s", Some(500), "bytes"),
            ("500", None, "without a unit it could be anything"),
            ("500/s", None, "the same"),
            ("0", None, "nothing would ever arrive"),
            ("-1MiB/s", None, "negative"),
            ("64MiB/h", None, "another time"),
            ("fast", None, "no number"),
            ("", None, "empty"),
        ];
        for (text, expected, reason) in rows {
            assert_eq!(parse_rate(text).ok(), expected, "{text}: {reason}");
        }
    }

    #[test]
    fn durations_are_read() {
        let rows = [
            ("90s", Some(90_000), "as documented"),
            ("250ms", Some(250), "milliseconds"),
            ("1h 30m", Some(5_400_000), "a sum"),
            ("90", None, "without a unit it could be anything"),
            ("0s", None, "no time at all"),
            ("-1s", None, "negative"),
        ];
        for (text, expected, reason) in rows {
            assert_eq!(parse_duration(text).ok().map(millis), expected, "{text}: {reason}");
        }
    }

    #[test]
    fn times_are_written() {
        assert_eq!(rfc3339(0), None, "0 is none");
        assert_eq!(rfc3339(1_000).as_deref(), Some("1970-01-01T00:00:01Z"));
        assert_eq!(rfc3339(u64::MAX).as_deref(), Some("9999-12-31T23:59:59Z"), "no panic");
    }

    #[test]
    fn a_rate_needs_time() {
        assert_eq!(rate(1 << 20, 0.0), None);
        assert_eq!(rate(2 << 20, 2.0).as_deref(), Some("1.0 MiB/s"));
    }
}
