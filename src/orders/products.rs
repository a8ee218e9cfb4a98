//! Products from a cache: warm before the service is ready, read anew in the background, served with its age however
//! long the catalogue is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{AGE, CACHE_CONTROL};
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::Orders;
use super::catalog::{Catalog, v1};
use crate::config::{self, Policy};
use crate::lifecycle::Lifecycle;
use crate::server::{Json, Path, Problem};

/// After a reading that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A product.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Product {
    #[schema(example = "SKU-1")]
    sku: String,
    name: String,
    price_cents: i64,
}

/// The cache. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Products {
    catalog: Catalog,
    cache: watch::Sender<Option<Arc<Reading>>>,
}

/// The whole catalogue at one time.
#[derive(Debug)]
struct Reading {
    at: Instant,
    products: HashMap<String, Product>,
}

impl Products {
    pub(super) fn new(catalog: &Catalog) -> Self {
        Self { catalog: catalog.clone(), cache: watch::Sender::new(None) }
    }

    /// Begins to read, and to say whether there is anything to serve.
    pub(super) fn start(&self, settings: &config::Catalog, lifecycle: &Lifecycle, policy: Policy) {
        let cache = self.cache.clone();
        lifecycle.check("products", policy, move || {
            let mut cache = cache.subscribe();
            async move { cache.wait_for(Option::is_some).await.map(drop) }
        });
        let (products, config::Catalog { timeout, refresh_interval, .. }) = (self.clone(), settings.clone());
        lifecycle.background("products", move || products.clone().refresh(timeout, refresh_interval));
    }

    async fn refresh(self, patience: Duration, interval: Duration) {
        loop {
            let pause = match self.catalog.products(patience).await {
                Ok(products) => {
                    let products = products.into_iter().map(|product| (product.sku.clone(), product.into())).collect();
                    self.cache.send_replace(Some(Arc::new(Reading { at: Instant::now(), products })));
                    interval
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot read the catalogue: products are served as they were");
                    RETRY_INTERVAL.min(interval)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

impl From<v1::Product> for Product {
    fn from(product: v1::Product) -> Self {
        Self { sku: product.sku, name: product.name, price_cents: product.price_cents }
    }
}

/// One product, as of `Age` seconds ago.
#[utoipa::path(
    get, path = "/v1/products/{sku}", tag = "products",
    responses((status = 200, body = Product), (status = 404, description = "there is no such product"))
)]
pub(super) async fn get(State(orders): State<Orders>, Path(sku): Path<String>) -> Result<Response, Problem> {
    let reading = orders.products.cache.borrow().clone();
    let reading = reading.ok_or_else(|| Problem::unavailable("the catalogue has not been read yet"))?;
    let product = reading.products.get(&sku).cloned();
    let product = product.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such product"))?;
    let age = reading.at.elapsed().as_secs().to_string();
    Ok(([(AGE, age.as_str()), (CACHE_CONTROL, "no-cache")], Json(product)).into_response())
}
