//! HTTP/2 on a connection: when its client is told to go away (GOAWAY), and how long it may take to.

use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;

use super::connection::{Connection, count_timeout};
use super::limits::{
    HTTP2_CONNECTION_WINDOW, HTTP2_MAX_HEAD, HTTP2_PING_INTERVAL, HTTP2_PING_TIMEOUT, HTTP2_SEND_BUFFER,
    HTTP2_STREAM_WINDOW, HTTP2_STREAMS,
};
use super::request;
use super::state::Phase;

/// Where hyper runs a stream: on a task that the drain waits for, and that ends with its connection.
#[derive(Clone)]
struct Streams(Connection);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let connection = self.0.clone();
        self.0.server().connections.spawn(async move { connection.stages().abort.run_until_cancelled(stream).await });
    }
}

pub(super) async fn serve(connection: &Connection, router: Router, first: Vec<u8>) -> hyper::Result<()> {
    let service = service_fn(|head| {
        let begun = connection.begin(&head);
        Box::pin(request::answer(router.clone(), head, begun))
    });
    let mut builder = http2::Builder::new(Streams(connection.clone()));
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(HTTP2_MAX_HEAD)
        .max_pending_accept_reset_streams(HTTP2_STREAMS as usize)
        .max_send_buf_size(HTTP2_SEND_BUFFER);
    let mut http2 = Box::pin(builder.serve_connection(connection.speaks(Phase::Http2, first), service));
    tokio::select! {
        ended = http2.as_mut() => return ended,
        () = may_goaway(connection) => {}
    }
    connection.trace("GOAWAY");
    http2.as_mut().graceful_shutdown();
    tokio::select! {
        // so that GOAWAY is written
        biased;
        ended = http2 => ended,
        () = overdue(connection) => Ok(()),
    }
}

/// Completes when the client is to be told to go away: the service drains, or the connection was idle for too long, or
/// its client takes nothing of an answer.
async fn may_goaway(connection: &Connection) {
    let limits = connection.limits();
    let too_long = async {
        loop {
            let (now, http2) = (Instant::now(), connection.state().http2());
            let (idle, stalled) = match (http2.idle_since, http2.stalled) {
                (Some(since), _) => (since + limits.idle_timeout, None),
                (None, stalled) => (now + limits.idle_timeout, stalled),
            };
            if idle <= now {
                return count_timeout("idle");
            }
            let due = stalled.unwrap_or(now) + limits.request_timeout;
            if due <= now {
                return;
            }
            tokio::time::sleep_until(idle.min(due).into()).await;
        }
    };
    let leave = async {
        connection.stages().leave.cancelled().await;
        // during the drain delay it goes on: its client may have nowhere else to go yet
        if connection.server().lifecycle.stop_token().is_cancelled() {
            std::future::pending().await
        }
    };
    tokio::select! {
        () = too_long => {}
        () = leave => {}
        () = connection.stages().close.cancelled() => {}
    }
}

/// Completes when a client that was told to go away is waited for no longer. It has no stream open, whatever else it
/// sends, and does not answer the PING that hyper waits for; or it takes nothing of an answer for `http.request_timeout`
/// since it was told, so that what else is on its connection had time to finish. Not the socket is full then, which the
/// wire would notice, but the stream's own window is closed.
async fn overdue(connection: &Connection) {
    let (told, limits) = (Instant::now(), connection.limits());
    let patience = if connection.made_room() { Duration::ZERO } else { limits.header_timeout };
    loop {
        let (now, http2) = (Instant::now(), connection.state().http2());
        let silent = http2.idle_since.map(|since| since.max(told) + patience);
        let stalled = http2.stalled.map(|since| since.max(told) + limits.request_timeout);
        if silent.is_some_and(|due| due <= now) {
            return;
        }
        if stalled.is_some_and(|due| due <= now) {
            count_timeout("write");
            return tracing::warn!(peer = %connection.peer(), "dropped: it takes no bytes of a stream");
        }
        let next = [silent, stalled].into_iter().flatten().min();
        let latest = now + limits.header_timeout;
        tokio::time::sleep_until(next.unwrap_or(latest).min(latest).into()).await;
    }
}
