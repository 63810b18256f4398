//! Sizes and times as people write them.

use std::{num::NonZeroU64, time::Duration};

/// Units of sizes with their bytes.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// Reads a size like `64MiB`, `1GB` or `4096`, in bytes.
///
/// # Errors
/// What is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| format!("{unit:?} is no unit of size"))?.1,
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size like 64MiB"))?;
    Ok((number * factor as f64) as u64)
}

/// Reads a rate like `50MiB/s`, in bytes per second.
///
/// # Errors
/// What is wrong with it.
pub fn parse_bytes_per_second(text: &str) -> Result<NonZeroU64, String> {
    let size = text.strip_suffix("/s").ok_or_else(|| format!("{text:?} is no rate like 50MiB/s"))?;
    NonZeroU64::new(parse_size(size)?).ok_or_else(|| "nothing at all is no rate; there is --stall".into())
}

/// Checks a rate like `50MiB/s` and gives it back as it is, for the node's configuration.
///
/// # Errors
/// What is wrong with it.
pub fn parse_rate(text: &str) -> Result<String, String> {
    let size = text.strip_suffix("/s").ok_or_else(|| format!("{text:?} is no rate like 50MiB/s"))?;
    parse_size(size).map(|_| text.to_owned())
}

/// Reads a time like `2ms`, `1.5s`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time like 2ms or 1.5s");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rates_and_times() {
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("1.5KiB"), Ok(1536));
        assert_eq!(parse_size("7"), Ok(7));
        assert!(parse_size("7 apples").is_err() && parse_size("MiB").is_err());
        assert_eq!(parse_rate("50MiB/s"), Ok("50MiB/s".to_owned()));
        assert!(parse_rate("50MiB").is_err());
        assert_eq!(parse_duration("2ms"), Ok(Duration::from_millis(2)));
        assert!(parse_duration("2").is_err() && parse_duration("-1s").is_err());
    }
}
