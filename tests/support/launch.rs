//! How a test starts the binary: its arguments, its settings, its environment.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{SocketAddr, TcpListener},
    process::Command,
    time::Duration,
};

use super::{Output, Process, Service, process::example, s};

/// A binary about to be started, with nothing in its environment that speaks to it but what is set here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Launch {
    /// Whether it is `examples/stand`.
    stand: bool,
    /// What it is started under: `unshare --pid`, say.
    wrapper: Vec<String>,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    output: Output,
}

/// A command that has run to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// How long it ran.
    pub(crate) took: Duration,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

impl Launch {
    /// The binary without arguments, its two servers on free ports of the loopback.
    pub(crate) fn new() -> Self {
        Self::default().set("http.address", "127.0.0.1:0").set("admin.address", "127.0.0.1:0")
    }

    /// Gives a setting by its name in `config/default.toml`, by way of the environment.
    pub(crate) fn set(self, key: &str, value: impl ToString) -> Self {
        self.env(&variable(key), value)
    }

    /// Takes a setting back.
    pub(crate) fn unset(mut self, key: &str) -> Self {
        self.environment.remove(&variable(key));
        self
    }

    /// Sets a variable of the environment.
    #[expect(clippy::needless_pass_by_value, reason = "so that a test can write a number or an address as it is")]
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// What a setting is.
    pub(crate) fn setting(&self, key: &str) -> Option<&str> {
        self.environment.get(&variable(key)).map(String::as_str)
    }

    /// Makes it `examples/stand`, which is the service with more routes and without commands.
    pub(crate) fn stand(mut self) -> Self {
        self.stand = true;
        self
    }

    /// Its arguments.
    pub(crate) fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments = arguments.map(str::to_owned).to_vec();
        self
    }

    /// Starts it by way of another program.
    pub(crate) fn under<const N: usize>(mut self, wrapper: [&str; N]) -> Self {
        self.wrapper = wrapper.map(str::to_owned).to_vec();
        self
    }

    /// What becomes of its standard output. Where that is not read, nobody can tell which ports it took: it gets two
    /// that were free a moment ago.
    pub(crate) fn stdout(mut self, output: Output) -> Self {
        self.output = output;
        if output == Output::Collected {
            return self;
        }
        self.set("http.address", free_address()).set("admin.address", free_address())
    }

    /// Starts it.
    pub(crate) fn spawn(self) -> Service {
        let fixed = |key| match self.output {
            Output::Collected => None,
            Output::Unread | Output::Closed => self.setting(key).and_then(|address| address.parse().ok()),
        };
        let (http, admin) = (fixed("http.address"), fixed("admin.address"));
        Service::new(self.process(), http, admin)
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn ready(self) -> Service {
        let service = self.spawn();
        service.ready().await;
        service
    }

    /// Runs it to its end, which must come soon.
    pub(crate) async fn run(self) -> Finished {
        let process = self.process();
        let exit = process.exit(s(20)).await;
        Finished {
            code: exit.code,
            took: exit.at - process.started,
            stdout: process.text(false),
            stderr: process.text(true),
        }
    }

    fn process(self) -> Process {
        let binary = if self.stand { example("stand") } else { env!("CARGO_BIN_EXE_service").into() };
        let words = self.wrapper.into_iter().map(OsString::from).chain([binary.into()]);
        let mut words = words.chain(self.arguments.into_iter().map(OsString::from));
        let mut command = Command::new(words.next().expect("the binary is there"));
        for (name, _) in std::env::vars() {
            if ["APP_", "OTEL_", "PG", "RUST_LOG", "DATABASE_URL"].iter().any(|own| name.starts_with(own)) {
                command.env_remove(name);
            }
        }
        command.args(words).envs(self.environment);
        Process::spawn("the service", command, self.output)
    }
}

fn variable(key: &str) -> String {
    format!("APP__{}", key.replace('.', "__").to_uppercase())
}

/// An address of the loopback that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    listener.local_addr().expect("it is bound")
}
