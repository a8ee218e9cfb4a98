//! What the accept loop and the middleware cost: a request and its answer on a kept-alive connection, to this server and
//! to axum's own, in one run. Compare the two lines; the machine's speed is in both.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use axum::Router;
use axum::routing::get;
use criterion::{Criterion, criterion_group, criterion_main};
use service::config::Config;
use service::lifecycle::Lifecycle;
use service::server::{Port, Server};
use tokio::runtime::Runtime;

const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nhost: bench\r\n\r\n";

fn router() -> Router {
    Router::new().route("/hello", get(async || "hello"))
}

/// Ours, with everything that every request passes.
fn ours() -> SocketAddr {
    let env = [("DATABASE_URL", "postgres://localhost/none"), ("APP__HTTP__ADDRESS", "127.0.0.1:0")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::from_env(env.into_iter()).expect("the settings are valid");
    let lifecycle = Lifecycle::new(&config.lifecycle, &config.readiness);
    let server = Server::bind(Port::Public, &config, &lifecycle).expect("a free port");
    server.serve(router()).expect("a free file descriptor");
    server.address()
}

async fn stock() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(async move { axum::serve(listener, router()).await });
    address
}

fn round_trips(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads");
    let servers =
        runtime.block_on(async { [("this server, with its middleware", ours()), ("axum::serve", stock().await)] });
    let mut group = criterion.benchmark_group("round trip");
    for (name, address) in servers {
        let mut stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a socket option");
        let mut answer = [0; 1024];
        group.bench_function(name, |bench| {
            bench.iter(|| {
                stream.write_all(REQUEST).expect("the server reads");
                black_box(stream.read(&mut answer).expect("the server answers"))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
