//! The cluster that `kubectl` points at: its commands, and its pods as they come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::{chart, report::Recorder};

/// The pods of the service, whatever it is called.
pub(crate) const SELECTOR: &str = "app.kubernetes.io/component=web";
const CONTAINER: &str = "serve";

#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    pub(crate) namespace: String,
}

impl Kubectl {
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.args(["--namespace", &self.namespace]).args(arguments.split(' ')).kill_on_drop(true);
        command
    }

    /// Runs `kubectl` and returns what it prints. No argument may have a space in it.
    pub(crate) async fn run(&self, arguments: &str) -> anyhow::Result<String> {
        let outcome = self.command(arguments).output().await.context("kubectl")?;
        if !outcome.status.success() {
            bail!("kubectl {arguments}: {}", String::from_utf8_lossy(&outcome.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&outcome.stdout).trim().to_owned())
    }

    fn follow_log(&self, pod: &str, folder: &Path) -> std::io::Result<Child> {
        let file = fs::File::create(folder.join(format!("{pod}.log")))?;
        self.command(&format!("logs --follow {pod} --container {CONTAINER}")).stdout(file).stderr(Stdio::null()).spawn()
    }
}

/// A container that has ended.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Exit {
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) code: i64,
    /// What it said last, where it failed.
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    started: bool,
    ready: bool,
    stopping: bool,
}

#[derive(Debug, Default)]
struct Seen {
    now: BTreeMap<String, State>,
    course: Vec<chart::Pods>,
    exits: BTreeSet<Exit>,
    /// Pods that served and are gone without the kubelet having told their exit code.
    untold: Vec<String>,
    ended: bool,
}

/// What a watch on the service's pods has shown so far.
#[derive(Clone, Debug)]
pub(crate) struct Pods {
    folder: PathBuf,
    seen: Arc<Mutex<Seen>>,
    _watch: Arc<Child>,
}

impl Pods {
    /// Watches, and keeps each pod's log in `folder`, which is emptied first.
    pub(crate) fn watch(kubectl: &Kubectl, recorder: Recorder, folder: PathBuf) -> anyhow::Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let arguments = format!("get pods --selector {SELECTOR} --watch --output-watch-events --output json");
        let mut watch = kubectl.command(&arguments).stdout(Stdio::piped()).spawn().context("kubectl")?;
        let stdout = watch.stdout.take().context("stdout is piped")?.into_owned_fd()?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (book, kubectl, runtime) = (Arc::clone(&seen), kubectl.clone(), tokio::runtime::Handle::current());
        let logs_folder = folder.clone();
        // A thread of its own, for serde_json reads a stream of values by waiting for it.
        std::thread::spawn(move || {
            let _runtime = runtime.enter();
            let mut logs = BTreeMap::new();
            let events = serde_json::Deserializer::from_reader(fs::File::from(stdout)).into_iter::<Value>();
            for event in events.map_while(Result::ok) {
                let mut seen = book.lock().expect("no writer panics");
                let pod = seen.take(&event, recorder.now());
                if seen.now.get(&pod).is_some_and(|state| state.started) && !logs.contains_key(&pod) {
                    logs.insert(pod.clone(), kubectl.follow_log(&pod, &logs_folder));
                }
            }
            book.lock().expect("no writer panics").ended = true;
        });
        Ok(Self { folder, seen, _watch: Arc::new(watch) })
    }

    /// How many are ready and stay, and how many are on their way out.
    pub(crate) fn counts(&self) -> anyhow::Result<(usize, usize)> {
        let seen = self.seen.lock().expect("no writer panics");
        if seen.ended {
            bail!("the watch on the pods has ended");
        }
        Ok(seen.counts())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let seen = self.seen.lock().expect("no writer panics");
        seen.now.iter().filter(|(_, state)| state.ready && !state.stopping).map(|(name, _)| name.clone()).collect()
    }

    /// Whether each pod that serves has logged this message so many times.
    pub(crate) fn all_have_logged(&self, message: &str, times: usize) -> bool {
        let said = |pod: &String| {
            let log = fs::read_to_string(self.folder.join(format!("{pod}.log"))).unwrap_or_default();
            log.matches(message).count() >= times
        };
        self.names().iter().all(said)
    }

    pub(crate) fn course(&self) -> Vec<chart::Pods> {
        self.seen.lock().expect("no writer panics").course.clone()
    }

    pub(crate) fn exits(&self) -> Vec<Exit> {
        self.seen.lock().expect("no writer panics").exits.iter().cloned().collect()
    }

    /// The exit codes that the kubelet did not tell, as the service wrote them into its log; nothing where it did not.
    pub(crate) fn last_words(&self) -> Vec<(String, Option<i64>)> {
        let untold = self.seen.lock().expect("no writer panics").untold.clone();
        let code = |pod: &String| {
            let log = fs::read_to_string(self.folder.join(format!("{pod}.log"))).ok()?;
            let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.take(5).find(|line| line["message"] == "exit")?["exit_code"].as_i64()
        };
        untold.into_iter().map(|pod| (pod.clone(), code(&pod))).collect()
    }
}

impl Seen {
    fn counts(&self) -> (usize, usize) {
        let stopping = self.now.values().filter(|state| state.stopping).count();
        (self.now.values().filter(|state| state.ready && !state.stopping).count(), stopping)
    }

    /// Takes in one event of the watch and returns the pod's name.
    fn take(&mut self, event: &Value, at: Duration) -> String {
        let pod = &event["object"];
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let statuses = ["initContainerStatuses", "containerStatuses"]
            .map(|list| pod["status"][list].as_array().cloned().unwrap_or_default());
        for status in statuses.iter().flatten() {
            for ended in [&status["state"]["terminated"], &status["lastState"]["terminated"]] {
                // Old kubelets make up a code for a container that was gone before they looked.
                let made_up = ended["reason"] == "ContainerStatusUnknown";
                if let (false, Some(code), Some(container)) =
                    (made_up, ended["exitCode"].as_i64(), status["name"].as_str())
                {
                    let message = ended["message"].as_str().unwrap_or_default().trim().to_owned();
                    self.exits.insert(Exit { pod: name.clone(), container: container.to_owned(), code, message });
                }
            }
        }
        let serving = statuses[1].iter().find(|status| status["name"] == CONTAINER);
        let state = State {
            started: serving.is_some_and(|status| !status["state"]["running"].is_null())
                || self.now.get(&name).is_some_and(|state| state.started),
            ready: serving.is_some_and(|status| status["ready"] == true),
            stopping: !pod["metadata"]["deletionTimestamp"].is_null(),
        };
        if event["type"] == "DELETED" {
            self.now.remove(&name);
            if state.started && !self.exits.iter().any(|exit| exit.pod == name && exit.container == CONTAINER) {
                self.untold.push(name.clone());
            }
        } else {
            self.now.insert(name.clone(), state);
        }
        let (ready, stopping) = self.counts();
        self.course.push(chart::Pods { at, ready, stopping });
        name
    }
}
