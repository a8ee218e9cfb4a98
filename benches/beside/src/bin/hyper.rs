//! Bare hyper, the limit: the same bytes for every request, on the address in `ADDRESS`.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming, header::CONTENT_TYPE};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const PRODUCT: &[u8] = br#"{"sku":"SKU-1","name":"Anchor","price_cents":1999}"#;

async fn product(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(PRODUCT)));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind(std::env::var("ADDRESS")?).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(product));
        tokio::spawn(connection);
    }
}
