//! A low limit of open files: the soft one is raised, and clients are held to what the rest of the service leaves them.

use serde_json::json;

use crate::{
    many_sockets, s,
    support::{Raw, Service, World, always},
};

/// A service under this shell command, and 400 idle clients.
async fn with_idle_clients(world: &World, limit: &str) -> (Service, Vec<Raw>) {
    many_sockets();
    let script = format!("{limit} && exec \"$0\" \"$@\"");
    let service = world.service().under(["sh", "-c", &script]).ready().await;
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(Raw::connect(service.http().await).await);
    }
    (service, idle)
}

/// Its soft and its hard limit.
fn limits(service: &Service) -> (String, String) {
    let path = format!("/proc/{}/limits", service.pid());
    let limits = std::fs::read_to_string(path).expect("it runs");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("it is listed");
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().expect("the soft one"), words.next().expect("the hard one"))
}

/// Probes, the database and the peer answer, and go on to.
async fn does_its_work(service: &Service) {
    always("it takes orders", s(3), async || {
        assert_eq!(service.probe("/livez").await.status, 200);
        assert_eq!(service.probe("/readyz").await.status, 200);
        service.post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 1 })).await.status == 201
    })
    .await;
}

#[tokio::test]
async fn a_soft_limit_of_256_files_is_raised_to_the_hard_one() {
    let world = World::new().await;
    let (service, _idle) = with_idle_clients(&world, "ulimit -S -n 256").await;
    let (soft, hard) = limits(&service);
    assert_eq!(soft, hard);
    does_its_work(&service).await;
}

#[tokio::test]
async fn with_256_files_clients_are_held_to_what_is_left() {
    let world = World::new().await;
    let (service, _idle) = with_idle_clients(&world, "ulimit -n 256").await;
    assert_eq!(limits(&service), ("256".to_owned(), "256".to_owned()));
    does_its_work(&service).await;
    let log = service.log();
    let said = log.iter().find(|line| line["message"].as_str().unwrap_or("").contains("limit of open files"));
    assert_eq!(said.expect("the log says it")["max_connections"], 64);
}
