//! The `balloon` section and the `--balloon` flag, and what is told of a balloon.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Balloon, Options, SECTION};
use crate::virtio::VirtioDevice;
use crate::virtio::table::{DeviceError, DeviceKind, Told};

/// Pages of a MiB.
const PAGES_PER_MIB: u32 = 256;
/// Longest time between two statistics: a day.
const MOST_SECONDS: u32 = 24 * 60 * 60;

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: "balloon",
    config_key: SECTION,
    flag: "balloon",
    flag_syntax: "MIB[,oom][,reporting][,stats=SECONDS]",
    help: "a balloon of MIB that takes memory from the guest; oom: it shrinks when the guest has none left; reporting: \
           the guest gives back what it does not use; stats: it tells about its memory so often",
    parse_flag,
    id_key: None,
    swappable: &["amount_mib", "stats_polling_interval_s"],
    adjustable: &[],
    limiters: &[],
    told: Some(Told { members: &["stats_polling_interval_s"], tell }),
    writable_files: |_| Vec::new(),
    reaches: |_| Vec::new(),
    check: |section| parse(section).map(drop),
    build,
    given: None,
    kernel_args,
    syscalls: &[libc::SYS_timerfd_settime],
    prompt_syscalls: &[],
    ioctls: &[],
    workers: &[],
    works: |_| true,
    #[cfg(any(test, feature = "testing"))]
    sample: |_| {
        serde_json::json!({ "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 3600,
                            "free_page_reporting": true })
    },
};

/// The section, with Firecracker's names.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Section {
    /// How large the balloon is to be.
    amount_mib: u32,
    /// The guest may take memory back from it before it kills a process for want of some.
    deflate_on_oom: bool,
    /// Time between two statistics; 0: there are none.
    #[serde(default)]
    stats_polling_interval_s: u32,
    /// As in files for Firecracker, of which only `false` can be had.
    #[serde(default)]
    free_page_hinting: bool,
    /// The guest gives back what it does not use.
    #[serde(default)]
    free_page_reporting: bool,
}

fn invalid(reason: impl Into<String>) -> DeviceError {
    DeviceError::Invalid { section: SECTION, reason: reason.into() }
}

fn parse(section: &Value) -> Result<Options, DeviceError> {
    let section: Section = serde_json::from_value(section.clone()).map_err(DeviceError::section(SECTION))?;
    if section.free_page_hinting {
        return Err(invalid("free_page_hinting is not supported; use free_page_reporting"));
    }
    if section.stats_polling_interval_s > MOST_SECONDS {
        return Err(invalid(format!("stats_polling_interval_s is more than a day ({MOST_SECONDS})")));
    }
    let pages = section.amount_mib.checked_mul(PAGES_PER_MIB);
    Ok(Options {
        pages: pages.ok_or_else(|| invalid(format!("amount_mib {} is too much", section.amount_mib)))?,
        deflate_on_oom: section.deflate_on_oom,
        interval_s: section.stats_polling_interval_s,
        reporting: section.free_page_reporting,
    })
}

fn parse_flag(value: &str, section: &mut Value) -> Result<(), DeviceError> {
    let invalid = |reason: String| DeviceError::Invalid { section: "--balloon", reason };
    if !section.is_null() {
        return Err(invalid("a machine has one balloon".into()));
    }
    let mut words = value.split(',');
    let amount = words.next().unwrap_or_default();
    let number = |text: &str| text.parse::<u32>().map_err(|_| invalid(format!("'{text}' is no number")));
    let mut wanted = Section {
        amount_mib: number(amount)?,
        deflate_on_oom: false,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: false,
    };
    for word in words {
        match word.split_once('=') {
            None if word == "oom" => wanted.deflate_on_oom = true,
            None if word == "reporting" => wanted.free_page_reporting = true,
            Some(("stats", seconds)) => wanted.stats_polling_interval_s = number(seconds)?,
            _ => return Err(invalid(format!("'{word}' is unknown; there are oom, reporting and stats=SECONDS"))),
        }
    }
    let wanted = serde_json::to_value(wanted).map_err(DeviceError::section(SECTION))?;
    parse(&wanted)?;
    *section = wanted;
    Ok(())
}

fn build(section: &Value) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let balloon = Balloon::new(parse(section)?).map_err(DeviceError::host(SECTION, "a timer".into()))?;
    Ok(vec![Box::new(balloon)])
}

/// Linux reports blocks of 2 or 4 MiB, and only while it has 32 of them free: a small guest never would. Blocks of 128 KiB
/// are still few, for what is free lies together. The user's words come last, and may say otherwise.
fn kernel_args(section: &Value) -> Option<String> {
    let reporting = parse(section).ok()?.reporting;
    reporting.then(|| "page_reporting.page_reporting_order=5".to_owned())
}

/// What is told of a balloon that has the given saved state: Firecracker's `BalloonStats`.
fn tell(section: &Value, state: &Value) -> Result<Value, DeviceError> {
    let options = parse(section)?;
    if options.interval_s == 0 {
        return Err(invalid("there are no statistics; give it a stats_polling_interval_s before the start"));
    }
    let mut told = state.get("statistics").and_then(Value::as_object).cloned().unwrap_or_default();
    let actual = state.get("actual").and_then(Value::as_u64).unwrap_or(0);
    for (name, pages) in [("target", options.pages.into()), ("actual", actual)] {
        told.insert(format!("{name}_pages"), pages.into());
        told.insert(format!("{name}_mib"), (pages / u64::from(PAGES_PER_MIB)).into());
    }
    Ok(told.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_flag_makes_a_section() {
        let mut section = Value::Null;
        parse_flag("64,oom,stats=5", &mut section).unwrap();
        let wanted = json!({ "amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 5,
                             "free_page_hinting": false, "free_page_reporting": false });
        assert_eq!(section, wanted);
        assert!(parse_flag("0", &mut section).unwrap_err().to_string().contains("one balloon"));
        for (bad, words) in [("", "''"), ("x", "'x'"), ("1,", "''"), ("1,ooom", "ooom"), ("1,stats=-1", "'-1'")] {
            let said = parse_flag(bad, &mut Value::Null).unwrap_err().to_string();
            assert!(said.starts_with("--balloon") && said.contains(words), "{said}");
        }
        assert!(parse_flag("99999999", &mut Value::Null).is_err());
    }

    #[test]
    fn bad_sections_say_what_is_wrong() {
        for (section, words) in [
            (json!({ "amount_mib": 1 }), "deflate_on_oom"),
            (json!({ "deflate_on_oom": true }), "amount_mib"),
            (json!({ "amount_mib": -1, "deflate_on_oom": true }), "balloon"),
            (json!({ "amount_mib": 16_777_216, "deflate_on_oom": true }), "16777216 is too much"),
            (json!({ "amount_mib": 1, "deflate_on_oom": true, "free_page_hinting": true }), "free_page_hinting"),
            (json!({ "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 100_000 }), "a day"),
            (json!([]), "balloon"),
        ] {
            let said = (KIND.check)(&section).unwrap_err().to_string();
            assert!(said.contains(words) && said.starts_with("balloon") && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn linux_is_told_to_report_small_blocks() {
        let section = |reporting| json!({ "amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": reporting });
        assert!(kernel_args(&section(true)).unwrap().contains("page_reporting_order"));
        assert_eq!((kernel_args(&section(false)), kernel_args(&json!({}))), (None, None));
    }

    #[test]
    fn what_is_told_has_target_and_actual() {
        let section = json!({ "amount_mib": 3, "deflate_on_oom": true, "stats_polling_interval_s": 1 });
        let state = json!({ "actual": 513, "statistics": { "free_memory": 7 } });
        let told =
            json!({ "target_pages": 768, "target_mib": 3, "actual_pages": 513, "actual_mib": 2, "free_memory": 7 });
        assert_eq!(tell(&section, &state).unwrap(), told);
        let silent = json!({ "amount_mib": 3, "deflate_on_oom": true });
        assert!(tell(&silent, &state).unwrap_err().to_string().contains("stats_polling_interval_s"));
    }
}
