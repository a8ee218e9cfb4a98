//! A panic does not take the process along. None can be had from outside, so these are the parts themselves.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Router, body::Body, routing::get};
use hyper::{Request, StatusCode};
use service::{
    config::Config,
    lifecycle::{Lifecycle, Workers},
    server::Middleware,
};
use tower::ServiceExt;

use crate::support::{eventually, s};

#[tokio::test]
async fn a_panic_in_a_handler_is_500_and_the_next_request_is_served() {
    let url = ("DATABASE_URL".to_owned(), "postgres://nobody@127.0.0.1:1/nothing".to_owned());
    let config = Config::from_env([url].into_iter()).expect("it is valid");
    let lifecycle = Lifecycle::new(&config.lifecycle, &config.readiness);
    let panics = async || -> &str { panic!("what nobody else is to know") };
    let router = Router::new().route("/panics", get(panics)).route("/well", get(async || "well"));
    let router = Middleware::new(&config.http, &lifecycle).around(router);
    let ask = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).expect("it is a request");
        router.clone().oneshot(request).await.expect("a router does not fail")
    };
    let answer = ask("/panics").await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body = axum::body::to_bytes(answer.into_body(), 4096).await.expect("it is short");
    assert!(!String::from_utf8_lossy(&body).contains("nobody else"), "{body:?}");
    assert_eq!(ask("/well").await.status(), StatusCode::OK);
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
