//! The circuit breaker before a real peer: who counts as its failure, and who is let through to try.

use std::time::Duration;

use futures_util::future::join_all;
use service::grpc::{Error, Peer, Retry};

use crate::{
    catalog::{contract, peer},
    support::{Catalog, eventually, ms, s},
};

/// More than failures in a row that open it.
const MANY: usize = 30;

async fn ask(peer: &Peer, remaining: Duration, sku: &str) -> Result<contract::Product, Error> {
    let call = |request| {
        let mut client = contract::catalog_client::CatalogClient::new(peer.channel());
        async move { client.get_product(request).await }
    };
    peer.call(remaining, Retry::Never, contract::GetProductRequest { sku: sku.to_owned() }, call).await
}

#[tokio::test]
async fn calls_cut_short_by_their_callers_open_no_breaker() {
    let catalog = Catalog::start().await;
    let peer = peer(&catalog);
    ask(&peer, s(5), "SKU-1").await.expect("it is connected");
    let (hurried, dropped) = tokio::join!(
        join_all((0..MANY).map(|_| ask(&peer, ms(100), "SLOW-20000"))),
        join_all((0..MANY).map(|_| tokio::time::timeout(ms(100), ask(&peer, s(5), "SLOW-20000")))),
    );
    assert!(hurried.iter().all(Result::is_err), "{hurried:?}");
    assert!(dropped.iter().all(Result::is_err), "{dropped:?}");
    ask(&peer, s(5), "SKU-1").await.expect("the breaker is closed");
}

#[tokio::test]
async fn a_half_open_breaker_lets_one_call_through() {
    let catalog = Catalog::start().await;
    let peer = peer(&catalog);
    ask(&peer, s(5), "SKU-1").await.expect("it is connected");
    let failed = join_all((0..MANY).map(|_| ask(&peer, s(5), "FAIL-UNAVAILABLE"))).await;
    assert!(failed.iter().all(Result::is_err));
    let crowd = async || {
        let answers = join_all((0..MANY).map(|_| ask(&peer, s(5), "SLOW-200"))).await;
        let through = answers.iter().filter(|answer| !matches!(answer, Err(Error::Open))).count();
        if through == 0 { Err(through) } else { Ok(through) }
    };
    assert_eq!(eventually("it is half-open", s(10), crowd).await, 1);
    let answers = join_all((0..MANY).map(|_| ask(&peer, s(5), "SKU-1"))).await;
    assert!(answers.iter().all(Result::is_ok), "then it is closed: {answers:?}");
}
