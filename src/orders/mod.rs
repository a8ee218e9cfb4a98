//! THE EXAMPLE: orders for products of somebody else's catalog. The example uses every part of the service once, and
//! nothing else knows of it: delete this folder and its lines in `app.rs`, and put yours in their place.
//!
//! | file | shows |
//! |---|---|
//! | `order` | a type that is in the database, in the API and in its contract |
//! | `api` | handlers with their SQL beside them: idempotent writes, keyset pages |
//! | `products` | a cache that is warm before the service is ready |
//! | `feed` | events that nobody misses, over SSE and WebSocket |
//! | `worker` | jobs from a table, done once by whichever replica |
//! | `retention` | tables that do not grow for ever |
//! | `catalog` | calls to a gRPC peer |

mod api;
mod catalog;
mod feed;
mod order;
mod products;
mod retention;
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

/// What the handlers and the worker share. Always behind one `Arc`, because axum clones a route's state a dozen times
/// a request.
#[derive(Debug)]
pub struct Orders {
    postgres: Postgres,
    catalog: Catalog,
    products: Products,
    feed: Feed,
    in_flight: InFlight,
    /// An order has come in: the worker need not wait for its next look.
    arrived: Notify,
}

impl Orders {
    /// Ready to be started.
    pub fn new(postgres: &Postgres, peer: &Peer, in_flight: &InFlight) -> Arc<Self> {
        Arc::new(Self {
            postgres: postgres.clone(),
            catalog: Catalog::new(peer),
            products: Products::default(),
            feed: Feed::new(postgres),
            in_flight: in_flight.clone(),
            arrived: Notify::new(),
        })
    }

    /// Starts what runs in the background, and the check that the cache is warm.
    pub fn start(self: &Arc<Self>, config: &Config, lifecycle: &Lifecycle, workers: &Workers) {
        products::start(self, config, lifecycle);
        feed::start(self, lifecycle);
        retention::start(self, &config.retention, lifecycle);
        worker::start(self, &config.worker, workers);
    }

    /// The routes and their contract.
    pub fn api() -> OpenApiRouter<Arc<Self>> {
        OpenApiRouter::new()
            .routes(routes!(products::get))
            .routes(routes!(api::create, api::list))
            .routes(routes!(api::get))
            .routes(routes!(feed::events))
            .routes(routes!(feed::websocket))
    }
}
