//! THE EXAMPLE: orders for products of somebody else's catalogue. It uses every part of the service once, and nothing
//! else knows of it: delete this folder and its lines in `app.rs`, and put yours in their place.
//!
//! | file | shows |
//! |---|---|
//! | `order` | a type that is in the database, in the API and in its contract |
//! | `api` | handlers with their SQL beside them: idempotent writes, keyset pages |
//! | `products` | a cache that is warm before the service is ready |
//! | `feed` | events that nobody misses, over SSE and WebSocket |
//! | `worker` | jobs from a table, done once by whichever replica |
//! | `catalog` | calls to a gRPC peer |

mod api;
mod catalog;
mod feed;
mod order;
mod products;
mod worker;

use std::sync::Arc;

use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Config;
use crate::grpc::Peer;
use crate::lifecycle::{InFlight, Lifecycle, Workers};
use crate::postgres::Postgres;
use catalog::Catalog;
use feed::Feed;
use products::Products;

/// What the handlers and the worker share. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Orders {
    postgres: Postgres,
    catalog: Catalog,
    products: Products,
    feed: Feed,
    in_flight: InFlight,
    /// An order has come in: the worker need not wait for its next look.
    arrived: Arc<Notify>,
}

impl Orders {
    /// Ready to be started.
    pub fn new(postgres: &Postgres, peer: &Peer, in_flight: &InFlight) -> Self {
        let catalog = Catalog::new(peer);
        Self {
            feed: Feed::new(postgres),
            products: Products::new(&catalog),
            catalog,
            postgres: postgres.clone(),
            in_flight: in_flight.clone(),
            arrived: Arc::default(),
        }
    }

    /// Starts what runs in the background, and the check that the cache is warm.
    pub fn start(&self, config: &Config, lifecycle: &Lifecycle, workers: &Workers) {
        self.products.start(&config.catalog, lifecycle, config.readiness.catalog);
        let feed = self.feed.clone();
        lifecycle.background("events", move || feed.clone().follow());
        worker::start(self, config, workers);
    }

    /// The routes and their contract.
    pub fn api() -> OpenApiRouter<Self> {
        OpenApiRouter::new()
            .routes(routes!(products::get))
            .routes(routes!(api::create, api::list))
            .routes(routes!(api::get))
            .routes(routes!(feed::events))
            .routes(routes!(feed::websocket))
    }
}
