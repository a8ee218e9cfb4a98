//! The real binary, asked what it knows.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

/// The binary with an empty environment: what runs the tests must not answer for it.
fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_service"));
    command.env_clear();
    command
}

/// Whether this is a command line of the binary.
pub(crate) fn knows(arguments: &[String]) -> bool {
    binary().args(arguments).arg("--help").output().expect("the binary starts").status.success()
}

/// Whether the binary would start with these settings; if not, what it says.
pub(crate) fn accepts(environment: &BTreeMap<String, String>) -> Result<(), String> {
    let outcome = binary().envs(environment).arg("config").output().expect("the binary starts");
    if outcome.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&outcome.stderr).into_owned()) }
}

/// A running service whose database is not there.
pub(crate) struct Service {
    process: Child,
    admin: String,
}

impl Service {
    pub(crate) fn start_without_database() -> Self {
        let mut process = binary()
            .envs([
                ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing"),
                ("APP__HTTP__ADDRESS", "127.0.0.1:0"),
                ("APP__ADMIN__ADDRESS", "127.0.0.1:0"),
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let admin = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            let found = line["message"] == "listening" && line["server"] == "admin";
            found.then(|| line["address"].as_str().expect("an address").to_owned())
        });
        // Somebody has to read on, or the service would wait on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, admin: admin.expect("the admin server listens") }
    }

    /// The status of an answer of the admin port.
    pub(crate) fn get(&self, path: &str) -> u16 {
        let mut connection = TcpStream::connect(&self.admin).expect("the admin port is open");
        connection.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
        write!(connection, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
            .expect("the request is sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer comes");
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{path}: {answer:?}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
