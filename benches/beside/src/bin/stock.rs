//! What a team puts together from stock parts: `axum::serve`, tower-http's layers, a JSON log, metrics, sqlx's pool and
//! tonic's channel. `ADDRESS`, `DATABASE_URL` and `APP__CATALOG__ENDPOINT` are in the environment.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{MatchedPath, Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{StatusCode, header::LOCATION, uri::PathAndQuery};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, postgres::PgPoolOptions};
use time::OffsetDateTime;
use tonic::{client::Grpc, transport::Channel};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    limit::RequestBodyLimitLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    timeout::TimeoutLayer,
    trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer},
};
use tracing::Level;
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone)]
struct App {
    pool: PgPool,
    catalog: Channel,
    cache: Arc<HashMap<String, Product>>,
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
struct Product {
    #[prost(string, tag = "1")]
    sku: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(int64, tag = "3")]
    price_cents: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetProductRequest {
    #[prost(string, tag = "1")]
    sku: String,
}

#[derive(Serialize, sqlx::FromRow)]
struct Order {
    id: Uuid,
    sku: String,
    quantity: i32,
    total_cents: i64,
    status: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

#[derive(Deserialize)]
struct NewOrder {
    sku: String,
    quantity: i32,
}

/// Whatever went wrong, logged and answered with 500.
struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        tracing::error!(error = %self.0);
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

async fn product(State(app): State<App>, Path(sku): Path<String>) -> Response {
    match app.cache.get(&sku) {
        Some(product) => Json(product.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn order(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response, Failure> {
    let order = sqlx::query_as::<_, Order>(
        "SELECT id, sku, quantity, total_cents, status, created_at FROM orders WHERE id = $1",
    );
    Ok(match order.bind(id).fetch_optional(&app.pool).await? {
        Some(order) => Json(order).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

async fn create(State(app): State<App>, Json(new): Json<NewOrder>) -> Result<Response, Failure> {
    let product = get_product(app.catalog, new.sku.clone()).await?;
    let order = Order {
        id: Uuid::now_v7(),
        sku: new.sku,
        quantity: new.quantity,
        total_cents: product.price_cents * i64::from(new.quantity),
        status: "pending".to_owned(),
        created_at: OffsetDateTime::now_utc(),
    };
    let mut transaction = app.pool.begin().await?;
    sqlx::query(
        "INSERT INTO orders (id, sku, quantity, total_cents, created_at, idempotency_key) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (idempotency_key) DO NOTHING",
    )
    .bind(order.id)
    .bind(&order.sku)
    .bind(order.quantity)
    .bind(order.total_cents)
    .bind(order.created_at)
    .bind(None::<String>)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("INSERT INTO order_outbox (order_id, status) VALUES ($1, $2)")
        .bind(order.id)
        .bind(&order.status)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    let location = format!("/v1/orders/{}", order.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(order)).into_response())
}

async fn get_product(catalog: Channel, sku: String) -> anyhow::Result<Product> {
    let mut grpc = Grpc::new(catalog);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/catalog.v1.Catalog/GetProduct");
    let codec = tonic_prost::ProstCodec::default();
    Ok(grpc.unary(tonic::Request::new(GetProductRequest { sku }), path, codec).await?.into_inner())
}

async fn observe(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().as_str().to_owned();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let response = next.run(request).await;
    let labels = [("method", method), ("route", route), ("status", response.status().as_str().to_owned())];
    metrics::histogram!("http_request_duration_seconds", &labels).record(began.elapsed());
    response
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (writer, _guard) = tracing_appender::non_blocking(std::io::stdout());
    tracing_subscriber::fmt().json().with_writer(writer).init();
    PrometheusBuilder::new().install_recorder()?;

    let anchor = |sku: String| Product { sku, name: "Anchor".to_owned(), price_cents: 1999 };
    let cache = (1..=100).map(|number| format!("SKU-{number}")).map(|sku| (sku.clone(), anchor(sku))).collect();
    let app = App {
        pool: PgPoolOptions::new().max_connections(10).connect(&std::env::var("DATABASE_URL")?).await?,
        catalog: Channel::from_shared(std::env::var("APP__CATALOG__ENDPOINT")?)?.connect_lazy(),
        cache: Arc::new(cache),
    };
    let trace = TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(trace)
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(10)))
        .layer(RequestBodyLimitLayer::new(1 << 20))
        .layer(CatchPanicLayer::new());
    let router = Router::new()
        .route("/v1/products/{sku}", get(product))
        .route("/v1/orders", post(create))
        .route("/v1/orders/{id}", get(order))
        .layer(middleware::from_fn(observe))
        .layer(layers)
        .with_state(app);
    let listener = tokio::net::TcpListener::bind(std::env::var("ADDRESS")?).await?;
    Ok(axum::serve(listener, router).await?)
}
