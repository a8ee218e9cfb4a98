//! The three probes: whom each one believes.

use crate::support::{Proxy, Raw, Service, Signal, World, always, bounded, eventually, ms, s};

/// Waits until a check has this status and says this about it.
pub(crate) async fn check_is(service: &Service, check: &str, status: &str, error: &str) {
    let what = format!("{check} is {status} with {error:?}");
    let look = async || {
        let report = service.probe("/readyz").await.json();
        let check = &report["checks"][check];
        let said = check["error"].as_str().unwrap_or_default().contains(error);
        if check["status"] == status && said { Ok(()) } else { Err(report.to_string()) }
    };
    eventually(&what, s(10), look).await;
}

#[tokio::test]
async fn a_ready_service_says_so_on_every_probe() {
    let world = World::new().await;
    let service = world.serve().await;
    let ready = service.probe("/readyz").await;
    assert_eq!(ready.status, 200);
    assert_eq!(ready.header("content-type"), "application/json");
    let report = ready.json();
    assert_eq!(report["status"], "ok", "{report}");
    assert_eq!(report["phase"], "ready", "{report}");
    let postgres = &report["checks"]["postgres"];
    assert_eq!(postgres["status"], "pass", "{report}");
    assert_eq!((&postgres["policy"], &postgres["required"]), (&"required".into(), &true.into()), "{report}");
    assert!(postgres["age"].as_f64().is_some_and(|age| age < 5.0), "{report}");
    assert_eq!(service.probe("/startupz").await.status, 200);
    let live = service.probe("/livez").await;
    assert_eq!(live.status, 200);
    assert!(live.json()["tasks"].as_u64() > Some(0), "{live:?}");
    assert!(live.json()["resident_memory"].as_u64() > Some(1 << 20), "{live:?}");
}

#[tokio::test]
async fn readyz_names_the_check_that_fails_and_the_others_do_not_move() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let service = world.service().set("database.url", world.database.url_at(proxy.address)).ready().await;
    proxy.refuse();
    check_is(&service, "postgres", "fail", "refused").await;
    let unready = service.probe("/readyz").await;
    assert_eq!(unready.status, 503);
    assert_eq!(unready.json()["status"], "unavailable", "{unready:?}");
    assert!(unready.json()["reason"].to_string().contains("postgres: "), "{unready:?}");
    assert_eq!(service.probe("/livez").await.status, 200);
    assert_eq!(service.probe("/startupz").await.status, 200);
    proxy.pass();
    service.ready_within(s(5)).await;
}

#[tokio::test]
async fn a_database_that_answers_nothing_is_noticed_by_a_timeout() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let service = world.service().set("database.url", world.database.url_at(proxy.address)).ready().await;
    proxy.blackhole();
    check_is(&service, "postgres", "fail", "").await;
    assert_eq!(service.probe("/livez").await.status, 200);
    proxy.pass();
    service.ready_within(s(10)).await;
}

#[tokio::test]
async fn fewer_failures_in_a_row_than_configured_change_nothing() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.failures", 1000).ready().await;
    proxy.refuse();
    check_is(&service, "postgres", "pass", "refused").await;
    assert_eq!(service.probe("/readyz").await.status, 200);
}

#[tokio::test]
async fn an_advisory_check_is_reported_and_never_unready() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.refuse();
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.postgres", "advisory").ready().await;
    check_is(&service, "postgres", "fail", "refused").await;
    let report = service.probe("/readyz").await;
    assert_eq!(report.status, 200);
    assert_eq!(report.json()["checks"]["postgres"]["required"], false);
    assert_eq!(report.json()["checks"]["postgres"]["policy"], "advisory");
}

#[tokio::test]
async fn a_startup_check_is_awaited_once_and_reported_afterwards() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.refuse();
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.postgres", "startup").spawn();
    check_is(&service, "postgres", "fail", "refused").await;
    assert_eq!(service.probe("/readyz").await.status, 503);
    proxy.pass();
    service.ready_within(s(10)).await;
    proxy.refuse();
    check_is(&service, "postgres", "fail", "refused").await;
    let report = service.probe("/readyz").await;
    assert_eq!(report.status, 200);
    assert_eq!(report.json()["checks"]["postgres"]["policy"], "startup");
}

#[tokio::test]
async fn a_probe_asks_no_dependency() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.interval", "1h").ready().await;
    proxy.blackhole();
    for _ in 0..100 {
        for probe in ["/readyz", "/livez", "/startupz"] {
            let reply = bounded(probe, s(1), service.probe(probe)).await;
            assert_eq!(reply.status, 200, "{probe}");
        }
    }
}

#[tokio::test]
async fn the_database_is_no_matter_of_startupz_and_livez() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.blackhole();
    let service = world.service().set("database.url", world.database.url_at(proxy.address)).spawn();
    eventually("startup is done", s(5), async || service.probe("/startupz").await.status == 200).await;
    always("alive and not ready", ms(1500), async || {
        service.probe("/livez").await.status == 200 && service.probe("/readyz").await.status == 503
    })
    .await;
}

#[tokio::test]
async fn a_process_that_was_stopped_and_continued_is_alive_at_once() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.stall_threshold", "1s").ready().await;
    service.signal(Signal::STOP);
    // Longer than the threshold: nothing moves in there, so there is nothing to look at.
    tokio::time::sleep(s(2)).await;
    service.signal(Signal::CONT);
    always("alive", ms(1500), async || service.probe("/livez").await.status == 200).await;
}

#[tokio::test]
async fn liveness_gives_up_on_too_many_tasks_and_comes_back() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.max_tasks", 100).ready().await;
    assert_eq!(service.probe("/livez").await.status, 200);
    let mut connections = Vec::new();
    for _ in 0..150 {
        connections.push(Raw::connect(service.http().await).await);
    }
    eventually("too many tasks", s(5), async || service.probe("/livez").await.status == 503).await;
    drop(connections);
    eventually("few enough", s(5), async || service.probe("/livez").await.status == 200).await;
}
