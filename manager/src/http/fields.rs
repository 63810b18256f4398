//! `/api/v1/config/fields`: what each setting means and may be; also the schema of the settings.

use axum::Json;
use damselfly_messages::{
    config::{Entries, FIELDS, Field, SCHEDULER_ADDRESSES_MAX, SchedulerState, Values, WEIGHT_MAX},
    scheduler::{TAG_TEXT_MAX, TAGS_MAX},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// A setting, for people.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FieldView {
    name: &'static str,
    /// What its number counts; empty for lists.
    unit: &'static str,
    description: &'static str,
    kind: &'static str,
    /// Of a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minimum: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum: Option<u64>,
    /// What 0 stands for, where that is no number of the range.
    #[serde(skip_serializing_if = "Option::is_none")]
    zero: Option<&'static str>,
    /// Most entries of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_items: Option<u64>,
    /// Most bytes of each text in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<u64>,
    /// Whether it can be another one for hosts with certain tags.
    overridable: bool,
}

/// Every setting.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FieldList {
    items: Vec<FieldView>,
}

pub(super) async fn list() -> Json<FieldList> {
    Json(FieldList { items: FIELDS.iter().map(FieldView::new).collect() })
}

impl FieldView {
    fn new(field: &Field) -> Self {
        let Field { name, unit, what, .. } = *field;
        let blank = Self {
            name,
            unit,
            description: what,
            kind: "number",
            default: None,
            minimum: None,
            maximum: None,
            zero: None,
            max_items: None,
            max_bytes: None,
            overridable: field.is_overridable(),
        };
        match field.values {
            Values::Number { low, high, zero } => {
                Self { default: Some(field.default_value()), minimum: Some(low), maximum: Some(high), zero, ..blank }
            }
            Values::List { of: Entries::Schedulers, most } => {
                Self { kind: "schedulers", max_items: Some(most), ..blank }
            }
            Values::List { of: Entries::Overrides, most } => Self { kind: "overrides", max_items: Some(most), ..blank },
            Values::List { of: Entries::Texts { bytes }, most } => {
                Self { kind: "texts", max_items: Some(most), max_bytes: Some(bytes), ..blank }
            }
        }
    }
}

/// The schemas of the settings and of what is in them, by their names.
pub(super) fn schemas() -> Map<String, Value> {
    let properties = |fields: &mut dyn Iterator<Item = &Field>| -> Map<String, Value> {
        fields.map(|field| (field.name.to_owned(), schema(field))).collect()
    };
    let settings = json!({
        "type": "object",
        "description": "The settings of the cluster.",
        "additionalProperties": false,
        "properties": properties(&mut FIELDS.iter()),
    });
    let or_default =
        |field: &Field| json!({ "oneOf": [{ "type": "null", "description": "The default." }, schema(field)] });
    let patched: Map<_, _> = FIELDS.iter().map(|field| (field.name.to_owned(), or_default(field))).collect();
    let patch = json!({
        "type": "object",
        "description": "The settings to change. Those that are not named stay as they are; null stands for the default.",
        "additionalProperties": false,
        "properties": patched,
    });
    let text = json!({ "type": "string" });
    let scheduler = json!({
        "type": "object",
        "description": "A scheduler and whether it is in the ring.",
        "additionalProperties": false,
        "required": ["peer_id", "addresses"],
        "properties": {
            "peer_id": text,
            "addresses": { "type": "array", "items": text, "minItems": 1, "maxItems": SCHEDULER_ADDRESSES_MAX },
            "weight": { "type": "integer", "minimum": 1, "maximum": WEIGHT_MAX, "default": 1 },
            "state": {
                "type": "string",
                "enum": SchedulerState::ALL.map(SchedulerState::name),
                "default": SchedulerState::default().name(),
            },
        },
    });
    let tag = json!({ "type": "string", "maxLength": TAG_TEXT_MAX });
    let one = json!({
        "type": "object",
        "description": "Other values for hosts whose credential has all of these tags.",
        "additionalProperties": false,
        "required": ["match", "set"],
        "properties": {
            "match": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": TAGS_MAX,
                "propertyNames": tag,
                "additionalProperties": tag,
            },
            "set": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": false,
                "properties": properties(&mut FIELDS.iter().filter(|field| field.is_overridable())),
            },
        },
    });
    let named = [("Settings", settings), ("SettingsPatch", patch), ("SchedulerEntry", scheduler), ("Override", one)];
    named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn schema(field: &Field) -> Value {
    let description = match (field.unit, field.quantity()) {
        ("", _) => field.what.to_owned(),
        (unit, None) => format!("{} In {unit}.", field.what),
        (unit, Some(quantity)) => format!("{} In {unit}; {} is read too.", field.what, quantity.example()),
    };
    match field.values {
        Values::Number { low, high, zero } => {
            let range = json!({ "type": "integer", "minimum": low, "maximum": high });
            let mut schema = match zero {
                Some(zero) => json!({ "oneOf": [{ "type": "integer", "enum": [0], "description": zero }, range] }),
                None => range,
            };
            schema["default"] = field.default_value().into();
            schema["description"] = description.into();
            schema
        }
        Values::List { of, most } => {
            let items = match of {
                Entries::Schedulers => json!({ "$ref": "#/components/schemas/SchedulerEntry" }),
                Entries::Overrides => json!({ "$ref": "#/components/schemas/Override" }),
                Entries::Texts { bytes } => json!({ "type": "string", "minLength": 1, "maxLength": bytes }),
            };
            json!({ "type": "array", "items": items, "maxItems": most, "default": [], "description": description })
        }
    }
}
