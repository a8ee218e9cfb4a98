//! What is not to be seen from outside, and how a connection to the database is kept from being read.

use serde_json::json;

use crate::{
    cluster::Cluster,
    order,
    support::{Authority, Catalog, Launch, World, eventually, get, s},
};

#[tokio::test]
async fn every_answer_has_the_headers_that_keep_it_safe() {
    let world = World::new().await;
    let service = world.serve().await;
    let id = order(&service, "SKU-1").await;
    let mut replies = Vec::new();
    for path in [&format!("/v1/orders/{id}"), "/v1/orders", "/v1/products/SKU-1", "/v1/orders/none", "/nowhere"] {
        replies.push(service.get(path).await);
    }
    replies.push(service.post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 0 })).await);
    for reply in replies {
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{reply:?}");
        assert!(["no-store", "no-cache"].contains(&reply.header("cache-control")), "{reply:?}");
        assert_eq!(reply.header("server"), "", "{reply:?}");
        assert!(!reply.text().contains(env!("CARGO_PKG_VERSION")), "{reply:?}");
        assert!(!reply.text().contains(".rs"), "{reply:?}");
    }
}

#[tokio::test]
async fn the_databases_password_is_nowhere_be_it_right_or_wrong() {
    let Some(cluster) = Cluster::start().await else { return };
    let catalog = Catalog::start().await;
    // trust: any password is right; a role that is not there: any is wrong
    for role in ["postgres", "nobody-there"] {
        let url = cluster.url().replace("postgres@", &format!("{role}:hunter2secret@"));
        let launch = Launch::new().set("database.url", url).set("catalog.endpoint", catalog.endpoint());
        let service = launch.env("RUST_LOG", "debug").set("readiness.postgres", "advisory").spawn();
        let reply = async || service.try_send(get("/v1/orders")).await.ok();
        let reply = eventually("it answers", s(20), reply).await;
        let mut texts = vec![reply.text(), service.text(false), service.text(true)];
        for path in ["/", "/metrics", "/readyz", "/livez"] {
            texts.push(service.probe(path).await.text());
        }
        for text in texts {
            assert!(!text.contains("hunter2secret"), "{text}");
        }
    }
}

#[tokio::test]
async fn tls_with_a_private_authority_serves_and_without_it_does_not() {
    let (Some(authority), Some(other)) = (Authority::new(), Authority::new()) else { return };
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.encrypt(&authority.key(), &authority.certificate()).await;
    let catalog = Catalog::start().await;
    let url = cluster.url().replace("127.0.0.1", "localhost");
    let launch = |url: String| {
        let launch = Launch::new().set("database.url", url).set("catalog.endpoint", catalog.endpoint());
        let launch = launch.set("readiness.postgres", "advisory").set("readiness.interval", "200ms");
        // a handshake takes a debug build its time
        launch.set("database.acquire_timeout", "9s")
    };
    let verified = format!("{url}?sslmode=verify-full&sslrootcert={}", authority.root().display());
    let service = launch(verified.clone()).ready().await;
    order(&service, "SKU-1").await;
    let encrypted =
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL
                     AND pid <> pg_backend_pid()";
    let encrypted: bool =
        sqlx::query_scalar(encrypted).fetch_one(&mut cluster.connect().await).await.expect("it answers");
    assert!(encrypted);

    // the certificate is not for this name; nobody vouches for it
    let other = format!("{url}?sslmode=verify-full&sslrootcert={}", other.root().display());
    for url in [verified.replace("localhost", "127.0.0.1"), other] {
        let service = launch(url.clone()).ready().await;
        assert_eq!(service.get("/v1/orders").await.status, 503, "{url}");
    }
}
