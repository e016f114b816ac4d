//! The HTTP side, with its bounds. A connection serves one request and has a
//! few seconds for all of it; when there are too many, the oldest goes, so that
//! peers who never finish a request cannot keep out one who does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::metrics;
use super::source::{Source, Stats};

/// Connections that may be open: a quarter of the files that the broker leaves
/// to the process beside connections and segments.
const MAX_CONNECTIONS: usize = 64;

/// Time of a connection from its first byte to its last.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(5);

/// Requests that may be answered at a time.
const MAX_REQUESTS: usize = 16;

/// Bytes of a request's head: the least that hyper takes.
const MAX_HEAD_LEN: usize = 8192;

/// How long accepting pauses after it failed: with no descriptor left it would
/// fail again at once, for ever.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

struct Shared {
    source: Source,
    requests: Semaphore,
}

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, source: Source) {
    let shared = Shared { source, requests: Semaphore::new(MAX_REQUESTS) };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(Arc::new(shared));
    let mut open: VecDeque<tokio::task::AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for metrics or health failed; trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            // It is closed before the next one is accepted.
            tokio::task::yield_now().await;
        }
        open.push_back(tokio::spawn(serve_connection(stream, router.clone())).abort_handle());
    }
}

async fn serve_connection(stream: TcpStream, router: Router) {
    let serving = http1::Builder::new()
        .keep_alive(false)
        // The whole connection has a limit.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_LEN)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(MAX_CONNECTION_TIME, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics or health failed"),
        Err(_) => tracing::debug!("a connection for metrics or health took too long"),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    answer(&shared, |stats| ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(stats))).await
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    answer(&shared, |_| "ok\n").await
}

/// What the broker has answered, as `respond` puts it; otherwise the reason.
async fn answer<R: IntoResponse>(shared: &Shared, respond: impl FnOnce(&Stats) -> R) -> Response {
    let unavailable = |reason: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response();
    let Ok(_permit) = shared.requests.try_acquire() else {
        return unavailable("too many requests at a time");
    };
    match shared.source.stats().await {
        Ok(stats) => respond(&stats).into_response(),
        Err(unwell) => unavailable(&unwell.to_string()),
    }
}
