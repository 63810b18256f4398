//! A small HTTP client for the programs of the cluster.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

const TIMEOUT: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 64 << 20;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The `ETag` header.
    pub etag: Option<String>,
    /// The body.
    pub body: String,
}

/// Asks `url`, which is plain HTTP, with further headers.
///
/// # Errors
/// When nobody answers; a status is none.
pub async fn ask(method: &str, url: &str, headers: &[(&str, &str)], body: String) -> anyhow::Result<Answer> {
    timeout(TIMEOUT, exchange(method, url, headers, body)).await.map_err(|_| anyhow!("{url} does not answer"))?
}

/// Gets `url`.
///
/// # Errors
/// As [`ask`].
pub async fn get(url: &str) -> anyhow::Result<Answer> {
    ask("GET", url, &[], String::new()).await
}

async fn exchange(method: &str, url: &str, headers: &[(&str, &str)], body: String) -> anyhow::Result<Answer> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is no http:// URL"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let stream = TcpStream::connect(authority).await.with_context(|| format!("cannot reach {authority}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::builder().method(method).uri(if path.is_empty() { "/" } else { path });
    for (name, value) in [("host", authority)].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let etag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
        Ok::<_, anyhow::Error>(Answer { status, etag, body: String::from_utf8_lossy(&body).into_owned() })
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => bail!("{url}: {error}"),
        },
    }
}
