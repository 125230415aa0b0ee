//! What holds inside is tried inside, in a process of its own: these tests run themselves again and look at the outcome.

use std::{
    env,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::Command,
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::*;

const INSIDE: &str = "SIDECAR_TEST_INSIDE_SANDBOX";

/// Runs `test` again in a process of its own.
fn alone(test: &str, inside: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return inside();
    }
    let mut again = Command::new(env::current_exe().unwrap());
    again.args(["--exact", &format!("sandbox::tests::{test}"), "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn call(number: i64) -> Errno {
    // SAFETY: with these arguments the kernel would refuse each of the calls that are tried here even if the sandbox did not.
    let result = unsafe { libc::syscall(number, -1_i64, 0, 0, 0, 0, 0) };
    assert_eq!(result, -1, "system call {number} succeeded");
    Errno::last()
}

fn status(key: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {status}"));
    line.trim().to_owned()
}

#[test]
fn nothing_is_left_of_the_capabilities_and_no_thread_gets_them_back() {
    alone("nothing_is_left_of_the_capabilities_and_no_thread_gets_them_back", || {
        enter(None, &[]).unwrap();
        let check = || {
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(status(set), "0000000000000000", "{set}");
            }
            assert_eq!(status("NoNewPrivs:"), "1");
            assert_eq!(status("Seccomp:"), "2");
        };
        check();
        thread::spawn(check).join().unwrap();
    });
}

#[test]
fn what_only_an_attacker_would_call_is_refused() {
    alone("what_only_an_attacker_would_call_is_refused", || {
        let namespace = File::open("/proc/self/ns/net").unwrap();
        enter(None, &[]).unwrap();
        for forbidden in [
            libc::SYS_bpf,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_ptrace,
            libc::SYS_io_uring_setup,
            libc::SYS_process_vm_readv,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_memfd_create,
            libc::SYS_userfaultfd,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_unlinkat,
            libc::SYS_listen,
        ] {
            assert_eq!(call(forbidden), Errno::EPERM, "system call {forbidden}");
        }
        let parent = i64::from(std::os::unix::process::parent_id());
        // SAFETY: signal 0 is none; the kernel looks only whether it might be sent, and reads no limit to be set.
        let (signalled, limited) = unsafe {
            let signalled = libc::syscall(libc::SYS_tgkill, parent, parent, 0);
            let first = Errno::last();
            ((signalled, first), (libc::syscall(libc::SYS_prlimit64, parent, libc::RLIMIT_NOFILE, 0, 0), Errno::last()))
        };
        assert_eq!((signalled, limited), ((-1, Errno::EPERM), (-1, Errno::EPERM)), "of another process");
        assert_eq!(setns(&namespace, CloneFlags::CLONE_NEWNET), Err(Errno::EPERM));
        assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
        let executed = Command::new("/bin/true").spawn();
        assert_eq!(executed.unwrap_err().raw_os_error(), Some(libc::EPERM));
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), None);
        assert_eq!(netlink.unwrap_err(), Errno::EPERM);
        // SAFETY: a fresh mapping, refused.
        let executable = unsafe {
            let both = libc::PROT_EXEC | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 4096, both, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert!(executable == libc::MAP_FAILED && Errno::last() == Errno::EPERM);
    });
}

#[test]
fn only_what_was_named_is_read_and_nothing_is_written() {
    alone("only_what_was_named_is_read_and_nothing_is_written", || {
        let folder = env::temp_dir().join(format!("sidecar-sandbox-{}", std::process::id()));
        let (named, other) = (folder.join("named"), folder.join("other"));
        fs::create_dir_all(&named).unwrap();
        fs::create_dir_all(&other).unwrap();
        fs::write(named.join("file"), "yes").unwrap();
        fs::write(other.join("file"), "no").unwrap();
        let sandbox = enter(None, &[named.clone(), folder.join("named/later/file")]).unwrap();
        assert_eq!(fs::read_to_string(named.join("file")).unwrap(), "yes");
        assert!(fs::read_to_string("/proc/self/status").is_ok());
        if sandbox.files == Files::NotLimited {
            eprintln!("1 passed without Landlock, which this kernel lacks");
            return;
        }
        for path in [other.join("file"), "/etc/passwd".into()] {
            let refused = fs::read(&path).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{}", path.display());
        }
        for path in [named.join("file"), named.join("new"), "/dev/shm/new".into()] {
            assert!(fs::write(&path, "x").is_err(), "{} was written", path.display());
        }
    });
    // By the process outside, which may.
    if env::var_os(INSIDE).is_none() {
        for entry in fs::read_dir(env::temp_dir()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("sidecar-sandbox-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[test]
fn what_carrying_connections_needs_still_works() {
    alone("what_carrying_connections_needs_still_works", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        enter(None, &[]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (connected, accepted) = tokio::join!(tokio::net::TcpStream::connect(at), listener.accept());
            let (connected, (accepted, _)) = (connected.unwrap(), accepted.unwrap());
            connected.writable().await.unwrap();
            assert_eq!(connected.try_write(b"x").unwrap(), 1);
            accepted.readable().await.unwrap();
            assert_eq!(accepted.try_read(&mut [0; 2]).unwrap(), 1);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            assert_eq!(tokio::task::spawn_blocking(|| 7).await.unwrap(), 7);
        });
        UnixStream::pair().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", 1)).is_err());
        let memory = thread::spawn(|| vec![1_u8; 64 << 20].iter().map(|byte| u64::from(*byte)).sum::<u64>());
        assert_eq!(memory.join().unwrap(), 64 << 20);
    });
}

#[test]
fn another_user_is_become_or_the_key_is_named() {
    alone("another_user_is_become_or_the_key_is_named", || {
        let user = User { uid: 65534, gid: 65533 };
        match enter(Some(user), &[]) {
            Ok(_) => {
                assert_eq!(status("Uid:"), "65534\t65534\t65534\t65534");
                assert_eq!(status("Gid:"), "65533\t65533\t65533\t65533");
                assert_eq!(status("Groups:"), "");
                assert!(fs::read_dir("/proc/self/fd").is_ok(), "its own figures");
            }
            Err(error) => assert!(error.to_string().starts_with("proxy.user: "), "{error}"),
        }
    });
}
