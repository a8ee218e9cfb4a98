//! The service on a cluster, put through what happens to services on clusters.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    chart::{self, Mark},
    kubectl::{Kubectl, Pods, SELECTOR},
    load::{Load, Sizes, scatter},
    report::{Promise, Recorder, Step},
};

/// Enough for a steady answer to every question, and little enough for a laptop that is the cluster as well.
const SIZES: Sizes = Sizes { clients: 6, streams_each: 3, feeds: 3, think: Duration::from_millis(100), orders: 20 };

/// For any one change to be through.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two changes, so that the chart shows what belongs to what.
const PAUSE: Duration = Duration::from_secs(5);

pub(crate) async fn run(address: SocketAddr, namespace: String, chart: &Path) -> anyhow::Result<bool> {
    let kubectl = Kubectl { namespace };
    let deployment = kubectl.run(&format!("get deployments --selector {SELECTOR} --output name")).await?;
    ensure!(
        !deployment.is_empty() && !deployment.contains('\n'),
        "there must be one deployment with {SELECTOR}, not {deployment:?}"
    );

    let recorder = Recorder::new();
    let folder = chart.parent().context("the chart's folder")?.join("rollout");
    let pods = Pods::watch(&kubectl, recorder.clone(), folder.clone())?;
    let load = Load::start(address, recorder.clone(), SIZES).await?;
    let mut run = Run { kubectl, deployment, pods, recorder, steps: Vec::new(), marks: Vec::new(), faults: Vec::new() };
    let outcome = run.all().await;
    let audit = load.finish().await?;
    outcome?;

    let report = run.recorder.report(run.steps);
    chart::draw(chart, &report, &run.pods.course(), &run.marks)?;
    println!("\n{}\n{}", report.table(), audit.summary);
    run.faults.extend(audit.faults);
    let exits = run.pods.exits();
    let told = exits.iter().filter(|exit| exit.container == "serve" && exit.code == 0).count();
    let last_words = run.pods.last_words();
    let written = last_words.iter().filter(|(_, code)| *code == Some(0)).count();
    println!(
        "{told} pods ended with exit 0 by the kubelet's word, {written} more by their own log, which it had not waited for"
    );
    run.faults.extend(
        exits.iter().filter(|exit| exit.code != 0 && !BROKEN.is_of(&exit.message)).map(|exit| format!("{exit:?}")),
    );
    run.faults.extend(
        last_words
            .iter()
            .filter(|(_, code)| *code != Some(0))
            .map(|(pod, code)| format!("{pod}: exit {code:?} by its log")),
    );
    let lost = report.broken_promises();
    if lost > 0 {
        run.faults.push(format!("{lost} requests were lost where none may be"));
    }
    run.faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    let (answered, failed) = report.totals();
    println!(
        "{} requests, {failed} failed, {lost} of them against a promise; chart {}, logs {}",
        answered + failed,
        chart.display(),
        folder.display()
    );
    Ok(run.faults.is_empty())
}

/// A setting that the service refuses, and the word by which its message names it.
#[derive(Debug)]
struct Broken {
    assignment: &'static str,
    named: &'static str,
}

const BROKEN: Broken = Broken { assignment: "APP__HTTP__REQUEST_TIMEOUT=soon", named: "request_timeout" };

impl Broken {
    fn is_of(&self, message: &str) -> bool {
        message.to_lowercase().contains(self.named)
    }
}

#[derive(Debug)]
struct Run {
    kubectl: Kubectl,
    deployment: String,
    pods: Pods,
    recorder: Recorder,
    steps: Vec<Step>,
    marks: Vec<Mark>,
    faults: Vec<String>,
}

impl Run {
    async fn all(&mut self) -> anyhow::Result<()> {
        self.calm(3).await?;
        sleep(PAUSE).await;
        self.end("calm", Promise::NoneLost);

        for _ in 0..5 {
            self.mark("restart");
            self.kubectl.run(&format!("rollout restart {}", self.deployment)).await?;
            self.rolled_out().await?;
        }
        self.calm(3).await?;
        self.end("5 restarts", Promise::NoneLost);

        for replicas in [6, 2, 3] {
            self.mark(["", "", "to 2", "to 3", "", "", "to 6"][replicas]);
            self.kubectl.run(&format!("scale {} --replicas={replicas}", self.deployment)).await?;
            self.calm(replicas).await?;
        }
        self.end("scaled\n3→6→2→3", Promise::NoneLost);

        for turn in 0..5 {
            let names = self.pods.names();
            let pod = names.get(scatter(turn) as usize % names.len().max(1)).context("a pod")?;
            self.mark("delete");
            self.kubectl.run(&format!("delete pod {pod} --wait=false")).await?;
            // The watch may be behind: three pods are only then the right three.
            while self.pods.names().contains(pod) {
                sleep(Duration::from_millis(50)).await;
            }
            self.calm(3).await?;
        }
        self.end("5 pods deleted", Promise::NoneLost);

        self.broken_rollout().await?;
        self.end("bad setting,\nundone", Promise::NoneLost);

        self.mark("no catalog");
        self.kubectl.run("scale deployment/catalog --replicas=0").await?;
        sleep(Duration::from_secs(60)).await;
        self.mark("catalog");
        self.kubectl.run("scale deployment/catalog --replicas=1").await?;
        self.kubectl.run("rollout status deployment/catalog --timeout=120s").await?;
        // until the name leads to the new pod again and the circuit breaker has let a call through
        sleep(PAUSE * 3).await;
        self.calm(3).await?;
        self.end("no catalog\nfor a minute", Promise::MayRefuseOrders);

        for (turn, password) in ["rotated", "service"].into_iter().enumerate() {
            self.rotate_password(turn + 1, password).await?;
        }
        self.calm(3).await?;
        self.end("password\nrotated", Promise::NoneLost);

        self.mark("database");
        self.kubectl.run("delete pod postgres-0").await?;
        self.kubectl.run("rollout status statefulset/postgres --timeout=120s").await?;
        self.calm(3).await?;
        sleep(PAUSE * 3).await;
        self.end("PostgreSQL\ndeleted", Promise::MayRefuse);
        Ok(())
    }

    /// A rollout that cannot come up: it stands still, says why, and is taken back.
    async fn broken_rollout(&mut self) -> anyhow::Result<()> {
        self.mark("break");
        self.kubectl.run(&format!("set env {} {}", self.deployment, BROKEN.assignment)).await?;
        let deadline = Instant::now() + PATIENCE;
        while !self.pods.exits().iter().any(|exit| exit.code == 2 && BROKEN.is_of(&exit.message)) {
            ensure!(Instant::now() < deadline, "no pod has refused {} with exit 2 and its name", BROKEN.assignment);
            sleep(Duration::from_millis(500)).await;
        }
        // It may stand for as long as it likes.
        sleep(PAUSE * 3).await;
        let (ready, _) = self.pods.counts()?;
        if ready != 3 {
            self.faults.push(format!("{ready} pods were ready beside a broken rollout, not 3"));
        }
        self.mark("undo");
        self.kubectl.run(&format!("rollout undo {}", self.deployment)).await?;
        self.rolled_out().await?;
        self.calm(3).await
    }

    /// Puts another password into the Secret, and into the database once every pod has seen it there: until then the pods
    /// go on with the old one.
    async fn rotate_password(&mut self, turn: usize, password: &str) -> anyhow::Result<()> {
        self.mark("password");
        let url =
            format!("postgres://service:{password}@postgres.{}.svc.cluster.local:5432/service", self.kubectl.namespace);
        self.kubectl.run(&format!(r#"patch secret database --patch={{"stringData":{{"url":"{url}"}}}}"#)).await?;
        self.logged("the database's new URL is not used", turn).await?;
        // a space would end the argument
        let sql = format!("ALTER\tROLE\tservice\tPASSWORD\t'{password}'");
        self.kubectl.run(&format!("exec postgres-0 -- psql --username=service --command={sql}")).await?;
        self.logged("the database's URL has changed", turn).await
    }

    /// Waits until every pod has logged it so many times.
    async fn logged(&self, message: &str, times: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.pods.all_have_logged(message, times) {
            ensure!(Instant::now() < deadline, "not every pod says {message:?} within {PATIENCE:?}");
            sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    async fn rolled_out(&self) -> anyhow::Result<()> {
        let timeout = PATIENCE.as_secs();
        self.kubectl.run(&format!("rollout status {} --timeout={timeout}s", self.deployment)).await.map(drop)
    }

    /// Waits until so many pods are ready and none is on its way out, and a little longer.
    async fn calm(&self, replicas: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.pods.counts()? != (replicas, 0) {
            ensure!(Instant::now() < deadline, "not {replicas} pods and no other within {PATIENCE:?}");
            sleep(Duration::from_millis(200)).await;
        }
        sleep(PAUSE).await;
        Ok(())
    }

    fn mark(&mut self, what: &'static str) {
        let at = self.recorder.now();
        println!("{:6.1} s  {what}", at.as_secs_f64());
        self.marks.push(Mark { at, what });
    }

    /// Ends a step where it stands; the next begins here.
    fn end(&mut self, name: &str, promise: Promise) {
        let from = self.steps.last().map_or(Duration::ZERO, |step| step.to);
        self.steps.push(Step { name: name.to_owned(), from, to: self.recorder.now(), promise });
    }
}
