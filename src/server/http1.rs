//! HTTP/1 on a connection. Its wire gives hyper one request at a time and ends the connection; see [`super::wire`].

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::connection::Connection;
use super::limits::MAX_HEAD;
use super::request;
use super::state::Phase;

pub(super) async fn serve(connection: &Connection, router: Router, first: Vec<u8>) -> hyper::Result<()> {
    let service = service_fn(|head| {
        let begun = connection.begin(&head);
        Box::pin(request::answer(router.clone(), head, begun))
    });
    let mut builder = http1::Builder::new();
    // hyper's own timeout would also end a connection that is merely idle
    builder.header_read_timeout(None).max_buf_size(MAX_HEAD);
    let ended = builder.serve_connection(connection.speaks(Phase::Idle, first), service).with_upgrades().await;
    connection.upgrade_ended().await;
    ended
}
