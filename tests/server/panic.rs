//! A panic does not take the process along. None can be had from outside, so these are the parts themselves.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Raw, eventually, s};
use axum::{Router, routing::get};
use service::{
    config::Config,
    lifecycle::{Lifecycle, Workers},
    server::{Port, Server},
};

#[tokio::test]
async fn one_in_a_handler_is_500_and_the_next_is_served() {
    let url = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
    let env = [url, ("APP__HTTP__ADDRESS", "127.0.0.1:0")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::from_env(env.into_iter()).expect("it is valid");
    let lifecycle = Lifecycle::new(&config.lifecycle, &config.readiness);
    let panics = async || -> &str { panic!("what nobody else is to know") };
    let router = Router::new().route("/panics", get(panics)).route("/well", get(async || "well"));
    let server = Server::bind(Port::Public, &config, &lifecycle).expect("a free port");
    server.serve(router).expect("a file descriptor");
    let mut raw = Raw::connect(server.address()).await;
    raw.get("/panics").await;
    let answer = raw.reply().await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert!(!answer.text().contains("nobody else"), "{answer:?}");
    raw.get("/well").await;
    assert_eq!(raw.reply().await.status, 200);
}

#[tokio::test]
async fn one_in_a_worker_is_followed_by_a_new_beginning() {
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    let workers = Workers::default();
    workers.spawn("falls", |claim_nothing| async move {
        match BEGUN.fetch_add(1, Ordering::Relaxed) {
            0 => panic!("at once"),
            1 => {} // nor is it to end by itself
            _ => claim_nothing.cancelled().await,
        }
    });
    eventually("it begins a third time", s(5), async || BEGUN.load(Ordering::Relaxed) == 3).await;
    tokio::time::timeout(s(1) / 2, workers.drain()).await.expect("it ends when it is told to");
    assert_eq!(BEGUN.load(Ordering::Relaxed), 3);
}
