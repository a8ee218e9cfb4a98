//! The commands besides `serve`: what they answer, and that they always end.

use std::net::TcpListener;

use crate::support::{Launch, Signal, World, free_address, s};

#[tokio::test]
async fn help_names_every_command() {
    let help = Launch::new().args(["--help"]).run().await;
    assert_eq!(help.code, Some(0));
    for command in ["serve", "migrate", "pre-stop", "health", "config", "openapi"] {
        assert!(help.stdout.contains(command), "no {command} in {}", help.stdout);
    }
}

#[tokio::test]
async fn version_is_that_of_the_package() {
    let version = Launch::new().args(["--version"]).run().await;
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.stdout);
    assert!(version.stdout.contains(env!("CARGO_PKG_NAME")), "{}", version.stdout);
}

#[tokio::test]
async fn an_unknown_command_is_bad_configuration() {
    let unknown = Launch::new().args(["srve"]).run().await;
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("srve"), "{}", unknown.stderr);
}

#[tokio::test]
async fn the_serve_command_serves() {
    let world = World::new().await;
    let named = world.service().args(["serve"]).ready().await;
    assert_eq!(named.stop().await.code, Some(0));
}

#[tokio::test]
async fn health_tells_a_ready_service_from_one_that_is_not() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "10s").ready().await;
    let admin = service.admin().await;
    let health = |probe| world.service().set("admin.address", admin).args(["health", probe]).run();
    for probe in ["live", "ready", "startup"] {
        assert_eq!(health(probe).await.code, Some(0), "{probe}");
    }
    service.signal(Signal::TERM);
    service.phase("draining").await;
    assert_eq!(health("ready").await.code, Some(1));
    assert_eq!(health("live").await.code, Some(0));
}

#[tokio::test]
async fn health_fails_soon_where_nobody_answers() {
    let world = World::new().await;
    let nobody = world.service().set("admin.address", free_address()).args(["health"]).run().await;
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.took < s(2), "{nobody:#?}");
    assert!(!nobody.stderr.is_empty(), "it says why");
}

#[tokio::test]
async fn health_and_pre_stop_fail_in_time_if_nobody_answers() {
    let world = World::new().await;
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("it is bound");
    let command = |name| world.service().set("admin.address", address).args([name]).run();
    let (health, pre_stop) = tokio::join!(command("health"), command("pre-stop"));
    assert_eq!(health.code, Some(1), "{health:#?}");
    assert_ne!(pre_stop.code, Some(0), "{pre_stop:#?}");
    assert!(health.took < s(10) && pre_stop.took < s(10), "{health:#?} {pre_stop:#?}");
}

#[tokio::test]
async fn health_reaches_a_service_that_listens_on_every_address() {
    let world = World::new().await;
    let service = world.service().set("admin.address", "0.0.0.0:0").ready().await;
    let address = format!("0.0.0.0:{}", service.admin().await.port());
    let health = world.service().set("admin.address", address).args(["health", "ready"]).run().await;
    assert_eq!(health.code, Some(0), "{health:#?}");
    assert!(health.took < s(1), "{health:#?}");
}

#[tokio::test]
async fn pre_stop_returns_as_soon_as_readiness_has_flipped() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "8s").ready().await;
    let admin = service.admin().await;
    let pre_stop = world.service().set("admin.address", admin).args(["pre-stop"]).run().await;
    assert_eq!(pre_stop.code, Some(0), "{pre_stop:#?}");
    assert!(pre_stop.took < s(2), "it does not wait for the delay: {pre_stop:#?}");
    assert_eq!(service.probe("/readyz").await.status, 503);
    assert!(service.ended().is_none());
}

#[tokio::test]
async fn pre_stop_fails_where_nobody_answers() {
    let world = World::new().await;
    let nobody = world.service().set("admin.address", free_address()).args(["pre-stop"]).run().await;
    assert_ne!(nobody.code, Some(0));
    assert!(nobody.took < s(2), "{nobody:#?}");
}
