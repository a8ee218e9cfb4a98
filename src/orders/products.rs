//! Products from a cache: warm before the service is ready, read anew in the background, served with its age however
//! long the catalog is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::Orders;
use super::catalog::v1;
use crate::config::{self, Config};
use crate::lifecycle::Lifecycle;
use crate::server::{Path, Problem};

/// After a reading that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A product.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Product {
    #[schema(example = "SKU-1")]
    sku: String,
    name: String,
    price_cents: i64,
}

/// The cache: empty until the catalog has been read.
#[derive(Debug, Default)]
pub(super) struct Products(watch::Sender<Option<Reading>>);

/// The whole catalog at one time.
#[derive(Debug)]
struct Reading {
    at: Instant,
    /// Each product by its sku, as the JSON that is answered: written once, not for each request.
    products: HashMap<String, Bytes>,
}

/// Begins to read, and to say whether there is anything to serve.
pub(super) fn start(orders: &Arc<Orders>, config: &Config, lifecycle: &Lifecycle) {
    let cache = orders.products.0.clone();
    lifecycle.check("products", config.readiness.catalog, move || {
        let mut cache = cache.subscribe();
        async move { cache.wait_for(Option::is_some).await.map(drop) }
    });
    let (orders, catalog, bounds) = (Arc::clone(orders), config.catalog.clone(), config.products.clone());
    lifecycle.background("products", move || refresh(Arc::clone(&orders), catalog.clone(), bounds.clone()));
}

async fn refresh(orders: Arc<Orders>, settings: config::Catalog, bounds: config::Products) {
    loop {
        let pause = match orders.catalog.products(settings.timeout, &bounds).await {
            Ok(products) => {
                let products = products.into_iter().filter_map(json).collect();
                orders.products.0.send_replace(Some(Reading { at: Instant::now(), products }));
                settings.refresh_interval
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the catalog: products are served as they were");
                RETRY_INTERVAL.min(settings.refresh_interval)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn json(product: v1::Product) -> Option<(String, Bytes)> {
    let v1::Product { sku, name, price_cents } = product;
    let product = Product { sku, name, price_cents };
    let json = serde_json::to_vec(&product).ok()?;
    Some((product.sku, json.into()))
}

/// One product, as of `Age` seconds ago.
#[utoipa::path(
    get, path = "/v1/products/{sku}", tag = "products",
    responses((status = 200, body = Product), (status = 404, description = "there is no such product"))
)]
pub(super) async fn get(State(orders): State<Arc<Orders>>, Path(sku): Path<String>) -> Result<Response, Problem> {
    let reading = orders.products.0.borrow();
    let reading = reading.as_ref().ok_or_else(|| Problem::unavailable("the catalog has not been read yet"))?;
    let product = reading.products.get(&sku);
    let product = product.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such product"))?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (AGE, reading.at.elapsed().as_secs().into()),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, product.clone()).into_response())
}
