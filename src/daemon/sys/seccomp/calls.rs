//! The calls that the filter allows: those that the daemon, nft(8) and a shell around it were seen to make with glibc,
//! and those that musl makes instead. Each line has its reason.

use std::ffi::c_long;

/// All of them; none for machines on which the calls have not been observed.
#[rustfmt::skip]
pub const ALLOWED: &[&[c_long]] = &[
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))] WIDE,
    #[cfg(any(target_arch = "arm", target_arch = "mips"))] NARROW,
    #[cfg(any(target_arch = "x86_64", target_arch = "arm", target_arch = "mips"))] OLD,
];

/// Calls that all machines have.
#[rustfmt::skip]
macro_rules! and_everywhere {
    ($($more:tt)*) => { &[
        // Memory.
        SYS_brk, SYS_mremap, SYS_munmap, SYS_madvise, // allocators
        SYS_mprotect, // libraries that are loaded
        // Descriptors.
        SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_close, // files, the TUN, pipes, logs
        SYS_lseek, // how long a file is that is read whole
        SYS_ioctl, // the TUN; whether a log is a terminal
        SYS_memfd_create, SYS_dup, SYS_dup3, // what nft reads
        SYS_pipe2, SYS_fcntl, // relays' pipes, and their size
        SYS_splice, // relays
        SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_eventfd2, SYS_signalfd4, // event loops
        SYS_ppoll, SYS_pselect6, // nft and shells wait
        // Files. Not their modes, owners and links.
        SYS_openat, SYS_fstat, SYS_statx, // the configuration, names, /proc; libraries
        SYS_statfs, SYS_fstatfs, // whether names are in memory
        SYS_getdents64, // folders of /proc: sockets, devices
        SYS_faccessat, SYS_faccessat2, SYS_readlinkat, SYS_getcwd, // a shell finds programs
        SYS_umask, SYS_unlinkat, SYS_renameat2, // the status socket; files that are replaced as a whole
        // Sockets, of families that PROGRAM knows.
        SYS_bind, SYS_listen, SYS_accept, SYS_accept4, SYS_getsockname, SYS_getpeername, // listeners
        SYS_connect, SYS_shutdown, SYS_setsockopt, SYS_getsockopt, // connections
        SYS_sendto, SYS_sendmsg, SYS_recvfrom, SYS_recvmsg, // names, netlink
        SYS_sendmmsg, // packets of a burst of handshakes
        SYS_socketpair, // what nft says
        // Time.
        SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, // where the vDSO doesn't tell
        SYS_clock_nanosleep, SYS_nanosleep, // shells sleep
        // Signals that come. None are sent: kill and the like are not here.
        SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, // how they are taken
        SYS_rt_sigsuspend, SYS_restart_syscall, // shells wait for one; what one has interrupted
        // Processes.
        SYS_execve, SYS_wait4, SYS_waitid, // nft and the next run
        SYS_exit, SYS_exit_group, // their end
        SYS_futex, SYS_set_tid_address, SYS_set_robust_list, SYS_sched_yield, // threads of C libraries
        SYS_prlimit64, SYS_setrlimit, // files for flows; stacks
        SYS_getrandom, // keys of tables
        SYS_uname, SYS_sysinfo, SYS_sched_getaffinity, // C libraries ask what machine this is
        SYS_getpid, SYS_getppid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, // and who they are
        SYS_prctl, SYS_capget, SYS_capset, SYS_seccomp, // privileges, which these can only give up
        $($more)*
    ] };
}

/// With numbers of 64 bits.
#[rustfmt::skip]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const WIDE: &[c_long] = {
    use libc::*;
    and_everywhere![
        SYS_mmap, SYS_newfstatat, SYS_pread64, SYS_pwrite64, SYS_getrlimit, // memory, files, limits
        SYS_rseq, // threads of glibc
        #[cfg(target_arch = "aarch64")] SYS_renameat, // files that are replaced
        #[cfg(target_arch = "x86_64")] SYS_arch_prctl, // where a thread's own memory is
        #[cfg(target_arch = "x86_64")] SYS_vfork, // nft
        #[cfg(target_arch = "x86_64")] SYS_time, // where the vDSO doesn't tell
        #[cfg(target_arch = "x86_64")] SYS_select, // shells wait
    ]
};
/// With numbers of 32 bits.
#[rustfmt::skip]
#[cfg(any(target_arch = "arm", target_arch = "mips"))]
const NARROW: &[c_long] = {
    use libc::*;
    /// A call's number on either machine, since libc doesn't name all calls.
    const fn either(arm: u32, mips: u32) -> c_long {
        (if cfg!(target_arch = "arm") { arm } else { super::FIRST + mips }) as c_long
    }
    and_everywhere![
        SYS_mmap2, either(192, 90), // memory: mips has mmap, too
        SYS__llseek, SYS_fcntl64, SYS_stat64, SYS_lstat64, SYS_fstat64, either(327, 293), // files: fstatat64,
        SYS_statfs64, SYS_fstatfs64, either(180, 200), either(181, 201), // pread64, pwrite64
        either(191, 76), // getrlimit
        SYS_send, SYS_recv, // names, netlink
        SYS_sigreturn, // how signals are taken
        either(142, 142), // _newselect: shells wait
        either(398, 367), // rseq: threads of glibc
        either(190, 283), // vfork: nft; set_thread_area: where a thread's own memory is
        either(403, 403), either(406, 406), either(407, 407), // clock_*_time64
        either(413, 413), either(414, 414), either(422, 422), // pselect6_time64, ppoll_time64, futex_time64
        #[cfg(target_arch = "arm")] SYS_getuid32,
        #[cfg(target_arch = "arm")] SYS_geteuid32,
        #[cfg(target_arch = "arm")] SYS_getgid32,
        #[cfg(target_arch = "arm")] SYS_getegid32,
    ]
};

/// Older forms of some of these, which newer machines don't have.
#[rustfmt::skip]
#[cfg(any(target_arch = "x86_64", target_arch = "arm", target_arch = "mips"))]
const OLD: &[c_long] = {
    use libc::*;
    &[
        SYS_open, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_getdents, // files
        SYS_unlink, SYS_rename, SYS_renameat, // files that are replaced
        SYS_pipe, SYS_dup2, SYS_poll, SYS_epoll_wait, SYS_fork, SYS_pause, // event loops, nft and shells
    ]
};
