//! Settings that were signed by a newer version than this one.
//!
//! Members pass a configuration on as it was signed, so what they do not know may stay in it: they leave that out of
//! account, and versions can be changed one host after the other. What a person types is read without this leniency.

use serde_json::{Map, Value};

use super::{Field, SchedulerEntry, Settings};
use crate::wire::Invalid;

impl Settings {
    /// Reads settings as they were signed. Fields that this version does not know are left out.
    ///
    /// # Errors
    /// [`Invalid`]: what is known cannot be read, or is out of its range.
    pub(super) fn from_signed(json: &[u8]) -> Result<Self, Invalid> {
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
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_newer_version_knows_is_left_out_and_nothing_else() {
        let address = "/ip4/10.0.0.1/tcp/4600".parse().expect("an address");
        let schedulers = vec![SchedulerEntry::active(PeerId::random(), vec![address])];
        let settings = Settings { schedulers, replicas: 3, ..Settings::default() };
        let mut newer = json!(settings);
        newer["flux_capacitors"] = json!([1, { "a": 2 }]);
        newer["schedulers"][0]["shard"] = json!("a");
        let bytes = serde_json::to_vec(&newer).expect("JSON");
        assert!(serde_json::from_slice::<Settings>(&bytes).is_err(), "a person would be told of the mistake");
        assert_eq!(Settings::from_signed(&bytes), Ok(settings));
        newer["replicas"] = json!(9);
        let error = Settings::from_signed(newer.to_string().as_bytes()).expect_err("out of range");
        assert_eq!(error.what, "replicas");
    }

    #[test]
    fn every_field_of_a_scheduler_is_known() {
        let entry = SchedulerEntry::active(PeerId::random(), Vec::new());
        let Value::Object(fields) = json!(entry) else { panic!("no object") };
        let mut known = SchedulerEntry::FIELDS;
        known.sort_unstable();
        assert!(fields.keys().eq(known.iter()), "{fields:?}");
    }
}
