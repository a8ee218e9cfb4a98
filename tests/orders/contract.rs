//! The contract: generated from the code, so it must cover it.

use crate::support::{Launch, World};

const ROUTES: [(&str, &[&str]); 6] = [
    ("/v1/products/{sku}", &["get"]),
    ("/v1/orders", &["get", "post"]),
    ("/v1/orders/{id}", &["get"]),
    ("/v1/orders/events", &["get"]),
    ("/v1/orders/ws", &["get"]),
    ("/openapi.json", &["get"]),
];

#[tokio::test]
async fn the_contract_covers_every_route_with_its_answers() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = service.get("/openapi.json").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "application/json");
    let contract = reply.json();
    assert!(contract["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "{contract}");
    assert_eq!(contract["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (path, methods) in &ROUTES[..5] {
        for method in *methods {
            let operation = &contract["paths"][path][method];
            assert!(operation["responses"].as_object().is_some_and(|responses| responses.len() > 1), "{method} {path}");
        }
    }
    let paths = contract["paths"].as_object().expect("an object");
    // another resource has its own tests
    for path in paths.keys().filter(|path| ["/v1/orders", "/v1/products"].iter().any(|ours| path.starts_with(ours))) {
        assert!(ROUTES.iter().any(|(route, _)| route == path), "{path} is documented and tested nowhere");
    }
}

#[tokio::test]
async fn the_contract_names_what_can_go_wrong_with_an_order() {
    let contract = Launch::new().args(["openapi"]).run().await;
    let contract: serde_json::Value = serde_json::from_str(&contract.stdout).expect("it is JSON");
    for status in ["201", "400", "413", "415", "422", "503", "504"] {
        let answer = &contract["paths"]["/v1/orders"]["post"]["responses"][status];
        assert!(answer.is_object(), "no {status}: {contract}");
    }
}

#[tokio::test]
async fn the_command_prints_the_contract_that_is_served() {
    let world = World::new().await;
    let service = world.serve().await;
    let printed = Launch::new().args(["openapi"]).run().await;
    assert_eq!(printed.code, Some(0), "{printed:#?}");
    let printed: serde_json::Value = serde_json::from_str(&printed.stdout).expect("it is JSON");
    assert_eq!(printed, service.get("/openapi.json").await.json());
}

#[tokio::test]
async fn the_docs_fetch_nothing_from_elsewhere() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut page = service.get("/docs").await;
    let mut folder = "/docs".to_owned();
    if (301..=308).contains(&page.status) {
        folder = page.header("location").to_owned();
        page = service.get(&folder).await;
    }
    assert_eq!(page.status, 200, "{page:?}");
    let base = &folder[..=folder.rfind('/').expect("it is a path")];
    let text = page.text();
    let mut assets = 0;
    for attribute in ["src=\"", "href=\""] {
        for asset in text.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(!asset.contains("//"), "{asset} is elsewhere");
            let path = if asset.starts_with('/') {
                asset.to_owned()
            } else {
                format!("{base}{}", asset.trim_start_matches("./"))
            };
            assert_eq!(service.get(&path).await.status, 200, "{path}");
            assets += 1;
        }
    }
    assert!(assets > 0, "{text}");
}
