//! Partial changes of the settings: JSON Merge Patch, RFC 7396.

use damselfly_messages::{
    config::{Field, Settings},
    wire::Invalid,
};
use serde::de::Error as _;
use serde_json::{Map, Value};

/// New values of some settings by their names. `null` stands for the default; what is not named stays as it is.
///
/// Lists (`schedulers`, `overrides`, `blocked_tags`) are replaced as a whole, as RFC 7396 has it.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingsPatch(Map<String, Value>);

impl SettingsPatch {
    /// Reads a patch and checks that each setting exists and its value has the right form. Ranges are checked when the
    /// patched settings are signed.
    ///
    /// # Errors
    /// What is wrong, with the names that there are.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let patch: Map<String, Value> = serde_json::from_slice(json)?;
        let (reset, set): (Vec<_>, Vec<_>) = patch.iter().partition(|(_, value)| value.is_null());
        let set = set.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        serde_json::from_value::<Settings>(Value::Object(set))?;
        match reset.into_iter().find(|(name, _)| Field::named(name).is_none()) {
            Some((name, _)) => Err(serde_json::Error::custom(format!("unknown field `{name}`"))),
            None => Ok(Self(patch)),
        }
    }

    /// The settings with the patch applied.
    pub(super) fn apply(&self, settings: &Settings) -> Result<Settings, Invalid> {
        let unreadable = |error: serde_json::Error| Invalid::new("settings", error.to_string());
        let mut merged = match serde_json::to_value(settings).map_err(unreadable)? {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        for (name, value) in &self.0 {
            match value {
                Value::Null => drop(merged.remove(name)),
                value => drop(merged.insert(name.clone(), value.clone())),
            }
        }
        serde_json::from_value(Value::Object(merged)).map_err(unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes() {
        let before =
            Settings { replicas: 3, lease_ms: 60_000, blocked_tags: vec!["a".to_owned()], ..Settings::default() };
        let table = [
            ("{}", before.clone(), "nothing"),
            (r#"{"replicas":1}"#, Settings { replicas: 1, ..before.clone() }, "one"),
            (r#"{"replicas":null}"#, Settings { replicas: 2, ..before.clone() }, "the default"),
            (r#"{"lease_ms":"2m"}"#, Settings { lease_ms: 120_000, ..before.clone() }, "with its unit"),
            (r#"{"blocked_tags":["b"]}"#, Settings { blocked_tags: vec!["b".to_owned()], ..before.clone() }, "a list"),
        ];
        for (patch, expected, reason) in table {
            let patch = SettingsPatch::from_json(patch.as_bytes()).expect(reason);
            assert_eq!(patch.apply(&before), Ok(expected), "{reason}");
        }
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        let table = [
            (r#"{"replicsa":1}"#, "replicsa", "a name that there is not"),
            (r#"{"replicsa":null}"#, "replicsa", "the same, reset"),
            (r#"{"replicas":"many"}"#, "many", "another type"),
            (r#"{"lease_ms":"10"}"#, "has no unit", "no unit"),
            ("[]", "expected a map", "no object"),
            ("3", "expected a map", "no object"),
        ];
        for (patch, expected, reason) in table {
            let error = SettingsPatch::from_json(patch.as_bytes()).expect_err(reason).to_string();
            assert!(error.contains(expected), "{reason}: {error}");
        }
    }
}
