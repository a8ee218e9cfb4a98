//! A plain TCP balancer: turns to every instance that says it is ready, knows nothing of HTTP, repairs nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use crate::client::{Call, Connection, Version};

/// Between two looks at `/readyz`, as a cluster's load balancer would look.
const PROBE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    ready: AtomicBool,
}

impl Backend {
    pub(crate) fn new(http: SocketAddr, admin: SocketAddr) -> Arc<Self> {
        Arc::new(Self { http, admin, ready: AtomicBool::new(true) })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    async fn probe(self: Arc<Self>) {
        loop {
            let ready = match Connection::open(self.admin, Version::Http1).await {
                Ok(mut connection) => connection.ask(&Call::get("/readyz")).await.is_ok(),
                Err(_) => false,
            };
            self.ready.store(ready, Ordering::Relaxed);
            sleep(PROBE).await;
        }
    }
}

/// Balances until dropped.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Balancer {
    pub(crate) async fn start(backends: Vec<Arc<Backend>>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        for backend in &backends {
            tasks.spawn(Arc::clone(backend).probe());
        }
        tasks.spawn(accept(listener, backends));
        Ok(Self { address, _tasks: tasks })
    }
}

async fn accept(listener: TcpListener, backends: Vec<Arc<Backend>>) {
    let turn = AtomicUsize::new(0);
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            continue;
        };
        let ready: Vec<_> = backends.iter().filter(|backend| backend.is_ready()).collect();
        let Some(chosen) = ready.get(turn.fetch_add(1, Ordering::Relaxed) % ready.len().max(1)) else {
            continue;
        };
        let address = chosen.http;
        connections.spawn(async move {
            // Where the instance is gone, the client's connection just ends: a failure, which is the point.
            let Ok(mut server) = TcpStream::connect(address).await else {
                return;
            };
            drop((client.set_nodelay(true), server.set_nodelay(true)));
            drop(copy_bidirectional(&mut client, &mut server).await);
        });
        while connections.try_join_next().is_some() {}
    }
}
