//! Orders by the page.

use std::collections::HashSet;

use serde_json::Value;

use crate::{
    id, order,
    support::{Service, World},
};

/// The orders at a path, and the path of the next page if there may be one.
async fn page(service: &Service, path: &str) -> (Vec<Value>, Option<String>) {
    let reply = service.get(path).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let orders = reply.json().as_array().unwrap_or_else(|| panic!("not a page: {reply:?}")).clone();
    let next = reply.header("link").strip_suffix(">; rel=\"next\"").and_then(|link| link.strip_prefix('<'));
    (orders, next.map(str::to_owned))
}

/// Every order, by pages of this size.
async fn walk(service: &Service, limit: usize) -> Vec<Value> {
    walk_on(service, Some(format!("/v1/orders?limit={limit}"))).await
}

/// Every order from a page on.
async fn walk_on(service: &Service, mut path: Option<String>) -> Vec<Value> {
    let mut orders = Vec::new();
    while let Some(here) = path {
        let (page, next) = page(service, &here).await;
        orders.extend(page);
        path = next;
    }
    orders
}

#[tokio::test]
async fn no_orders_are_an_empty_page() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(page(&service, "/v1/orders").await, (Vec::new(), None));
}

#[tokio::test]
async fn pages_of_every_size_have_every_order_once_and_in_one_order() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut placed = HashSet::new();
    for quantity in 1..=7 {
        placed.insert(id(&order(&service, "SKU-1", quantity).await));
    }
    let whole: Vec<_> = walk(&service, 100).await.iter().map(id).collect();
    assert_eq!(whole.iter().cloned().collect::<HashSet<_>>(), placed);
    assert_eq!(whole.len(), 7);
    assert_eq!(page(&service, "/v1/orders?limit=3").await.0.len(), 3);
    for limit in [1, 2, 3, 7] {
        let pages: Vec<_> = walk(&service, limit).await.iter().map(id).collect();
        assert_eq!(pages, whole, "by {limit}");
    }
}

#[tokio::test]
async fn orders_that_come_while_somebody_reads_shift_no_page() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut before = HashSet::new();
    for quantity in 1..=6 {
        before.insert(id(&order(&service, "SKU-1", quantity).await));
    }
    let (first, next) = page(&service, "/v1/orders?limit=3").await;
    order(&service, "SKU-2", 1).await;
    let rest = walk_on(&service, next).await;
    let seen: Vec<_> = first.iter().chain(&rest).map(id).filter(|id| before.contains(id)).collect();
    assert_eq!(seen.len(), 6, "each once: {seen:?}");
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), before);
}

#[tokio::test]
async fn an_order_on_a_page_is_the_order_itself() {
    let world = World::new().await;
    let service = world.serve().await;
    let placed = order(&service, "SKU-5", 2).await;
    let (orders, _) = page(&service, "/v1/orders").await;
    for field in ["id", "sku", "quantity", "total_cents", "created_at"] {
        assert_eq!(orders[0][field], placed[field], "{field}");
    }
}
