//! Files, read and written as a whole.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::OpenOptionsExt;

use super::check;

/// The longest text file that is read, in bytes: enough for 200,000 domains. Without a limit a device file would never
/// end.
pub const MAX_TEXT: u64 = 8 << 20;

/// The contents of the file at `path`, if it has at most `most` bytes.
pub fn read_file(path: &str, most: u64) -> io::Result<Vec<u8>> {
    read_open(File::open(path)?, most)
}

/// The same for an open file, or whatever else can be read.
pub fn read_open(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    file.take(most + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > most {
        let text = format!("longer than {} MiB", most >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(contents)
}

/// The text of a file; empty if it can't be read.
pub fn read_text(path: &str) -> String {
    read_file(path, MAX_TEXT).ok().and_then(|text| String::from_utf8(text).ok()).unwrap_or_default()
}

/// Replaces the file at `path` by one that only its owner can read. Readers get the whole old or the whole new file; a
/// link is replaced, not followed. Without fsync: after a power cut it may be empty.
pub fn replace(path: &str, contents: &[u8]) -> io::Result<()> {
    let new = [path, ".new"].concat();
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // O_EXCL, which follows no link either (open(2)).
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(contents).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        _ = fs::remove_file(&new); // it may have filled the disk
    }
    written
}

/// The folder of a file.
pub fn folder(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((folder, _)) => folder,
        None => ".",
    }
}

/// Whether the file or folder at `path` is in memory, so that writing wears nothing out.
pub fn is_in_memory(path: &str) -> bool {
    let Ok(path) = CString::new(path) else { return false };
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a string, and room for the struct, which the call fills if it succeeds.
    if check(unsafe { libc::statfs(path.as_ptr(), status.as_mut_ptr()) }).is_err() {
        return false;
    }
    // SAFETY: filled.
    let kind = unsafe { status.assume_init() }.f_type as u32;
    // <linux/magic.h>: tmpfs and ramfs.
    matches!(kind, 0x0102_1994 | 0x8584_58f6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let folder = std::env::temp_dir().join(format!("toh-file-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let [path, new, target] = ["names", "names.new", "target"].map(|name| folder.join(name));
        fs::write(&target, "precious").unwrap();
        for link in [&new, &path] {
            symlink(&target, link).unwrap();
            replace(path.to_str().unwrap(), b"text").unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
            let now = fs::symlink_metadata(&path).unwrap();
            assert!(now.is_file() && now.permissions().mode() & 0o777 == 0o600);
            assert_eq!(fs::read_to_string(&path).unwrap(), "text");
            assert!(fs::symlink_metadata(&new).is_err());
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&new).unwrap();
        assert!(replace(path.to_str().unwrap(), b"text").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn each_file_has_a_folder() {
        assert_eq!(["/a/b", "/a", "a", "a/b"].map(folder), ["/a", "/", ".", "a"]);
    }

    #[test]
    fn what_is_in_memory_is_known() {
        assert!(!is_in_memory("/proc") && !is_in_memory("/nonexistent") && !is_in_memory("a\0b"));
        if fs::read_to_string("/proc/mounts").unwrap().contains(" /dev/shm tmpfs ") {
            assert!(is_in_memory("/dev/shm"));
        }
    }
}
