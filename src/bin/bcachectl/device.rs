//! Images and block devices, opened to be read only, or to change a superblock.

use std::fs::{File, OpenOptions, metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use spdk_bcache::check::Source;

/// Linux refuses to open a block device so that a file system or bcache itself holds.
const O_EXCL: i32 = 0o200;

/// An opened device or image.
pub struct Device {
    name: String,
    file: File,
    size_bytes: u64,
}

impl Device {
    /// Opens a device or an image.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub fn open(path: &Path) -> Result<Device, String> {
        let name = path.display().to_string();
        let fail = |why: &dyn std::fmt::Display| format!("{name}: {why}");
        let kind = metadata(path).map_err(|e| fail(&e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(fail(&"neither a file nor a block device"));
        }
        let mut file = File::open(path).map_err(|e| fail(&e))?;
        // The length that the metadata of a block device give is 0.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(|e| fail(&e))?;
        if kind.is_block_device() {
            let alone = OpenOptions::new()
                .read(true)
                .custom_flags(O_EXCL)
                .open(path);
            if alone.is_err() {
                eprintln!(
                    "bcachectl: warning: {name} is in use; what changes while it is read may look \
                     wrong"
                );
            }
        }
        Ok(Device {
            name,
            file,
            size_bytes,
        })
    }

    /// Opens a device or an image to be written. A block device must not be in use.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub fn open_to_write(path: &Path) -> Result<Device, String> {
        let read_only = Device::open(path)?;
        let is_block = metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let mut how = OpenOptions::new();
        how.read(true).write(true);
        if is_block {
            how.custom_flags(O_EXCL);
        }
        let file = how.open(path);
        let file = file.map_err(|e| format!("{}: {e}", read_only.name))?;
        Ok(Device { file, ..read_only })
    }

    /// Writes bytes, durably.
    ///
    /// # Errors
    /// Why they cannot be written.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let done = self.file.write_all_at(bytes, at);
        done.and_then(|()| self.file.sync_all())
            .map_err(|e| e.to_string())
    }
}

impl Source for Device {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), String> {
        self.file.read_exact_at(buf, at).map_err(|e| e.to_string())
    }
}
