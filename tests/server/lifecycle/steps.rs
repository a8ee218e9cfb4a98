//! One signal stops it, in order, and it says how that went.

use super::support::{Entry, STEPS, Service, Signal, World, eventually, s};

fn names(service: &Service) -> Vec<String> {
    service.steps().into_iter().map(|step| step.name).collect()
}

#[tokio::test]
async fn sigterm_runs_the_eight_steps_in_their_order() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    assert_eq!(service.stop().await.code, Some(0));
    assert_eq!(names(&service), STEPS);
    for step in service.steps() {
        assert_eq!(step.outcome, "done", "{step:?}");
    }
}

#[tokio::test]
async fn sigint_does_the_same() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    service.signal(Signal::INT);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert_eq!(names(&service), STEPS);
}

#[tokio::test]
async fn the_phases_go_one_way_and_say_what_began_the_stop() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    service.stop().await;
    assert_eq!(service.phases(), ["starting", "ready", "draining", "stopping", "stopped"]);
    let draining = service.logged("phase").into_iter().find(|line| line["phase"] == "draining");
    let trigger = draining.map(|line| line["trigger"].to_string()).unwrap_or_default();
    assert!(trigger.to_lowercase().contains("sigterm"), "{trigger}");
}

#[tokio::test]
async fn every_step_has_the_budget_that_the_settings_give_it() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_workers", "3s").ready().await;
    service.stop().await;
    assert_eq!(service.step("drain_workers").budget, s(3));
    assert_eq!(service.step("drain_http").budget, s(5));
    assert_eq!(service.step("database_pool").budget, s(2));
}

#[tokio::test]
async fn no_backend_of_ours_is_left() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    assert!(world.database.backends().await > 0, "it had some");
    assert_eq!(service.stop().await.code, Some(0));
    eventually("its backends are gone", s(1), async || world.database.backends().await == 0).await;
}

#[tokio::test]
async fn past_its_deadline_it_is_gone_and_has_said_what_was_left() {
    let world = World::new().await;
    let mut launch = world.stand().set("lifecycle.drain_delay", "2s").set("lifecycle.deadline", "3s");
    for step in ["drain_http", "drain_workers", "grpc_channel", "database_pool", "telemetry"] {
        launch = launch.set(&format!("lifecycle.{step}"), "200ms");
    }
    let service = launch.ready().await;
    service.signal(Signal::TERM);
    eventually("the stop has begun", s(5), async || !service.steps().is_empty()).await;
    // Answered by the thread that stops it: so it is at the delay now.
    service.probe("/livez").await;
    // A machine that stands still for longer than the deadline: the process is not there to be looked at.
    service.signal(Signal::STOP);
    tokio::time::sleep(s(4)).await;
    service.signal(Signal::CONT);
    let exit = service.exit(s(5)).await;
    assert_eq!(exit.code, Some(3));
    // Whether the deadline's thread or the end of the stop is the first to run again, it is said, and said once.
    let said: Vec<Entry> = service.log().into_iter().filter(|line| line["message"] == "deadline passed").collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["step"], "drain_delay", "the step that was under way then is named: {said:?}");
}
