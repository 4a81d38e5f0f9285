//! What is behind a microVM's interfaces, while that is changed: a tap, or a port of the host, is one machine's at a time, and a
//! clone must not be heard on a network before it is somebody of its own.

use serde_json::{Map, Value, json};
use vmm::network_descriptors;

use crate::control::{Control, ControlError};
use crate::rundir::note_helper;

/// The members of an interface that say what is behind it.
pub const BEHIND: [&str; 5] = ["host_dev_name", "new_tap", "user", "port", "unplugged"];

/// A section of interfaces with nothing behind any of them. One that never has anything stays so.
pub fn unplugged(section: &Value) -> Value {
    let mut section = section.clone();
    let interfaces = section.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut);
    for interface in interfaces.filter(|interface| !interface.contains_key("nowhere")) {
        BEHIND.iter().for_each(|key| drop(interface.remove(*key)));
        interface.insert("unplugged".into(), true.into());
    }
    section
}

/// Gives a machine's interfaces what `section` says is behind them.
///
/// # Errors
/// One of them cannot be had; those before it are there.
pub fn plug(control: &Control, section: &Value) -> Result<(), ControlError> {
    change(control, section, |interface, key| interface.get(key).cloned().unwrap_or_default())
}

/// Takes away what is behind a machine's interfaces.
///
/// # Errors
/// As [`Control::call`].
pub fn unplug(control: &Control, section: &Value) -> Result<(), ControlError> {
    change(control, section, |_, key| if key == "unplugged" { json!(true) } else { Value::Null })
}

fn change(
    control: &Control,
    section: &Value,
    behind: impl Fn(&Map<String, Value>, &str) -> Value,
) -> Result<(), ControlError> {
    for interface in section.as_array().into_iter().flatten().filter_map(Value::as_object) {
        let id = interface.get("iface_id").and_then(Value::as_str).unwrap_or_default();
        // One without anything behind it stays so.
        if ["unplugged", "nowhere"].iter().any(|key| interface.get(*key) == Some(&json!(true))) {
            continue;
        }
        let mut body = json!({ "iface_id": id });
        BEHIND.iter().for_each(|key| body[*key] = behind(interface, key));
        // The microVM's process is confined: it neither opens taps nor starts programs.
        let opened = || network_descriptors(&Value::Object(interface.clone()));
        let opened = if body["unplugged"] == true { Ok(None) } else { opened().map(Some) };
        let opened = opened.map_err(|error| ControlError::Refused(error.to_string()))?;
        if let (Some(pid), Some(directory)) = (opened.as_ref().and_then(|opened| opened.helper), control.directory()) {
            note_helper(directory, pid);
        }
        let descriptors = opened.map_or_else(Vec::new, |opened| opened.descriptors);
        control.call_giving("PATCH", &format!("/network-interfaces/{id}"), &body, &descriptors)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_behind_an_unplugged_section() {
        let section = json!([{ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "host_dev_name": "t0" },
                             { "iface_id": "eth1", "user": {} }]);
        let wanted = json!([{ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "unplugged": true },
                            { "iface_id": "eth1", "unplugged": true }]);
        assert_eq!((unplugged(&section), unplugged(&wanted)), (wanted.clone(), wanted));
        let nowhere = json!([{ "iface_id": "eth0", "nowhere": true }]);
        assert_eq!(unplugged(&nowhere), nowhere);
        assert_eq!(unplugged(&Value::Null), Value::Null);
    }
}
