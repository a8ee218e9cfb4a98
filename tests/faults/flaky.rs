//! A catalog that fails every third call, whoever makes it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::stream::{self, Iter};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::{
    all_settled,
    catalog::contract::{
        GetProductRequest, ListProductsRequest, Product, ReserveRequest, ReserveResponse,
        catalog_server::{Catalog, CatalogServer},
    },
    order,
    support::World,
};

#[derive(Debug, Default)]
struct Flaky {
    calls: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
}

impl Flaky {
    fn fail(&self) -> Result<(), Status> {
        if self.calls.fetch_add(1, Ordering::Relaxed) % 3 != 2 {
            return Ok(());
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
        Err(Status::unavailable("every third"))
    }
}

#[tonic::async_trait]
impl Catalog for Flaky {
    type ListProductsStream = Iter<std::vec::IntoIter<Result<Product, Status>>>;

    async fn get_product(&self, request: Request<GetProductRequest>) -> Result<Response<Product>, Status> {
        self.fail()?;
        let sku = request.into_inner().sku;
        Ok(Response::new(Product { name: sku.clone(), sku, price_cents: 100 }))
    }

    async fn list_products(
        &self,
        _: Request<ListProductsRequest>,
    ) -> Result<Response<Self::ListProductsStream>, Status> {
        let product = Product { sku: "SKU-1".to_owned(), name: "SKU-1".to_owned(), price_cents: 100 };
        Ok(Response::new(stream::iter(vec![Ok(product)])))
    }

    async fn reserve(&self, _: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        self.fail()?;
        Ok(Response::new(ReserveResponse { accepted: true, reason: String::new() }))
    }
}

/// Where it listens. It ends with the test's runtime.
async fn serve(flaky: Flaky) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    let server = tonic::transport::Server::builder().add_service(CatalogServer::new(flaky));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    address
}

#[tokio::test]
async fn every_third_call_unavailable_is_seen_by_nobody() {
    let world = World::new().await;
    let flaky = Flaky::default();
    let failed = Arc::clone(&flaky.failed);
    let endpoint = format!("http://{}", serve(flaky).await);
    // room for the retries on a busy machine
    let launch = world.service().set("catalog.endpoint", endpoint).set("catalog.timeout", "5s");
    let service = launch.ready().await;
    for _ in 0..30 {
        order(&service, "SKU-1").await;
    }
    all_settled(&world).await;
    assert!(failed.load(Ordering::Relaxed) >= 15, "{failed:?} calls failed");
}
