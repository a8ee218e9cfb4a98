//! Any query of a page: `?after=` and `?limit=`.
#![no_main]

use axum::body::Body;
use http::Request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|query: &str| {
    if let Ok(request) = Request::get(format!("/v1/orders?{query}")).body(Body::empty()) {
        fuzz::send(request);
    }
});
