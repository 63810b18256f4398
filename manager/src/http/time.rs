//! Times as RFC 3339.

use std::time::{Duration, SystemTime};

use damselfly_messages::record::UnixMillis;

/// The last moment that RFC 3339 can write.
const LAST: Duration = Duration::from_secs(253_402_300_799);

pub(super) fn rfc3339(time: UnixMillis) -> String {
    let since = Duration::from_millis(time.0).min(LAST);
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
}
