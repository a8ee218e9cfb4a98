//! An order, as it is in the database and in the API.

use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// An order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Order {
    /// UUIDv7: newer orders sort after older ones.
    pub(super) id: Uuid,
    #[schema(example = "SKU-1")]
    pub(super) sku: String,
    #[schema(minimum = 1, maximum = 1000)]
    pub(super) quantity: i32,
    pub(super) total_cents: i64,
    pub(super) status: Status,
    /// RFC 3339.
    #[serde(with = "time::serde::rfc3339")]
    pub(super) created_at: OffsetDateTime,
}

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema, sqlx::Type)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub(super) enum Status {
    /// Accepted; stock is being reserved.
    Pending,
    /// Stock is reserved.
    Confirmed,
    /// Stock cannot be had.
    Rejected,
}

impl Status {
    /// As it stands in JSON, in the database and as the name of an event.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Rejected => "rejected",
        }
    }
}
