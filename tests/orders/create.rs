//! An order from its POST to its end.

use serde_json::json;

use crate::{
    becomes, id, order, place, read,
    support::{Connection, Launch, With, World, eventually, free_address, post, s},
};

#[tokio::test]
async fn an_order_is_created_with_its_place_and_its_price() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = place(&service, "SKU-7", 3, None).await;
    assert_eq!(reply.status, 201);
    assert_eq!(reply.header("content-type"), "application/json");
    let order = reply.json();
    assert_eq!(reply.header("location"), format!("/v1/orders/{}", id(&order)));
    assert_eq!(order["sku"], "SKU-7");
    assert_eq!(order["quantity"], 3);
    assert_eq!(order["total_cents"], 2100);
    assert_eq!(order["status"], "pending");
    let created = order["created_at"].as_str().unwrap_or_default();
    assert!(time::OffsetDateTime::parse(created, &time::format_description::well_known::Rfc3339).is_ok(), "{order}");
    let fields: Vec<_> = order.as_object().into_iter().flatten().map(|(field, _)| field.clone()).collect();
    assert_eq!(fields.len(), 6, "{order}");
}

#[tokio::test]
async fn an_order_in_stock_is_confirmed() {
    let world = World::new().await;
    let service = world.serve().await;
    let placed = order(&service, "SKU-1", 900).await;
    becomes(&service, &id(&placed), "confirmed").await;
    let confirmed = read(&service, &id(&placed)).await;
    for field in ["id", "sku", "quantity", "total_cents", "created_at"] {
        assert_eq!(confirmed[field], placed[field], "{field}");
    }
}

#[tokio::test]
async fn an_order_out_of_stock_is_rejected() {
    let world = World::new().await;
    let service = world.serve().await;
    let placed = order(&service, "SKU-1", 901).await;
    becomes(&service, &id(&placed), "rejected").await;
}

#[tokio::test]
async fn an_order_is_there_on_every_replica_at_once() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let placed = order(&one, "SKU-1", 1).await;
    assert_eq!(read(&two, &id(&placed)).await["id"], placed["id"]);
}

#[tokio::test]
async fn http_2_is_spoken_to_those_who_know() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut connection = Connection::h2(service.http().await).await.expect("it accepts HTTP/2");
    let body = json!({ "sku": "SKU-1", "quantity": 1 });
    let reply = connection.send(post("/v1/orders", &body)).await.expect("it answers");
    assert_eq!(reply.status, 201);
    assert_eq!(reply.version, hyper::Version::HTTP_2);
}

#[tokio::test]
async fn the_catalog_is_asked_within_the_time_that_the_caller_has() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "30s").set("http.request_timeout", "2s").ready().await;
    let reply = place(&service, "SLOW-20000", 1, None).await;
    assert_eq!(reply.status, 504, "{reply:?}");
    let call = world.catalog().calls("GetProduct", "sku", "SLOW-20000");
    let timeout = call.first().and_then(|line| line.split("grpc-timeout=").nth(1)?.split(' ').next());
    let seconds = timeout.and_then(seconds).unwrap_or_else(|| panic!("no grpc-timeout: {call:?}"));
    assert!((1.0..=2.0).contains(&seconds), "{call:?}");
}

/// gRPC writes at most eight digits and a unit.
fn seconds(timeout: &str) -> Option<f64> {
    let (number, unit) = timeout.split_at_checked(timeout.len().checked_sub(1)?)?;
    let unit = match unit {
        "S" => 1.0,
        "m" => 1e-3,
        "u" => 1e-6,
        "n" => 1e-9,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * unit)
}

#[tokio::test]
async fn a_callers_trace_goes_on_in_the_catalog() {
    let world = World::new().await;
    passes_the_trace_on(&world, world.service()).await;
}

#[tokio::test]
async fn a_callers_trace_goes_on_in_the_catalog_when_exported() {
    let world = World::new().await;
    let collector = format!("http://{}", free_address());
    passes_the_trace_on(&world, world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)).await;
}

async fn passes_the_trace_on(world: &World, launch: Launch) {
    let service = launch.ready().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let body = json!({ "sku": "SKU-42", "quantity": 1 });
    let request = post("/v1/orders", &body).with("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    assert_eq!(service.send(request).await.status, 201);
    let asked = async || world.catalog().calls("GetProduct", "sku", "SKU-42").pop();
    let call = eventually("the catalog is asked", s(5), asked).await;
    assert!(call.contains(trace), "{call}");
}

#[tokio::test]
async fn a_transient_failure_of_the_catalog_is_tried_again() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(place(&service, "FAIL-UNAVAILABLE-1", 1, None).await.status, 201);
    assert_eq!(world.catalog().calls("GetProduct", "sku", "FAIL-UNAVAILABLE-1").len(), 2);
}
