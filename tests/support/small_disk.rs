//! Small file systems for nodes: a tmpfs where a data directory would be, of so many bytes and no more.
//!
//! Mounting takes a privilege. A test that has it not runs itself once more, in namespaces of its own in which it has;
//! where that is forbidden too there is no way to give a node a small disk, and the test says so and is skipped.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::support::node::Node;

/// Set in a test that runs in namespaces of its own.
const INSIDE: &str = "HOLDFAST_SMALL_DISKS";

/// Runs the test of this name, which mounts. Names are as the test harness has them.
pub fn with_mounts(name: &str, test: fn()) {
    if can_mount() {
        return test();
    }
    assert!(std::env::var_os(INSIDE).is_none(), "mounting was allowed, and is not any more");
    let namespaces = ["--user", "--map-root-user", "--mount"];
    let is_allowed = Command::new("unshare").args(namespaces).arg("true").output();
    if !is_allowed.is_ok_and(|output| output.status.success()) {
        println!(
            "SKIPPED {name}: neither mounting nor namespaces are allowed here, so there are no small disks"
        );
        eprintln!(
            "SKIPPED {name}: neither mounting nor namespaces are allowed here, so there are no small disks"
        );
        return;
    }
    let again = Command::new("unshare")
        .args(namespaces)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "yes")
        .status()
        .unwrap();
    assert!(again.success(), "{name} failed in namespaces of its own: see above");
}

fn can_mount() -> bool {
    let directory = crate::support::node::Directory::new();
    let disk = SmallDisk::try_mount(&directory.path().join("data"), 1 << 20);
    disk.is_some()
}

/// A mounted file system. It goes when this is dropped, which must be after its node.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Gives a node that was not started a disk of so many bytes.
    pub fn give(node: &Node, bytes: u64) -> SmallDisk {
        SmallDisk::try_mount(&node.data_dir(), bytes).expect("mounting is allowed")
    }

    fn try_mount(path: &Path, bytes: u64) -> Option<SmallDisk> {
        let options = format!("size={bytes},mode=0700");
        let mut command = Command::new("mount");
        let output =
            command.args(["-t", "tmpfs", "-o", &options, "holdfast-test"]).arg(path).output().ok()?;
        output.status.success().then(|| SmallDisk { path: path.to_path_buf() })
    }

    /// Makes it larger, or smaller again, as far as what is on it allows.
    pub fn resize(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.path).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that was killed may still close its files.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        if !std::thread::panicking()
            && let Some(parent) = self.path.parent()
        {
            let _ = std::fs::remove_dir_all(parent);
        }
    }
}
