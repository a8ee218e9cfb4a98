//! The log: one object a line, on standard output, which nobody has to read.

use hyper::Method;

use crate::support::{Connection, Output, Raw, Signal, With, World, eventually, get, request, s};

#[tokio::test]
async fn every_line_is_a_json_object_with_the_same_four_fields() {
    let world = World::new().await;
    let service = world.serve().await;
    service.get("/openapi.json").await;
    service.stop().await;
    let lines = service.text(false);
    assert_eq!(service.log().len(), lines.lines().count(), "{lines}");
    for entry in service.log() {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(entry[field].is_string(), "no {field}: {entry:?}");
        }
    }
    assert_eq!(service.text(true), "", "standard error is for what happens before there is a log");
}

#[tokio::test]
async fn a_request_is_one_line() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = service.send(request(Method::DELETE, "/nowhere?secret=1").with("x-request-id", "mine-7")).await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.header("x-request-id"), "mine-7", "it goes back out");
    let lines =
        eventually("the line", s(5), async || Some(service.logged("request")).filter(|lines| !lines.is_empty()));
    let lines = lines.await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!(line["method"], "DELETE");
    assert_eq!(line["path"], "/nowhere", "without its query, which may hold anything");
    assert_eq!(line["status"], 404);
    assert_eq!(line["request_id"], "mine-7");
    assert!(line["duration"].as_f64().is_some_and(|seconds| seconds < 5.0), "{line:?}");
    assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1")), "{line:?}");
    assert!(line["version"].to_string().contains("1.1"), "{line:?}");
}

#[tokio::test]
async fn a_line_of_a_traced_request_names_the_trace() {
    let world = World::new().await;
    let service = world.serve().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traced = get("/nowhere").with("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    service.send(traced.with("x-request-id", "mine-8")).await;
    service.send(get("/nowhere").with("x-request-id", "mine-9").with("traceparent", "00-nonsense")).await;
    let line = eventually("the lines", s(5), async || {
        let lines = service.logged("request");
        (lines.len() == 2).then_some(lines)
    });
    let lines = line.await;
    let of = |id: &str| lines.iter().find(|line| line["request_id"] == id).expect("each has its id");
    assert_eq!(of("mine-8")["trace_id"], trace);
    assert!(of("mine-9")["trace_id"].is_null(), "{:?}", of("mine-9"));
}

#[tokio::test]
async fn a_line_is_no_longer_than_a_container_runtime_takes() {
    let world = World::new().await;
    let service = world.serve().await;
    service.send(get(&format!("/{}", "a".repeat(4000)))).await;
    let lines =
        eventually("the line", s(5), async || Some(service.logged("request")).filter(|lines| !lines.is_empty())).await;
    let path = lines[0]["path"].as_str().expect("a path");
    assert!(path.starts_with("/aaa") && path.ends_with("(cut)") && path.len() < 1100, "{path}");
    assert!(service.text(false).lines().all(|line| line.len() < 16 * 1024));
}

#[tokio::test]
async fn a_level_for_one_module_leaves_the_others_alone() {
    let world = World::new().await;
    let service = world.service().env("RUST_LOG", "off,service::lifecycle=info").stdout(Output::Unread).ready().await;
    service.get("/openapi.json").await;
    let mut service = service;
    service.stop().await;
    let text = service.unread();
    assert!(text.contains("phase") && !text.contains("listening"), "{text}");
}

#[tokio::test]
async fn a_request_without_an_id_is_given_one() {
    let world = World::new().await;
    let service = world.serve().await;
    let (one, two) = (service.get("/openapi.json").await, service.get("/openapi.json").await);
    assert!(one.header("x-request-id").len() >= 16, "{one:?}");
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
}

#[tokio::test]
async fn an_unknown_path_is_a_problem_that_tells_nothing() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = service.send(get("/nowhere")).await;
    assert_eq!(reply.status, 404);
    reply.problem();
    assert_eq!(reply.header("server"), "", "no version in answers");
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let world = World::new().await;
    // The more it has to say, the sooner the pipe is full, and then the queue before it.
    let mut service = world.service().env("RUST_LOG", "trace").stdout(Output::Unread).ready().await;
    let mut connection = Connection::h1(service.http().await).await.expect("it accepts connections");
    let mut dropped = async || {
        for _ in 0..50 {
            let reply = connection.send(get("/openapi.json")).await.expect("it answers");
            assert_eq!(reply.status, 200);
        }
        service.metric("log_lines_dropped_total", &[("reason", "queue full")]).await > Some(0.0)
    };
    eventually("the pipe is full and lines are dropped", s(30), &mut dropped).await;
    assert_eq!(service.probe("/livez").await.status, 200);
    service.signal(Signal::TERM);
    let exit = service.exit(s(10)).await;
    assert!(exit.code == Some(0) || exit.code == Some(3), "{exit:?}");
    assert!(service.unread().contains("timestamp"), "what fitted is there");
}

#[tokio::test]
async fn a_log_whose_reader_has_gone_stops_nothing() {
    let world = World::new().await;
    let service = world.service().stdout(Output::Closed).ready().await;
    assert_eq!(service.get("/openapi.json").await.status, 200);
    assert_eq!(service.stop().await.code, Some(0));
}

#[tokio::test]
async fn people_may_have_it_pretty() {
    let world = World::new().await;
    let mut service = world.service().set("telemetry.log_format", "pretty").stdout(Output::Unread).ready().await;
    service.stop().await;
    let text = service.unread();
    assert!(text.contains("listening") && !text.contains("{\""), "{text}");
}

#[tokio::test]
async fn a_connection_can_be_followed_at_level_trace() {
    let world = World::new().await;
    let service = world.stand().env("RUST_LOG", "info,service::server=trace").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.get("/cheap").await;
    assert_eq!(raw.reply().await.status, 200);
    let peer = raw.stream.local_addr().expect("it is connected").to_string();
    assert_eq!(service.stop().await.code, Some(0));
    let lines: Vec<_> = service.log().into_iter().filter(|line| line["peer"] == peer.as_str()).collect();
    let phases: Vec<_> = lines.iter().filter_map(|line| line["phase"].as_str()).collect();
    assert!(phases.ends_with(&["head", "head read", "answering", "idle", "gone"]), "{lines:?}");
    assert!(lines.iter().any(|line| line["message"] == "closes: nothing is under way"), "{lines:?}");
}
