//! Which files say how much memory this process may have: the limits of its control group and of every group above it
//! that can be seen from here, of version 1 and 2 (cgroups(7), and proc_pid_mountinfo(5)). Pure: text in, paths out.

use std::path::{Path, PathBuf};

/// In each folder of a group. Above `high` a group is slowed down until it is of no use, so it counts as an end too.
const LIMITS: [&[&str]; 2] = [&["memory.limit_in_bytes"], &["memory.max", "memory.high"]];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where a hierarchy with memory limits is mounted, and which group of it is seen there.
struct Mount {
    version: Version,
    root: PathBuf,
    at: PathBuf,
}

/// The files, if they exist; each holds a number of bytes, or what is none for no limit. `groups` is what
/// `/proc/self/cgroup` holds, `mounts` is `/proc/self/mountinfo`.
pub(super) fn limit_files(groups: &str, mounts: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for mount in mounts.lines().filter_map(mount) {
        let Some(group) = groups.lines().find_map(|line| group(line, mount.version)) else { continue };
        for folder in folders(&mount, Path::new(group)) {
            files.extend(LIMITS[mount.version as usize].iter().map(|name| folder.join(name)));
        }
    }
    files
}

/// The group of a line `ID:CONTROLLERS:GROUP`, if it is of the hierarchy that limits memory.
fn group(line: &str, wanted: Version) -> Option<&str> {
    let (id, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    let is_it = match wanted {
        Version::One => controllers.split(',').any(|c| c == "memory"),
        Version::Two => id == "0" && controllers.is_empty(),
    };
    is_it.then_some(group)
}

/// `ID PARENT DEVICE ROOT AT OPTIONS TAGS… - TYPE SOURCE OPTIONS`
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, at) = (unescape(before.next()?), unescape(before.next()?));
    let mut after = after.split(' ');
    let version = match after.next()? {
        "cgroup" if after.nth(1)?.split(',').any(|option| option == "memory") => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    Some(Mount { version, root, at })
}

/// Blanks and backslashes come as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut pieces = text.split('\\');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&piece[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(piece);
            }
        }
    }
    plain.into()
}

/// From the group's own up to what is mounted. A group that is not beneath that (a container that sees its own as the
/// root, a process that was moved out) has only the limits of what is mounted.
fn folders(mount: &Mount, group: &Path) -> Vec<PathBuf> {
    let inner = group.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let is_plain = inner.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let inner = if is_plain { inner } else { Path::new("") };
    inner.ancestors().map(|inner| mount.at.join(inner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(groups: &str, mounts: &str) -> Vec<String> {
        limit_files(groups, mounts).into_iter().map(|path| path.display().to_string()).collect()
    }

    const UNIFIED: &str = "25 20 0:6 / /dev rw,nosuid - devtmpfs udev rw,size=8k
36 20 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";

    #[test]
    fn a_service_of_systemd_is_bounded_by_its_unit_and_by_each_slice_above() {
        assert_eq!(
            files("0::/system.slice/lattice.service\n", UNIFIED),
            [
                "/sys/fs/cgroup/system.slice/lattice.service/memory.max",
                "/sys/fs/cgroup/system.slice/lattice.service/memory.high",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/system.slice/memory.high",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/memory.high",
            ]
        );
    }

    #[test]
    fn of_version_1_only_the_hierarchy_of_memory_counts() {
        let groups = "5:devices:/d\n4:hugetlb,memory:/a b/c\n2:cpuacct:/cpu\n0::/\n";
        let mounts = r"23 28 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
26 28 0:25 / /sys/fs/cgroup/mem\040ory rw,relatime - cgroup cgroup rw,memory,hugetlb
30 28 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(
            files(groups, mounts),
            [
                "/sys/fs/cgroup/mem ory/a b/c/memory.limit_in_bytes",
                "/sys/fs/cgroup/mem ory/a b/memory.limit_in_bytes",
                "/sys/fs/cgroup/mem ory/memory.limit_in_bytes",
                "/sys/fs/cgroup/unified/memory.max",
                "/sys/fs/cgroup/unified/memory.high",
            ]
        );
    }

    #[test]
    fn a_container_is_bounded_by_what_it_sees() {
        let mounts = |root: &str| format!("9 8 0:25 {root} /sys/fs/cgroup/memory ro - cgroup cgroup ro,memory");
        let own = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        // With the host's groups in sight, its own mounted; with a namespace of its own; moved out of that.
        assert_eq!(files("4:memory:/docker/1f", &mounts("/docker/1f")), [own]);
        assert_eq!(files("4:memory:/docker/1f", &mounts("/")).len(), 3);
        assert_eq!(files("4:memory:/", &mounts("/")), [own]);
        assert_eq!(files("4:memory:/../other", &mounts("/")), [own]);
        assert_eq!(files("4:memory:/else", &mounts("/docker/1f")), [own]);
        assert_eq!(files("4:memory:/docker/1f/in", &mounts("/docker/1f")).len(), 2);
    }

    #[test]
    fn what_is_not_as_linux_writes_it_names_no_file() {
        let none: [&str; 0] = [];
        for groups in ["", "0::", "nothing", "4:memory", "::", "1:name=systemd:/x"] {
            for mounts in ["", "- cgroup2", "1 2 3 - cgroup2 x", "1 2 3 / /at rw - cgroup", "1 2 3 / /a - ext4 a b"] {
                assert_eq!(files(groups, mounts), none, "{groups:?} {mounts:?}");
            }
        }
        assert_eq!(unescape(r"a\040b\\c\9").display().to_string(), r"a b\\c\9");
    }
}
