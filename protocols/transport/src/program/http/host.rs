//! Refuses requests that were sent for another host's name.
//!
//! A page of another site can have its own name resolve to an address of this program (DNS rebinding); the browser then
//! takes the program's answers for that site's, past every same-origin rule. Such a request carries the site's name in
//! `Host`. A name without a dot cannot be anybody's site, and an IP literal or `localhost` is resolved by nobody.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderMap, StatusCode, header, uri::Authority},
    response::{IntoResponse, Response},
};

/// The names that requests may be sent to; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Names {
    configured: Arc<[String]>,
}

impl Names {
    /// Those in the configuration, beside IP literals, `localhost`, and names without a dot.
    pub(super) fn new(configured: &[String]) -> Self {
        Self { configured: configured.iter().map(|name| normal(name)).collect() }
    }

    /// Lets a request pass that is meant for this program.
    ///
    /// # Errors
    /// The answer to the others: 421, with what to do.
    pub(super) async fn check(self, request: Request) -> Result<Request, Response> {
        match self.foreign(request.headers(), request.uri().authority()) {
            None => Ok(request),
            Some(host) => {
                tracing::debug!(%host, "HTTP request for another host refused");
                let reason = "this program does not answer for the name in Host: use its address, or add the name to \
                              http.allowed_hosts in its configuration\n";
                Err((StatusCode::MISDIRECTED_REQUEST, reason).into_response())
            }
        }
    }

    /// The first name that is none of this program's. A request without any comes from no browser.
    fn foreign(&self, headers: &HeaderMap, target: Option<&Authority>) -> Option<String> {
        let given = headers.get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or("?.?"));
        let mut given = given.chain(target.map(Authority::as_str));
        given.find(|host| !self.is_own(host)).map(str::to_owned)
    }

    fn is_own(&self, host: &str) -> bool {
        if host.is_empty() {
            return true;
        }
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = normal(authority.host());
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
        bare.parse::<IpAddr>().is_ok()
            || !name.contains('.')
            || name.ends_with(".localhost")
            || self.configured.contains(&name)
    }
}

/// Without the case and the final dot, which mean nothing.
fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn names_that_a_site_can_have_are_refused() {
        let names = Names::new(&["Manager.Example.COM".to_owned()]);
        let table = [
            (&["127.0.0.1:4401"][..], true, "an address"),
            (&["[::1]:4401"], true, "an IPv6 address"),
            (&["localhost:4401"], true, "loopback by name"),
            (&["console.localhost"], true, "browsers resolve these to loopback themselves"),
            (&["manager:4401"], true, "a name without a dot, as in a network of containers"),
            (&["manager.example.com:4401"], true, "configured"),
            (&["MANAGER.example.com."], true, "the same name"),
            (&[], true, "a client that is no browser"),
            (&["evil.example"], false, "a site"),
            (&["evil.example:4401"], false, "with the port"),
            (&["127.0.0.1.evil.example"], false, "begins like an address"),
            (&["user@evil.example"], false, "with a user"),
            (&["127.0.0.1", "evil.example"], false, "one of two"),
            (&["a b"], false, "no host"),
        ];
        for (hosts, expected, reason) in table {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            assert_eq!(names.foreign(&headers, None).is_none(), expected, "{hosts:?}: {reason}");
        }
        let target = "evil.example:80".parse().expect("an authority");
        assert!(names.foreign(&HeaderMap::new(), Some(&target)).is_some(), "in the request line");
    }
}
