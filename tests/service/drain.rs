//! `POST /drain` and a signal are two ways to begin one stop, which has one clock.

use std::time::Instant;

use crate::support::{STEPS, Service, Signal, World, eventually, ms, s};

/// A service whose delay is long enough to do something within it.
async fn serve(world: &World) -> Service {
    world.service().set("lifecycle.drain_delay", "3s").ready().await
}

/// Late in the delay: a clock that was started again now would be seen to run longer.
async fn late(began: Instant) {
    tokio::time::sleep_until((began + s(2)).into()).await;
}

/// The stop that began then was the only one.
async fn ends_once(service: &Service, began: Instant) {
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    let delay = service.step("drain_delay").at - began;
    assert!((s(3)..ms(4300)).contains(&delay), "one delay, counted from the first trigger: {delay:?}");
    let steps: Vec<_> = service.steps().into_iter().map(|step| step.name).collect();
    assert_eq!(steps, STEPS);
}

#[tokio::test]
async fn drain_alone_stops_it() {
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
async fn drain_may_be_asked_for_as_often_as_one_likes() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(service.drain().await.status, 200);
    }
    ends_once(&service, began).await;
}

#[tokio::test]
async fn a_signal_after_drain_restarts_no_clock_and_is_not_the_second() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    service.drain().await;
    late(began).await;
    service.signal(Signal::TERM);
    ends_once(&service, began).await;
}

#[tokio::test]
async fn drain_after_a_signal_restarts_no_clock() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    service.signal(Signal::TERM);
    late(began).await;
    assert_eq!(service.drain().await.status, 200);
    ends_once(&service, began).await;
}

#[tokio::test]
async fn both_at_once_are_one() {
    let world = World::new().await;
    let service = serve(&world).await;
    let began = Instant::now();
    service.signal(Signal::TERM);
    service.drain().await;
    ends_once(&service, began).await;
}

#[tokio::test]
async fn a_second_sigint_after_drain_ends_it_at_once() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "10s").ready().await;
    service.drain().await;
    // Two that come before the first is looked at are one, so there may have to be a third.
    let ended = async || {
        service.signal(Signal::INT);
        tokio::time::sleep(ms(50)).await;
        service.ended()
    };
    assert_eq!(eventually("it has ended", s(5), ended).await.code, Some(130));
}
