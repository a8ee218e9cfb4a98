//! Bad input: each kind has its status, and a problem that names what is wrong.

use hyper::Method;
use serde_json::{Value, json};

use crate::support::{End, Raw, Reply, Service, With, World, get, post, request};

async fn body(service: &Service, body: impl Into<hyper::body::Bytes>) -> Reply {
    let request = request(Method::POST, "/v1/orders").with("content-type", "application/json");
    service.send(request.carrying(body)).await
}

/// The fields that a 422 names.
fn fields(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 422, "{reply:?}");
    let problem = reply.problem();
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors: {problem}"));
    errors.iter().map(|error| error["field"].as_str().unwrap_or("?").to_owned()).collect()
}

#[tokio::test]
async fn malformed_json_is_400() {
    let world = World::new().await;
    let service = world.serve().await;
    for malformed in ["", "{", "{\"sku\": \"SKU-1\", \"quantity\": 1", "{'sku': 1}", "\u{feff}{}", "{\"sku\":}"] {
        let reply = body(&service, malformed).await;
        assert_eq!(reply.status, 400, "{malformed}: {reply:?}");
        reply.problem();
    }
    assert_eq!(body(&service, vec![0xff, 0xfe, 0x00]).await.status, 400);
}

#[tokio::test]
async fn a_wrong_type_is_422_and_the_field_is_named() {
    let world = World::new().await;
    let service = world.serve().await;
    let wrong: [(Value, &str); 6] = [
        (json!({ "sku": 1, "quantity": 1 }), "sku"),
        (json!({ "sku": null, "quantity": 1 }), "sku"),
        (json!({ "sku": "SKU-1", "quantity": "1" }), "quantity"),
        (json!({ "sku": "SKU-1", "quantity": 1.5 }), "quantity"),
        (json!({ "sku": "SKU-1" }), "quantity"),
        (json!({ "quantity": 1 }), "sku"),
    ];
    for (order, field) in wrong {
        let reply = body(&service, order.to_string()).await;
        assert!(fields(&reply).iter().any(|named| named == field), "{order}: {reply:?}");
    }
    assert_eq!(body(&service, "[]").await.status, 422);
}

#[tokio::test]
async fn a_value_out_of_range_is_422_and_the_field_is_named() {
    let world = World::new().await;
    let service = world.serve().await;
    for quantity in ["0", "-1", "1001", "4294967297", "99999999999999999999"] {
        let reply = body(&service, format!("{{\"sku\": \"SKU-1\", \"quantity\": {quantity}}}")).await;
        assert_eq!(fields(&reply), ["quantity"], "{quantity}");
    }
    for sku in [String::new(), "x".repeat(10_000), "SKU-1\0".to_owned()] {
        let reply = body(&service, json!({ "sku": sku, "quantity": 1 }).to_string()).await;
        assert_eq!(fields(&reply), ["sku"], "{sku:.10}");
    }
    for quantity in [1, 1000] {
        assert_eq!(service.post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": quantity })).await.status, 201);
    }
}

#[tokio::test]
async fn an_unknown_product_is_422_and_the_field_is_named() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = service.post("/v1/orders", &json!({ "sku": "SKU-101", "quantity": 1 })).await;
    assert_eq!(fields(&reply), ["sku"]);
}

#[tokio::test]
async fn another_media_type_is_415() {
    let world = World::new().await;
    let service = world.serve().await;
    let order = json!({ "sku": "SKU-1", "quantity": 1 }).to_string();
    for media_type in ["text/plain", "application/xml", "application/x-www-form-urlencoded"] {
        let request = request(Method::POST, "/v1/orders").with("content-type", media_type).carrying(order.clone());
        let reply = service.send(request).await;
        assert_eq!(reply.status, 415, "{media_type}: {reply:?}");
        reply.problem();
    }
    assert_eq!(service.send(request(Method::POST, "/v1/orders").carrying(order)).await.status, 415, "none at all");
}

#[tokio::test]
async fn a_charset_is_no_other_media_type() {
    let world = World::new().await;
    let service = world.serve().await;
    let request = post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 1 }));
    let reply = service.send(request.with("content-type", "application/json; charset=utf-8")).await;
    assert_eq!(reply.status, 201, "{reply:?}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_before_it_is_read() {
    let world = World::new().await;
    let service = world.service().set("http.body_limit", "1KiB").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    let head =
        "POST /v1/orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 1025\r\n\r\n";
    raw.write(head).await;
    let reply = raw.reply().await;
    assert_eq!(reply.status, 413);
    reply.problem();
}

#[tokio::test]
async fn a_body_that_grows_over_the_limit_is_413_too() {
    let world = World::new().await;
    let service = world.service().set("http.body_limit", "1KiB").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    let head = "POST /v1/orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    raw.write(head).await;
    for _ in 0..8 {
        raw.write(format!("100\r\n{}\r\n", " ".repeat(256))).await;
    }
    assert_eq!(raw.reply().await.status, 413);
}

#[tokio::test]
async fn an_unknown_order_is_404() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = service.get("/v1/orders/01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_eq!(reply.status, 404);
    reply.problem();
}

#[tokio::test]
async fn a_malformed_id_is_400() {
    let world = World::new().await;
    let service = world.serve().await;
    for malformed in ["1", "not-an-id", "01890a5d-ac96-774b-bcce-b302099a80577", "%00", "%ff", "';--"] {
        let reply = service.get(&format!("/v1/orders/{malformed}")).await;
        assert_eq!(reply.status, 400, "{malformed}: {reply:?}");
        reply.problem();
    }
}

#[tokio::test]
async fn a_malformed_query_is_400() {
    let world = World::new().await;
    let service = world.serve().await;
    for malformed in ["limit=many", "after=not-an-id", "after=%00", "after="] {
        let reply = service.get(&format!("/v1/orders?{malformed}")).await;
        assert_eq!(reply.status, 400, "{malformed}: {reply:?}");
        reply.problem();
    }
    for out_of_range in [0, -1, 101] {
        assert_eq!(fields(&service.get(&format!("/v1/orders?limit={out_of_range}")).await), ["limit"]);
    }
}

#[tokio::test]
async fn a_malformed_last_event_id_is_400() {
    let world = World::new().await;
    let service = world.serve().await;
    for malformed in ["x", "1.5", "99999999999999999999"] {
        let reply = service.send(get("/v1/orders/events").with("last-event-id", malformed)).await;
        assert_eq!(reply.status, 400, "{malformed}: {reply:?}");
        reply.problem();
    }
}

#[tokio::test]
async fn another_method_is_405_and_says_which_are_allowed() {
    let world = World::new().await;
    let service = world.serve().await;
    let routes = [
        ("/v1/products/SKU-1", "GET"),
        ("/v1/orders", "GET POST"),
        ("/v1/orders/01890a5d-ac96-774b-bcce-b302099a8057", "GET"),
        ("/v1/orders/events", "GET"),
        ("/v1/orders/ws", "GET"),
        ("/openapi.json", "GET"),
    ];
    for (path, allowed) in routes {
        let reply = service.send(request(Method::PATCH, path)).await;
        assert_eq!(reply.status, 405, "{path}: {reply:?}");
        reply.problem();
        let mut named: Vec<_> =
            reply.header("allow").split(',').map(str::trim).filter(|name| *name != "HEAD").collect();
        named.sort_unstable();
        assert_eq!(named.join(" "), allowed, "{path}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_400_and_the_end_of_the_connection() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write("HELO there\r\n\r\n").await;
    assert_eq!(raw.reply().await.status, 400);
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.get("/v1/products/SKU-1").await.status, 200, "others notice nothing");
}

#[tokio::test]
async fn no_answer_tells_of_what_is_inside() {
    let world = World::new().await;
    let service = world.serve().await;
    let answers = [
        body(&service, "{").await,
        body(&service, "{\"sku\": 7}").await,
        body(&service, "[]").await,
        service.get("/v1/orders/x").await,
        service.get("/v1/orders?limit=x").await,
        service.get("/nowhere").await,
    ];
    for reply in answers {
        let text = reply.text().to_lowercase();
        for inside in ["sqlx", "serde", "axum", "src/", "panicked", "postgres", "struct "] {
            assert!(!text.contains(inside), "{inside}: {text}");
        }
    }
}

#[tokio::test]
async fn a_nul_in_any_input_is_the_callers_fault() {
    let world = World::new().await;
    let service = world.serve().await;
    for sku in ["\\u0000", "SKU-1\\u0000", "\\u0000SKU-1"] {
        let reply = body(&service, format!("{{\"sku\": \"{sku}\", \"quantity\": 1}}")).await;
        assert_eq!(fields(&reply), ["sku"], "{sku}");
    }
    for path in [
        "/v1/orders/%00",
        "/v1/orders?after=%00",
        "/v1/orders?limit=%00",
        "/v1/orders?limit=1%00",
        "/v1/products/%00",
        "/v1/products/SKU-1%00",
        "/v1/orders/ws?after=%00",
    ] {
        let reply = service.get(path).await;
        assert!((400..500).contains(&reply.status), "{path}: {reply:?}");
    }
}
