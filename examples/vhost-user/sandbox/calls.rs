//! Seccomp: system calls.
//!
//! Three filters, of which the strictest answer counts:
//!
//! * what no part of this program ever asks for, and whoever breaks in does, ends the process by `SIGSYS`;
//! * `clone3`, whose arguments no filter sees, does not exist, so that the C library starts threads by `clone`;
//! * what is not on the list of what is needed is not permitted (`EPERM`): a forgotten call fails where it is made, and is told
//!   there like every other failure of the host.

use std::collections::BTreeMap;
use std::process;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::{Connect, Names, Policy};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Requests to block devices: how large it is, how large its sectors are, whether it is read-only, and discards.
const BLOCK_REQUESTS: [u64; 6] = [0x8008_1272, 0x1268, 0x127b, 0x125e, 0x1277, 0x127f];
/// Attaching and detaching the queue of a tap.
const TUNSETQUEUE: u64 = 0x4004_54d9;
/// What a tap leaves to be done to frames, as far as the guest's driver accepts that: it says so while the guest runs.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// Non-blocking mode.
const FIONBIO: u64 = 0x5421;
/// How much there is to be read; the resolver asks.
const FIONREAD: u64 = 0x541b;

/// What ends the process.
const FATAL: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_capset,
    libc::SYS_personality,
];

/// What is needed whatever its arguments are.
const NEEDED: &[c_long] = &[
    // Data of disks and networks
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Descriptors
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_statx,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_memfd_create,
    // Paths: what a path is, and the removal of sockets; Landlock says where
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_unlinkat,
    // Connections of front-ends and clients
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Memory; see also `arguments`
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads; see also `arguments`
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    // Signals of this process; see also `arguments`
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

/// The same under the names of old, where there are any.
#[cfg(target_arch = "x86_64")]
const NEEDED_OF_OLD: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_dup2,
    libc::SYS_accept,
];
#[cfg(not(target_arch = "x86_64"))]
const NEEDED_OF_OLD: &[c_long] = &[];

/// Those of [`FATAL`] that only some architectures have.
#[cfg(target_arch = "x86_64")]
const FATAL_OF_OLD: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_kexec_file_load];
#[cfg(not(target_arch = "x86_64"))]
const FATAL_OF_OLD: &[c_long] = &[];

/// Why a filter could not be put in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallsError {
    #[error(transparent)]
    Compile(#[from] BackendError),
    #[error(transparent)]
    Apply(#[from] seccompiler::Error),
}

/// Restricts all threads.
pub(super) fn restrict(policy: &Policy) -> Result<(), CallsError> {
    // The filter that forbids to put filters in place is the last.
    for filter in [fatal()?, without_clone3()?, needed(policy)?] {
        apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, action, std::env::consts::ARCH.try_into()?)?.try_into()
}

fn fatal() -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = FATAL.iter().chain(FATAL_OF_OLD).map(|number| (*number, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![masked(0, thread, 0)?])?]);
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = [(libc::SYS_clone3, Vec::new())].into();
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn needed(policy: &Policy) -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = NEEDED.iter().chain(NEEDED_OF_OLD).map(|number| (*number, Vec::new())).collect();
    rules.extend(arguments()?);
    let looks_up = policy.names == Names::LookedUp;
    if !policy.allowed.is_empty() || looks_up {
        rules.insert(libc::SYS_openat, Vec::new());
    }
    rules.extend(connections(policy)?);
    compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// What is needed with some arguments only.
fn arguments() -> Result<Rules, BackendError> {
    let any_of = |argument, values: &[u64]| {
        let rule = |value: &u64| SeccompRule::new(vec![equal(argument, *value)?]);
        values.iter().map(rule).collect::<Result<Vec<_>, BackendError>>()
    };
    let not_executable = || -> Result<_, BackendError> {
        Ok(vec![SeccompRule::new(vec![masked(2, libc::PROT_EXEC as u64, 0)?])?])
    };
    let thread = libc::CLONE_THREAD as u64;
    let requests: Vec<u64> =
        BLOCK_REQUESTS.into_iter().chain([TUNSETQUEUE, TUNSETOFFLOAD, FIONBIO, FIONREAD]).collect();
    Ok([
        (libc::SYS_mmap, not_executable()?),
        (libc::SYS_mprotect, not_executable()?),
        (libc::SYS_clone, vec![SeccompRule::new(vec![masked(0, thread, thread)?])?]),
        (libc::SYS_prctl, any_of(0, &[libc::PR_SET_NAME as u64])?),
        (libc::SYS_tgkill, any_of(0, &[process::id().into()])?),
        (libc::SYS_ioctl, any_of(1, &requests)?),
    ]
    .into())
}

/// What it takes to connect to servers, where there are any.
fn connections(policy: &Policy) -> Result<Rules, BackendError> {
    let mut domains = Vec::new();
    if policy.unix == Connect::Allowed {
        domains.push(libc::AF_UNIX);
    }
    if !policy.ports.is_empty() {
        domains.extend([libc::AF_INET, libc::AF_INET6]);
    }
    if policy.names == Names::LookedUp {
        // The resolver asks which interfaces there are, and a cache of names where one runs.
        domains.extend([libc::AF_NETLINK, libc::AF_UNIX]);
    }
    domains.sort_unstable();
    domains.dedup();
    if domains.is_empty() {
        return Ok(Rules::new());
    }
    let domain = |domain: &libc::c_int| SeccompRule::new(vec![equal(0, *domain as u64)?]);
    let sockets = domains.iter().map(domain).collect::<Result<Vec<_>, _>>()?;
    let mut rules: Rules = [(libc::SYS_socket, sockets), (libc::SYS_connect, Vec::new())].into();
    if policy.names == Names::LookedUp {
        for number in [libc::SYS_bind, libc::SYS_sendmmsg, libc::SYS_uname] {
            rules.insert(number, Vec::new());
        }
    }
    Ok(rules)
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}
