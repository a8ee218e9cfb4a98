//! Requests whose end is in doubt: whoever stands before the service may see another request than it does, so it
//! answers one, with 400, and ends the connection.

use super::{
    CHEAP, counted, post,
    support::{End, Raw, World},
};

/// What a smuggler would have the service take for a request of its own.
fn smuggled() -> String {
    format!("GET {CHEAP} HTTP/1.1\r\nhost: test\r\n\r\n")
}

/// A request with these headers and this body is answered 400, and nothing behind it is answered at all.
async fn is_refused(headers: &str, body: &str) {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(post("/echo", headers) + body + &smuggled()).await;
    assert_eq!(raw.reply().await.status, 400);
    assert_eq!(raw.ends().await, End::Clean);
    counted(&service, "http_server_bad_requests_total", &[], 1.0).await;
    assert!(service.logged("echo").is_empty(), "nor is it worked on");
}

#[tokio::test]
async fn two_lengths_that_differ_are_refused() {
    is_refused("content-length: 28\r\ncontent-length: 2", r#"{"text":"28 bytes of JSON."}"#).await;
}

#[tokio::test]
async fn a_list_of_lengths_that_differ_is_refused() {
    is_refused("content-length: 28, 2", r#"{"text":"28 bytes of JSON."}"#).await;
}

#[tokio::test]
async fn with_a_length_and_chunks_there_is_one_answer_and_no_more() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    for headers in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let mut raw = Raw::connect(service.http().await).await;
        let chunks = "1c\r\n{\"text\":\"28 bytes of JSON.\"}\r\n0\r\n\r\n";
        raw.write(post("/echo", headers) + chunks + &smuggled()).await;
        assert_eq!(raw.reply().await.header("connection"), "close");
        assert_eq!(raw.ends().await, End::Clean);
    }
    assert!(service.logged("request").iter().all(|line| line["method"] != "GET"), "what is behind it is not even read");
}

#[tokio::test]
async fn a_transfer_coding_that_is_not_chunked_at_its_end_is_refused() {
    is_refused("transfer-encoding: chunked, identity", "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_length_that_is_no_number_is_refused() {
    is_refused("content-length: +28", r#"{"text":"28 bytes of JSON."}"#).await;
}

#[tokio::test]
async fn a_space_before_the_colon_is_refused() {
    is_refused("transfer-encoding : chunked\r\ncontent-length: 28", r#"{"text":"28 bytes of JSON."}"#).await;
}

#[tokio::test]
async fn a_chunk_whose_size_is_no_number_is_refused() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(post("/echo", "transfer-encoding: chunked") + "0x1c\r\n{}\r\n0\r\n\r\n" + &smuggled()).await;
    assert_eq!(raw.reply().await.status, 400);
    assert_eq!(raw.ends().await, End::Clean);
}
