//! `POST /drain` and a signal, in either order, at once or apart, repeated: one delay and one deadline, counted from the
//! first of them.

use std::time::{Duration, Instant};

use super::{
    CHEAP, drain, patient, slow,
    support::{End, Raw, STEPS, Service, Signal, World, always, ms, os::Halted, s},
    under_way,
};

const DELAY: Duration = ms(2500);
/// When it is asked again.
const AGAIN: Duration = ms(1500);

async fn serve(world: &World) -> Service {
    world.stand().set("lifecycle.drain_delay", "2500ms").ready().await
}

/// One delay has passed since then, and there was one stop.
async fn ends_once(service: &Service, began: Instant) {
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    let took = service.step("drain_delay").at - began;
    assert!((DELAY..DELAY + AGAIN - ms(100)).contains(&took), "{took:?}");
    let steps: Vec<_> = service.steps().into_iter().map(|step| step.name).collect();
    assert_eq!(steps, STEPS);
}

#[tokio::test]
async fn the_hook_alone_stops_it() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    assert_eq!(service.drain().await.status, 200);
    assert_eq!(service.probe("/readyz").await.status, 503, "as soon as it is answered");
    let begun = service.metric("lifecycle_stops_begun_total", &[("trigger", "pre-stop")]).await;
    assert_eq!(begun, Some(1.0));
    ends_once(&service, began).await;
}

#[tokio::test]
async fn a_signal_well_after_the_hook_restarts_no_delay() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    service.drain().await;
    tokio::time::sleep(AGAIN).await;
    service.signal(Signal::TERM);
    ends_once(&service, began).await;
}

#[tokio::test]
async fn the_hook_well_after_a_signal_restarts_no_delay() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    service.signal(Signal::INT);
    tokio::time::sleep(AGAIN).await;
    service.drain().await;
    ends_once(&service, began).await;
}

#[tokio::test]
async fn the_hook_and_a_signal_at_once_are_one_stop() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    service.signal(Signal::TERM);
    tokio::join!(service.drain(), service.drain());
    ends_once(&service, began).await;
}

#[tokio::test]
async fn the_hook_repeated_for_as_long_as_it_lasts_is_one_stop() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    service.drain().await;
    while began.elapsed() < AGAIN {
        service.drain().await;
        tokio::time::sleep(ms(50)).await;
    }
    ends_once(&service, began).await;
}

#[tokio::test]
async fn sigterm_twice_within_50_ms_loses_no_request() {
    let world = World::new().await;
    let service = patient(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(1500)).await;
    under_way(&service, 1500).await;
    service.signal(Signal::TERM);
    tokio::time::sleep(ms(20)).await;
    service.signal(Signal::TERM);
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_second_sigint_exits_at_once_whatever_is_in_flight() {
    let world = World::new().await;
    let service = patient(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(15_000)).await;
    under_way(&service, 15_000).await;
    // the first SIGINT of a stop that SIGTERM began joins it
    drain(&service).await;
    service.signal(Signal::INT);
    tokio::time::sleep(ms(100)).await;
    assert!(service.ended().is_none());
    let asked = Instant::now();
    service.signal(Signal::INT);
    let exit = service.exit(s(5)).await;
    assert_eq!(exit.code, Some(130));
    assert!(exit.at - asked < ms(500), "{:?}", exit.at - asked);
}

#[tokio::test]
async fn the_deadline_counts_from_the_first_trigger() {
    let world = World::new().await;
    let mut launch = world.stand().set("lifecycle.deadline", "4s").set("lifecycle.drain_delay", "1s");
    for step in ["drain_http", "grpc_channel", "database_pool", "telemetry"] {
        launch = launch.set(&format!("lifecycle.{step}"), "100ms");
    }
    let service = launch.set("lifecycle.drain_workers", "2600ms").ready().await;
    // The steps have nobody to run them: each takes its whole budget, and all of them more than the deadline, but less
    // than one that is counted from the signal.
    let _halted = Halted::threads(service.pid(), "tokio-rt-worker");
    let began = Instant::now();
    service.drain().await;
    tokio::time::sleep(s(2)).await;
    service.signal(Signal::TERM);
    let exit = service.exit(s(10)).await;
    assert_eq!(exit.code, Some(3));
    assert!(exit.at - began < s(6), "{:?}", exit.at - began);
    assert!(!service.logged("deadline passed").is_empty(), "it ends by itself");
}

#[tokio::test]
async fn one_sigint_after_sigterm_joins_the_stop() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_delay", "1s").ready().await;
    service.signal(Signal::TERM);
    service.phase("draining").await;
    service.signal(Signal::INT);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn sigint_twice_exits_at_once() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_delay", "10s").ready().await;
    service.signal(Signal::INT);
    service.phase("draining").await;
    let asked = Instant::now();
    service.signal(Signal::INT);
    let exit = service.exit(s(5)).await;
    assert_eq!(exit.code, Some(130));
    assert!(exit.at - asked < ms(500), "{:?}", exit.at - asked);
}

#[tokio::test]
async fn a_signal_that_is_not_about_stopping_changes_nothing() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    service.signal(Signal::PIPE);
    service.signal(Signal::CHILD);
    always("it serves", ms(300), async || service.get(CHEAP).await.status == 200).await;
}
