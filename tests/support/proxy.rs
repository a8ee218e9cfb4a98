//! A TCP proxy to put before a dependency, and to break.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// Bytes go through, each so much later.
    Pass(Duration),
    /// Connections are closed, and new ones refused by the kernel: the server's machine is up, the server is not.
    Refuse,
    /// Connections are reset, new ones as soon as they are accepted.
    Reset,
    /// Connections stay, new ones are accepted, and nothing goes through: a network that drops packets.
    Blackhole,
}

/// A proxy between the service and a dependency. It runs apart from the test, so a test that blocks does not stop it.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    server: watch::Sender<(String, u16)>,
    task: JoinHandle<()>,
    accepted: Arc<AtomicUsize>,
    /// Bound and never listening: keeps the port ours while connections to it are refused.
    _port: Socket,
}

impl Proxy {
    /// One that passes everything on to `server`, a host and a port.
    pub(crate) fn before(server: (String, u16)) -> Self {
        let port = bind(([127, 0, 0, 1], 0).into());
        let address = port.local_addr().ok().and_then(|address| address.as_socket()).expect("it is bound");
        let (mode, modes) = watch::channel(Mode::Pass(Duration::ZERO));
        let (server, servers) = watch::channel(server);
        let listener = listen(address);
        let accepted = Arc::new(AtomicUsize::new(0));
        let task = runtime().spawn(run(listener, address, servers, modes, Arc::clone(&accepted)));
        Self { address, mode, server, task, accepted, _port: port }
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Passes new connections on to another server; those that are open stay where they are.
    pub(crate) fn redirect(&self, server: (String, u16)) {
        self.server.send_replace(server);
    }

    /// Heals it. What a blackhole held back arrives.
    pub(crate) fn pass(&self) {
        self.mode.send_replace(Mode::Pass(Duration::ZERO));
    }

    /// Passes everything on so much later.
    pub(crate) fn slow(&self, late: Duration) {
        self.mode.send_replace(Mode::Pass(late));
    }

    /// Closes what is open and refuses what comes.
    pub(crate) fn refuse(&self) {
        self.mode.send_replace(Mode::Refuse);
    }

    /// Resets what is open and what comes.
    pub(crate) fn reset(&self) {
        self.mode.send_replace(Mode::Reset);
    }

    /// Passes nothing on, and says nothing about it.
    pub(crate) fn blackhole(&self) {
        self.mode.send_replace(Mode::Blackhole);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All proxies' runtime.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("proxies").enable_all().build();
        runtime.expect("a runtime starts")
    })
}

/// Two sockets can have the port, as long as only one of them listens.
fn bind(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
    socket.set_reuse_address(true).and_then(|()| socket.set_reuse_port(true)).expect("Linux has both options");
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = bind(address);
    socket.listen(1024).expect("a bound socket listens");
    let _runtime = runtime().enter();
    TcpListener::from_std(socket.into()).expect("it does not block")
}

async fn run(
    listener: TcpListener,
    address: SocketAddr,
    servers: watch::Receiver<(String, u16)>,
    mut modes: watch::Receiver<Mode>,
    count: Arc<AtomicUsize>,
) {
    let mut listener = Some(listener);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Refuse => listener = None,
            _ if listener.is_none() => listener = Some(listen(address)),
            _ => {}
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            accepted = accept => if let Ok((client, _)) = accepted {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connect(client, servers.borrow().clone(), modes.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its first byte to its end.
async fn connect(client: TcpStream, server: (String, u16), mut modes: watch::Receiver<Mode>) {
    let cut = async |client: &TcpStream| {
        // Without this the peer would see a clean end, unless it happened to have sent something unread.
        let _ = client.set_zero_linger();
    };
    let opened = tokio::select! {
        _ = broken(modes.clone()) => None,
        opened = async {
            let _ = modes.wait_for(|mode| matches!(mode, Mode::Pass(_))).await;
            TcpStream::connect((server.0.as_str(), server.1)).await.ok()
        } => opened,
    };
    let Some(upstream) = opened else {
        return cut(&client).await;
    };
    let _ = client.set_nodelay(true).and_then(|()| upstream.set_nodelay(true));
    let (mut client_in, mut client_out) = client.into_split();
    let (mut upstream_in, mut upstream_out) = upstream.into_split();
    let both = async {
        tokio::join!(
            pump(&mut client_in, &mut upstream_out, modes.clone()),
            pump(&mut upstream_in, &mut client_out, modes.clone()),
        )
    };
    tokio::select! {
        _ = broken(modes.clone()) => {
            if *modes.borrow() == Mode::Reset {
                cut(client_in.as_ref()).await;
            }
        }
        _ = both => {}
    }
}

/// Waits until connections are to be closed.
async fn broken(mut modes: watch::Receiver<Mode>) {
    let _ = modes.wait_for(|mode| matches!(mode, Mode::Refuse | Mode::Reset)).await;
}

/// Passes bytes on, one way, up to their end.
async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mut modes: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        let passing = modes.wait_for(|mode| matches!(mode, Mode::Pass(_))).await.map(|mode| *mode);
        let Ok(Mode::Pass(late)) = passing else { return };
        sleep(late).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
