//! What the machine may do to the process: little memory, and a disk that cannot be written to.

use std::{fs, path::PathBuf};

use crate::{
    is_503,
    support::{Service, World, always, eventually, os, s},
};

/// A control group with a limit on memory, of version 1 or 2.
struct Group(PathBuf);

impl Group {
    /// `None`, and a line that says so, where there can be none.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("faults-{}", std::process::id());
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, limit) in places {
            let group = PathBuf::from(root).join(&name);
            if fs::create_dir(&group).is_ok() {
                let group = Self(group);
                if fs::write(group.0.join(limit), bytes.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        eprintln!("skipped: no control group with a limit on memory can be made here");
        None
    }

    fn procs(&self) -> String {
        self.0.join("cgroup.procs").to_str().expect("it is text").to_owned()
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
async fn near_its_memory_limit_it_sheds_load_with_503_and_stays_alive() {
    let world = World::new().await;
    let measured = world.serve().await;
    eventually("it serves", s(5), async || serves(&measured).await).await;
    // What it needs at rest is more than nine tenths of this. The kernel counts less than that against a group, as the
    // program's own pages are shared: it is not killed.
    let Some(group) = Group::new(os::resident(measured.pid()) * 104 / 100) else { return };
    drop(measured);
    let enter = format!("echo $$ > '{}' && exec \"$0\" \"$@\"", group.procs());
    let service = world.service().under(["sh", "-c", &enter]).ready().await;
    let shed = async || service.get("/v1/products/SKU-1").await;
    eventually("it sheds load", s(10), async || shed().await.status == 503).await;
    is_503(&shed().await);
    always("it is alive", s(1), async || service.probe("/livez").await.status == 200).await;
    assert!(service.ended().is_none());
    service.kill().await;
}
