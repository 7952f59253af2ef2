//! Seccomp (seccomp(2)): limits the system calls of this process, of programs that it runs, and of the next run. All
//! others fail as in a kernel that doesn't have them, so that C libraries fall back to listed ones.

mod calls;

use std::ffi::c_int;
use std::io;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_LD, BPF_MISC,
    BPF_RET, BPF_RSH, BPF_SUB, BPF_TAX, BPF_W, BPF_X, sock_filter,
};

use super::check;

/// `AUDIT_ARCH_*` (<linux/audit.h>): the machine, 64 bits, little-endian. 0: unknown, so there is no filter.
const ARCHITECTURE: u32 = match () {
    () if cfg!(target_arch = "x86_64") => 62 | WIDE | LITTLE,
    () if cfg!(target_arch = "aarch64") => 183 | WIDE | LITTLE,
    () if cfg!(target_arch = "riscv64") => 243 | WIDE | LITTLE,
    () if cfg!(all(target_arch = "arm", target_endian = "little")) => 40 | LITTLE,
    () if cfg!(all(target_arch = "mips", target_endian = "little")) => 8 | LITTLE,
    () if cfg!(target_arch = "mips") => 8,
    () => 0,
};
const WIDE: u32 = 1 << 31;
const LITTLE: u32 = 1 << 30;

/// The number of the first call.
const FIRST: u32 = if cfg!(target_arch = "mips") { 4000 } else { 0 };
/// Words of the bit set of calls, 32 calls each.
const WORDS: usize = 14;

/// A bit for each call that is allowed.
const BITS: [u32; WORDS] = {
    let (mut bits, mut group) = ([0; WORDS], 0);
    while group < calls::ALLOWED.len() {
        let mut at = 0;
        while at < calls::ALLOWED[group].len() {
            let number = calls::ALLOWED[group][at] as u32 - FIRST;
            bits[number as usize / 32] |= 1 << (number % 32);
            at += 1;
        }
        group += 1;
    }
    bits
};

// Offsets in `struct seccomp_data`; of an argument, its lower half.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENT: u32 = if cfg!(target_endian = "big") { 20 } else { 16 };
/// A number outside the range: `__ARM_NR_set_tls`, which each program calls first.
const SET_TLS: u32 = if cfg!(target_arch = "arm") { 0xf0005 } else { u32::MAX };
/// clone may make processes, but no namespaces.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u32;

// Indices of branch targets in PROGRAM.
const WORD: usize = 13;
const SHIFT: usize = WORD + 3 * WORDS;
const CLONE: usize = SHIFT + 3;
const SOCKET: usize = CLONE + 2;
const NETLINK: usize = SOCKET + 5;
const INTERNET: usize = NETLINK + 3;
const ALLOW: usize = INTERNET + 5;
const DENY: usize = ALLOW + 1;
const NO_FAMILY: usize = DENY + 1;
const LENGTH: usize = NO_FAMILY + 1;

static PROGRAM: [sock_filter; LENGTH] = {
    const LD: u32 = BPF_LD | BPF_W | BPF_ABS;
    const fn step(code: u32, k: u32) -> sock_filter {
        sock_filter { code: code as u16, jt: 0, jf: 0, k }
    }
    /// The instruction at `here`, which continues at one of two others.
    const fn branch(here: usize, code: u32, k: u32, yes: usize, no: usize) -> sock_filter {
        let (jt, jf) = ((yes - here - 1) as u8, (no - here - 1) as u8);
        sock_filter { code: (BPF_JMP | code) as u16, jt, jf, k }
    }
    const fn equals(here: usize, k: u32, yes: usize, no: usize) -> sock_filter {
        branch(here, BPF_JEQ, k, yes, no)
    }
    let mut program = [step(0, 0); LENGTH];
    program[0] = step(LD, ARCH);
    program[1] = equals(1, ARCHITECTURE, 2, DENY);
    program[2] = step(LD, NUMBER);
    program[3] = equals(3, libc::SYS_socket as u32, SOCKET, 4);
    program[4] = equals(4, libc::SYS_clone as u32, CLONE, 5);
    program[5] = equals(5, SET_TLS, ALLOW, 6);
    program[6] = step(BPF_ALU | BPF_SUB, FIRST);
    program[7] = branch(7, BPF_JGE, 32 * WORDS as u32, DENY, 8);
    program[8] = step(BPF_ALU | BPF_AND, 31);
    program[9] = step(BPF_MISC | BPF_TAX, 0);
    program[10] = step(LD, NUMBER);
    program[11] = step(BPF_ALU | BPF_SUB, FIRST);
    program[12] = step(BPF_ALU | BPF_RSH, 5);
    let mut word = 0;
    while word < WORDS {
        let at = WORD + 3 * word;
        program[at] = equals(at, word as u32, at + 1, at + 3);
        program[at + 1] = step(BPF_LD | BPF_IMM, BITS[word]);
        program[at + 2] = step(BPF_JMP | BPF_JA, (SHIFT - at - 3) as u32);
        word += 1;
    }
    program[SHIFT] = step(BPF_ALU | BPF_RSH | BPF_X, 0);
    program[SHIFT + 1] = step(BPF_ALU | BPF_AND, 1);
    program[SHIFT + 2] = equals(SHIFT + 2, 1, ALLOW, DENY);
    program[CLONE] = step(LD, ARGUMENT);
    program[CLONE + 1] = branch(CLONE + 1, BPF_JSET, NAMESPACES, DENY, ALLOW);
    program[SOCKET] = step(LD, ARGUMENT);
    program[SOCKET + 1] = equals(SOCKET + 1, libc::AF_NETLINK as u32, NETLINK, SOCKET + 2);
    program[SOCKET + 2] = equals(SOCKET + 2, libc::AF_INET as u32, INTERNET, SOCKET + 3);
    program[SOCKET + 3] = equals(SOCKET + 3, libc::AF_INET6 as u32, INTERNET, SOCKET + 4);
    program[SOCKET + 4] = equals(SOCKET + 4, libc::AF_UNIX as u32, ALLOW, NO_FAMILY);
    program[NETLINK] = step(LD, ARGUMENT + 16);
    program[NETLINK + 1] = equals(NETLINK + 1, libc::NETLINK_ROUTE as u32, ALLOW, NETLINK + 2);
    program[NETLINK + 2] = equals(NETLINK + 2, libc::NETLINK_NETFILTER as u32, ALLOW, NO_FAMILY);
    program[INTERNET] = step(LD, ARGUMENT + 16);
    program[INTERNET + 1] = equals(INTERNET + 1, 0, ALLOW, INTERNET + 2);
    program[INTERNET + 2] = equals(INTERNET + 2, libc::IPPROTO_TCP as u32, ALLOW, INTERNET + 3);
    program[INTERNET + 3] = equals(INTERNET + 3, libc::IPPROTO_UDP as u32, ALLOW, INTERNET + 4);
    program[INTERNET + 4] = equals(INTERNET + 4, libc::IPPROTO_RAW as u32, ALLOW, NO_FAMILY);
    program[ALLOW] = step(BPF_RET, libc::SECCOMP_RET_ALLOW);
    program[DENY] = step(BPF_RET, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    program[NO_FAMILY] = step(BPF_RET, libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32);
    program
};

/// Allows only the listed calls from now on, for good. Needs `no_new_privs`.
///
/// # Errors
/// `Unsupported`, `ENOSYS` or `EINVAL`: no filter is possible here, as under an emulator, or for a 32-bit daemon under
/// a 64-bit kernel, where other programs may be 64-bit ones.
pub fn keep_calls() -> io::Result<()> {
    /// <linux/seccomp.h>: does not ask for the slow mitigations against speculation.
    const SPEC_ALLOW: u32 = 1 << 2;
    if ARCHITECTURE == 0 || cfg!(target_pointer_width = "32") && is_wide()? {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let program = libc::sock_fprog { len: LENGTH as u16, filter: PROGRAM.as_ptr().cast_mut() };
    // SAFETY: reads a `sock_fprog`, and as many instructions as it says.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, SPEC_ALLOW, &program) };
    check(result as c_int).map(drop)
}

/// Whether the kernel is a 64-bit one, by the name of its machine.
fn is_wide() -> io::Result<bool> {
    let mut name = std::mem::MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: writes one struct.
    check(unsafe { libc::uname(name.as_mut_ptr()) })?;
    // SAFETY: it has been zeroed, and written.
    let name = unsafe { name.assume_init() };
    // As in "aarch64" and "mips64".
    Ok(if cfg!(target_arch = "arm") { name.machine[1] == b'a' as _ } else { name.machine[4] == b'6' as _ })
}

#[cfg(test)]
mod tests {
    use std::ffi::c_long;
    use std::thread;

    use super::*;
    use crate::sys::keep_capabilities;

    /// The kernel restricts a thread alone.
    #[test]
    fn other_calls_fail() {
        thread::spawn(|| {
            keep_capabilities(0).unwrap();
            if let Err(error) = keep_calls() {
                assert!(matches!(error.raw_os_error(), None | Some(libc::ENOSYS | libc::EINVAL)), "{error}");
                return;
            }
            let call = |number: c_long, [a, b, c]: [c_int; 3]| {
                // SAFETY: none of these reads or writes memory where a null pointer, or none, is given.
                check(unsafe { libc::syscall(number, a, b, c, 0, 0) } as c_int)
                    .map_err(|error| error.raw_os_error())
            };
            let socket = |family, kind, protocol| call(libc::SYS_socket, [family, kind, protocol]);
            for (number, first) in [
                (libc::SYS_io_uring_setup, 1),
                (libc::SYS_bpf, 0),
                (libc::SYS_userfaultfd, 0),
                (libc::SYS_perf_event_open, 0),
                (libc::SYS_keyctl, 0),
                (libc::SYS_ptrace, 0),
                (libc::SYS_unshare, 0),
                (libc::SYS_kill, 0),
                (libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD),
                (FIRST as c_long + 32 * WORDS as c_long, 0),
            ] {
                assert_eq!(call(number, [first, 0, 0]), Err(Some(libc::ENOSYS)), "{number}");
            }
            for (family, kind, protocol) in [
                (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
                (libc::AF_PACKET, libc::SOCK_RAW, 0),
                (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM),
                (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            ] {
                assert_eq!(socket(family, kind, protocol), Err(Some(libc::EAFNOSUPPORT)), "{family}");
            }
            for (family, kind, protocol) in [
                (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP),
                (libc::AF_INET6, libc::SOCK_DGRAM, 0),
                (libc::AF_UNIX, libc::SOCK_STREAM, 0),
                (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
                (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
            ] {
                let fd = socket(family, kind | libc::SOCK_CLOEXEC, protocol).unwrap();
                call(libc::SYS_close, [fd, 0, 0]).unwrap();
            }
        })
        .join()
        .unwrap();
    }
}
