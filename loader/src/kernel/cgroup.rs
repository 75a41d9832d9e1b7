//! Cgroups of version 2: their ids, and their paths. Safe code.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::file::read;

/// The id of a cgroup v2 directory and its depth (the root is 0).
///
/// # Errors
/// If the path is not a cgroup v2 directory.
pub fn id(path: &Path) -> Result<(u64, u32)> {
    let full = path.canonicalize().with_context(|| format!("cannot find cgroup {}", path.display()))?;
    let mut depth = 0;
    let mut root = full.as_path();
    // Only directories of a cgroup2 file system hold cgroup.controllers; the root of the file system is the topmost of
    // them.
    if !root.join("cgroup.controllers").exists() {
        let mounts = read("/proc/self/mountinfo")?;
        let place = mount(&mounts).map_or_else(
            || "none is mounted here (mount -t cgroup2 none DIRECTORY)".to_owned(),
            |place| format!("these are below {place}"),
        );
        bail!("{} is not a cgroup v2 directory: {place}", full.display());
    }
    while let Some(parent) = root.parent().filter(|parent| parent.join("cgroup.controllers").exists()) {
        root = parent;
        depth += 1;
    }
    Ok((fs::metadata(&full)?.ino(), depth))
}

/// The mount point of cgroup v2, from the lines of mountinfo, such as
/// `30 23 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw`.
fn mount(mountinfo: &str) -> Option<&str> {
    let (mount, _) = mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .find(|(_, kind)| kind.split(' ').next() == Some("cgroup2"))?;
    mount.split(' ').nth(4)
}

/// The path of a process's cgroup, from the text of /proc/PID/cgroup. It begins with a slash, and is relative to the mount.
#[must_use]
pub fn path_in(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| path.starts_with('/'))
}

/// The paths of cgroups that processes are in.
#[derive(Debug, Default)]
pub struct Paths {
    /// Where cgroup v2 is mounted, and the device number of that file system; none: nowhere.
    mount: Option<(String, u64)>,
    /// Paths by id. The kernel gives an id to one cgroup only, and a cgroup keeps its path.
    known: HashMap<u64, String>,
    /// Cgroups and processes that gave no path, since [`Paths::forget`].
    missed: Vec<(u64, u32)>,
    /// Cgroups that are in no directory.
    gone: Vec<u64>,
    /// When all directories may be read again.
    next_walk: Option<Instant>,
}

impl Paths {
    /// The most paths that are kept. Containers come and go, and a run may last for weeks.
    const MOST: usize = 1 << 14;

    /// The least time between two walks through all directories.
    const EVERY: Duration = Duration::from_secs(1);
    /// The most cgroups that are remembered as gone.
    const MOST_GONE: usize = 256;

    /// Find the mount.
    #[must_use]
    pub fn begin() -> Self {
        let mounts = read("/proc/self/mountinfo").unwrap_or_default();
        let found = mount(&mounts).and_then(|place| Some((place.to_owned(), fs::metadata(place).ok()?.dev())));
        Self { mount: found, ..Self::default() }
    }

    /// The path of the cgroup with this id, in which this process was seen. None: the cgroup is gone, or is not found yet since the
    /// directories may not be read again so soon; or this host has no such mount.
    pub fn of(&mut self, id: u64, pid: u32) -> Option<&str> {
        if !self.known.contains_key(&id) && !self.missed.contains(&(id, pid)) {
            match self.look_up(id, pid) {
                Some(path) => self.keep(id, path),
                None => {
                    self.missed.push((id, pid));
                    self.walk(id);
                }
            }
        }
        self.known(id)
    }

    fn keep(&mut self, id: u64, path: String) {
        if self.known.len() >= Self::MOST {
            self.known.clear();
        }
        self.known.insert(id, path);
    }

    /// Look for the cgroup with this id among all directories. The process may have exited. In a container /proc shows paths from
    /// xctl's own cgroup on, such as `/../../podY`, and the directory is elsewhere below the mount. The number of a directory's
    /// inode is the id.
    fn walk(&mut self, id: u64) {
        let Some((mount, _)) = &self.mount else { return };
        // An id is never used again: if it was not found once, its cgroup is gone.
        if self.gone.contains(&id) || self.next_walk.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let begun = Instant::now();
        let root = fs::metadata(mount).map(|about| (about.ino(), "/".to_owned()));
        let mut found: HashMap<u64, String> = root.into_iter().collect();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(format!("{mount}{folder}")).into_iter().flatten().flatten() {
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let Ok(name) = entry.file_name().into_string() else { continue };
                if is_folder && found.len() < Self::MOST {
                    let path = format!("{folder}/{name}");
                    found.insert(entry.ino(), path.clone());
                    folders.push(path);
                }
            }
        }
        // Walks take a twentieth of the time at most.
        self.next_walk = begun.elapsed().checked_mul(20).map(|pause| begun + pause.max(Self::EVERY));
        if !found.contains_key(&id) {
            if self.gone.len() >= Self::MOST_GONE {
                self.gone.clear();
            }
            self.gone.push(id);
        }
        if self.known.len() + found.len() > Self::MOST {
            self.known.clear();
        }
        self.known.extend(found);
    }

    /// The path of the cgroup with this id, if it was found before.
    #[must_use]
    pub fn known(&self, id: u64) -> Option<&str> {
        self.known.get(&id).map(String::as_str)
    }

    /// Look again for paths that were not found.
    pub fn forget(&mut self) {
        self.missed.clear();
    }

    /// The process may be in another cgroup by now, or another process may have its PID. So the directory must have the id, which
    /// is the number of its inode.
    fn look_up(&self, id: u64, pid: u32) -> Option<String> {
        let (mount, device) = self.mount.as_ref()?;
        let text = read(format!("/proc/{pid}/cgroup")).ok()?;
        let path = path_in(&text)?;
        let about = fs::metadata(format!("{mount}{path}")).ok()?;
        (about.ino() == id && about.dev() == *device).then(|| path.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_cgroup_v2_is_found() {
        let hybrid = "25 1 0:23 / /sys rw - sysfs sysfs rw\n30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw,nsdelegate\n\
                      32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(mount(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount(hybrid.replace("cgroup2", "cgroup").as_str()), None);
    }

    #[test]
    fn the_path_is_that_of_version_2() {
        assert_eq!(path_in("12:cpu:/x\n0::/system.slice/ssh.service\n"), Some("/system.slice/ssh.service"));
        assert_eq!(path_in("0::/\n"), Some("/"));
        assert_eq!(path_in("1:name=systemd:/a\n"), None);
    }

    #[test]
    fn a_path_counts_only_if_its_directory_has_the_id() {
        let mut paths = Paths::begin();
        let own = read("/proc/self/cgroup").unwrap();
        let place = paths.mount.as_ref().zip(path_in(&own)).map(|((mount, _), path)| format!("{mount}{path}"));
        let Some(about) = place.and_then(|place| fs::metadata(place).ok()) else {
            println!("skipped: cgroup v2 is not mounted here");
            return;
        };
        let pid = std::process::id();
        assert_eq!(paths.look_up(about.ino() + 1, pid), None);
        assert_eq!(paths.of(about.ino(), pid), path_in(&own));
        assert_eq!(paths.of(about.ino(), 0), path_in(&own), "it is known by now");
        assert_eq!(Paths::begin().of(about.ino(), 0), path_in(&own), "by its directory");
        assert_eq!(Paths::begin().of(u64::MAX, 0), None);
    }
}
