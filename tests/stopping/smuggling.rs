//! Requests whose end is in doubt: whoever stands before the service may see another request than it does, so it
//! answers one, with 400, and ends the connection.

use crate::{
    CHEAP, counted, post,
    support::{End, Raw},
    world,
};

/// What a smuggler would have the service take for a request of its own.
fn smuggled() -> String {
    format!("GET {CHEAP} HTTP/1.1\r\nhost: test\r\n\r\n")
}

/// A request with these headers and this body is answered 400, and nothing behind it is answered at all.
async fn is_refused(headers: &str, body: &str) {
    let stage = world().await;
    let service = stage.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(post("/v1/orders", headers) + body + &smuggled()).await;
    assert_eq!(raw.reply().await.status, 400);
    assert_eq!(raw.ends().await, End::Clean);
    counted(&service, "http_server_bad_requests_total", &[], 1.0).await;
    assert_eq!(stage.database.one::<i64>("SELECT count(*) FROM orders").await, 0);
}

#[tokio::test]
async fn two_lengths_that_differ_are_refused() {
    is_refused("content-length: 28\r\ncontent-length: 2", r#"{"sku":"SKU-1","quantity":1}"#).await;
}

#[tokio::test]
async fn a_list_of_lengths_that_differ_is_refused() {
    is_refused("content-length: 28, 2", r#"{"sku":"SKU-1","quantity":1}"#).await;
}

#[tokio::test]
async fn with_both_a_length_and_chunks_there_is_one_answer_and_no_next_request() {
    let stage = world().await;
    let service = stage.serve().await;
    for headers in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let mut raw = Raw::connect(service.http().await).await;
        let chunks = "1c\r\n{\"sku\":\"SKU-1\",\"quantity\":1}\r\n0\r\n\r\n";
        raw.write(post("/v1/orders", headers) + chunks + &smuggled()).await;
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
    is_refused("content-length: +28", r#"{"sku":"SKU-1","quantity":1}"#).await;
}

#[tokio::test]
async fn a_space_before_the_colon_is_refused() {
    is_refused("transfer-encoding : chunked\r\ncontent-length: 28", r#"{"sku":"SKU-1","quantity":1}"#).await;
}

#[tokio::test]
async fn a_chunk_whose_size_is_no_number_is_refused() {
    let stage = world().await;
    let service = stage.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(post("/v1/orders", "transfer-encoding: chunked") + "0x1c\r\n{}\r\n0\r\n\r\n" + &smuggled()).await;
    assert_eq!(raw.reply().await.status, 400);
    assert_eq!(raw.ends().await, End::Clean);
}
