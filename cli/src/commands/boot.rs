//! `bulkhead boot`: a bare microVM, its console on stdin and stdout.

use std::path::Path;

use anyhow::anyhow;
use serde_json::json;
use vmm::config::{BootSource, MachineConfig, SerialConfig, VmConfig, add_device};

use crate::args::{Boot, ConsoleKind, Talk};
use crate::bare::Bare;
use crate::failure::Outcome;
use crate::life::{EXIT_PORT, USUAL_CMDLINE};
use crate::monitor;
use crate::net;
use crate::owner::History;
use crate::snapshots::What;
use crate::window;

/// Boots it and waits for its end.
pub fn boot(args: &Boot, talk: Talk) -> Outcome {
    if args.require_jail {
        monitor::require_jail();
    }
    let bare = Bare {
        config: config(args)?,
        name: args.name.clone(),
        what: What::Machine { kernel: args.kernel.to_string_lossy().into_owned() },
        limits: args.machine.limits(),
        history: History::new()?,
        socket: args.vsock.clone(),
    };
    bare.run(talk)
}

fn config(args: &Boot) -> anyhow::Result<VmConfig> {
    let mut devices = serde_json::Map::new();
    for disk in &args.disk {
        add_device(&mut devices, "disk", disk)?;
    }
    for file in &args.pmem {
        add_device(&mut devices, "pmem", file)?;
    }
    if let Some(socket) = &args.vsock {
        devices.insert("vsock".into(), json!({ "guest_cid": 3, "uds_path": text(socket)? }));
    }
    net::add(&args.net, &mut devices)?;
    if let Some(balloon) = &args.balloon {
        add_device(&mut devices, "balloon", balloon)?;
    }
    devices.insert("entropy".into(), json!({}));
    let (console, serial) = match args.console {
        ConsoleKind::Serial => ("console=ttyS0", SerialConfig::Stdio),
        ConsoleKind::Virtio => {
            let size = window::size().map(|(columns, rows)| format!("{columns}x{rows}"));
            add_device(&mut devices, "console", &size.unwrap_or_default())?;
            ("console=hvc0", SerialConfig::Off)
        }
    };
    let words = [console, USUAL_CMDLINE, EXIT_PORT].into_iter().chain(args.append.iter().map(String::as_str));
    Ok(VmConfig {
        snapshot: None,
        boot_source: Some(BootSource {
            kernel_image_path: args.kernel.clone(),
            initrd_path: args.initrd.clone(),
            boot_args: words.collect::<Vec<_>>().join(" "),
            protocol: args.protocol,
        }),
        machine: MachineConfig {
            vcpu_count: args.machine.cpus(),
            mem_size_mib: args.machine.memory_mib(),
            track_dirty_pages: false,
        },
        serial,
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
        let line = "bulkhead boot --kernel /k --initrd /i --disk /a,ro --disk /b.qcow2 --append loglevel=7 --append init=/x -m 64m --cpus 2 --net user --balloon 8,oom --pmem /p";
        let Verb::Boot(args) = Cli::parse_from(line.split(' ')).verb else { panic!("not boot") };
        let config = config(&args).unwrap();
        let boot_args = &config.boot_source.as_ref().unwrap().boot_args;
        assert!(boot_args.ends_with(" loglevel=7 init=/x") && boot_args.starts_with("console=ttyS0 quiet"));
        assert_eq!((config.machine.mem_size_mib, config.machine.vcpu_count), (64, 2));
        assert_eq!(config.devices["drives"][0]["is_read_only"], true);
        assert_eq!(config.devices["drives"][1]["path_on_host"], "/b.qcow2");
        assert_eq!(config.devices["drives"][1]["format"], "qcow2");
        assert!(!config.devices.contains_key("vsock"));
        assert_eq!(config.devices["pmem"][0]["path_on_host"], "/p");
        assert!(config.devices["network-interfaces"][0]["guest_mac"].is_string());
        assert_eq!(
            (&config.devices["balloon"]["amount_mib"], &config.devices["balloon"]["deflate_on_oom"]),
            (&json!(8), &json!(true))
        );
        assert!(config.serial == SerialConfig::Stdio && !config.devices.contains_key("console"));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(VmConfig::from_json(&json).unwrap(), config);
    }

    #[test]
    fn a_virtio_console_takes_the_serial_ports_place() {
        let line = "bulkhead boot --kernel /k --console virtio";
        let Verb::Boot(args) = Cli::parse_from(line.split(' ')).verb else { panic!("not boot") };
        let config = config(&args).unwrap();
        assert!(config.boot_source.unwrap().boot_args.starts_with("console=hvc0 "));
        assert_eq!((config.serial, &config.devices["console"]["mode"]), (SerialConfig::Off, &json!("stdio")));
    }
}
