//! Orders: create one, read one, page through them. The SQL stands beside the handler that needs it.

use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::StatusCode;
use http::header::{LINK, LOCATION};
use http::request::Parts;
use serde::Deserialize;
use sqlx::{Connection, PgConnection};
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
        (status = 504, description = "the catalogue is too slow"),
    )
)]
pub(super) async fn create(
    State(orders): State<Orders>,
    deadline: Deadline,
    IdempotencyKey(key): IdempotencyKey,
    Json(new): Json<NewOrder>,
) -> Result<Response, Problem> {
    new.check()?;
    if let Some(key) = &key {
        // before the catalogue is asked: it may be away, or the price another by now
        let first = orders.postgres.read(|connection| by_key(connection, key.clone()).boxed()).await?;
        if let Some(first) = first {
            return replay(&new, first);
        }
    }
    let product = orders.catalog.product(&new.sku, deadline.remaining()).await?;
    let product = product.ok_or_else(|| Problem::field("sku", "there is no such product"))?;
    let total_cents = product.price_cents.checked_mul(new.quantity.into()).filter(|total| *total >= 0);
    let total_cents =
        total_cents.ok_or_else(|| Problem::new(StatusCode::BAD_GATEWAY, "the catalogue's price cannot be right"))?;

    let order = Order {
        id: Uuid::now_v7(),
        sku: new.sku.clone(),
        quantity: new.quantity,
        total_cents,
        status: Status::Pending,
        created_at: OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or_else(|_| OffsetDateTime::now_utc()),
    };
    let inserted = orders.postgres.run(|connection| insert(connection, order.clone(), key.clone()).boxed()).await?;
    match (inserted, key) {
        (true, _) => {
            orders.feed.wake();
            orders.arrived.notify_one();
            Ok(created(order))
        }
        (false, Some(key)) => {
            // lost a race against the same key
            let first = orders.postgres.read(|connection| by_key(connection, key.clone()).boxed()).await?;
            replay(&new, first.ok_or_else(|| Problem::unavailable("the order is being made; try again"))?)
        }
        (false, None) => Err(Problem::internal()),
    }
}

fn created(order: Order) -> Response {
    let location = format!("/v1/orders/{}", order.id);
    (StatusCode::CREATED, [(LOCATION, location)], Json(order)).into_response()
}

/// The first answer again, which was given when the order was pending.
fn replay(new: &NewOrder, first: Order) -> Result<Response, Problem> {
    if new.sku != first.sku || new.quantity != first.quantity {
        let detail = "this Idempotency-Key was used for another order; use a new one for a new order";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    Ok(created(Order { status: Status::Pending, ..first }))
}

/// Writes the order and its first event, or neither; `false` where the key is taken.
async fn insert(connection: &mut PgConnection, order: Order, key: Option<String>) -> Result<bool, sqlx::Error> {
    let mut transaction = Connection::begin(connection).await?;
    let inserted = sqlx::query!(
        "INSERT INTO orders (id, sku, quantity, total_cents, created_at, idempotency_key) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (idempotency_key) DO NOTHING",
        order.id,
        order.sku,
        order.quantity,
        order.total_cents,
        order.created_at,
        key
    )
    .execute(&mut *transaction)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query!("INSERT INTO order_events (order_id, status) VALUES ($1, $2)", order.id, order.status.name())
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(true)
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
        (status = 400, description = "it is not an id"),
        (status = 404, description = "there is no such order"),
    )
)]
pub(super) async fn get(State(orders): State<Orders>, Path(id): Path<Uuid>) -> Result<Json<Order>, Problem> {
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

/// A page of orders, oldest first. Where there may be more, `Link` names the next page.
#[utoipa::path(
    get, path = "/v1/orders", tag = "orders", params(Page),
    responses(
        (status = 200, body = [Order], headers(("Link" = Option<String>, description = "rel=\"next\""))),
        (status = 400, description = "`after` is not an id"),
        (status = 422, description = "`limit` is out of range"),
    )
)]
pub(super) async fn list(State(orders): State<Orders>, Query(page): Query<Page>) -> Result<Response, Problem> {
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
