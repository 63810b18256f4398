//! What names, labels and passwords may be.

use std::ops::RangeInclusive;

const NAME_BYTES_MAX: usize = 64;
const LABEL_CHARS: RangeInclusive<usize> = 1..=100;
/// Long enough to stand guessing; short enough to be hashed.
const PASSWORD_CHARS: RangeInclusive<usize> = 12..=256;

/// A user's name: lower case letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
///
/// # Errors
/// What is allowed.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_allowed = |byte: u8| is_alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-');
    let is_good = name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(is_alphanumeric)
        && name.bytes().all(is_allowed);
    if is_good {
        return Ok(());
    }
    Err(format!("a name has 1 to {NAME_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or a digit"))
}

/// What a token is for.
///
/// # Errors
/// What is allowed.
pub fn check_label(label: &str) -> Result<(), String> {
    let is_good = LABEL_CHARS.contains(&label.chars().count()) && !label.chars().any(char::is_control);
    if is_good {
        Ok(())
    } else {
        Err(format!("a label has 1 to {} characters, none of them a control character", LABEL_CHARS.end()))
    }
}

/// Only its length: rules about characters make passwords worse.
///
/// # Errors
/// What is allowed.
pub fn check_password(password: &str) -> Result<(), String> {
    let is_good = PASSWORD_CHARS.contains(&password.chars().count());
    let (least, most) = (PASSWORD_CHARS.start(), PASSWORD_CHARS.end());
    if is_good { Ok(()) } else { Err(format!("a password has {least} to {most} characters")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_escaping() {
        for (name, expected, reason) in [
            ("ada", true, "plain"),
            ("a.d-a_1", true, "all of it"),
            ("1", true, "a digit"),
            ("", false, "nothing"),
            ("Ada", false, "two that look alike"),
            (".ada", false, "hidden"),
            ("a/b", false, "another path"),
            ("(manager)", false, "an actor that is no user"),
            (&"a".repeat(65), false, "long"),
        ] {
            assert_eq!(check_name(name).is_ok(), expected, "{name:?}: {reason}");
        }
        assert!(check_password("short").is_err() && check_password(&"x".repeat(257)).is_err());
        assert!(check_label("").is_err() && check_label("a\nb").is_err() && check_label("CI").is_ok());
    }
}
