//! The catalogue: somebody else's gRPC service (`proto/catalog/v1/catalog.proto`).

use std::time::Duration;

use tonic::Status;
use uuid::Uuid;

use crate::grpc::{Error, Peer, Retry};
use v1::catalog_client::CatalogClient;

/// Generated from the contract.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery, reason = "generated")]
pub(super) mod v1 {
    tonic::include_proto!("catalog.v1");
}

/// The catalogue's calls. Cloning shares its connections.
#[derive(Debug, Clone)]
pub(super) struct Catalog {
    peer: Peer,
}

/// What the catalogue says of a reservation.
#[derive(Debug)]
pub(super) enum Reservation {
    Accepted,
    /// With the reason.
    Declined(String),
}

impl Catalog {
    pub(super) fn new(peer: &Peer) -> Self {
        Self { peer: peer.clone() }
    }

    /// One product, or `None` where there is none of that name.
    pub(super) async fn product(&self, sku: &str, remaining: Duration) -> Result<Option<v1::Product>, Error> {
        let request = v1::GetProductRequest { sku: sku.to_owned() };
        let call = |request| {
            let mut client = CatalogClient::new(self.peer.channel());
            async move { client.get_product(request).await }
        };
        match self.peer.call(remaining, Retry::Idempotent, request, call).await {
            Ok(product) => Ok(Some(product)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every product there is, each to come within `patience` of the one before.
    pub(super) async fn products(&self, patience: Duration) -> Result<Vec<v1::Product>, Error> {
        let mut client = CatalogClient::new(self.peer.channel());
        let mut stream = within(patience, client.list_products(v1::ListProductsRequest {})).await?.into_inner();
        let mut products = Vec::new();
        while let Some(product) = within(patience, stream.message()).await? {
            products.push(product);
        }
        Ok(products)
    }

    /// Sets stock aside. The same order gets the same answer however often it is asked.
    pub(super) async fn reserve(&self, order: Uuid, sku: &str, quantity: i32) -> Result<Reservation, Error> {
        let request = v1::ReserveRequest { order_id: order.to_string(), sku: sku.to_owned(), quantity };
        let call = |request| {
            let mut client = CatalogClient::new(self.peer.channel());
            async move { client.reserve(request).await }
        };
        let answer = self.peer.call(Duration::MAX, Retry::Idempotent, request, call).await?;
        Ok(if answer.accepted { Reservation::Accepted } else { Reservation::Declined(answer.reason) })
    }
}

async fn within<T>(patience: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(patience, call).await.map_err(|_| Error::Timeout(patience))??)
}
