//! The one table of settings: what each means, and what values it may have.

use super::{OVERRIDES_MAX, SCHEDULERS_MAX, Settings, tags::BLOCKED_TAGS_MAX};
use crate::{name::TAG_BYTES_MAX, ring::REPLICAS_MAX, units::Quantity, wire::Invalid};

/// Smallest quota of a store, if there is one.
pub const QUOTA_BYTES_MIN: u64 = 64 << 20;
/// Largest quota of a store.
pub const QUOTA_BYTES_MAX: u64 = 1 << 50;
const SECOND_MS: u64 = 1_000;
const HOUR_MS: u64 = 3_600 * SECOND_MS;
pub(super) const DAY_MS: u64 = 24 * HOUR_MS;

/// A setting.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// What its number counts.
    pub unit: &'static str,
    /// What it means, for people; one or two sentences.
    pub what: &'static str,
    /// What values it may have.
    pub values: Values,
    value: fn(&Settings) -> u64,
    /// Only of settings that concern a single host: those can be others by its tags.
    set: Option<fn(&mut Settings, u64)>,
}

/// What values a setting may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// A whole number of this range.
    Number {
        /// The lowest.
        low: u64,
        /// The highest.
        high: u64,
        /// What 0 stands for, where it may be outside of the range.
        zero: Option<&'static str>,
    },
    /// A list.
    List {
        /// What of.
        of: Entries,
        /// Of so many entries at most.
        most: u64,
    },
}

/// What a list is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entries {
    /// [`super::SchedulerEntry`]
    Schedulers,
    /// [`super::Override`]
    Overrides,
    /// Texts.
    Texts {
        /// Of so many bytes at most, and at least one.
        bytes: u64,
    },
}

const fn range(low: u64, high: u64) -> Values {
    Values::Number { low, high, zero: None }
}

const fn zero_or(zero: &'static str, low: u64, high: u64) -> Values {
    Values::Number { low, high, zero: Some(zero) }
}

/// Every setting, in the order of [`Settings`].
pub const FIELDS: &[Field] = &[
    Field {
        name: "replicas",
        unit: "schedulers",
        what: "How many schedulers own each task.",
        values: range(1, REPLICAS_MAX as u64),
        value: |settings| settings.replicas.into(),
        set: None,
    },
    Field {
        name: "schedulers",
        unit: "",
        what: "The schedulers, with their addresses. Those that are active share the tasks by their weights.",
        values: Values::List { of: Entries::Schedulers, most: SCHEDULERS_MAX as u64 },
        value: |settings| settings.schedulers.len() as u64,
        set: None,
    },
    Field {
        name: "heartbeat_ms",
        unit: "milliseconds",
        what: "The time between two heartbeats of a host. A scheduler is warm after three, or 15 seconds at most.",
        values: range(100, 60 * SECOND_MS),
        value: |settings| settings.heartbeat_ms,
        set: None,
    },
    Field {
        name: "lease_ms",
        unit: "milliseconds",
        what: "A host without a heartbeat for so long is no longer a holder. At least three heartbeats.",
        values: range(300, HOUR_MS),
        value: |settings| settings.lease_ms,
        set: None,
    },
    Field {
        name: "candidate_parents",
        unit: "hosts",
        what: "Most parents that a downloader is given.",
        values: range(1, 64),
        value: |settings| settings.candidate_parents.into(),
        set: None,
    },
    Field {
        name: "concurrent_parents",
        unit: "hosts",
        what: "Parents that a downloader fetches from at a time.",
        values: range(1, 64),
        value: |settings| settings.concurrent_parents.into(),
        set: Some(|settings, value| settings.concurrent_parents = value as u32),
    },
    Field {
        name: "upload_bytes_per_second",
        unit: "bytes per second",
        what: "Most that each host sends to peers. A host's own limit counts too.",
        values: zero_or("no limit", 64 << 10, 1 << 40),
        value: |settings| settings.upload_bytes_per_second,
        set: Some(|settings, value| settings.upload_bytes_per_second = value),
    },
    Field {
        name: "download_bytes_per_second",
        unit: "bytes per second",
        what: "Most that each host receives from peers. A host's own limit counts too.",
        values: zero_or("no limit", 64 << 10, 1 << 40),
        value: |settings| settings.download_bytes_per_second,
        set: Some(|settings, value| settings.download_bytes_per_second = value),
    },
    Field {
        name: "credential_ms",
        unit: "milliseconds",
        what: "How long a credential holds. It is renewed after a fourteenth of that.",
        values: range(SECOND_MS, 90 * DAY_MS),
        value: |settings| settings.credential_ms,
        set: None,
    },
    Field {
        name: "grace_ms",
        unit: "milliseconds",
        what: "For so long members go on whose credential has expired, with an alarm.",
        values: range(0, 365 * DAY_MS),
        value: |settings| settings.grace_ms,
        set: None,
    },
    Field {
        name: "dead_scheduler_ms",
        unit: "milliseconds",
        what: "A scheduler that no manager could reach for so long is taken out of the ring until it answers again.",
        values: zero_or("never", 10 * SECOND_MS, 7 * DAY_MS),
        value: |settings| settings.dead_scheduler_ms,
        set: None,
    },
    Field {
        name: "concurrent_uploads",
        unit: "pieces",
        what: "Pieces that a host serves at a time. More wait a moment, and are then told that it is busy.",
        values: range(1, 1024),
        value: |settings| settings.concurrent_uploads.into(),
        set: Some(|settings, value| settings.concurrent_uploads = value as u32),
    },
    Field {
        name: "concurrent_pieces",
        unit: "pieces",
        what: "Pieces that a download asks of one parent at a time.",
        values: range(1, 64),
        value: |settings| settings.concurrent_pieces.into(),
        set: Some(|settings, value| settings.concurrent_pieces = value as u32),
    },
    Field {
        name: "blocked_tags",
        unit: "",
        what: "Tasks with these tags are neither imported nor exported. They can still be looked up and deleted.",
        values: Values::List { of: Entries::Texts { bytes: TAG_BYTES_MAX as u64 }, most: BLOCKED_TAGS_MAX as u64 },
        value: |settings| settings.blocked_tags.len() as u64,
        set: None,
    },
    Field {
        name: "overrides",
        unit: "",
        what: "Other values for hosts whose credential has certain tags. They are applied in order; later ones count.",
        values: Values::List { of: Entries::Overrides, most: OVERRIDES_MAX as u64 },
        value: |settings| settings.overrides.len() as u64,
        set: None,
    },
    Field {
        name: "store_quota_bytes",
        unit: "bytes",
        what: "Most bytes that each node's store holds. A node's own quota counts too.",
        values: zero_or("no quota", QUOTA_BYTES_MIN, QUOTA_BYTES_MAX),
        value: |settings| settings.store_quota_bytes,
        set: Some(|settings, value| settings.store_quota_bytes = value),
    },
    Field {
        name: "store_high_percent",
        unit: "percent",
        what: "Above this part of its quota a node removes copies of what it fetched, those used least lately first.",
        values: range(2, 100),
        value: |settings| settings.store_high_percent.into(),
        set: Some(|settings, value| settings.store_high_percent = value as u32),
    },
    Field {
        name: "store_low_percent",
        unit: "percent",
        what: "It stops at this part, which is less than the other.",
        values: range(1, 99),
        value: |settings| settings.store_low_percent.into(),
        set: Some(|settings, value| settings.store_low_percent = value as u32),
    },
];

impl Field {
    /// The setting of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name == name)
    }

    /// Its number, or how many entries it has.
    pub fn value(&self, settings: &Settings) -> u64 {
        (self.value)(settings)
    }

    /// The quantity of its number, if it may be written with a unit.
    pub fn quantity(&self) -> Option<Quantity> {
        match self.unit {
            "bytes" => Some(Quantity::Bytes),
            "bytes per second" => Some(Quantity::BytesPerSecond),
            "milliseconds" => Some(Quantity::Milliseconds),
            _ => None,
        }
    }

    /// Whether it can be another one for hosts with certain tags.
    pub const fn is_overridable(&self) -> bool {
        self.set.is_some()
    }

    pub(super) fn set(&self, settings: &mut Settings, value: u64) {
        if let Some(set) = self.set {
            set(settings, value);
        }
    }

    /// What it is when nothing is said; an empty list is 0.
    pub fn default_value(&self) -> u64 {
        self.value(&Settings::default())
    }

    /// Checks a value that is given as `place`.
    ///
    /// # Errors
    /// [`Invalid`] names the place and the range.
    pub(super) fn check(&self, value: u64, place: impl Into<std::borrow::Cow<'static, str>>) -> Result<(), Invalid> {
        let reason = match self.values {
            Values::Number { low, high, .. } if (low..=high).contains(&value) => return Ok(()),
            Values::Number { zero: Some(_), .. } if value == 0 => return Ok(()),
            Values::List { most, .. } if value <= most => return Ok(()),
            Values::Number { low, high, zero: None } => format!("{value} is not within {low}–{high}"),
            Values::Number { low, high, zero: Some(zero) } => {
                format!("{value} is neither 0 ({zero}) nor within {low}–{high}")
            }
            Values::List { most, .. } => format!("{value} are more than {most}"),
        };
        Err(Invalid::new(place, reason))
    }
}

impl Settings {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`Invalid`] names the field and its range.
    pub fn validate(&self) -> Result<(), Invalid> {
        for field in FIELDS {
            field.check(field.value(self), field.name)?;
        }
        if self.lease_ms < 3 * self.heartbeat_ms {
            let reason = format!("{} is less than three heartbeats of {} ms", self.lease_ms, self.heartbeat_ms);
            return Err(Invalid::new("lease_ms", reason));
        }
        if self.store_low_percent >= self.store_high_percent {
            let reason =
                format!("{} is not less than store_high_percent, {}", self.store_low_percent, self.store_high_percent);
            return Err(Invalid::new("store_low_percent", reason));
        }
        self.validate_schedulers()?;
        self.validate_blocked_tags()?;
        self.validate_overrides()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_has_every_setting_once() {
        let serde_json::Value::Object(settings) = serde_json::json!(Settings::default()) else { panic!("no object") };
        let names: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
        let set: BTreeSet<_> = names.iter().copied().collect();
        assert_eq!(set, settings.keys().map(String::as_str).collect());
        assert_eq!(set.len(), names.len());
        for field in FIELDS {
            let value = settings[field.name].as_u64().unwrap_or_default();
            assert_eq!(field.default_value(), value, "{} reads another field", field.name);
            field.check(value, field.name).expect("the default is within the range");
            assert!(field.what.ends_with('.') && !field.what.is_empty());
        }
    }

    #[test]
    fn every_size_and_duration_may_be_written_with_its_unit() {
        for field in FIELDS {
            let Some(quantity) = field.quantity() else { continue };
            let text = match quantity {
                Quantity::Bytes => "1GiB",
                Quantity::BytesPerSecond => "1GiB/s",
                Quantity::Milliseconds | Quantity::Seconds => "10s",
            };
            let read: Settings = serde_json::from_value(serde_json::json!({ field.name: text })).expect(field.name);
            assert_eq!(Ok(field.value(&read)), quantity.parse(text), "{}", field.name);
            if field.is_overridable() {
                let one = serde_json::json!({ "match": { "zone": "a" }, "set": { field.name: text } });
                let one: super::super::Override = serde_json::from_value(one).expect(field.name);
                assert_eq!(Ok(one.set[field.name]), quantity.parse(text), "{}", field.name);
            }
            let error =
                serde_json::from_value::<Settings>(serde_json::json!({ field.name: "10" })).expect_err("no unit");
            assert!(error.to_string().contains("has no unit"), "{error}");
        }
    }

    #[test]
    fn both_ends_of_a_range_are_in_it() {
        for field in FIELDS {
            let (low, high, zero) = match field.values {
                Values::Number { low, high, zero } => (low, high, zero.is_some()),
                Values::List { most, .. } => (0, most, false),
            };
            let is_good = |value| field.check(value, field.name).is_ok();
            assert!(is_good(low) && is_good(high) && !is_good(high + 1), "{}", field.name);
            assert!(low == 0 || !is_good(low - 1) || (zero && low == 1), "{}", field.name);
            assert_eq!(is_good(0), zero || low == 0, "{}", field.name);
        }
    }
}
