//! More than it can do: what it takes on it does as well as ever, and the rest is told at once.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    CHEAP, count, counted, kept, patient, slow,
    support::{
        Connection, End, Launch, Raw, Service, Sse, WebSocket, World, always, eventually, get,
        http2::{END_HEADERS, END_STREAM, Http2, INITIAL_WINDOW_SIZE, frame, get_head, kind},
        ms, s,
    },
    under_way,
};

/// One that has its first byte answered only when a place is free.
async fn waits(raw: &mut Raw) {
    raw.get(CHEAP).await;
    let early = tokio::time::timeout(ms(400), raw.stream.peek(&mut [0])).await;
    assert!(early.is_err(), "the listener should wait");
}

async fn with_two_connections(world: &World) -> Service {
    world.stand().set("http.max_connections", 2).ready().await
}

#[tokio::test]
async fn over_max_connections_the_longest_idle_makes_room() {
    let world = World::new().await;
    let service = with_two_connections(&world).await;
    let mut longest = kept(&service).await;
    let mut other = kept(&service).await;
    let mut third = kept(&service).await;
    assert_eq!(longest.ends().await, End::Clean);
    assert_eq!(service.probe("/readyz").await.status, 200);
    assert_eq!(count(&service, "http_server_evicted_total", &[("server", "http")]).await, 1.0);
    for raw in [&mut other, &mut third] {
        raw.get(CHEAP).await;
        assert_eq!(raw.reply().await.status, 200);
    }
}

#[tokio::test]
async fn over_max_connections_a_busy_one_is_left_alone() {
    let world = World::new().await;
    let service = world.stand().set("http.max_connections", 2).ready().await;
    let mut busy = [Raw::connect(service.http().await).await, Raw::connect(service.http().await).await];
    for (raw, milliseconds) in busy.iter_mut().zip([2000, 2001]) {
        raw.write(slow(milliseconds)).await;
        under_way(&service, milliseconds).await;
    }
    let mut third = Raw::connect(service.http().await).await;
    waits(&mut third).await;
    assert_eq!(service.probe("/livez").await.status, 200);
    assert_eq!(third.reply().await.status, 200, "it takes the place of the first that is done");
    for raw in &mut busy {
        assert_eq!(raw.reply().await.status, 201);
    }
}

#[tokio::test]
async fn who_waits_for_a_connections_place_is_answered_at_the_stop() {
    let world = World::new().await;
    let service = with_two_connections(&world).await;
    let _events = Sse::open(service.http().await, "/events", None).await;
    let _more = Sse::open(service.http().await, "/events", None).await;
    let mut third = Raw::connect(service.http().await).await;
    waits(&mut third).await;
    super::drain(&service).await;
    assert_eq!(third.reply().await.status, 200);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn streams_count_among_the_connections() {
    let world = World::new().await;
    let service = with_two_connections(&world).await;
    let _events = Sse::open(service.http().await, "/events", None).await;
    let socket = WebSocket::open(service.http().await, "/ws").await;
    let mut third = Raw::connect(service.http().await).await;
    waits(&mut third).await;
    drop(socket);
    assert_eq!(third.reply().await.status, 200);
}

#[tokio::test]
async fn over_max_in_flight_it_is_503_within_milliseconds() {
    let world = World::new().await;
    let launch = world.stand().set("http.max_in_flight", 2);
    let service = launch.ready().await;
    let mut busy = [Raw::connect(service.http().await).await, Raw::connect(service.http().await).await];
    for (raw, milliseconds) in busy.iter_mut().zip([4000, 4001]) {
        raw.write(slow(milliseconds)).await;
        under_way(&service, milliseconds).await;
    }
    let mut third = Raw::connect(service.http().await).await;
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let asked = Instant::now();
        third.get(CHEAP).await;
        let reply = third.reply().await;
        quickest = quickest.min(asked.elapsed());
        assert_eq!((reply.status, reply.header("retry-after")), (503, "1"));
        reply.problem();
    }
    assert!(quickest < ms(20), "{quickest:?}");
    counted(&service, "http_server_shed_total", &[("reason", "max_in_flight")], 5.0).await;
    for raw in &mut busy {
        assert_eq!(raw.reply().await.status, 201);
    }
    super::serves(&service).await;
}

#[tokio::test]
async fn streams_take_no_place_among_the_requests() {
    let world = World::new().await;
    let service = world.stand().set("http.max_in_flight", 1).ready().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(Sse::open(service.http().await, "/events", None).await);
    }
    let _socket = WebSocket::open(service.http().await, "/ws").await;
    assert_eq!(service.get(CHEAP).await.status, 200);
}

#[tokio::test]
async fn streams_are_not_ended_by_the_request_timeout() {
    let world = World::new().await;
    let service = world.stand().set("http.request_timeout", "2s").ready().await;
    let mut events = Sse::open(service.http().await, "/events", None).await;
    let mut socket = WebSocket::open(service.http().await, "/ws").await;
    tokio::time::sleep(ms(2500)).await;
    let echo = service.post("/echo", &serde_json::json!({})).await.json();
    assert_eq!(events.next().await.expect("an event").json()["id"], echo["id"]);
    assert_eq!(socket.next().await.expect("a message")["id"], echo["id"]);
}

#[tokio::test]
async fn http_2_clients_that_take_no_bytes_do_not_keep_their_places() {
    let world = World::new().await;
    let launch = world.stand().set("http.max_in_flight", 5).set("http.request_timeout", "500ms");
    let service = launch.ready().await;
    let mut connection = Http2::connect(service.http().await, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    // A stream that goes on excuses no other.
    connection.get(1, "/events").await;
    connection.widen(1, 1000).await;
    connection.until(|frame| frame.kind == kind::DATA).await.expect("it goes on");
    // All at once: half a second after the first it is told to go away.
    let get = |stream| frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, &get_head(CHEAP));
    connection.raw(&[3, 5, 7, 9, 11].map(get).concat()).await;
    for _ in 0..5 {
        let head = connection.until(|frame| frame.kind == kind::HEADERS).await;
        assert_eq!(head.map(|head| head.status()), Ok(200));
    }
    // It still answers PINGs, as any client library does.
    let polite = tokio::spawn(async move { connection.rest().await });
    eventually("others are served", s(5), async || service.get(CHEAP).await.status == 200).await;
    super::timed_out(&service, "write").await;
    polite.abort();
}

/// What came of a load.
#[derive(Debug, Default)]
struct Load {
    accepted: Vec<Duration>,
    shed: Vec<Duration>,
}

impl Load {
    fn count(&mut self, status: u16, took: Duration) {
        match status {
            201 => self.accepted.push(took),
            503 => self.shed.push(took),
            other => panic!("answered {other}"),
        }
    }

    fn p99(of: &mut [Duration]) -> Duration {
        of.sort_unstable();
        of[(of.len() * 99).div_ceil(100) - 1]
    }
}

/// Asks for an answer that takes 100 ms at this rate, whether or not earlier ones are answered.
async fn at_a_rate(address: SocketAddr, per_second: u32, seconds: u64) -> Load {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    let (mut load, mut requests) = (Load::default(), JoinSet::new());
    let end = Instant::now() + s(seconds);
    while Instant::now() < end {
        tokio::select! {
            _ = ticks.tick() => {
                requests.spawn(async move {
                    let asked = Instant::now();
                    let mut raw = Raw::connect(address).await;
                    raw.write(slow(100)).await;
                    (raw.reply().await.status, asked.elapsed())
                });
            }
            Some(done) = requests.join_next() => { let (status, took) = done.expect("no panic"); load.count(status, took); }
        }
    }
    while let Some(done) = requests.join_next().await {
        let (status, took) = done.expect("no panic");
        load.count(status, took);
    }
    load
}

/// How many such requests are answered to so many clients who each send the next when they have an answer.
async fn at_its_best(address: SocketAddr, clients: usize, seconds: u64) -> usize {
    let end = Instant::now() + s(seconds);
    let mut sending = JoinSet::new();
    for _ in 0..clients {
        sending.spawn(async move {
            let (mut raw, mut answered) = (Raw::connect(address).await, 0);
            while Instant::now() < end {
                raw.write(slow(100)).await;
                assert_eq!(raw.reply().await.status, 201);
                answered += 1;
            }
            answered
        });
    }
    sending.join_all().await.into_iter().sum()
}

/// Eight places for requests of 100 ms: it can carry 80 a second.
fn eighty_a_second(world: &World) -> Launch {
    world.stand().set("http.max_in_flight", 8)
}

#[tokio::test(flavor = "multi_thread")]
async fn at_twice_the_load_it_does_nine_tenths_of_its_best() {
    let world = World::alone().await;
    let service = eighty_a_second(&world).ready().await;
    let address = service.http().await;
    let mut unloaded = at_a_rate(address, 20, 2).await;
    let best = at_its_best(address, 8, 3).await;
    let mut overloaded = at_a_rate(address, 160, 3).await;
    println!("{} accepted of a best of {best}, {} shed", overloaded.accepted.len(), overloaded.shed.len());
    assert!(unloaded.shed.is_empty(), "{} shed", unloaded.shed.len());
    assert!(overloaded.accepted.len() * 10 >= best * 9, "{} of {best}", overloaded.accepted.len());
    let (calm, busy) = (Load::p99(&mut unloaded.accepted), Load::p99(&mut overloaded.accepted));
    println!("p99 {calm:?} unloaded, {busy:?} at twice the load; shed {:?}", Load::p99(&mut overloaded.shed));
    assert!(busy < calm * 3, "p99 {busy:?} after {calm:?}");
}

#[tokio::test]
async fn after_an_overload_all_is_as_before() {
    let world = World::new().await;
    let service = eighty_a_second(&world).ready().await;
    at_a_rate(service.http().await, 200, 1).await;
    let in_flight = async || count(&service, "in_flight", &[("kind", "http")]).await;
    eventually("nothing is in flight", s(5), async || in_flight().await == 0.0).await;
    always("it serves", ms(300), async || service.get(CHEAP).await.status == 200).await;
    assert_eq!(patient(&world).await.get(CHEAP).await.status, 200);
    let mut connection = Connection::h2(service.http().await).await.expect("it accepts");
    assert_eq!(connection.send(get(CHEAP)).await.expect("an answer").status, 200);
}
