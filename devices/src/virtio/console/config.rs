//! The `console` section and the `--console` flag.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Console;
use super::host::Host;
use crate::virtio::VirtioDevice;
use crate::virtio::table::{DeviceError, DeviceKind};

const SECTION: &str = "console";

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: "console",
    config_key: SECTION,
    flag: "console",
    flag_syntax: "[COLUMNSxROWS]",
    help: "a console on stdin and stdout, of that size",
    parse_flag,
    id_key: None,
    swappable: &["columns", "rows"],
    adjustable: &[],
    limiters: &[],
    told: None,
    writable_files: |_| Vec::new(),
    reaches: |_| Vec::new(),
    check: |section| parse(section).map(drop),
    build,
    given: None,
    kernel_args: |_| None,
    syscalls: &[
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_futex,
        libc::SYS_ppoll,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
    ],
    prompt_syscalls: &[],
    ioctls: &[],
    workers: &[&super::host::OUTPUT],
    works: |_| true,
    #[cfg(any(test, feature = "testing"))]
    sample: |_| serde_json::json!({ "mode": "off", "columns": 80, "rows": 24 }),
};

/// What is at the console's other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// The monitor's own stdin and stdout.
    Stdio,
    /// Nobody: output is thrown away, and there is no input.
    Off,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Section {
    mode: Mode,
    /// Size of the terminal; zeros: not known.
    #[serde(default)]
    columns: u16,
    #[serde(default)]
    rows: u16,
}

fn parse(section: &Value) -> Result<Section, DeviceError> {
    serde_json::from_value(section.clone()).map_err(DeviceError::section(SECTION))
}

fn parse_flag(value: &str, section: &mut Value) -> Result<(), DeviceError> {
    let invalid = |reason: String| DeviceError::Invalid { section: "--console", reason };
    if !section.is_null() {
        return Err(invalid("a machine has one virtio console".into()));
    }
    let mut wanted = Section { mode: Mode::Stdio, columns: 0, rows: 0 };
    if !value.is_empty() {
        let numbers =
            value.split_once('x').and_then(|(columns, rows)| Some((columns.parse().ok()?, rows.parse().ok()?)));
        (wanted.columns, wanted.rows) = numbers.ok_or_else(|| invalid(format!("'{value}' is not COLUMNSxROWS")))?;
    }
    *section = serde_json::to_value(wanted).map_err(DeviceError::section(SECTION))?;
    Ok(())
}

fn build(section: &Value) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let Section { mode, columns, rows } = parse(section)?;
    let host = match mode {
        Mode::Stdio => Host::stdio(),
        Mode::Off => Host::nobody(),
    };
    let host = host.map_err(DeviceError::host(SECTION, "stdin and stdout".into()))?;
    Ok(vec![Box::new(Console::new(host, columns, rows))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_flag_is_the_section() {
        let mut section = Value::Null;
        parse_flag("132x50", &mut section).unwrap();
        assert_eq!(section, json!({ "mode": "stdio", "columns": 132, "rows": 50 }));
        assert!(parse_flag("80x24", &mut section).unwrap_err().to_string().contains("one virtio console"));
        for wrong in ["80", "80x", "x", "80x24x3", "65536x1", "-1x1"] {
            assert!(parse_flag(wrong, &mut Value::Null).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
        let mut section = Value::Null;
        parse_flag("", &mut section).unwrap();
        assert_eq!(section["columns"], 0);
    }
}
