//! `axum::serve` and nothing around it: the same bytes for every request, on the address in `ADDRESS`.

use axum::{Router, response::IntoResponse, routing::get};
use http::header::CONTENT_TYPE;
use tokio::net::TcpListener;

const PRODUCT: &str = r#"{"sku":"SKU-1","name":"Anchor","price_cents":1999}"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind(std::env::var("ADDRESS")?).await?;
    let router = Router::new().route("/v1/products/{sku}", get(product));
    Ok(axum::serve(listener, router).await?)
}

async fn product() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], PRODUCT)
}
