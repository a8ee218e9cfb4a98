//! Orders: create one, read one, page through them. The SQL stands beside the handler that needs it.

use std::sync::Arc;

use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::StatusCode;
use http::header::{LINK, LOCATION};
use http::request::Parts;
use serde::Deserialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Orders;
use super::order::{Order, Status};
use crate::server::{Deadline, Json, Path, Problem, Query};

const QUANTITY: std::ops::RangeInclusive<i32> = 1..=1000;
const SKU_LENGTH: std::ops::RangeInclusive<usize> = 1..=64;
const KEY_LENGTH: std::ops::RangeInclusive<usize> = 1..=255;
const PAGE: std::ops::RangeInclusive<i64> = 1..=100;

/// What is to be ordered.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct NewOrder {
    /// As in `GET /v1/products/{sku}`.
    #[schema(example = "SKU-1", min_length = 1, max_length = 64)]
    sku: String,
    #[schema(example = 2, minimum = 1, maximum = 1000)]
    quantity: i32,
}

impl NewOrder {
    fn check(&self) -> Result<(), Problem> {
        if !SKU_LENGTH.contains(&self.sku.len()) || !self.sku.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Problem::field("sku", "allowed are 1 to 64 visible ASCII characters"));
        }
        if !QUANTITY.contains(&self.quantity) {
            return Err(Problem::field("quantity", "allowed is 1 to 1000"));
        }
        Ok(())
    }

    fn placed_now(&self, total_cents: i64) -> Order {
        let now = OffsetDateTime::now_utc();
        Order {
            id: Uuid::now_v7(),
            sku: self.sku.clone(),
            quantity: self.quantity,
            total_cents,
            status: Status::Pending,
            // to the second, which every client can read
            created_at: now.replace_nanosecond(0).unwrap_or(now),
        }
    }
}

/// What makes a `POST` safe to retry: the same key never makes two orders.
#[derive(Debug)]
pub(super) struct IdempotencyKey(Option<String>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let Some(key) = parts.headers.get("idempotency-key") else {
            return Ok(Self(None));
        };
        match key.to_str() {
            Ok(key) if KEY_LENGTH.contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self(Some(key.to_owned())))
            }
            _ => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "Idempotency-Key: allowed are 1 to 255 visible ASCII characters",
            )),
        }
    }
}

/// Creates an order. It is `pending` until the worker has reserved the stock.
///
/// With an `Idempotency-Key` it is safe to retry: a replay gets the first answer, the same key with another body 422.
#[utoipa::path(
    post, path = "/v1/orders", tag = "orders", request_body = NewOrder,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 201, body = Order, headers(("Location" = String))),
        (status = 400, description = "the body is not JSON, or the key not a key"),
        (status = 413, description = "the body is too large"),
        (status = 415, description = "the body is not said to be JSON"),
        (status = 422, description = "a field is wrong, there is no such product, or the key was used for another order"),
        (status = 503, description = "try again after Retry-After seconds, with the same key"),
        (status = 504, description = "the catalog is too slow"),
    )
)]
pub(super) async fn create(
    State(orders): State<Arc<Orders>>,
    deadline: Deadline,
    IdempotencyKey(key): IdempotencyKey,
    Json(new): Json<NewOrder>,
) -> Result<Response, Problem> {
    new.check()?;
    let order = match price(&orders, &new, deadline).await {
        Ok(total_cents) => new.placed_now(total_cents),
        // a replay is answered even while the catalog is away
        Err(problem) => return first_answer(&orders, &new, key).await?.ok_or(problem),
    };
    let placed = orders.postgres.run(|connection| insert(connection, order.clone(), key.clone()).boxed()).await?;
    if placed {
        orders.feed.wake();
        orders.arrived.notify_one();
        return Ok(created(order));
    }
    let first = first_answer(&orders, &new, key).await?;
    first.ok_or_else(|| Problem::unavailable("the key's first order has just been removed; try again"))
}

/// What the order costs, by the catalog of now.
async fn price(orders: &Orders, new: &NewOrder, deadline: Deadline) -> Result<i64, Problem> {
    let product = orders.catalog.product(&new.sku, deadline.remaining()).await?;
    let product = product.ok_or_else(|| Problem::field("sku", "there is no such product"))?;
    let total_cents = product.price_cents.checked_mul(new.quantity.into()).filter(|total| *total >= 0);
    total_cents.ok_or_else(|| Problem::new(StatusCode::BAD_GATEWAY, "the catalog's price cannot be right"))
}

fn created(order: Order) -> Response {
    let location = format!("/v1/orders/{}", order.id);
    (StatusCode::CREATED, [(LOCATION, location)], Json(order)).into_response()
}

/// The answer that the key's first request got, when its order was pending; `None` if the key is new.
async fn first_answer(orders: &Orders, new: &NewOrder, key: Option<String>) -> Result<Option<Response>, Problem> {
    let Some(key) = key else { return Ok(None) };
    let first = orders.postgres.read(|connection| by_key(connection, key.clone()).boxed()).await?;
    match first {
        Some(first) if new.sku != first.sku || new.quantity != first.quantity => {
            let detail = "this Idempotency-Key was used for another order; use a new one for a new order";
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
        }
        first => Ok(first.map(|first| created(Order { status: Status::Pending, ..first }))),
    }
}

/// Writes the order and its first event, or neither; `false` if the key is taken. One statement, so one round trip, and
/// no client that stops in the middle can hold a lock.
async fn insert(connection: &mut PgConnection, order: Order, key: Option<String>) -> Result<bool, sqlx::Error> {
    let written = sqlx::query!(
        "WITH placed AS (
             INSERT INTO orders (id, sku, quantity, total_cents, created_at, idempotency_key)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (idempotency_key) DO NOTHING RETURNING id, status
         )
         INSERT INTO order_outbox (order_id, status) SELECT id, status FROM placed",
        order.id,
        order.sku,
        order.quantity,
        order.total_cents,
        order.created_at,
        key
    );
    Ok(written.execute(connection).await?.rows_affected() == 1)
}

async fn by_key(connection: &mut PgConnection, key: String) -> Result<Option<Order>, sqlx::Error> {
    sqlx::query_as!(
        Order,
        r#"SELECT id, sku, quantity, total_cents, status AS "status: Status", created_at FROM orders WHERE idempotency_key = $1"#,
        key
    )
    .fetch_optional(connection)
    .await
}

/// One order.
#[utoipa::path(
    get, path = "/v1/orders/{id}", tag = "orders", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Order),
        (status = 400, description = "not an id"),
        (status = 404, description = "there is no such order"),
    )
)]
pub(super) async fn get(State(orders): State<Arc<Orders>>, Path(id): Path<Uuid>) -> Result<Json<Order>, Problem> {
    let order = orders.postgres.read(|connection| by_id(connection, id).boxed()).await?;
    order.map(Json).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such order"))
}

async fn by_id(connection: &mut PgConnection, id: Uuid) -> Result<Option<Order>, sqlx::Error> {
    sqlx::query_as!(
        Order,
        r#"SELECT id, sku, quantity, total_cents, status AS "status: Status", created_at FROM orders WHERE id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// The id of the last order of the page before.
    after: Option<Uuid>,
    /// How many at most.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<i64>,
}

/// A page of orders, oldest first. If there may be more, `Link` names the next page.
#[utoipa::path(
    get, path = "/v1/orders", tag = "orders", params(Page),
    responses(
        (status = 200, body = [Order], headers(("Link" = Option<String>, description = "rel=\"next\""))),
        (status = 400, description = "`after` is not an id"),
        (status = 422, description = "`limit` is out of range"),
    )
)]
pub(super) async fn list(State(orders): State<Arc<Orders>>, Query(page): Query<Page>) -> Result<Response, Problem> {
    let limit = page.limit.unwrap_or(50);
    if !PAGE.contains(&limit) {
        return Err(Problem::field("limit", "allowed is 1 to 100"));
    }
    let after = page.after.unwrap_or(Uuid::nil());
    let found = orders.postgres.read(|connection| after_id(connection, after, limit).boxed()).await?;
    let next = found.last().filter(|_| found.len() as i64 == limit);
    let next = next.map(|last| [(LINK, format!("</v1/orders?after={}&limit={limit}>; rel=\"next\"", last.id))]);
    Ok((next, Json(found)).into_response())
}

async fn after_id(connection: &mut PgConnection, after: Uuid, limit: i64) -> Result<Vec<Order>, sqlx::Error> {
    sqlx::query_as!(
        Order,
        r#"SELECT id, sku, quantity, total_cents, status AS "status: Status", created_at FROM orders
           WHERE id > $1 ORDER BY id LIMIT $2"#,
        after,
        limit
    )
    .fetch_all(connection)
    .await
}
