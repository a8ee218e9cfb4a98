//! Requests as RFC 9110 and 9112 want them told apart, and as a client may write them.

use crate::{
    CHEAP, count, flood, ms, order, post, s, serves,
    support::{Connection, End, Raw, Signal, World, get},
};

/// Whether nothing is said for that long.
async fn silent(raw: &Raw, milliseconds: u64) -> bool {
    tokio::time::timeout(ms(milliseconds), raw.stream.peek(&mut [0])).await.is_err()
}

#[tokio::test]
async fn an_empty_line_behind_a_body_is_nothing() {
    let world = World::new().await;
    let service = world.service().set("http.header_timeout", "500ms").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    for line in ["\r\n", "\n", "\r\n\r\n"] {
        raw.write(order() + line).await;
        assert_eq!(raw.reply().await.status, 201);
        assert!(silent(&raw, 1500).await, "{line:?} is no head");
    }
    for byte in ["\r", "\n"] {
        raw.write(byte).await;
        assert!(silent(&raw, 700).await, "{byte:?} is no head");
    }
    raw.get(CHEAP).await;
    assert_eq!(raw.reply().await.status, 200);
}

#[tokio::test]
async fn an_empty_line_before_the_first_request_is_nothing() {
    let world = World::new().await;
    let service = world.serve().await;
    for lines in ["\r\n", "\n", "\r\n\r\n\r\n"] {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(lines).await;
        tokio::time::sleep(ms(50)).await;
        raw.get(CHEAP).await;
        assert_eq!(raw.reply().await.status, 200, "{lines:?}");
    }
}

#[tokio::test]
async fn empty_lines_without_end_hold_no_stop_up() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    let address = service.http().await;
    let flooding = tokio::spawn(async move {
        let (mut slow, lines) = (Raw::connect(address).await, b"\r\n".repeat(10_000));
        tokio::join!(flood(&mut raw, &lines, 10_000), async {
            for _ in 0..500 {
                slow.write("\r\n").await;
                tokio::time::sleep(ms(20)).await;
            }
        });
    });
    tokio::time::sleep(ms(500)).await;
    serves(&service).await;
    service.signal(Signal::TERM);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    flooding.abort();
}

#[tokio::test]
async fn http_1_1_without_one_good_host_is_400() {
    let world = World::new().await;
    let service = world.serve().await;
    for host in [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a\r\nhost: b\r\n",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: user@a\r\n",
        "host: a:b\r\n",
        "host: a:1:2\r\n",
        "host: a, b\r\n",
        "host: [::1\r\n",
        "host: a\x01b\r\n",
    ] {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(format!("GET {CHEAP} HTTP/1.1\r\n{host}\r\n")).await;
        assert_eq!(raw.reply().await.status, 400, "{host:?}");
    }
    for host in
        ["host: a\r\n", "host:\r\n", "host: a:80\r\n", "host: [::1]:80\r\n", "host: 127.0.0.1\r\n", "host: a:\r\n"]
    {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(format!("GET {CHEAP} HTTP/1.1\r\n{host}\r\n")).await;
        assert_eq!(raw.reply().await.status, 200, "{host:?}");
    }
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(format!("GET {CHEAP} HTTP/1.0\r\n\r\n")).await;
    assert_eq!(raw.reply().await.status, 200, "HTTP/1.0 has none");
}

/// An order in chunks, with trailers.
fn chunked() -> String {
    post("transfer-encoding: chunked") + "c\r\n{\"sku\":\"SKU-\r\n10;x=y\r\n1\",\"quantity\":1}\r\n0\r\nx: y\r\n\r\n"
}

#[tokio::test]
async fn requests_behind_a_chunked_body_are_answered() {
    let world = World::new().await;
    let service = world.serve().await;
    let all = [chunked(), order(), chunked(), format!("GET {CHEAP} HTTP/1.1\r\nhost: a\r\n\r\n")].concat();
    for piece in [all.len(), 7, 1] {
        let mut raw = Raw::connect(service.http().await).await;
        for bytes in all.as_bytes().chunks(piece) {
            raw.write(bytes).await;
        }
        for status in [201, 201, 201, 200] {
            assert_eq!(raw.reply().await.status, status, "in pieces of {piece}");
        }
    }
}

#[tokio::test]
async fn requests_behind_a_chunked_body_are_answered_at_the_stop() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "0s").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.get(CHEAP).await;
    assert_eq!(raw.reply().await.status, 200);
    // frozen, so that all of it is there when the stop begins
    service.signal(Signal::STOP);
    raw.write([chunked(), chunked(), format!("GET {CHEAP} HTTP/1.1\r\nhost: a\r\n\r\n")].concat()).await;
    service.signal(Signal::TERM);
    service.signal(Signal::CONT);
    for status in [201, 201, 200] {
        let reply = raw.reply().await;
        assert_eq!((reply.status, reply.header("connection") == "close"), (status, status == 200));
    }
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn methods_that_a_client_makes_up_make_no_metric() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    for number in 0..100 {
        raw.write(format!("EVIL{number} {CHEAP} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!(raw.reply().await.status, 405);
        raw.get(&format!("/evil{number}")).await;
        assert_eq!(raw.reply().await.status, 404);
    }
    assert!(!service.probe("/metrics").await.text().to_lowercase().contains("evil"));
}

#[tokio::test]
async fn a_target_in_any_form_has_an_answer() {
    let world = World::new().await;
    let service = world.serve().await;
    for (line, status) in [
        (format!("GET http://a{CHEAP} HTTP/1.1"), 200),
        ("OPTIONS * HTTP/1.1".to_owned(), 404),
        ("CONNECT a:80 HTTP/1.1".to_owned(), 404),
        (format!("TRACE {CHEAP} HTTP/1.1"), 405),
        (format!("HEAD {CHEAP} HTTP/1.1"), 200),
        (format!("GET {CHEAP}%2f%00%ff HTTP/1.1"), 400),
        (format!("GET /{} HTTP/1.1", "a/".repeat(30_000)), 404),
        (format!("GET {CHEAP}#fragment HTTP/1.1"), 200),
    ] {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(format!("{line}\r\nhost: a\r\n\r\n")).await;
        let head = raw.head().await;
        assert_eq!(head.status, status, "{:.60}", line);
        serves(&service).await;
    }
    assert_eq!(
        count(&service, "http_server_request_duration_seconds_count", &[("http_response_status_code", "500")]).await,
        0.0
    );
}

#[tokio::test]
async fn a_head_and_a_304_have_no_body() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    for _ in 0..2 {
        raw.write(format!("HEAD {CHEAP} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let head = raw.head().await;
        assert_eq!((head.status, head.header("content-length").is_empty()), (200, false));
    }
    let mut connection = Connection::h1(service.http().await).await.expect("it accepts");
    assert!(!connection.send(get(CHEAP)).await.expect("an answer").header("date").is_empty());
}
