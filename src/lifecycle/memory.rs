//! How much memory the process uses, and how much its container may.

use std::fs::{self, File};
use std::io::Read;

use nix::unistd::{SysconfVar, sysconf};

/// Over this share of the limit the process is short of memory: what is under way needs the rest.
const SHORT: f64 = 0.9;

/// Under this share it no longer is. The gap keeps a process at the limit from changing its mind at every look.
const ENOUGH: f64 = 0.8;

/// Bytes of this process in memory, if the system tells.
pub(super) fn resident() -> Option<u64> {
    // the shortest file that says it, because it is read every second
    let mut text = [0; 128];
    let read = File::open("/proc/self/statm").ok()?.read(&mut text).ok()?;
    let pages: u64 = std::str::from_utf8(&text[..read]).ok()?.split(' ').nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

/// Bytes at which the kernel kills the process: the limit of its cgroup (version 2, then 1), if there is one.
pub(super) fn limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = |controller: &str| {
        let mut groups = own.lines().filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok());
        let group = groups.find_map(|[controllers, path]: [&str; 2]| {
            controllers.split(',').any(|name| name == controller).then_some(path)
        });
        group.unwrap_or_default().trim_end_matches('/').to_owned()
    };
    // inside a container the hierarchy often begins at its own group, whatever path it has outside
    let candidates = [
        format!("/sys/fs/cgroup{}/memory.max", path("")),
        "/sys/fs/cgroup/memory.max".to_owned(),
        format!("/sys/fs/cgroup/memory{}/memory.limit_in_bytes", path("memory")),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    let limit = candidates.iter().find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    // version 1 says "none" with a number that no machine has
    limit.filter(|limit| *limit < 1 << 50)
}

/// Whether the process is short of memory, given whether it was at the last look.
pub(super) fn is_short(was_short: bool, resident: u64, limit: u64) -> bool {
    resident as f64 > limit as f64 * if was_short { ENOUGH } else { SHORT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_over_90_percent_and_until_under_80() {
        let mut short = false;
        let mut look = |resident| {
            short = is_short(short, resident, 100);
            short
        };
        assert!([85, 90].map(&mut look).iter().all(|short| !short), "on the way up");
        assert!([91, 85, 81].map(&mut look).iter().all(|short| *short), "until there is enough");
        assert!([80, 85, 90].map(&mut look).iter().all(|short| !short), "then as at first");
    }
}
