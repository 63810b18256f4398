//! `/api/v1/config`: the settings, with the epoch as their ETag.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        self, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use damselfly_messages::config::{FIELDS, Settings};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Problem, guard::Origin, page};
use crate::{
    access::Caller,
    state::{ChangeError, EmptyRing, SettingsPatch, State},
};

pub(super) async fn show(extract::State(state): extract::State<State>) -> Result<Response, Problem> {
    let current = state.current().ok_or(ChangeError::Nothing)?;
    let settings = Json(&current.configuration.settings);
    Ok((tagged(current.configuration.epoch), settings).into_response())
}

pub(super) async fn change(
    extract::State(state): extract::State<State>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    allowed: Result<Query<Allowed>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let empty = page::read(allowed)?.empty_ring();
    let expected = Expected::from_headers(&headers)?;
    let Replacement { settings, missing } = Replacement::from_body(body)?;
    let actor = caller.actor(address);
    let changed = state.change(settings.clone(), actor, empty, move |epoch| expected.matches(epoch)).await;
    match changed {
        Ok(epoch) => Ok((tagged(epoch), Json(settings)).into_response()),
        // Whoever left the schedulers out did not mean to remove them.
        Err(ChangeError::LastScheduler) if missing.contains(&"schedulers") => Err(partial(&missing)),
        Err(error) => Err(error.into()),
    }
}

/// The body of a PUT.
struct Replacement {
    settings: Settings,
    /// The settings that it does not name, which get their defaults.
    missing: Vec<&'static str>,
}

impl Replacement {
    fn from_body(body: Result<Bytes, BytesRejection>) -> Result<Self, Problem> {
        let given: Map<String, Value> = read_body(body)?;
        let missing = FIELDS.iter().map(|field| field.name).filter(|name| !given.contains_key(*name)).collect();
        let settings = serde_json::from_value(Value::Object(given)).map_err(|error| invalid_body(&error))?;
        Ok(Self { settings, missing })
    }
}

/// Refuses a PUT that would remove all schedulers because it does not name them.
fn partial(missing: &[&str]) -> Problem {
    let detail = format!(
        "PUT replaces all settings, and this body leaves out {}: no scheduler would be left in the ring. To change single \
         settings send PATCH with these alone; to replace all of them send what GET returns, changed",
        missing.join(", ")
    );
    Problem::new(StatusCode::CONFLICT, "last_scheduler", detail)
}

/// A patch says itself what it changes, so If-Match may be left out.
pub(super) async fn patch(
    extract::State(state): extract::State<State>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    allowed: Result<Query<Allowed>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let empty = page::read(allowed)?.empty_ring();
    let expected = Expected::if_given(&headers)?;
    let patch = SettingsPatch::from_json(&whole_body(body)?).map_err(|error| invalid_body(&error))?;
    let actor = caller.actor(address);
    let (epoch, settings) = state.patch(patch, actor, empty, move |epoch| expected.matches(epoch)).await?;
    Ok((tagged(epoch), Json(settings)).into_response())
}

/// What a change may do beside what it says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Allowed {
    #[serde(default)]
    allow_empty: bool,
}

impl Allowed {
    pub(super) const fn empty_ring(&self) -> EmptyRing {
        if self.allow_empty { EmptyRing::Allowed } else { EmptyRing::Refused }
    }
}

/// A JSON body, with a reason when it is none.
pub(super) fn read_body<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    serde_json::from_slice(&whole_body(body)?).map_err(|error| invalid_body(&error))
}

fn whole_body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| Problem::new(rejection.status(), "invalid_body", rejection.body_text()))
}

fn invalid_body(error: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_body", error.to_string())
}

pub(super) fn tagged(epoch: u64) -> HeaderMap {
    let tag = HeaderValue::from_str(&format!("\"{epoch}\"")).ok();
    tag.map(|tag| (header::ETAG, tag)).into_iter().collect()
}

/// The header If-Match.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Any,
    Tags(Vec<String>),
}

impl Expected {
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(header::IF_MATCH) else {
            let detail = "send the ETag of what you have read in If-Match";
            return Err(Problem::new(StatusCode::PRECONDITION_REQUIRED, "if_match_required", detail));
        };
        // A tag that is no text matches nothing.
        let tags = value.to_str().unwrap_or_default().trim();
        Ok(match tags {
            "*" => Self::Any,
            tags => Self::Tags(tags.split(',').map(|tag| tag.trim().to_owned()).collect()),
        })
    }

    /// Where the change itself says what is wanted, the header may be left out.
    pub(super) fn if_given(headers: &HeaderMap) -> Result<Self, Problem> {
        if headers.contains_key(header::IF_MATCH) { Self::from_headers(headers) } else { Ok(Self::Any) }
    }

    pub(super) fn matches(&self, epoch: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => tags.iter().any(|tag| *tag == format!("\"{epoch}\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_match_is_read_as_the_standard_says() {
        let cases = [
            ("\"3\"", true, "the tag"),
            ("\"2\", \"3\"", true, "one of several"),
            ("*", true, "whatever there is"),
            ("3", false, "no quotes: no tag"),
            ("W/\"3\"", false, "weak tags do not match here"),
            ("\"2\"", false, "stale"),
        ];
        for (text, expected, reason) in cases {
            let headers = HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_static(text))]);
            assert_eq!(Expected::from_headers(&headers).expect("a header").matches(3), expected, "{reason}");
        }
        assert!(Expected::from_headers(&HeaderMap::new()).is_err());
    }
}
