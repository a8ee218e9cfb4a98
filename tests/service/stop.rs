//! One signal stops it, in order, and it says how that went.

use std::time::Instant;

use crate::support::{End, Entry, Raw, STEPS, Service, Signal, World, always, eventually, ms, s};

fn names(service: &Service) -> Vec<String> {
    service.steps().into_iter().map(|step| step.name).collect()
}

#[tokio::test]
async fn sigterm_runs_the_eight_steps_in_their_order() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(service.stop().await.code, Some(0));
    assert_eq!(names(&service), STEPS);
    for step in service.steps() {
        assert_eq!(step.outcome, "done", "{step:?}");
    }
}

#[tokio::test]
async fn sigint_does_the_same() {
    let world = World::new().await;
    let service = world.serve().await;
    service.signal(Signal::INT);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert_eq!(names(&service), STEPS);
}

#[tokio::test]
async fn the_phases_go_one_way_and_say_what_began_the_stop() {
    let world = World::new().await;
    let service = world.serve().await;
    service.stop().await;
    assert_eq!(service.phases(), ["starting", "ready", "draining", "stopping", "stopped"]);
    let draining = service.logged("phase").into_iter().find(|line| line["phase"] == "draining");
    let trigger = draining.map(|line| line["trigger"].to_string()).unwrap_or_default();
    assert!(trigger.to_lowercase().contains("sigterm"), "{trigger}");
}

#[tokio::test]
async fn every_step_keeps_to_the_budget_that_the_settings_give_it() {
    let world = World::new().await;
    let service =
        world.service().set("lifecycle.drain_delay", "300ms").set("lifecycle.drain_workers", "3s").ready().await;
    let asked = Instant::now();
    service.stop().await;
    assert_eq!(service.step("drain_workers").budget, s(3));
    assert_eq!(service.step("drain_http").budget, s(5));
    assert_eq!(service.step("database_pool").budget, s(2));
    let delay = service.step("drain_delay");
    assert!(delay.at - asked >= ms(300) && delay.took < ms(600), "{delay:?}");
}

#[tokio::test]
async fn no_backend_of_ours_is_left() {
    let world = World::new().await;
    let service = world.serve().await;
    assert!(world.database.backends().await > 0, "it had some");
    assert_eq!(service.stop().await.code, Some(0));
    eventually("its backends are gone", s(1), async || world.database.backends().await == 0).await;
}

#[tokio::test]
async fn during_the_delay_it_is_unready_and_answers_everything() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "2s").ready().await;
    let mut kept = Raw::connect(service.http().await).await;
    service.signal(Signal::TERM);
    service.phase("draining").await;
    assert_eq!(service.probe("/readyz").await.status, 503);
    assert_eq!(service.probe("/readyz").await.json()["phase"], "draining");
    assert_eq!(service.probe("/livez").await.status, 200);
    assert_eq!(service.get("/openapi.json").await.status, 200, "on a new connection");
    kept.get("/openapi.json").await;
    let reply = kept.reply().await;
    assert_eq!(reply.status, 200, "on one from before");
    assert_eq!(reply.header("connection").to_lowercase(), "close");
    assert_eq!(kept.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn idle_connections_do_not_hold_it_up() {
    let world = World::new().await;
    // Half a head is waited for as long as at any other time.
    let service = world.service().set("http.header_timeout", "1s").ready().await;
    let address = service.http().await;
    let (mut silent, mut idle, mut half) =
        (Raw::connect(address).await, Raw::connect(address).await, Raw::connect(address).await);
    idle.get("/openapi.json").await;
    idle.reply().await;
    half.write("GET /openapi.json HTTP/1.1\r\nho").await;
    let asked = Instant::now();
    let exit = service.stop().await;
    assert_eq!(exit.code, Some(0));
    assert!(exit.at - asked < s(7), "{:?}", exit.at - asked);
    assert_eq!(silent.ends().await, End::Clean);
    assert_eq!(idle.ends().await, End::Clean);
    // It may be told that it was too slow before it ends.
    half.rest().await;
}

#[tokio::test]
async fn a_second_sigterm_joins_the_stop() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "1s").ready().await;
    let began = Instant::now();
    // as process managers do, to the group and to the process
    for _ in 0..3 {
        service.signal(Signal::TERM);
        tokio::time::sleep(ms(30)).await;
    }
    service.phase("draining").await;
    assert_eq!(service.get("/openapi.json").await.status, 200, "it still serves");
    let exit = service.exit(s(10)).await;
    assert_eq!(exit.code, Some(0));
    assert!(exit.at - began >= s(1), "{:?}", exit.at - began);
    assert_eq!(names(&service), STEPS);
}

#[tokio::test]
async fn one_sigint_after_sigterm_joins_the_stop() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "1s").ready().await;
    service.signal(Signal::TERM);
    service.phase("draining").await;
    service.signal(Signal::INT);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert_eq!(names(&service), STEPS);
}

#[tokio::test]
async fn a_second_sigint_exits_at_once_with_130() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "10s").ready().await;
    service.signal(Signal::INT);
    service.phase("draining").await;
    let asked = Instant::now();
    service.signal(Signal::INT);
    let exit = service.exit(s(5)).await;
    assert_eq!(exit.code, Some(130));
    assert!(exit.at - asked < ms(500), "{:?}", exit.at - asked);
}

#[tokio::test]
async fn sighup_ends_nothing_and_says_which_setting_changed() {
    let world = World::new().await;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let write = |text: &str| std::fs::write(file.path(), text).expect("it can be written");
    write("[http]\nmax_in_flight = 100\n");
    let service = world.service().env("APP_CONFIG", file.path().display()).ready().await;
    write("[http]\nmax_in_flight = 200\n");
    service.signal(Signal::HUP);
    let changed = async || service.logged("setting has changed").pop();
    let changed = eventually("the change is named", s(5), changed).await;
    assert_eq!(changed["setting"], "http.max_in_flight");
    assert_eq!((&changed["from"], &changed["to"]), (&"100".into(), &"200".into()));
    write("[http]\nmax_in_flight = -1\n");
    service.signal(Signal::HUP);
    let refused = async || service.logged("settings are not read again").pop();
    let refused = eventually("what is wrong is named", s(5), refused).await;
    assert!(refused["error"].to_string().contains("http.max_in_flight"), "{refused}");
    always("it serves", ms(300), async || service.get("/openapi.json").await.status == 200).await;
    assert_eq!(service.phases(), ["starting", "ready"]);
    assert_eq!(service.stop().await.code, Some(0));
}

#[tokio::test]
async fn past_its_deadline_it_is_gone_and_has_said_what_was_left() {
    let world = World::new().await;
    let mut launch = world.service().set("lifecycle.drain_delay", "2s").set("lifecycle.deadline", "3s");
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

#[tokio::test]
async fn a_signal_that_is_not_about_stopping_changes_nothing() {
    let world = World::new().await;
    let service = world.serve().await;
    service.signal(Signal::PIPE);
    service.signal(Signal::CHILD);
    always("it serves", ms(300), async || service.get("/openapi.json").await.status == 200).await;
}
