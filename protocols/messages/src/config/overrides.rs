//! Settings that are others for some hosts.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{Field, Settings};
use crate::{
    membership::Tags,
    scheduler::{TAG_TEXT_MAX, TAGS_MAX},
    wire::Invalid,
};

/// Most overrides of a cluster.
pub const OVERRIDES_MAX: usize = 64;

/// Other values for hosts with certain tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// A host's credential must have all of these tags: at least one.
    #[serde(rename = "match")]
    pub tags: Tags,
    /// Settings by their names, of those that concern a single host.
    #[serde(deserialize_with = "values")]
    pub set: BTreeMap<String, u64>,
}

/// Reads values by the names of their settings; each may be a text with the unit of that setting.
fn values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Number(u64),
        Text(String),
    }

    let number = |name: &str, given| match given {
        Given::Number(number) => Ok(number),
        Given::Text(text) => match Field::named(name).and_then(Field::quantity) {
            Some(quantity) => quantity.parse(&text).map_err(|reason| D::Error::custom(format!("{name}: {reason}"))),
            None => Err(D::Error::custom(format!("{name}: {text:?} is not a number"))),
        },
    };
    let given = BTreeMap::<String, Given>::deserialize(deserializer)?;
    let mut values = BTreeMap::new();
    for (name, given) in given {
        let value = number(&name, given)?;
        values.insert(name, value);
    }
    Ok(values)
}

impl Override {
    /// Its fields in JSON.
    pub(super) const FIELDS: [&'static str; 2] = ["match", "set"];

    fn matches(&self, tags: &Tags) -> bool {
        self.tags.iter().all(|(name, value)| tags.get(name) == Some(value))
    }

    fn validate(&self, number: usize) -> Result<(), Invalid> {
        let place = |name: &str| format!("overrides[{number}].{name}");
        let is_long = |text: &String| text.len() > TAG_TEXT_MAX;
        if !(1..=TAGS_MAX).contains(&self.tags.len())
            || self.tags.iter().any(|(name, value)| is_long(name) || is_long(value))
        {
            return Err(Invalid::new(
                place("match"),
                format!("it is 1 to {TAGS_MAX} tags of at most {TAG_TEXT_MAX} bytes"),
            ));
        }
        if self.set.is_empty() {
            return Err(Invalid::new(place("set"), "it sets nothing"));
        }
        for (name, value) in &self.set {
            let Some(field) = Field::named(name).filter(|field| field.is_overridable()) else {
                return Err(Invalid::new(place(name), "there is no such setting of a single host"));
            };
            field.check(*value, place(name))?;
        }
        Ok(())
    }
}

impl Settings {
    /// The settings as they are for a host whose credential has these tags. Of several overrides the last one counts.
    pub fn for_host(&self, tags: &Tags) -> Self {
        let mut settings = self.clone();
        for matching in self.overrides.iter().filter(|other| other.matches(tags)) {
            for (name, value) in &matching.set {
                if let Some(field) = Field::named(name) {
                    field.set(&mut settings, *value);
                }
            }
        }
        settings
    }

    pub(super) fn validate_overrides(&self) -> Result<(), Invalid> {
        self.overrides.iter().enumerate().try_for_each(|(number, one)| one.validate(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[(&str, &str)]) -> Tags {
        tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn one(matching: &[(&str, &str)], set: &[(&str, u64)]) -> Override {
        Override { tags: tags(matching), set: set.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect() }
    }

    #[test]
    fn the_last_override_that_matches_counts() {
        let overrides = vec![
            one(&[("zone", "a")], &[("concurrent_parents", 2), ("upload_bytes_per_second", 1 << 20)]),
            one(&[("zone", "a"), ("rack", "1")], &[("concurrent_parents", 3)]),
            one(&[("zone", "b")], &[("concurrent_parents", 4)]),
        ];
        let settings = Settings { overrides, ..Settings::default() };
        settings.validate().expect("valid");
        type Row<'a> = (&'a [(&'a str, &'a str)], u32, u64, &'a str);
        let table: [Row<'_>; 4] = [
            (&[], 8, 0, "no tags"),
            (&[("zone", "a"), ("rack", "2")], 2, 1 << 20, "the first"),
            (&[("zone", "a"), ("rack", "1"), ("host", "x")], 3, 1 << 20, "both, in order"),
            (&[("zone", "b"), ("rack", "1")], 4, 0, "every tag must match"),
        ];
        for (of, parents, upload, reason) in table {
            let host = settings.for_host(&tags(of));
            assert_eq!((host.concurrent_parents, host.upload_bytes_per_second), (parents, upload), "{reason}");
        }
    }

    #[test]
    fn every_overridable_setting_is_set_by_its_name() {
        for field in super::super::FIELDS.iter().filter(|field| field.is_overridable()) {
            let super::super::Values::Number { high, .. } = field.values else { panic!("{} is a list", field.name) };
            let settings =
                Settings { overrides: vec![one(&[("a", "b")], &[(field.name, high)])], ..Settings::default() };
            settings.validate().expect("within the range");
            assert_eq!(field.value(&settings.for_host(&tags(&[("a", "b")]))), high, "{}", field.name);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_range() {
        let good = one(&[("zone", "a")], &[("concurrent_parents", 2)]);
        let long = "x".repeat(TAG_TEXT_MAX + 1);
        let table = [
            (
                one(&[("zone", "a")], &[("upload_bytes_per_second", 5)]),
                "overrides[1].upload_bytes_per_second: 5 is neither 0 (no limit) nor within 65536",
            ),
            (
                one(&[("zone", "a")], &[("replicas", 2)]),
                "overrides[1].replicas: there is no such setting of a single host",
            ),
            (one(&[("zone", "a")], &[("speed", 2)]), "overrides[1].speed: there is no such"),
            (one(&[("zone", "a")], &[]), "overrides[1].set: it sets nothing"),
            (one(&[], &[("concurrent_parents", 2)]), "overrides[1].match: it is 1 to 32 tags"),
            (one(&[("zone", &long)], &[("concurrent_parents", 2)]), "overrides[1].match: it is 1 to 32 tags"),
        ];
        for (wrong, expected) in table {
            let settings = Settings { overrides: vec![good.clone(), wrong], ..Settings::default() };
            let error = settings.validate().expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let settings = Settings { overrides: vec![good; OVERRIDES_MAX + 1], ..Settings::default() };
        assert_eq!(settings.validate().expect_err("too many").to_string(), "invalid overrides: 65 are more than 64");
    }
}
