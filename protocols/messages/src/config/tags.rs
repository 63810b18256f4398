//! Tags whose tasks are not wanted in the cluster.

use std::collections::HashSet;

use super::Settings;
use crate::{name::TAG_BYTES_MAX, wire::Invalid};

/// Most tags that are blocked.
pub const BLOCKED_TAGS_MAX: usize = 256;

impl Settings {
    /// Whether tasks with this tag are neither imported nor exported.
    pub fn is_blocked(&self, tag: &str) -> bool {
        !tag.is_empty() && self.blocked_tags.iter().any(|blocked| blocked == tag)
    }

    pub(super) fn validate_blocked_tags(&self) -> Result<(), Invalid> {
        let mut seen = HashSet::new();
        for (number, tag) in self.blocked_tags.iter().enumerate() {
            let wrong = |reason| Err(Invalid::new(format!("blocked_tags[{number}]"), reason));
            if !(1..=TAG_BYTES_MAX).contains(&tag.len()) {
                return wrong(format!("{} bytes are not within 1–{TAG_BYTES_MAX}", tag.len()));
            }
            if !seen.insert(tag) {
                return wrong(format!("{tag:?} is listed twice"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_blocked_as_they_are_spelled() {
        let settings = |tags: &[&str]| Settings {
            blocked_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Settings::default()
        };
        let blocked = settings(&["v1", "bad"]);
        blocked.validate().expect("valid");
        let are = ["v1", "bad", "V1", "v", ""].map(|tag| blocked.is_blocked(tag));
        assert_eq!(are, [true, true, false, false, false]);
        let long = "x".repeat(TAG_BYTES_MAX + 1);
        for (wrong, expected) in [
            (settings(&["a", ""]), "blocked_tags[1]: 0 bytes"),
            (settings(&[&long]), "blocked_tags[0]: 257 bytes"),
            (settings(&["a", "b", "a"]), "blocked_tags[2]: \"a\" is listed twice"),
        ] {
            let error = wrong.validate().expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let many: Vec<_> = (0..=BLOCKED_TAGS_MAX).map(|number| number.to_string()).collect();
        let many = Settings { blocked_tags: many, ..Settings::default() };
        assert_eq!(many.validate().expect_err("too many").what, "blocked_tags");
    }
}
