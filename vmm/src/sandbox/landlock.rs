//! Files and networks that the process reaches, by Landlock (landlock(7)): with the threads' filters, which do not see paths, it is
//! what is left of the host's files for a worker that may open some.

use std::fs::File;

use devices::virtio::table::Does;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    Scope, path_beneath_rules,
};

use super::reached::Reached;

/// What is known here of Landlock; an older kernel does what it can of it.
const ABI: ABI = ABI::V6;
/// What of the process's own in /proc is opened while the guest runs: its pages, for a snapshot; its descriptors and mounts, by
/// which what is shared with a guest is opened.
const OWN: [&str; 3] = ["/proc/self/pagemap", "/proc/self/fd", "/proc/self/mountinfo"];

/// Rules by which a thread, and those that it starts, will reach nothing but this. They are made while the host's files are there to be
/// named.
pub fn rules(reached: &Reached) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(ABI);
    // No programs, no devices.
    let files = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let own: &[&str] = if reached.own() { &OWN } else { &[] };
    for path in own {
        // A rule is about an inode, and /proc makes another one for a file that nobody has open.
        File::open(path).into_iter().for_each(std::mem::forget);
    }
    Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(ABI))?
        // Not signals: threads that are restricted each for itself could not send each other any, with some kernels (before 6.12.23), and
        // whom they may send them to their filters say.
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .add_rules(path_beneath_rules(&reached.below, files))?
        .add_rules(path_beneath_rules(reached.used(Does::Change), all & !(AccessFs::Execute | AccessFs::IoctlDev)))?
        .add_rules(path_beneath_rules(reached.used(Does::Read), reading()))?
        .add_rules(path_beneath_rules(reached.used(Does::Connect), AccessFs::RemoveFile))?
        .add_rules(path_beneath_rules(&reached.written, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(own, reading()))
}

/// Whether the host's Landlock keeps a process from unix sockets without a path that are others' (Linux 6.12).
pub fn scopes_sockets() -> bool {
    const VERSION: libc::c_long = 1;
    // SAFETY: asked for the version, the call takes nothing, and returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    version >= ABI as libc::c_long
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;

    use landlock::RulesetStatus;

    use super::*;
    use crate::sandbox::tests::config;

    /// Landlock holds for a thread, and so the others go on as before.
    #[test]
    fn group_11_nothing_is_reached_but_what_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["own", "shared", "read", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), name).unwrap();
        }
        let (host, guest) = (path("own").join("file"), path("disk"));
        fs::write(&guest, [0; 512]).unwrap();
        let volume = |name: &str, read_only: bool| serde_json::json!({ "name": name, "path_on_host": path(name), "is_read_only": read_only });
        let mut config = config(false);
        let volumes = [volume("shared", false), volume("read", true)];
        config.devices.insert("fs".into(), serde_json::json!({ "tag": "volumes", "volumes": volumes }));
        let drive = serde_json::json!({ "drive_id": "a", "path_on_host": guest, "is_root_device": false, "is_read_only": false });
        config.devices.insert("drives".into(), serde_json::json!([drive]));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let own = path("own");
        let confined = || {
            let status = rules(&Reached::of(std::slice::from_ref(&own), &config, true))
                .unwrap()
                .restrict_self()
                .unwrap()
                .ruleset;
            if status == RulesetStatus::NotEnforced {
                println!("SKIP group_11_nothing_is_reached_but_what_was_said: this kernel has no Landlock");
                return;
            }
            let denied = |result: std::io::Result<()>| result.unwrap_err().kind() == ErrorKind::PermissionDenied;
            let read = |path: PathBuf| fs::read(path).map(drop);
            assert!(read(host.clone()).is_ok() && fs::write(host.with_file_name("new"), "x").is_ok());
            assert!(read(path("shared").join("file")).is_ok() && fs::write(path("shared").join("new"), "x").is_ok());
            assert!(read(path("read").join("file")).is_ok() && denied(fs::write(path("read").join("file"), "x")));
            assert!(read(guest.clone()).is_ok() && denied(fs::write(&guest, "x")), "a disk that is open already");
            assert!(denied(read(path("other").join("file"))) && denied(fs::write(path("other").join("file"), "x")));
            assert!(denied(read("/etc/passwd".into())) && denied(fs::read_dir("/").map(drop)));
            assert!(denied(read("/proc/self/environ".into())) && OWN.iter().all(|path| File::open(path).is_ok()));
            if status == RulesetStatus::FullyEnforced {
                assert!(denied(TcpStream::connect(address).map(drop)) && denied(TcpListener::bind(address).map(drop)));
            }
            assert!(denied(std::process::Command::new("/bin/true").status().map(drop)));
        };
        std::thread::scope(|scope| scope.spawn(confined).join().unwrap());
        assert!(fs::read("/etc/passwd").is_ok());
    }
}
