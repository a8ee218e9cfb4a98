//! The service's own routes and layers, with a database and a catalogue that are never there: what is well in itself is
//! answered 503, and nothing is ever answered 500.

use std::sync::OnceLock;

use axum::{Router, body::Body};
use http::{HeaderValue, Request, StatusCode};
use service::{
    config::Config,
    grpc::Peer,
    http::{Limits, Middleware, Server},
    lifecycle::Lifecycle,
    orders::Orders,
    postgres::Postgres,
};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Port 1 refuses at once.
const SETTINGS: [(&str, &str); 4] = [
    ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing"),
    ("APP__DATABASE__ACQUIRE_TIMEOUT", "100ms"),
    ("APP__CATALOG__ENDPOINT", "http://127.0.0.1:1"),
    ("APP__CATALOG__TIMEOUT", "100ms"),
];

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime starts"))
}

fn router() -> Router {
    static ROUTER: OnceLock<Router> = OnceLock::new();
    let make = || {
        let _context = runtime().enter();
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::from_env(settings.into_iter()).expect("they are valid");
        let lifecycle = Lifecycle::new(&config.lifecycle, &config.readiness);
        let any_port = ([127, 0, 0, 1], 0).into();
        let server = Server::bind("http", any_port, Limits::from(&config.http), &lifecycle).expect("there is a port");
        let postgres = Postgres::new(&config.database).expect("it is a URL");
        let peer = Peer::new(&config.catalog).expect("it is an address");
        let orders = Orders::new(&postgres, &peer, lifecycle.in_flight(), server.drain_signal());
        let (api, _contract) = Orders::api().with_state(orders).split_for_parts();
        Middleware::new(&config.http, &lifecycle).around(api)
    };
    ROUTER.get_or_init(make).clone()
}

/// Sends a request, and checks that its answer is none that means a fault of our own.
pub fn send(request: Request<Body>) {
    let answer = runtime().block_on(router().oneshot(request)).expect("a router does not fail");
    assert_ne!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

/// A request for an order, with this key and this body. What no header can hold never gets as far as this service.
pub fn order(key: &[u8], body: &[u8]) -> Option<Request<Body>> {
    let key = HeaderValue::from_bytes(key).ok()?;
    let request = Request::post("/v1/orders").header("content-type", "application/json").header("idempotency-key", key);
    request.body(Body::from(body.to_vec())).ok()
}
