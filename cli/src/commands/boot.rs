//! `bulkhead boot`: a bare microVM, its serial console on stdin and stdout.
//!
//! Input goes through a thread of this process, so that a terminal has a way out (Ctrl-A x) and a regular file can be
//! typed in; output is the per-VM process's own.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use serde_json::json;
use vmm::config::{BootSource, MachineConfig, SerialConfig, VmConfig};
use vmm::host;

use super::run::{EXIT_PORT, USUAL_CMDLINE};
use crate::args::{Boot, Talk};
use crate::failure::Outcome;
use crate::monitor::{Console, Monitor, MonitorError};
use crate::paths;
use crate::rundir::RunDir;
use crate::signals::Guard;
use crate::terminal::{Escape, Raw};

/// Boots it and waits for its end: 0 if the guest powered off or reset itself, or the user left by Ctrl-A x.
pub fn boot(args: &Boot, talk: Talk) -> Outcome {
    // Dropped in this order: the terminal first.
    let guard: Guard<(Option<Raw>, RunDir)> = Guard::new().context("cannot wait for signals")?;
    let config = config(args)?;
    config.validate(host::memory_mib())?;
    let directory = RunDir::create(&paths::run(), None)?;
    if let Some(socket) = &args.vsock {
        directory.own_socket(socket)?;
    }
    let mut monitor = Monitor::start(&serde_json::to_string(&config)?, Console::Stdio, None, talk.verbose)?;
    let on_terminal = io::stdin().is_terminal();
    let raw = on_terminal.then(enter_raw).transpose()?;
    guard.keep((raw, directory));
    if on_terminal && !talk.quiet {
        eprint!("bulkhead: Ctrl-A x ends the microVM\r\n");
    }
    let left = Arc::new(AtomicBool::new(false));
    if let Some(console) = monitor.take_stdin() {
        let vm = monitor.ended().try_clone_to_owned().context("cannot watch the microVM's process")?;
        let escape = on_terminal.then(Escape::default);
        let left = left.clone();
        std::thread::Builder::new()
            .name("console-input".into())
            .spawn(move || relay(console, escape, &vm, &left))
            .context("cannot start a thread")?;
    }
    let result = monitor.wait();
    drop(guard);
    match result {
        Ok(report) => {
            if let (true, Some((reason, counts))) = (talk.verbose, report.exit) {
                eprintln!(
                    "bulkhead: {reason:?}; exits: {} port, {} MMIO, {} other; {} instructions completed in user space",
                    counts.pio, counts.mmio, counts.other, counts.completed
                );
            }
            Ok(0)
        }
        Err(_) if left.load(Ordering::Acquire) => Ok(0),
        Err(error @ MonitorError::Guest(_)) => {
            Err(anyhow!("{error}; --append loglevel=7 shows more of its kernel's messages").into())
        }
        Err(error) => Err(error.into()),
    }
}

fn enter_raw() -> anyhow::Result<Raw> {
    let terminal = io::stdin().as_fd().try_clone_to_owned().context("cannot use the terminal")?;
    Raw::enter(terminal).context("cannot put the terminal into raw mode")
}

/// Passes what is typed to the guest, until there is no more, or the user wants out.
fn relay(mut console: ChildStdin, mut escape: Option<Escape>, vm: &OwnedFd, left: &AtomicBool) {
    let mut stdin = io::stdin().lock();
    let mut input = [0; 4096];
    let mut output = Vec::new();
    loop {
        let count = match stdin.read(&mut input) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        output.clear();
        let out = match &mut escape {
            Some(escape) => escape.filter(&input[..count], &mut output),
            None => {
                output.extend_from_slice(&input[..count]);
                false
            }
        };
        if out {
            left.store(true, Ordering::Release);
            Monitor::kill_through(vm.as_fd());
            return;
        }
        // The guest has ended, or its console was closed.
        if console.write_all(&output).is_err() {
            return;
        }
    }
}

fn config(args: &Boot) -> anyhow::Result<VmConfig> {
    let mut devices = serde_json::Map::new();
    let mut drives = Vec::new();
    for (index, disk) in args.disk.iter().enumerate() {
        let path = text(&disk.path)?;
        drives.push(json!({
            "drive_id": format!("disk{index}"), "path_on_host": path, "is_root_device": false, "is_read_only": disk.read_only,
        }));
    }
    if !drives.is_empty() {
        devices.insert("drives".into(), drives.into());
    }
    if let Some(socket) = &args.vsock {
        devices.insert("vsock".into(), json!({ "guest_cid": 3, "uds_path": text(socket)? }));
    }
    devices.insert("entropy".into(), json!({}));
    let words = ["console=ttyS0", USUAL_CMDLINE, EXIT_PORT].into_iter().chain(args.append.iter().map(String::as_str));
    Ok(VmConfig {
        snapshot: None,
        boot_source: Some(BootSource {
            kernel_image_path: args.kernel.clone(),
            initrd_path: args.initrd.clone(),
            boot_args: words.collect::<Vec<_>>().join(" "),
            protocol: args.protocol,
        }),
        machine: MachineConfig {
            vcpu_count: args.machine.cpus,
            mem_size_mib: args.machine.memory_mib,
            track_dirty_pages: false,
        },
        serial: SerialConfig::Stdio,
        cpuid_cache: None,
        devices,
    })
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("'{}': the path is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser as _;

    #[test]
    fn flags_become_a_machine_and_the_users_words_come_last() {
        let line = "bulkhead boot --kernel /k --initrd /i --disk /a,ro --disk /b --append loglevel=7 --append init=/x -m 64m --cpus 2";
        let Verb::Boot(args) = Cli::parse_from(line.split(' ')).verb else { panic!("not boot") };
        let config = config(&args).unwrap();
        let boot_args = &config.boot_source.as_ref().unwrap().boot_args;
        assert!(boot_args.ends_with(" loglevel=7 init=/x") && boot_args.starts_with("console=ttyS0 quiet"));
        assert_eq!((config.machine.mem_size_mib, config.machine.vcpu_count), (64, 2));
        assert_eq!(config.devices["drives"][0]["is_read_only"], true);
        assert_eq!(config.devices["drives"][1]["path_on_host"], "/b");
        assert!(!config.devices.contains_key("vsock"));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(VmConfig::from_json(&json).unwrap(), config);
    }
}
