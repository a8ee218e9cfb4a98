//! The catalog: somebody else's gRPC service (`proto/catalog/v1/catalog.proto`).

use std::time::Duration;

use prost::Message;
use tonic::Status;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::config;
use crate::grpc::{Error, Peer, Retry};
use v1::catalog_client::CatalogClient;

/// Generated from the contract.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery, reason = "generated")]
pub(super) mod v1 {
    tonic::include_proto!("catalog.v1");
}

/// One product, or one answer to a reservation.
const MAX_MESSAGE: usize = 64 * 1024;

/// The catalog's calls.
#[derive(Debug)]
pub(super) struct Catalog {
    peer: Peer,
}

/// What the catalog says of a reservation.
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

    fn client(&self) -> CatalogClient<Channel> {
        CatalogClient::new(self.peer.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// One product, or `None` where there is none of that name.
    pub(super) async fn product(&self, sku: &str, remaining: Duration) -> Result<Option<v1::Product>, Error> {
        let request = v1::GetProductRequest { sku: sku.to_owned() };
        let call = |request| {
            let mut client = self.client();
            async move { client.get_product(request).await }
        };
        match self.peer.call(remaining, Retry::Idempotent, request, call).await {
            Ok(product) => Ok(Some(product)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every product there is, each to come within `patience` of the one before. A peer that sends more or for longer
    /// than `bounds` is an error.
    pub(super) async fn products(
        &self,
        patience: Duration,
        bounds: &config::Products,
    ) -> Result<Vec<v1::Product>, Error> {
        let reading = async {
            let mut client = self.client();
            let mut stream = within(patience, client.list_products(v1::ListProductsRequest {})).await??.into_inner();
            let (mut products, mut size) = (Vec::new(), 0);
            while let Some(product) = within(patience, stream.message()).await?? {
                size += product.encoded_len() as u64;
                if products.len() == bounds.max_count || size > bounds.max_size.as_u64() {
                    return Err(Status::out_of_range("more than products.max_count or products.max_size").into());
                }
                products.push(product);
            }
            Ok(products)
        };
        within(bounds.timeout, reading).await?
    }

    /// Sets stock aside. The same order gets the same answer however often it is asked.
    pub(super) async fn reserve(&self, order: Uuid, sku: &str, quantity: i32) -> Result<Reservation, Error> {
        let request = v1::ReserveRequest { order_id: order.to_string(), sku: sku.to_owned(), quantity };
        let call = |request| {
            let mut client = self.client();
            async move { client.reserve(request).await }
        };
        let answer = self.peer.call(Duration::MAX, Retry::Idempotent, request, call).await?;
        Ok(if answer.accepted { Reservation::Accepted } else { Reservation::Declined(answer.reason) })
    }
}

async fn within<T>(patience: Duration, call: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(patience, call).await.map_err(|_| Error::Timeout(patience))
}
