//! Out of file descriptors: counted, without a spin, and over as soon as there are some.

use std::time::Instant;

use super::{
    CHEAP, serves,
    support::{
        Connection, Raw, Service, World, eventually, get,
        os::{cpu_time, limit_open_files, open_files},
        s,
    },
};

/// A service that can accept two connections more, eight clients that want to be accepted, and a connection to its
/// admin port from before.
async fn exhausted(world: &World) -> (Service, Vec<Raw>, Connection) {
    let service = world.stand().ready().await;
    let mut admin = Connection::h1(service.admin().await).await.expect("it accepts");
    admin.send(get("/livez")).await.expect("an answer");
    limit_open_files(service.pid(), open_files(service.pid()) + 2);
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(service.http().await).await;
        raw.get(CHEAP).await;
        clients.push(raw);
    }
    (service, clients, admin)
}

/// How many connections could not be accepted.
async fn errors(admin: &mut Connection) -> f64 {
    let page = admin.send(get("/metrics")).await.expect("an answer").text();
    let lines = page.lines().filter(|line| line.starts_with("http_server_accept_errors_total{"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn being_out_of_file_descriptors_is_counted_and_costs_no_time() {
    let world = World::alone().await;
    let (service, _clients, mut admin) = exhausted(&world).await;
    eventually("it is counted", s(5), async || errors(&mut admin).await > 0.0).await;
    let (began, before, counted) = (Instant::now(), cpu_time(service.pid()), errors(&mut admin).await);
    tokio::time::sleep(s(1)).await;
    let (used, tries) = (cpu_time(service.pid()) - before, errors(&mut admin).await - counted);
    let passed = began.elapsed();
    assert!(used < passed / 5, "it spins: {used:?} in {passed:?}");
    let tries = tries / passed.as_secs_f64();
    assert!((1.0..30.0).contains(&tries), "{tries} tries in a second");
    assert_eq!(admin.send(get("/livez")).await.expect("an answer").status, 200);
}

#[tokio::test]
async fn with_file_descriptors_again_it_accepts_by_itself() {
    let world = World::new().await;
    let (service, mut clients, mut admin) = exhausted(&world).await;
    eventually("it is counted", s(5), async || errors(&mut admin).await > 0.0).await;
    limit_open_files(service.pid(), 1000);
    for client in &mut clients {
        assert_eq!(client.reply().await.status, 200);
    }
    serves(&service).await;
}

#[tokio::test]
async fn out_of_file_descriptors_it_stops_in_order() {
    let world = World::new().await;
    let (service, mut clients, mut admin) = exhausted(&world).await;
    eventually("it is counted", s(5), async || errors(&mut admin).await > 0.0).await;
    drop(clients.split_off(2));
    assert_eq!(service.stop().await.code, Some(0));
}
