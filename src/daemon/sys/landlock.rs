//! Landlock (landlock(7)): limits what this process, and whatever it runs, may change.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::check;

// <linux/landlock.h>

const VERSION: u32 = 1;
const PATH_BENEATH: c_int = 1;

/// `struct landlock_ruleset_attr`
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    folder: c_int,
}

/// Rights of the first version that change something: `WRITE_FILE`, and `REMOVE_DIR` to `MAKE_SYM`.
const CHANGES: u64 = WRITE_FILE | 0x1ff << 4;
const WRITE_FILE: u64 = 1 << 1;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
/// Truncation, since the third version.
const TRUNCATE: u64 = 1 << 14;
/// Signals to other processes, since the sixth version.
const SIGNAL: u64 = 1 << 1;

/// From now on files and sockets can be written, made and removed only in these folders, as far as they exist, for good
/// and for all programs that are run. Needs `no_new_privs`. What is open stays open, and everything can be read.
///
/// # Errors
/// `Unsupported` or `EOPNOTSUPP`: the kernel has none.
pub fn keep_writable(folders: &[&str]) -> io::Result<()> {
    let none = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag it reads nothing, and returns a number.
    let version =
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) } as c_int)?;
    let files = if version < 3 { CHANGES } else { CHANGES | TRUNCATE };
    let ruleset = Ruleset { files, network: 0, scoped: SIGNAL };
    // Kernels refuse a struct with fields that they don't know.
    let length = if version < 6 { size_of::<u64>() } else { size_of::<Ruleset>() };
    // SAFETY: reads so much of the struct.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &ruleset, length, 0) } as c_int)?;
    // SAFETY: it is new and owned by nobody else.
    let ruleset = unsafe { File::from_raw_fd(fd) };
    for folder in folders {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let Ok(folder) = OpenOptions::new().read(true).custom_flags(flags).open(folder) else { continue };
        let allowed = files & (WRITE_FILE | REMOVE_FILE | MAKE_REG | MAKE_SOCK | TRUNCATE);
        let rule = Beneath { allowed, folder: folder.as_raw_fd() };
        // SAFETY: reads the struct.
        let added = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &rule, 0)
        };
        check(added as c_int)?;
    }
    // SAFETY: takes plain numbers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } as c_int)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;
    use crate::sys::keep_capabilities;

    /// The kernel restricts a thread alone.
    #[test]
    fn nothing_else_is_written() {
        let folder = std::env::temp_dir().join(format!("toh-landlock-{}", std::process::id()));
        let name = folder.to_str().unwrap().to_owned();
        let [inside, outside] = ["in", "out"].map(|name| folder.join(name));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&inside).unwrap();
        fs::write(&outside, "old").unwrap();
        let has_landlock = thread::spawn({
            let (inside, outside) = (inside.clone(), outside.clone());
            move || {
                keep_capabilities(0).unwrap();
                let nowhere = format!("{name}/nowhere");
                if let Err(error) = keep_writable(&[&nowhere, inside.to_str().unwrap()]) {
                    assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)), "{error}");
                    return false;
                }
                let path = inside.join("file");
                let path = path.to_str().unwrap();
                crate::sys::replace(path, b"one").unwrap();
                crate::sys::replace(path, b"two").unwrap();
                fs::write(path, "three").unwrap();
                fs::remove_file(path).unwrap();
                assert_eq!(fs::read_to_string(&outside).unwrap(), "old");
                for refused in [
                    fs::write(&outside, "new"),
                    fs::remove_file(&outside),
                    fs::write(inside.with_file_name("another"), ""),
                    fs::create_dir(inside.with_file_name("folder")),
                    fs::rename(&outside, inside.join("moved")),
                ] {
                    let code = refused.unwrap_err().raw_os_error();
                    assert!(matches!(code, Some(libc::EACCES | libc::EXDEV)), "{code:?}");
                }
                true
            }
        })
        .join()
        .unwrap();
        if has_landlock {
            assert_eq!(fs::read_to_string(&outside).unwrap(), "old");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
