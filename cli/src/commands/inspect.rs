//! `bulkhead inspect` and `port`: what is known of containers and images, in docker's shape.

use std::collections::BTreeSet;

use anyhow::anyhow;
use guest_images::{ImageDetails, ImageError, Store};
use guest_protocol::{Limit, Tmpfs};
use serde_json::{Value, json};

use crate::args::{Inspect, Isolation, Kind, Network, Port, Publish, Run, settings};
use crate::cgroup;
use crate::clock;
use crate::containers::{Containers, ContainersError, Entry, Id, Record, Status};
use crate::control::Control;
use crate::failure::{Failure, Outcome};
use crate::net;
use crate::networks::{Networks, switch};
use crate::output;
use crate::paths;
use crate::running;
use crate::size::{Cpus, MIB};
use crate::template::Template;
use crate::usage;
use crate::volumes::VolumeFlag;

/// Prints all that is known of containers and images. Those that there are, even if others are not.
pub fn inspect(args: &Inspect) -> Outcome {
    show(args.names.iter().map(|word| look(args.kind, word)), &args.format)
}

/// Prints what has been found, as `format` says: `json`, or a template. The first that has not been is the error, afterwards.
pub fn show<E: Into<anyhow::Error>>(looked: impl Iterator<Item = Result<Value, E>>, format: &str) -> Outcome {
    let wrong = |problem| Failure::with_code(1, anyhow!("--format: {problem}"));
    let template = (format != "json").then(|| Template::parse(format)).transpose().map_err(wrong)?;
    let (found, missing): (Vec<_>, Vec<_>) = looked.partition(Result::is_ok);
    let found: Vec<Value> = found.into_iter().flatten().collect();
    match template {
        None => output::json(&found)?,
        Some(template) => {
            for value in &found {
                output::print(&(template.render(value).map_err(wrong)? + "\n"))?;
            }
        }
    }
    match missing.into_iter().find_map(Result::err) {
        Some(error) => Err(Failure::with_code(1, error)),
        None => Ok(0),
    }
}

/// Prints the ports of the host that lead to a container's.
pub fn port(args: &Port) -> Outcome {
    let entry = find(&args.container).map_err(|error| Failure::with_code(1, error))?;
    let running = entry.record.state.status == Status::Running;
    let ports = entry.record.flags.publish.iter().filter(|_| running);
    let lines = match &args.port {
        None => {
            ports.map(|port| format!("{} -> {}:{}\n", inside(port), port.host_ip, port.host_port)).collect::<String>()
        }
        Some(wanted) => {
            let wanted = if wanted.contains('/') { wanted.clone() } else { format!("{wanted}/tcp") };
            let lines: String = ports
                .filter(|port| inside(port) == wanted)
                .map(|port| format!("{}:{}\n", port.host_ip, port.host_port))
                .collect();
            if lines.is_empty() {
                return Err(Failure::with_code(
                    1,
                    anyhow!("no public port '{wanted}' published for {}", args.container),
                ));
            }
            lines
        }
    };
    output::print(&lines)?;
    Ok(0)
}

/// What a word means, in docker's shape: a container, or else an image.
fn look(kind: Option<Kind>, word: &str) -> anyhow::Result<Value> {
    if kind != Some(Kind::Image) {
        match find(word) {
            Ok(entry) => return Ok(describe(&entry)),
            Err(ContainersError::NotFound(_)) if kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match Store::open(paths::store())?.details(word) {
        Ok(image) => Ok(describe_image(&image)),
        Err(ImageError::NotFound { .. } | ImageError::Reference(_)) if kind.is_none() => {
            let word = crate::failure::sanitize(word);
            Err(anyhow!(
                "no such container or image: {word}; `bulkhead ps -a` and `bulkhead images` list those there are"
            ))
        }
        Err(error) => Err(error.into()),
    }
}

fn describe_image(image: &ImageDetails) -> Value {
    let config = |name: &str| image.config.get(name).cloned().unwrap_or_default();
    let repositories = image.names.iter().map(|name| name.rsplit_once(':').map_or(&name[..], |(name, _)| name));
    let digests: BTreeSet<String> = repositories.map(|name| format!("{name}@{}", image.manifest)).collect();
    json!({
        "Id": image.info.id,
        "RepoTags": image.names,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": "",
        "Created": config("created"),
        "Author": config("author"),
        "Architecture": config("architecture"),
        "Os": config("os"),
        "Size": image.info.size,
        "Config": config("config"),
        "RootFS": { "Type": "layers", "Layers": image.layers.iter().map(|(digest, _)| digest).collect::<Vec<_>>() },
        "Descriptor": { "digest": image.manifest },
    })
}

/// A container, whether it runs or not.
pub fn find(word: &str) -> Result<Entry, ContainersError> {
    match Containers::existing(&paths::store()) {
        Some(containers) => containers.find(word),
        None => Err(ContainersError::NotFound(crate::failure::sanitize(word))),
    }
}

fn inside(port: &Publish) -> String {
    format!("{}/{}", port.guest_port, if port.udp { "udp" } else { "tcp" })
}

/// What confines its microVM's process, and what this host does not give for that; null if that cannot be had.
pub fn sandbox(entry: &Entry) -> Value {
    let control = Control::at(&running::directory(entry).join("api"));
    let told = control.call("GET", "/bulkhead/v1/sandbox", &());
    told.map_or(Value::Null, |told| {
        let mut missing = told["missing"].as_array().cloned().unwrap_or_default();
        let process = usage::monitor(entry.record.state.pid);
        missing.extend(process.and_then(cgroup::missing_of).map(Value::from));
        json!({ "Confined": told["confined"], "Missing": missing })
    })
}

/// The options of a file system in memory.
fn shown(tmpfs: &Tmpfs) -> String {
    let size = tmpfs.bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
    let word = |is, yes: &'static str, no: &'static str| if is { yes } else { no };
    let (writable, exec) = (word(tmpfs.writable, "rw", "ro"), word(tmpfs.exec, "exec", "noexec"));
    format!("{writable},{exec},nosuid,nodev{size},mode={:o}", tmpfs.mode)
}

fn limit(limit: &Limit) -> Value {
    let value = |value: Option<u64>| value.map_or(json!(-1), |value| json!(value));
    json!({ "Name": settings::resource_name(limit.resource), "Soft": value(limit.soft), "Hard": value(limit.hard) })
}

/// A limit as docker has it, for whose device there is no name here.
fn rate(rate: Option<u64>) -> Value {
    rate.filter(|rate| *rate > 0).map_or_else(|| json!([]), |rate| json!([{ "Path": "", "Rate": rate }]))
}

/// A directory or file of this host that it has, or a place of its own that is no part of its changes.
fn mount(volume: &VolumeFlag) -> Value {
    if volume.is_own() {
        return json!({
            "Type": "volume", "Name": "", "Source": "", "Destination": volume.target(), "Driver": "container", "Mode": "", "RW": true,
        });
    }
    // A volume may have been removed by hand.
    let source = volume.place().unwrap_or_default();
    let (writable, mode) = if volume.is_read_only() { (false, "ro") } else { (true, "") };
    let mut mount = json!({
        "Type": if volume.name().is_some() { "volume" } else { "bind" },
        "Source": source, "Destination": volume.target(), "Mode": mode, "RW": writable,
    });
    if let Some(name) = volume.name() {
        mount["Name"] = name.into();
        mount["Driver"] = "local".into();
    }
    mount
}

/// The network that was made for it and others, if it is in one: with addresses while it runs, which its switch knows.
fn networks(id: &Id, flags: &Run) -> Value {
    let Some(Network::Named(name)) = &flags.network else { return json!({}) };
    let network = Networks::existing(&paths::store()).and_then(|networks| networks.find(name).ok());
    let listing = network.as_ref().and_then(|network| switch::members(network).ok()).unwrap_or_default();
    let member = listing.members.into_iter().find(|member| member.id == id.as_str());
    let there = network.as_ref().zip(member.as_ref());
    let place = &flags.place;
    let asked = place.ip.map_or(Value::Null, |ip| json!({ "IPv4Address": ip }));
    let is = json!({
        "IPAMConfig": asked, "Aliases": place.network_alias, "DNSNames": member.as_ref().map(|member| &member.names),
        "NetworkID": network.as_ref().map_or("", |network| network.id.as_str()),
        "MacAddress": member.as_ref().map_or(String::new(), |member| net::text(member.mac)),
        "IPAddress": member.as_ref().map_or(String::new(), |member| member.ip.to_string()),
        "IPPrefixLen": there.map_or(0, |(network, _)| network.subnet.prefix_len()),
        "Gateway": there.map_or(String::new(), |(network, _)| network.gateway.to_string()),
    });
    json!({ name.as_str(): is })
}

fn describe(entry: &Entry) -> Value {
    let Record { id, created_ns, image_id, labels, flags, process, stop_signal, state } = &entry.record;
    let (program, arguments) = process.args.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let bindings: serde_json::Map<String, Value> = flags
        .publish
        .iter()
        .map(|port| (inside(port), json!([{ "HostIp": port.host_ip, "HostPort": port.host_port.to_string() }])))
        .collect();
    // As docker: what waits to be started again counts as running.
    let running = state.is_live();
    let volumes = flags.volume.iter().filter(|volume| !volume.is_given());
    let volumes: serde_json::Map<_, _> = volumes.map(|volume| (volume.target().to_owned(), json!({}))).collect();
    let (wanted, rates) = (&flags.settings, &flags.rates);
    // Without a microVM, which has its size, nothing is limited that was not asked for.
    let machine = &flags.machine;
    let (memory, cpus) = match flags.isolation {
        Isolation::Vm => (machine.memory_mib() * MIB, Some(machine.all_cpus())),
        Isolation::Container => (machine.memory.map_or(0, |mib| mib * MIB), machine.cpus),
    };
    json!({
        "Id": id,
        "Created": clock::rfc3339(*created_ns),
        "Pod": flags.pod.as_deref().unwrap_or_default(),
        "Path": program,
        "Args": arguments,
        "State": {
            "Status": state.word(), "Running": running, "Paused": state.paused, "Restarting": state.restarting, "Dead": false, "OOMKilled": !state.out_of_memory.is_empty(),
            "Pid": state.pid, "ExitCode": state.exit_code, "Error": state.error,
            "StartedAt": clock::rfc3339(state.started_ns), "FinishedAt": clock::rfc3339(state.finished_ns),
        },
        "Image": image_id,
        "RestartCount": state.restarts,
        "LogPath": entry.dir.join("log.json"),
        "Name": format!("/{}", entry.name),
        "HostConfig": {
            "AutoRemove": flags.rm,
            "RestartPolicy": { "Name": flags.restart.name(), "MaximumRetryCount": flags.restart.most() },
            "Binds": flags.volume.iter().filter(|volume| volume.is_given()).map(VolumeFlag::shown).collect::<Vec<_>>(),
            "Isolation": flags.isolation,
            "Memory": memory,
            "NanoCpus": u64::from(cpus.map_or(0, Cpus::thousandths)) * 1_000_000,
            "BlkioDeviceReadBps": rate(rates.device_read_bps), "BlkioDeviceWriteBps": rate(rates.device_write_bps),
            "BlkioDeviceReadIOps": rate(rates.device_read_iops), "BlkioDeviceWriteIOps": rate(rates.device_write_iops),
            "NetworkReceiveBps": rates.network_receive_bps.unwrap_or(0), "NetworkSendBps": rates.network_send_bps.unwrap_or(0),
            "NetworkMode": flags.network.as_ref().map_or("none".into(), ToString::to_string),
            "PortBindings": bindings,
            "ReadonlyRootfs": flags.read_only,
            "Tmpfs": wanted.tmpfs.iter().map(|one| (one.target.clone(), json!(shown(one)))).collect::<serde_json::Map<_, _>>(),
            "ShmSize": wanted.shm_size.unwrap_or(64 * MIB),
            "Ulimits": wanted.ulimit.iter().map(limit).collect::<Vec<_>>(),
            "Sysctls": wanted.sysctl.iter().map(|one| (settings::swapped(&one.path), json!(one.value))).collect::<serde_json::Map<_, _>>(),
            "CapAdd": wanted.cap_add, "CapDrop": wanted.cap_drop, "Privileged": wanted.privileged,
            "Dns": wanted.dns, "DnsSearch": wanted.dns_search, "DnsOptions": wanted.dns_option,
            "ExtraHosts": wanted.add_host.iter().map(|(name, ip)| format!("{name}:{ip}")).collect::<Vec<_>>(),
            "Init": wanted.init,
        },
        "Mounts": flags.volume.iter().map(mount).collect::<Vec<_>>(),
        "Config": {
            "Hostname": flags.hostname.as_deref().unwrap_or(id.short()),
            "User": process.user, "Env": process.env, "Cmd": process.args, "Image": entry.record.image(),
            "WorkingDir": process.cwd, "Labels": labels, "Volumes": volumes, "Tty": flags.tty, "OpenStdin": flags.interactive,
            "StopSignal": stop_signal.to_string(),
        },
        "Sandbox": if running { sandbox(entry) } else { Value::Null },
        "NetworkSettings": {
            "Ports": if running { bindings.clone() } else { serde_json::Map::new() },
            "Networks": networks(id, flags),
        },
    })
}
