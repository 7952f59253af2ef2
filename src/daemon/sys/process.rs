//! This process, and the programs that it runs. std's `Command` would add 20 KB to the binary; here a program gets this
//! process's environment and plain files.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::{io, ptr};

use super::check;

unsafe extern "C" {
    /// <unistd.h>
    static environ: *const *mut c_char;
}

/// A program that was started. Dropping it waits for its end.
pub struct Child {
    id: libc::pid_t,
}

/// Starts a program from PATH. It reads `input`; its stdout and stderr go to `output`.
pub fn spawn(argv: &[&CStr], input: impl AsFd, output: impl AsFd) -> io::Result<Child> {
    let pointers = null_terminated(argv);
    let Some(name) = argv.first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut actions = MaybeUninit::uninit();
    // SAFETY: initializes the struct.
    check_error(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
    // SAFETY: it has been.
    let mut actions = unsafe { actions.assume_init() };
    let mut id = 0;
    let mut spawned = Ok(());
    let (input, output) = (input.as_fd(), output.as_fd());
    for (from, to) in
        [(input, libc::STDIN_FILENO), (output, libc::STDOUT_FILENO), (output, libc::STDERR_FILENO)]
    {
        // SAFETY: the actions are initialized; the rest are plain numbers.
        let added = unsafe { libc::posix_spawn_file_actions_adddup2(&mut actions, from.as_raw_fd(), to) };
        spawned = spawned.and_then(|()| check_error(added));
    }
    spawned = spawned.and_then(|()| {
        // SAFETY: strings, and lists of them that a null ends, which the call only reads (its types say
        // otherwise, posix_spawn(3)); the only thread reads the environment.
        let error = unsafe {
            libc::posix_spawnp(
                &mut id,
                name.as_ptr(),
                &actions,
                ptr::null(),
                pointers.as_ptr().cast(),
                environ.cast(),
            )
        };
        check_error(error)
    });
    // SAFETY: initialized, and not used from here on.
    unsafe { libc::posix_spawn_file_actions_destroy(&mut actions) };
    spawned.map(|()| Child { id })
}

impl Child {
    /// Blocks until it has ended. Returns whether it exited with 0.
    pub fn wait(&mut self) -> io::Result<bool> {
        wait(mem::take(&mut self.id))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.id != 0 {
            _ = wait(self.id);
        }
    }
}

fn wait(id: libc::pid_t) -> io::Result<bool> {
    loop {
        let mut status: c_int = 0;
        // SAFETY: writes one int.
        match check(unsafe { libc::waitpid(id, &mut status, 0) }) {
            Ok(_) => return Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Executes this program again with the same arguments, and with `NAME=VALUE` in the environment. Returns only if that fails.
pub fn execute_again(variable: &str) -> io::Error {
    let mut line = match super::read_file("/proc/self/cmdline", super::MAX_TEXT) {
        Ok(line) => line,
        Err(error) => return error,
    };
    line.push(0);
    let arguments = line.split_inclusive(|&byte| byte == 0);
    let mut pointers: Vec<_> = arguments.map(|text| text.as_ptr().cast()).collect();
    pointers.pop(); // the NUL that was pushed
    pointers.push(ptr::null());
    let Ok(variable) = CString::new(variable) else { return io::ErrorKind::InvalidInput.into() };
    // SAFETY: the text ends with NUL, and becomes the environment's; there is no other thread to read that.
    unsafe { libc::putenv(variable.into_raw()) };
    // SAFETY: each argument ends with NUL, and their list with null.
    unsafe { libc::execv(c"/proc/self/exe".as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Names the process (prctl(2)), because executing /proc/self/exe has named it `exe`.
pub fn set_process_name() {
    // SAFETY: reads a string that ends with NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"tcp-over-http".as_ptr()) };
}

/// Calls `make` under a umask: files are created without the permissions in `mask`.
pub fn with_umask<T>(mask: u16, make: impl FnOnce() -> T) -> T {
    // SAFETY: takes a plain number and can't fail.
    let before = unsafe { libc::umask(mask.into()) };
    let made = make();
    // SAFETY: the same.
    unsafe { libc::umask(before) };
    made
}

/// Raises the limit of open files to `count`, the hard limit too where that is allowed, else as far as possible.
/// Returns the limit.
pub fn raise_file_limit(count: usize) -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one struct.
    check(unsafe { libc::prlimit(0, libc::RLIMIT_NOFILE, ptr::null(), &mut limit) })?;
    let count = count as libc::rlim_t;
    if limit.rlim_cur < count {
        // Not setrlimit: for old kernels, musl's can stop all threads.
        // SAFETY: reads one struct.
        let set = |limit| check(unsafe { libc::prlimit(0, libc::RLIMIT_NOFILE, &limit, ptr::null_mut()) });
        let hard = limit.rlim_max;
        limit = libc::rlimit { rlim_cur: count, rlim_max: count.max(hard) };
        if set(limit).is_err() {
            limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
            set(limit)?;
        }
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Drops all capabilities but those in `keep`, a bit each (capabilities(7)), for good and for all programs that are run
/// from now on. The process need not have those in `keep`.
pub fn keep_capabilities(keep: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` (<linux/capability.h>), and this process.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    // Twice, for the lower and the upper 32: effective, permitted, inheritable.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: reads the header, which names the version with two triples, and writes these.
    check(unsafe { libc::syscall(libc::SYS_capget, HEADER.as_ptr(), sets.as_mut_ptr()) } as c_int)?;
    for (set, keep) in sets.iter_mut().zip([keep as u32, (keep >> 32) as u32]) {
        *set = set.map(|has| has & keep);
    }
    // SAFETY: takes plain numbers. Without it, root would regain all by the next exec.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: reads the header and the triples.
    check(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), sets.as_ptr()) } as c_int)?;
    Ok(())
}

/// Gives the calling thread a network namespace of its own, which ends with it.
#[cfg(test)]
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// An empty file in memory: memfd_create(2).
pub fn memory_file() -> io::Result<File> {
    // SAFETY: reads a string.
    let fd = check(unsafe { libc::memfd_create(c"".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: it is new and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn null_terminated(argv: &[&CStr]) -> Vec<*const c_char> {
    argv.iter().map(|arg| arg.as_ptr()).chain([ptr::null()]).collect()
}

/// For calls that return their error.
fn check_error(error: c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn shell(script: &CStr, input: &str) -> (io::Result<bool>, String) {
        let (mut stdin, mut output) = (memory_file().unwrap(), memory_file().unwrap());
        stdin.write_all(input.as_bytes()).unwrap();
        stdin.rewind().unwrap();
        let ended = spawn(&[c"sh", c"-c", script], &stdin, &output).and_then(|mut child| child.wait());
        let mut said = String::new();
        output.rewind().unwrap();
        output.read_to_string(&mut said).unwrap();
        (ended, said)
    }

    #[test]
    fn reads_its_input_and_keeps_what_is_said() {
        let long = "0123456789".repeat(100_000); // more than a pipe holds
        let (ended, said) = shell(c"cat; echo end >&2", &long);
        assert!(ended.unwrap());
        assert_eq!(said, long + "end\n");
    }

    #[test]
    fn tells_how_it_ends() {
        assert!(!shell(c"exit 3", "").0.unwrap());
        assert!(!shell(c"kill -KILL $$", "").0.unwrap());
        let file = memory_file().unwrap();
        let error = spawn(&[c"/nonexistent"], &file, &file).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(spawn(&[], &file, &file).is_err());
    }

    #[test]
    fn gives_its_environment() {
        let (ended, said) = shell(c"echo $PATH", "");
        assert!(ended.unwrap());
        assert_eq!(said.trim_end(), env::var("PATH").unwrap());
    }
}
