//! How metrics are written: the text format of Prometheus, or OpenMetrics for who asks for that.

use axum::http::{HeaderMap, HeaderValue, header};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// What everybody reads.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const OPENMETRICS_TYPE: &str = "application/openmetrics-text";

/// The metrics in the format that the `Accept` header prefers, and its content type.
pub(super) fn expose(registry: &Registry, asked: &HeaderMap) -> Result<(HeaderValue, String), std::fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(match prefers_openmetrics(asked) {
        true => (HeaderValue::from_static(OPENMETRICS), text),
        false => (HeaderValue::from_static(PROMETHEUS), to_prometheus(&text)),
    })
}

/// Whether OpenMetrics is named, and nothing that plain text would suit is liked better.
fn prefers_openmetrics(asked: &HeaderMap) -> bool {
    let accepted = asked.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> = accepted.flat_map(|value| value.split(',')).map(range).collect();
    let most = |wanted: &[&str]| {
        let of_kind = ranges.iter().filter(|(kind, _)| wanted.iter().any(|wanted| kind.eq_ignore_ascii_case(wanted)));
        of_kind.map(|(_, quality)| *quality).fold(0.0, f64::max)
    };
    let open = most(&[OPENMETRICS_TYPE]);
    open > 0.0 && open >= most(&["text/plain", "text/*", "*/*"])
}

/// A media range without its parameters, and how much it is liked: 0 to 1.
fn range(text: &str) -> (&str, f64) {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse);
    (kind, quality.ok().filter(|quality| (0.0..=1.0).contains(quality)).unwrap_or(0.0))
}

/// Samples are written alike; what differs is how they are introduced: a counter by its whole name, which ends with
/// `_total`, information as a gauge, and there are neither units nor an end.
fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        metrics::{counter::Counter, gauge::Gauge, histogram::Histogram, info::Info},
        registry::Unit,
    };

    use super::*;

    #[test]
    fn prometheus_introduces_metrics_by_the_names_of_their_samples() {
        let mut registry = Registry::with_prefix("a");
        registry.register("things", "Things", Counter::<u64>::default());
        registry.register_with_unit("sent", "Sent", Unit::Bytes, Counter::<u64>::default());
        registry.register("build", "Version", Info::new(vec![("version", "1 # x")]));
        registry.register("now", "Now", Gauge::<i64>::default());
        registry.register_with_unit("took", "Took", Unit::Seconds, Histogram::new([0.5]));
        let (kind, text) = expose(&registry, &HeaderMap::new()).expect("written");
        assert_eq!(kind, PROMETHEUS);
        let expected = "\
            # HELP a_things_total Things.\n# TYPE a_things_total counter\na_things_total 0\n\
            # HELP a_sent_bytes_total Sent.\n# TYPE a_sent_bytes_total counter\na_sent_bytes_total 0\n\
            # HELP a_build_info Version.\n# TYPE a_build_info gauge\na_build_info{version=\"1 # x\"} 1\n\
            # HELP a_now Now.\n# TYPE a_now gauge\na_now 0\n\
            # HELP a_took_seconds Took.\n# TYPE a_took_seconds histogram\n\
            a_took_seconds_sum 0.0\na_took_seconds_count 0\n\
            a_took_seconds_bucket{le=\"0.5\"} 0\na_took_seconds_bucket{le=\"+Inf\"} 0\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn openmetrics_is_for_who_asks_for_it() {
        let cases = [
            ("", false, "nothing is asked for"),
            ("*/*", false, "anything"),
            ("text/html, */*;q=0.1", false, "a browser"),
            ("application/openmetrics-text", true, "it alone"),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                true,
                "Prometheus as it is",
            ),
            ("text/plain;version=0.0.4, application/openmetrics-text;q=0.5", false, "plain text is liked better"),
            ("application/openmetrics-text;q=0", false, "anything but that"),
            ("application/openmetrics-text;q=high", false, "no number"),
        ];
        for (accept, expected, why) in cases {
            let mut asked = HeaderMap::new();
            asked.insert(header::ACCEPT, HeaderValue::from_static(accept));
            let (kind, text) = expose(&Registry::default(), &asked).expect("written");
            assert_eq!(kind == OPENMETRICS, expected, "{why}");
            assert_eq!(text.ends_with("# EOF\n"), expected, "{why}");
        }
    }
}
