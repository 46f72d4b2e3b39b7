//! A disk that can be filled, and whose power can be cut: an ext4 in a file. Needs root, loop devices and mkfs.ext4.

use super::{SOON, shell, until};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub(crate) struct Disk {
    dir: TempDir,
    mount: PathBuf,
    is_mounted: bool,
}

const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// The journal is not flushed first.
static NO_LOG_FLUSH: u32 = 2;

impl Disk {
    /// Of so many MiB, or why not.
    pub(crate) fn make(mib: u64) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("lattice-disk-").tempdir().unwrap();
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        let image = dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).unwrap();
        shell(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        let mut disk = Self { dir, mount, is_mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// A folder beside it, on a disk that nobody cuts.
    pub(crate) fn beside(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn mount(&mut self) -> Result<(), String> {
        shell(Command::new("mount").args(["-o", "loop"]).arg(self.dir.path().join("image")).arg(&self.mount))?;
        self.is_mounted = true;
        Ok(())
    }

    pub(crate) fn unmount(&mut self) {
        let mount = self.mount.clone();
        until("it is unmounted", SOON, || shell(Command::new("umount").arg(&mount)).ok());
        self.is_mounted = false;
    }

    /// From now on nothing reaches it.
    pub(crate) fn cut(&self) {
        let folder = File::open(&self.mount).unwrap();
        #[allow(unsafe_code, reason = "no safe call of this ioctl is known; it reads the number that it is given")]
        let failed = unsafe { libc::ioctl(folder.as_raw_fd(), EXT4_IOC_SHUTDOWN as _, &raw const NO_LOG_FLUSH) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }

    /// Leaves no byte free on it.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        let block = vec![7; 1 << 20];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[7; 512]).is_ok() {}
        let _ = file.sync_all();
    }

    /// Undoes `fill`.
    pub(crate) fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = shell(Command::new("umount").arg("--lazy").arg(&self.mount));
        }
    }
}
