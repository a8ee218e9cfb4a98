//! The gRPC peer that the service calls: somebody else's service, small enough to read, for `make run` and the tests.
//!
//! `catalog [ADDRESS]` serves `grpc.health.v1` on `ADDRESS` (127.0.0.1:50051; with port 0 on a free port), says `catalog
//! listening on ADDRESS` on standard output, and stops at once on SIGINT or SIGTERM.
//! What it serves besides is in `shop`.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

mod shop;

use std::{env, error::Error, io::Write as _};

use tokio::{net::TcpListener, signal::unix};
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::ServingStatus;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;

    let address = env::args().nth(1).unwrap_or("127.0.0.1:50051".to_owned());
    let listener = TcpListener::bind(&address).await.map_err(|error| format!("{address}: {error}"))?;
    say(&format!("catalog listening on {}", listener.local_addr()?));

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", ServingStatus::Serving).await;
    let server = Server::builder().add_service(health);
    let server = server.add_service(shop::service());
    let serving = server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    tokio::select! {
        ended = serving => ended?,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// A line on standard output. That nobody reads it is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
