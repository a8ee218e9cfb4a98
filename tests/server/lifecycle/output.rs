//! Standard output that nobody takes: it serves, and it stops in time.

use super::{
    CHEAP, serves,
    support::{Output, World, eventually, s},
};

#[tokio::test]
async fn with_its_output_closed_it_serves_and_stops() {
    let world = World::new().await;
    let service = world.stand().stdout(Output::Closed).ready().await;
    for _ in 0..20 {
        serves(&service).await;
    }
    assert_eq!(service.stop().await.code, Some(0));
}

#[tokio::test]
async fn with_its_output_a_pipe_that_nobody_reads_it_serves_and_stops() {
    let world = World::new().await;
    let service = world.stand().stdout(Output::Unread).ready().await;
    let mut connection = super::support::Connection::h2(service.http().await).await.expect("it accepts");
    eventually("the pipe is full and lines are dropped", s(30), async || {
        for _ in 0..200 {
            assert_eq!(connection.send(super::support::get(CHEAP)).await.expect("an answer").status, 200);
        }
        super::count(&service, "log_lines_dropped_total", &[("reason", "queue full")]).await > 0.0
    })
    .await;
    serves(&service).await;
    let asked = std::time::Instant::now();
    let exit = service.stop().await;
    assert_eq!(exit.code, Some(0));
    assert!(exit.at - asked < s(4), "{:?}", exit.at - asked);
}
