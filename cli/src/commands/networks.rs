//! `bulkhead network`: networks, made, listed and removed.

use std::collections::BTreeMap;

use anyhow::anyhow;
use serde_json::{Value, json};

use super::containers::each;
use super::inspect;
use crate::args::{Filter, NetworkVerb as Args, NetworkWhat, Talk};
use crate::clock;
use crate::failure::{Failure, Outcome, conclude, sanitize};
use crate::net;
use crate::networks::{Network, Networks, NetworksError, Wanted, switch};
use crate::output::{self, Columns};
use crate::paths;

/// Does the one thing that was asked for.
pub fn network(args: Args, talk: Talk) -> Outcome {
    match args.what {
        NetworkWhat::Create { subnet, gateway, internal, label, driver: _, name } => {
            create(&name, Wanted { subnet, gateway, internal, labels: labels(&label) })
        }
        NetworkWhat::Ls { filter, format, no_trunc } => list(&filter, &format, no_trunc, talk),
        NetworkWhat::Inspect { format, names } => {
            inspect::show(names.iter().map(|name| find(name).and_then(|network| describe(&network))), &format)
        }
        NetworkWhat::Rm { force, names } => each(&names, |name| remove(name, force).map(|()| name.to_owned())),
        NetworkWhat::Prune { .. } => prune(),
        NetworkWhat::Connect { .. } | NetworkWhat::Disconnect { .. } => {
            let refused = "a container has the network that it was made with; make it anew with run --network";
            Err(Failure::with_code(1, anyhow!(refused)))
        }
    }
}

fn labels(labels: &[String]) -> BTreeMap<String, String> {
    let label = |label: &String| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    };
    labels.iter().map(label).collect()
}

fn create(name: &str, wanted: Wanted) -> Outcome {
    let make = || Networks::of(&paths::store())?.lock()?.create(name, wanted, &net::routes());
    let network = make().map_err(|error| Failure::with_code(1, error))?;
    Ok(output::print(&format!("{}\n", network.id)).map(|()| 0)?)
}

const COLUMNS: Columns<4> =
    Columns { head: ["NETWORK ID", "NAME", "DRIVER", "SCOPE"], fields: ["ID", "Name", "Driver", "Scope"] };

fn list(filters: &[Filter], format: &str, whole: bool, talk: Talk) -> Outcome {
    let networks = Networks::existing(&paths::store());
    let all = networks.as_ref().map(Networks::list).transpose()?.unwrap_or_default();
    let unused = |network: &Network| -> Result<bool, NetworksError> {
        networks.as_ref().map_or(Ok(true), |networks| is_unused(networks, network))
    };
    let mut shown = Vec::new();
    for network in &all {
        // Who has it takes a look at all containers.
        let about_use = filters.iter().any(|filter| filter.key == "dangling");
        let unused = about_use && unused(network)?;
        if fits(network, filters, unused) {
            shown.push(row(network, whole));
        }
    }
    if talk.quiet {
        let lines = shown.iter().map(|row| format!("{}\n", output::text(row, "ID")));
        return Ok(output::print(&lines.collect::<String>()).map(|()| 0)?);
    }
    output::listing(format, &COLUMNS, shown)
}

/// Under docker's names.
fn row(network: &Network, whole: bool) -> Value {
    let labels = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    json!({
        "ID": if whole { network.id.as_str() } else { network.id.short() }, "Name": network.name, "Driver": "bridge", "Scope": "local",
        "CreatedAt": clock::rfc3339(network.created_ns), "IPv4": "true", "IPv6": "false", "Internal": network.internal.to_string(),
        "Labels": sanitize(&labels),
    })
}

/// Values of the same key are alternatives, different keys conditions; but each label is a condition of its own.
fn fits(network: &Network, filters: &[Filter], unused: bool) -> bool {
    let fits = |filter: &Filter| match (filter.key.as_str(), filter.value.as_str()) {
        ("name", part) => network.name.contains(part),
        ("id", part) => network.id.as_str().starts_with(part),
        ("label", label) => match label.split_once('=') {
            Some((key, value)) => network.labels.get(key).is_some_and(|found| found == value),
            None => network.labels.contains_key(label),
        },
        (_, dangling) => unused == matches!(dangling, "true" | "1"),
    };
    filters.iter().all(|filter| match filter.key.as_str() {
        "label" => fits(filter),
        key => filters.iter().filter(|other| other.key == key).any(fits),
    })
}

/// Nobody has it or is in it.
fn is_unused(networks: &Networks, network: &Network) -> Result<bool, NetworksError> {
    let members = switch::members(network).unwrap_or_default().members;
    Ok(members.is_empty() && networks.users(network)?.is_empty())
}

fn find(word: &str) -> anyhow::Result<Network> {
    Ok(match Networks::existing(&paths::store()) {
        Some(networks) => networks.find(word)?,
        None => return Err(NetworksError::NotFound(sanitize(word)).into()),
    })
}

/// Under docker's names. Who is in it, only its switch knows; what is ours: what each has sent.
fn describe(network: &Network) -> anyhow::Result<Value> {
    let listing = switch::members(network)?;
    let member = |member: &::switch::protocol::Member| {
        let address = format!("{}/{}", member.ip, network.subnet.prefix_len());
        let of = json!({
            "Name": member.names.first(), "MacAddress": net::text(member.mac), "IPv4Address": address, "IPv6Address": "",
            "DNSNames": member.names, "FramesSent": member.sent, "FramesDenied": member.denied, "FramesLost": member.lost,
        });
        (member.id.clone(), of)
    };
    let members: serde_json::Map<_, _> = listing.members.iter().map(member).collect();
    let sandbox = if members.is_empty() { Value::Null } else { json!({ "Missing": listing.missing }) };
    Ok(json!({
        "Name": network.name, "Id": network.id, "Created": clock::rfc3339(network.created_ns), "Scope": "local", "Driver": "bridge",
        "EnableIPv4": true, "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": {}, "Config": [{ "Subnet": network.subnet, "Gateway": network.gateway }] },
        "Internal": network.internal, "Attachable": false, "Ingress": false, "Options": {}, "Labels": network.labels,
        "Containers": members, "Sandbox": sandbox,
    }))
}

fn remove(word: &str, force: bool) -> anyhow::Result<()> {
    let removed = match Networks::existing(&paths::store()) {
        Some(networks) => networks.lock()?.remove(word).map(drop),
        None => Err(NetworksError::NotFound(sanitize(word))),
    };
    match removed {
        // As docker: that it is gone is what was wanted.
        Err(NetworksError::NotFound(_)) if force => Ok(()),
        other => Ok(other?),
    }
}

fn prune() -> Outcome {
    let (removed, code) = remove_unused()?;
    if !removed.is_empty() {
        output::print(&format!("Deleted Networks:\n{}\n", removed.concat()))?;
    }
    Ok(code)
}

/// Removes those that no container has: their names, a line each, and an exit code. What somebody has begun to use meanwhile stays.
pub fn remove_unused() -> anyhow::Result<(Vec<String>, u8)> {
    let (mut removed, mut code) = (Vec::new(), 0);
    let Some(networks) = Networks::existing(&paths::store()) else { return Ok((removed, code)) };
    for network in networks.list()? {
        let locked = networks.lock()?;
        if !is_unused(&networks, &network)? {
            continue;
        }
        match locked.remove(&network.name) {
            Ok(network) => removed.push(format!("{}\n", network.name)),
            Err(NetworksError::NotFound(_) | NetworksError::InUse { .. }) => {}
            Err(error) => code = conclude(Err(Failure::with_code(1, error)), false),
        }
    }
    Ok((removed, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted { labels: labels(&["tier=db".into(), "x".into()]), ..Wanted::default() };
        let network = Networks::of(dir.path()).unwrap().lock().unwrap().create("web", wanted, "").unwrap();
        let id = network.id.short().to_owned();
        let filter = |(key, value): &(&str, &str)| Filter { key: (*key).into(), value: (*value).into() };
        for (list, wanted) in [
            (&[][..], true),
            (&[("name", "eb")], true),
            (&[("name", "no")], false),
            (&[("name", "no"), ("id", &id)], false),
            (&[("id", &id)], true),
            (&[("label", "x"), ("label", "tier=db")], true),
            (&[("label", "x"), ("label", "tier=web")], false),
            (&[("dangling", "true")], true),
            (&[("dangling", "0")], false),
        ] {
            let filters: Vec<Filter> = list.iter().map(filter).collect();
            assert_eq!(fits(&network, &filters, true), wanted, "{list:?}");
        }
    }
}
