//! Settings that were signed by a newer version than this one.
//!
//! Members pass a configuration on as it was signed, so what they do not know may stay in it: they leave that out of
//! account, and versions can be changed one host after the other. What a person types is read without this leniency.

use serde_json::{Map, Value};

use super::{Field, Override, SchedulerEntry, Settings};
use crate::wire::Invalid;

impl Settings {
    /// Reads settings as they were signed. Fields that this version does not know are left out.
    ///
    /// # Errors
    /// [`Invalid`]: what is known cannot be read, or is out of its range.
    pub fn from_signed(json: &[u8]) -> Result<Self, Invalid> {
        let unreadable = |error: serde_json::Error| Invalid::new("settings", error.to_string());
        let mut value: Value = serde_json::from_slice(json).map_err(unreadable)?;
        if let Value::Object(fields) = &mut value {
            leave_out_unknown(fields);
        }
        let settings: Self = serde_json::from_value(value).map_err(unreadable)?;
        settings.validate()?;
        Ok(settings)
    }
}

fn leave_out_unknown(settings: &mut Map<String, Value>) {
    settings.retain(|name, _| Field::named(name).is_some());
    let schedulers = settings.get_mut("schedulers").and_then(Value::as_array_mut);
    for scheduler in schedulers.into_iter().flatten().filter_map(Value::as_object_mut) {
        scheduler.retain(|name, _| SchedulerEntry::FIELDS.contains(&name.as_str()));
    }
    let Some(overrides) = settings.get_mut("overrides").and_then(Value::as_array_mut) else { return };
    // One with a further condition would be for too many hosts without it.
    overrides.retain(|one| {
        one.as_object().is_none_or(|one| one.keys().all(|name| Override::FIELDS.contains(&name.as_str())))
    });
    for one in &mut *overrides {
        if let Some(set) = one.get_mut("set").and_then(Value::as_object_mut) {
            set.retain(|name, _| Field::named(name).is_some_and(Field::is_overridable));
        }
    }
    let sets_nothing = |one: &Value| one.get("set").and_then(Value::as_object).is_some_and(Map::is_empty);
    overrides.retain(|one| !sets_nothing(one));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use libp2p::PeerId;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_newer_version_knows_is_left_out_and_nothing_else() {
        let address = "/ip4/10.0.0.1/tcp/4600".parse().expect("an address");
        let schedulers = vec![SchedulerEntry::active(PeerId::random(), vec![address])];
        let slow = Override {
            tags: [("zone".to_owned(), "a".to_owned())].into(),
            set: [("concurrent_parents".to_owned(), 2)].into(),
        };
        let settings = Settings { schedulers, replicas: 3, overrides: vec![slow], ..Settings::default() };
        let mut newer = json!(settings);
        newer["flux_capacitors"] = json!([1, { "a": 2 }]);
        newer["schedulers"][0]["shard"] = json!("a");
        newer["overrides"][0]["set"]["flux_bytes"] = json!(1);
        let of_others = [
            json!({ "match": { "zone": "b" }, "set": { "flux_bytes": 1 } }),
            json!({ "match": { "zone": "a" }, "unless": { "rack": "1" }, "set": { "concurrent_parents": 7 } }),
        ];
        newer["overrides"].as_array_mut().expect("a list").extend(of_others);
        let bytes = serde_json::to_vec(&newer).expect("JSON");
        assert!(serde_json::from_slice::<Settings>(&bytes).is_err(), "a person would be told of the mistake");
        assert_eq!(Settings::from_signed(&bytes), Ok(settings));
        newer["replicas"] = json!(9);
        let error = Settings::from_signed(newer.to_string().as_bytes()).expect_err("out of range");
        assert_eq!(error.what, "replicas");
    }

    #[test]
    fn every_field_of_an_entry_is_known() {
        let names = |value| {
            let Value::Object(fields) = value else { panic!("no object") };
            fields.keys().cloned().collect::<BTreeSet<_>>()
        };
        let known = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect::<BTreeSet<_>>();
        let entry = SchedulerEntry::active(PeerId::random(), Vec::new());
        assert_eq!(names(json!(entry)), known(&SchedulerEntry::FIELDS));
        let other = Override { tags: Default::default(), set: Default::default() };
        assert_eq!(names(json!(other)), known(&Override::FIELDS));
    }
}
