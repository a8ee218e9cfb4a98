//! What the machine may do to the process: little memory, little time, and a disk that cannot be written to.

use std::{fs, path::PathBuf};

use crate::{
    becomes, is_503, order,
    support::{Launch, Service, World, always, eventually, os, s},
};

/// A control group with a limit, of version 1 or 2.
struct Group(PathBuf);

/// Where each version has its groups, and the file that takes the limit.
const MEMORY: [(&str, &str); 2] =
    [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
const CPU: [(&str, &str); 2] = [("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")];

impl Group {
    /// `None`, and a line that says so, where there can be none.
    fn new(places: [(&str, &str); 2], value: u64) -> Option<Self> {
        for (root, limit) in places {
            let group = PathBuf::from(root).join(format!("faults-{}-{limit}", std::process::id()));
            if fs::create_dir(&group).is_ok() {
                let group = Self(group);
                if fs::write(group.0.join(limit), value.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        eprintln!("skipped: no control group with a limit can be made here");
        None
    }

    /// A service in it.
    fn enter(&self, launch: Launch) -> Launch {
        let procs = self.0.join("cgroup.procs");
        let enter = format!("echo $$ > '{}' && exec \"$0\" \"$@\"", procs.display());
        launch.under(["sh", "-c", &enter])
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

async fn serves(service: &Service) -> bool {
    service.get("/v1/products/SKU-1").await.status == 200
}

#[tokio::test]
async fn near_its_memory_limit_it_is_not_ready_and_stays_alive() {
    let world = World::new().await;
    let measured = world.serve().await;
    eventually("it serves", s(5), async || serves(&measured).await).await;
    // What it needs at rest is more than nine tenths of this. The kernel counts less than that against a group, as the
    // program's own pages are shared: it is not killed.
    let Some(group) = Group::new(MEMORY, os::resident(measured.pid()) * 104 / 100) else { return };
    drop(measured);
    let service = group.enter(world.service()).spawn();
    service.phase("ready").await;
    let reason = async || service.probe("/readyz").await.json()["reason"].to_string().contains("short of memory");
    eventually("it is not ready, and says why", s(10), reason).await;
    assert_eq!(service.probe("/readyz").await.status, 503);
    let shed = async || service.get("/v1/products/SKU-1").await;
    eventually("it sheds load", s(10), async || shed().await.status == 503).await;
    is_503(&shed().await);
    always("it is alive", s(1), async || service.probe("/livez").await.status == 200).await;
    assert!(service.ended().is_none());
    service.kill().await;
}

/// The threads that run the service's work.
fn workers(service: &Service) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", service.pid())).expect("it runs").flatten();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.trim() == "tokio-rt-worker").count()
}

#[tokio::test]
async fn it_has_a_worker_for_each_processor_and_at_least_two() {
    let world = World::new().await;
    let one = world.service().under(["taskset", "--cpu-list", "0"]).ready().await;
    assert_eq!(workers(&one), 2);
    let three = world.service().env("TOKIO_WORKER_THREADS", 3).ready().await;
    assert_eq!(workers(&three), 3, "as it is told");
    // of every 100 ms
    let Some(half) = Group::new(CPU, 50_000) else { return };
    let half = half.enter(world.service()).ready().await;
    assert_eq!(workers(&half), 2);
    assert!(serves(&half).await);
    half.kill().await;
}

#[tokio::test]
async fn it_needs_no_disk_to_write_to() {
    let world = World::new().await;
    // whoever writes to a file ends with SIGXFSZ; standard output is a pipe
    let service = world.service().under(["prlimit", "--fsize=0"]).ready().await;
    let id = order(&service, "SKU-1").await;
    becomes(&service, &id, "confirmed").await;
    assert_eq!(service.stop().await.code, Some(0));
}
