//! Every known way to hurt a server, each again and again until it is aborted, at a pace that leaves the machine to both.

use std::{future::Future, net::SocketAddr};

use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    BIG, CHEAP, ms, post, s,
    support::http2::{self, END_HEADERS, END_STREAM, INITIAL_WINDOW_SIZE, PREFACE, field, frame, get_head, kind},
};

/// Begins all of them. Dropping the set ends them.
pub(crate) fn begin(public: SocketAddr, admin: SocketAddr) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for bytes in heads() {
        sends_and_waits(&mut all, public, 25, bytes);
    }
    for bytes in bodies() {
        sends_and_waits(&mut all, public, 10, bytes);
    }
    for bytes in http2_floods() {
        sends_and_waits(&mut all, public, 2, bytes);
    }
    for bytes in slow_readers() {
        sends_and_sips(&mut all, public, 10, bytes);
    }
    dribbles(&mut all, public, 25);
    hoards(&mut all, public, 300);
    hoards(&mut all, admin, 300);
    all
}

/// Each part is one client's whole conversation.
fn sends_and_waits(all: &mut JoinSet<()>, address: SocketAddr, clients: usize, bytes: Vec<u8>) {
    for _ in 0..clients {
        let bytes = bytes.clone();
        again(all, move || {
            let bytes = bytes.clone();
            async move {
                let Ok(mut stream) = TcpStream::connect(address).await else { return };
                let _ = timeout(s(2), write_all(&mut stream, &bytes)).await;
                let mut read = vec![0; 64 * 1024];
                let drain = async { while let Ok(1..) = stream.read(&mut read).await {} };
                let _ = timeout(s(2), drain).await;
            }
        });
    }
}

/// Takes a byte of the answer now and then.
fn sends_and_sips(all: &mut JoinSet<()>, address: SocketAddr, clients: usize, bytes: Vec<u8>) {
    for _ in 0..clients {
        let bytes = bytes.clone();
        again(all, move || {
            let bytes = bytes.clone();
            async move {
                let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
                socket.set_recv_buffer_size(4096).expect("it is new");
                let Ok(mut stream) = socket.connect(address).await else { return };
                let _ = timeout(s(2), write_all(&mut stream, &bytes)).await;
                while let Ok(1) = stream.read(&mut [0]).await {
                    sleep(ms(100)).await;
                }
            }
        });
    }
}

/// Writes a head a byte at a time.
fn dribbles(all: &mut JoinSet<()>, address: SocketAddr, clients: usize) {
    for _ in 0..clients {
        again(all, move || async move {
            let Ok(mut stream) = TcpStream::connect(address).await else { return };
            for byte in b"GET / HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'y')) {
                if write_all(&mut stream, &[*byte]).await.is_err() {
                    return;
                }
                sleep(ms(100)).await;
            }
        });
    }
}

/// Opens connections and does nothing with them until they are closed.
fn hoards(all: &mut JoinSet<()>, address: SocketAddr, clients: usize) {
    for _ in 0..clients {
        again(all, move || async move {
            let Ok(mut stream) = TcpStream::connect(address).await else { return };
            let _ = stream.read(&mut [0]).await;
        });
    }
}

fn again<F: Future<Output = ()> + Send + 'static>(all: &mut JoinSet<()>, attack: impl Fn() -> F + Send + 'static) {
    all.spawn(async move {
        loop {
            attack().await;
            sleep(ms(500)).await;
        }
    });
}

async fn write_all(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    tokio::io::AsyncWriteExt::write_all(stream, bytes).await
}

/// What is sent instead of a head, or as one.
fn heads() -> Vec<Vec<u8>> {
    [
        "garbage\r\n\r\n".to_owned(),
        "\r\n".repeat(50_000),
        "GET / HTTP/1.1\r\nhost: te".to_owned(),
        format!("GET {CHEAP} HTTP/1.1\r\n\r\n"),
        format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(30_000)).repeat(5),
        format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(60_000)),
        format!("GET / HTTP/1.1\r\nhost: a\r\n{}", "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(3000)),
        format!("GET {CHEAP} HTTP/1.1\r\nhost: a\r\n\r\n").repeat(100),
        String::from_utf8_lossy(&PREFACE[..20]).into_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// Bodies that do not come, or come in pieces.
fn bodies() -> Vec<Vec<u8>> {
    [
        post("content-length: 60000") + "{",
        post("content-length: 60000") + &"\r\n\r\n".repeat(14_000),
        post("content-length: 60000") + &"\r\n\r\n".repeat(15_000),
        post("transfer-encoding: chunked") + &"1\r\n\n\r\n".repeat(2000),
        post("transfer-encoding: chunked") + "ffffffffffffffff\r\n",
        post("content-length: 262144") + &"\r\n\r\n".repeat(65_536),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// What no HTTP/2 client would send.
fn http2_floods() -> Vec<Vec<u8>> {
    let begin = [PREFACE, &frame(kind::SETTINGS, 0, 0, &[])].concat();
    let no_window = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &[0; 4]].concat();
    let get = |stream| frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, &get_head(CHEAP));
    let reset = |stream| [get(stream), frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat();
    let stalled = |stream| frame(kind::HEADERS, END_HEADERS, stream, &get_head(CHEAP));
    let streams = |of: &dyn Fn(u32) -> Vec<u8>, count: u32| (0..count).flat_map(|n| of(2 * n + 1)).collect::<Vec<_>>();
    let mut bomb = get_head(CHEAP);
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let fields = field("x", &"y".repeat(120)).repeat(100);
    [
        streams(&reset, 5000),
        streams(&stalled, 200),
        [frame(kind::SETTINGS, 0, 0, &no_window), streams(&get, 200)].concat(),
        [frame(kind::HEADERS, END_STREAM, 1, &get_head(CHEAP)), frame(kind::CONTINUATION, 0, 1, &fields).repeat(100)]
            .concat(),
        [frame(kind::HEADERS, END_STREAM, 1, &get_head(CHEAP)), frame(kind::CONTINUATION, 0, 1, &[]).repeat(10_000)]
            .concat(),
        frame(kind::PING, 0, 0, &[0; 8]).repeat(5000),
        frame(kind::SETTINGS, 0, 0, &[]).repeat(5000),
        frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(5000),
        frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &bomb),
        [stalled(1), frame(kind::DATA, 0, 1, b"x").repeat(5000)].concat(),
        [stalled(1), frame(kind::DATA, 0, 1, b"").repeat(5000)].concat(),
        frame(0x77, 0xff, 7, &[0; 100]).repeat(1000),
        get(2),
        http2::frame(kind::GOAWAY, 0, 0, &[0; 8]),
    ]
    .map(|flood| [&begin[..], &flood].concat())
    .to_vec()
}

/// What has a long answer, or one without end.
fn slow_readers() -> Vec<Vec<u8>> {
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    let upgrade = format!("{upgrade}sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    [
        get(BIG, "").repeat(3).into_bytes(),
        get("/v1/orders?limit=50", "").repeat(50).into_bytes(),
        get("/v1/orders/events", "last-event-id: 0\r\n").into_bytes(),
        (get("/v1/orders/events", "") + &"\0".repeat(100_000)).into_bytes(),
        get("/v1/orders/ws?after=0", &upgrade).into_bytes(),
        [get("/v1/orders/ws", &upgrade).as_bytes(), &[0x89, 0x80, 0, 0, 0, 0].repeat(10_000)].concat(),
    ]
    .to_vec()
}
