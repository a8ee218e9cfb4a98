//! As PID 1, which the kernel sends no signal that it has not asked for.

use std::fs;

use rustix::process::{Pid, kill_process};

use crate::support::{Service, Signal, World, eventually, s};

/// Started as the first process of a PID namespace; `None`, and a line why, where this machine does not let us.
async fn spawn(world: &World) -> Option<Service> {
    let unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    let probe = tokio::process::Command::new(unshare[0]).args(&unshare[1..]).arg("true").output().await;
    if !probe.as_ref().is_ok_and(|probe| probe.status.success()) {
        println!("skipped: a PID namespace cannot be had here: {probe:?}");
        return None;
    }
    Some(world.service().under(unshare).spawn())
}

/// The process that `unshare` started, by its number out here.
async fn child(service: &Service) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", service.pid());
    eventually("it is started", s(5), async || {
        let child = fs::read_to_string(&children).ok()?.trim().parse().ok().and_then(Pid::from_raw)?;
        let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name.trim() == "service").then_some(child)
    })
    .await
}

#[tokio::test]
async fn as_pid_1_it_stops_in_order() {
    let world = World::new().await;
    let Some(service) = spawn(&world).await else {
        return;
    };
    service.ready().await;
    kill_process(child(&service).await, Signal::TERM).expect("it runs");
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert_eq!(service.steps().len(), 8);
}

#[tokio::test]
async fn as_pid_1_sighup_reads_the_settings_again() {
    let world = World::new().await;
    let Some(service) = spawn(&world).await else {
        return;
    };
    service.ready().await;
    kill_process(child(&service).await, Signal::HUP).expect("it runs");
    let read = async || !service.logged("settings are read again").is_empty();
    eventually("the settings are read again", s(5), read).await;
    assert_eq!(service.get("/openapi.json").await.status, 200);
}

#[tokio::test]
async fn as_pid_1_it_hears_a_signal_from_the_first_instant() {
    let world = World::new().await;
    for _ in 0..5 {
        let Some(service) = spawn(&world).await else {
            return;
        };
        let child = child(&service).await;
        // Before that the kernel would throw it away.
        eventually("it handles SIGTERM", s(5), async || crate::start::handles(child, Signal::TERM)).await;
        kill_process(child, Signal::TERM).expect("it runs");
        assert_eq!(service.exit(s(2)).await.code, Some(0));
    }
}
