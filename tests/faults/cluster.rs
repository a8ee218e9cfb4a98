//! A PostgreSQL of a test's own, to be killed and frozen.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::{Pid, getuid, kill_process};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::{Launch, Output, Process, Signal, eventually, free_address, ms, s};

/// A running PostgreSQL.
#[derive(Debug)]
pub(crate) struct Cluster {
    programs: PathBuf,
    /// Who it runs as where we are root, whom it refuses.
    owner: Option<(u32, u32)>,
    folder: TempDir,
    port: u16,
    encrypted: bool,
    server: Option<Process>,
}

impl Cluster {
    /// One with the schema; `None`, and a line that says so, where its programs are not on this machine.
    pub(crate) async fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("skipped: PostgreSQL's programs are not on this machine (a container's server cannot be killed)");
            return None;
        };
        let mut cluster = Self::new(programs);
        cluster.make("initdb", &["-U", "postgres", "--auth=trust"]);
        cluster.restart().await;
        let migrated = Launch::new().args(["migrate"]).set("database.url", cluster.url()).run().await;
        assert_eq!(migrated.code, Some(0), "{migrated:#?}");
        Some(cluster)
    }

    fn new(programs: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let owner = owner();
        if let Some((user, group)) = owner {
            chown(folder.path(), Some(user), Some(group)).expect("root may");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
        Self { programs, owner, folder, port: free_address().port(), encrypted: false, server: None }
    }

    /// Fills its folder.
    fn make(&self, program: &str, arguments: &[&str]) {
        let made = self.program(program).args(["-D", "data", "--no-sync"]).args(arguments).output();
        let made = made.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(made.status.success(), "{made:?}");
    }

    /// A standby of it, which follows what it does.
    pub(crate) async fn standby(&self) -> Self {
        let mut standby = Self::new(self.programs.clone());
        standby.make("pg_basebackup", &["-R", "-X", "stream", "-c", "fast", "-d", &self.url()]);
        standby.restart().await;
        standby
    }

    /// Hands over to a standby, as an operator does: writes nothing more, waits until the standby has all, promotes it.
    pub(crate) async fn fail_over_to(&self, standby: &Self) {
        let (mut old, mut new) = (self.connect().await, standby.connect().await);
        for sql in ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"] {
            sqlx::raw_sql(sql).execute(&mut old).await.expect("it is SQL");
        }
        let reloaded = async || {
            let mut fresh = self.connect().await;
            let on = "SELECT clock_timestamp()::text WHERE current_setting('default_transaction_read_only')::bool";
            sqlx::query_scalar::<_, String>(on).fetch_optional(&mut fresh).await.expect("it answers")
        };
        let since = eventually("it is read-only", s(20), reloaded).await;
        eventually("the standby has all", s(20), async || {
            // what began before may still write
            let written = "SELECT CASE WHEN count(*) = 0 THEN pg_current_wal_lsn()::text END FROM pg_stat_activity
                           WHERE backend_type = 'client backend' AND xact_start <= $1::timestamptz";
            let written = sqlx::query_scalar::<_, Option<String>>(written).bind(&since).fetch_one(&mut old).await;
            let replayed = "SELECT pg_last_wal_replay_lsn()::text";
            let replayed = sqlx::query_scalar::<_, Option<String>>(replayed).fetch_one(&mut new).await;
            match (written.expect("it answers"), replayed.expect("it answers")) {
                (Some(written), Some(replayed)) if written == replayed => Ok(()),
                other => Err(other),
            }
        })
        .await;
        let promoted: bool =
            sqlx::query_scalar("SELECT pg_promote()").fetch_one(&mut new).await.expect("it is a standby");
        assert!(promoted);
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        Self::url_at(self.port)
    }

    /// Its URL by way of a proxy.
    pub(crate) fn url_at(port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> (String, u16) {
        ("127.0.0.1".to_owned(), self.port)
    }

    /// A connection of the test's own.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.expect("it answers")
    }

    /// Starts it, after a kill as well, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        let port = self.port.to_string();
        eventually("PostgreSQL starts", s(30), async || {
            let mut command = self.program("postgres");
            command.args(["-D", "data", "-h", "127.0.0.1,::1", "-k", "", "-p", &port, "-c", "max_connections=100"]);
            // a killed process leaves what it wrote to the kernel: only a power cut needs more
            command.args(["-c", "fsync=off"]);
            if self.encrypted {
                command.args(["-c", "ssl=on", "-c", "ssl_key_file=server.key", "-c", "ssl_cert_file=server.pem"]);
            }
            let server = Process::spawn("PostgreSQL", command, Output::Collected);
            while server.ended().is_none() {
                if PgConnection::connect(&self.url()).await.is_ok() {
                    self.server = Some(server);
                    return true;
                }
                tokio::time::sleep(ms(20)).await;
            }
            false
        })
        .await;
    }

    /// Starts it again with this key and this certificate.
    pub(crate) async fn encrypt(&mut self, key: &Path, certificate: &Path) {
        for (file, name) in [(key, "server.key"), (certificate, "server.pem")] {
            let own = self.folder.path().join("data").join(name);
            fs::copy(file, &own).expect("it is there");
            fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).expect("it is ours");
            if let Some((user, group)) = self.owner {
                chown(&own, Some(user), Some(group)).expect("root may");
            }
        }
        self.encrypted = true;
        self.kill().await;
        self.restart().await;
    }

    /// SIGKILL for each of its processes.
    pub(crate) async fn kill(&self) {
        self.signal(Signal::KILL);
        self.server.as_ref().expect("it runs").exit(s(5)).await;
    }

    /// SIGSTOP for each of its processes: the kernel still takes connections and bytes for them.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let server = self.server.as_ref().expect("it runs");
        let backends = children(server.pid());
        // the first, so that it starts no others meanwhile
        server.signal(signal);
        for backend in backends.into_iter().chain(children(server.pid())) {
            let _ = kill_process(backend, signal);
        }
    }

    fn program(&self, name: &str) -> Command {
        self.command(self.programs.join(name))
    }

    /// A program that runs beside it: in its folder, as its user.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).stdin(Stdio::null()).env("LC_ALL", "C");
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            let backends = children(server.pid());
            server.signal(Signal::KILL);
            for backend in backends {
                let _ = kill_process(backend, Signal::KILL);
            }
        }
    }
}

/// The folder of the newest PostgreSQL's programs; Debian keeps them off PATH.
fn programs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    versions.sort();
    let mut folders = env::split_paths(&path).chain(versions.into_iter().rev());
    let found = folders.find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())?;
    // a link to one of them has the others beside what it leads to
    Some(fs::canonicalize(found.join("initdb")).ok()?.parent()?.to_owned())
}

/// The first of the users that `scripts/with-postgres` would take, with its group.
fn owner() -> Option<(u32, u32)> {
    if !getuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let find = |name: &str| {
        let line = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let mut fields = line.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("somebody who is not root"))
}

fn children(parent: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = |path: &Path| path.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
    let is_child = |path: &Path| {
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let ppid = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        ppid == Some(parent.as_raw_nonzero().get())
    };
    processes.map(|process| process.path()).filter(|path| is_child(path)).filter_map(|path| pid(&path)).collect()
}
