//! First byte, head, body, idle, request and write each have a bound, an answer where one can still be given, and a
//! counter. A byte now and then is not progress.

use std::time::Instant;

use super::{
    CHEAP, count, counted, echo, kept, post, slow,
    support::{End, Launch, Raw, Service, World, http2, http2::Http2, ms, narrow, os::cpu_time, s},
    timed_out,
};

/// Half a second for everything.
async fn strict(world: &World) -> Service {
    let launch = world.stand().set("http.header_timeout", "500ms").set("http.request_timeout", "500ms");
    launch.set("http.idle_timeout", "700ms").ready().await
}

/// That half second has passed since then, and not the five or ten it would be by default.
fn was_in_time(began: Instant) {
    let took = began.elapsed();
    assert!((ms(450)..ms(1200)).contains(&took), "{took:?}");
}

/// Writes a byte every 50 ms until there is an answer: its status.
async fn dribble(raw: &mut Raw, bytes: &str) -> u16 {
    for byte in bytes.bytes().cycle() {
        raw.write([byte]).await;
        if tokio::time::timeout(ms(50), raw.stream.readable()).await.is_ok() {
            break;
        }
    }
    raw.reply().await.status
}

#[tokio::test]
async fn a_first_byte_that_does_not_come_ends_the_connection() {
    let world = World::new().await;
    let service = strict(&world).await;
    let (began, mut raw) = (Instant::now(), Raw::connect(service.http().await).await);
    assert_eq!(raw.ends().await, End::Clean);
    was_in_time(began);
    timed_out(&service, "first_byte").await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_408() {
    let world = World::new().await;
    let service = strict(&world).await;
    let (began, mut raw) = (Instant::now(), Raw::connect(service.http().await).await);
    raw.write("GET / HTTP/1.1\r\nhost: te").await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (408, "close"));
    was_in_time(began);
    assert_eq!(raw.ends().await, End::Clean);
    timed_out(&service, "head").await;
}

#[tokio::test]
async fn a_byte_of_a_head_now_and_then_is_no_progress() {
    let world = World::new().await;
    let service = strict(&world).await;
    let (began, mut raw) = (Instant::now(), Raw::connect(service.http().await).await);
    assert_eq!(dribble(&mut raw, "GET / HTTP/1.1\r\nx: yyyyyyyyyyyyy").await, 408);
    was_in_time(began);
    timed_out(&service, "head").await;
}

#[tokio::test]
async fn a_byte_of_a_second_head_now_and_then_is_no_progress() {
    let world = World::new().await;
    let service = strict(&world).await;
    let (mut raw, began) = (kept(&service).await, Instant::now());
    assert_eq!(dribble(&mut raw, "GET / HTTP/1.1\r\nx: yyyyyyyyyyyyyyy").await, 408);
    was_in_time(began);
    timed_out(&service, "head").await;
}

#[tokio::test]
async fn a_head_has_its_whole_time_however_late_its_first_byte_comes() {
    let world = World::new().await;
    let service = world.stand().set("http.header_timeout", "3s").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    tokio::time::sleep(s(2)).await;
    // P may also be the beginning of HTTP/2.
    raw.write("P").await;
    tokio::time::sleep(s(2)).await;
    raw.write(&echo()[1..]).await;
    assert_eq!(raw.reply().await.status, 201);
}

#[tokio::test]
async fn half_an_http_2_preface_ends_the_connection() {
    let world = World::new().await;
    let service = strict(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(&http2::PREFACE[..20]).await;
    assert_eq!(raw.rest().await.1, End::Clean);
    timed_out(&service, "head").await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let world = World::new().await;
    let service = strict(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(post("/echo", "content-length: 100") + "{").await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (408, "close"));
    reply.problem();
    assert_eq!(raw.ends().await, End::Clean);
    timed_out(&service, "body").await;
}

#[tokio::test]
async fn a_byte_of_a_body_now_and_then_is_no_progress() {
    let world = World::new().await;
    let service = strict(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    let began = Instant::now();
    raw.write(post("/echo", "content-length: 60000")).await;
    assert_eq!(dribble(&mut raw, " ").await, 408);
    was_in_time(began);
    timed_out(&service, "body").await;
}

#[tokio::test]
async fn a_body_that_does_not_come_over_http_2_is_408() {
    let world = World::new().await;
    let service = strict(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.post_head(1, "/echo").await;
    let head = connection.until(|frame| frame.kind == http2::kind::HEADERS).await;
    assert_eq!(head.map(|head| head.status()), Ok(408));
    timed_out(&service, "body").await;
}

#[tokio::test]
async fn an_idle_connection_ends_with_fin() {
    let world = World::new().await;
    let service = strict(&world).await;
    let (began, mut raw) = (Instant::now(), kept(&service).await);
    assert_eq!(raw.ends().await, End::Clean);
    assert!((ms(650)..ms(1600)).contains(&began.elapsed()), "{:?}", began.elapsed());
    timed_out(&service, "idle").await;
}

#[tokio::test]
async fn an_idle_http_2_connection_is_told_to_go_away() {
    let world = World::new().await;
    let service = strict(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, CHEAP).await;
    connection.until(http2::Frame::ends_stream).await.expect("an answer");
    // Which is no request.
    connection.write(http2::kind::PING, 0, 0, &[7; 8]).await;
    let (frames, end) = connection.rest().await;
    assert!(frames.iter().any(|frame| frame.kind == http2::kind::GOAWAY), "{frames:?}");
    assert_eq!(end, End::Clean);
    timed_out(&service, "idle").await;
}

#[tokio::test]
async fn idle_connections_cost_no_time() {
    let world = World::alone().await;
    let service = world.stand().set("http.idle_timeout", "200ms").ready().await;
    let (mut plain, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        plain.push(Raw::connect(service.http().await).await);
        let mut connection = Http2::connect(service.http().await, &[]).await;
        connection.write(http2::kind::PING, 0, 0, &[7; 8]).await;
        connections.push(connection);
    }
    tokio::time::sleep(ms(500)).await;
    let (before, began) = (cpu_time(service.pid()), Instant::now());
    tokio::time::sleep(s(1)).await;
    let (used, passed) = (cpu_time(service.pid()) - before, began.elapsed());
    assert!(used < passed / 4, "{used:?} in {passed:?}");
}

#[tokio::test]
async fn an_idle_connection_outlasts_a_load_balancers() {
    let config = Launch::new().env("DATABASE_URL", "postgres://localhost/any").args(["config"]).run().await.stdout;
    let line = config.lines().find_map(|line| line.strip_prefix("idle_timeout = ")).expect("it has a default");
    assert!(["\"75s\"", "\"1m15s\""].contains(&line), "{line}");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_504() {
    let world = World::new().await;
    let service = strict(&world).await;
    let (began, mut raw) = (Instant::now(), Raw::connect(service.http().await).await);
    raw.write(slow(5000)).await;
    let reply = raw.reply().await;
    assert_eq!(reply.status, 504);
    reply.problem();
    was_in_time(began);
}

#[tokio::test]
async fn a_client_that_takes_no_bytes_of_its_answer_is_gone() {
    let world = World::new().await;
    let service = strict(&world).await;
    let mut raw = narrow(service.http().await).await;
    for _ in 0..3 {
        raw.get("/large").await;
    }
    let began = Instant::now();
    timed_out(&service, "write").await;
    assert!(began.elapsed() < s(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(format!("GET / HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n", "y".repeat(100_000))).await;
    assert_eq!(raw.reply().await.status, 431);
    assert_eq!(raw.ends().await, End::Clean);
    counted(&service, "http_server_bad_requests_total", &[], 1.0).await;
}

#[tokio::test]
async fn a_head_of_too_many_fields_is_431() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(format!("GET / HTTP/1.1\r\nhost: test\r\n{}\r\n", "x: y\r\n".repeat(1000))).await;
    assert_eq!(raw.reply().await.status, 431);
    assert_eq!(raw.ends().await, End::Clean);
    counted(&service, "http_server_bad_requests_total", &[], 1.0).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_and_the_answer_arrives() {
    let world = World::new().await;
    let service = world.stand().set("http.body_limit", "64KiB").ready().await;
    for headers in ["content-length: 4000000", "transfer-encoding: chunked"] {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(post("/echo", headers) + "3d0900\r\n" + &" ".repeat(300_000)).await;
        assert_eq!(raw.reply().await.status, 413, "{headers}");
        assert_eq!(raw.ends().await, End::Clean, "{headers}");
    }
    let status = ("http_response_status_code", "413");
    assert_eq!(count(&service, "http_server_request_duration_seconds_count", &[status]).await, 2.0);
}

#[tokio::test]
async fn what_is_no_http_is_400() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    for bytes in [
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "PRI * HTTP/1.1\r\n \r\n\r\n",
    ] {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(bytes).await;
        assert_eq!(raw.reply().await.status, 400, "{bytes:?}");
        assert_eq!(raw.ends().await, End::Clean);
    }
    counted(&service, "http_server_bad_requests_total", &[], 4.0).await;
}
