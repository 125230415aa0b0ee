//! seccomp: the system calls that the worker may make. Any other fails with EPERM, which is an error that the worker can tell,
//! and not its death.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::Error;

/// Reading, writing and waiting: what carrying connections is made of.
const TRANSFER: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pwritev2,
    libc::SYS_pread64,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
];

/// Looking at files; Landlock says at which.
const FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// Memory, threads, clocks and randomness.
const PROCESS: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What x86-64 has kept beside newer ones of the same meaning, and the C library still uses.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// `PR_SET_VMA` (linux/prctl.h): the allocator names its memory.
const PR_SET_VMA: i32 = 0x5356_4d41;
/// `SIOCATMARK` (linux/sockios.h).
const SIOCATMARK: u64 = 0x8905;

/// Puts the list in force for this thread and those that it will start.
pub(super) fn limit() -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::SystemCalls(error.to_string());
    // clone3(2) has its flags in memory, where no filter can look: without it the C library makes threads by clone(2).
    let without_clone3 = [(libc::SYS_clone3, vec![])].into_iter().collect();
    let nosys = filter(without_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32));
    let allowed =
        filter(allowed().map_err(|e| failed(&e))?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow);
    for program in [nosys, allowed] {
        apply_filter(&program.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn filter(rules: Rules, others: SeccompAction, these: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, others, these, architecture)?.try_into()
}

fn allowed() -> Result<Rules, seccompiler::BackendError> {
    let always = [TRANSFER, FILES, PROCESS, OLDER].concat();
    // The other filter has the last word about clone3(2).
    let mut rules: Rules = always.into_iter().chain([libc::SYS_clone3]).map(|call| (call, vec![])).collect();
    let one_of = |argument, values: &[u64]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let equal = |value: &u64| SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, *value);
        values.iter().map(|value| SeccompRule::new(vec![equal(value)?])).collect()
    };
    let masked = |argument, mask: u64, value: u64| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        Ok(vec![SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(mask), value)?])?])
    };
    // No netlink, no packets, no kernel crypto.
    rules.insert(
        libc::SYS_socket,
        one_of(0, &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX].map(|family| family as u64))?,
    );
    rules.insert(libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX as u64])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, SIOCATMARK])?);
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA].map(|option| option as u64);
    rules.insert(libc::SYS_prctl, one_of(0, &names)?);
    // About itself only: `abort` raises a signal in its own thread, and the limits of another process are not its business.
    rules.insert(libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])?);
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0])?);
    // Threads, no processes.
    rules.insert(libc::SYS_clone, masked(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)?);
    // Nothing that was written is ever executed.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, masked(2, libc::PROT_EXEC as u64, 0)?);
    }
    Ok(rules)
}
