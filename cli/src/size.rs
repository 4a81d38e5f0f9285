//! Memory sizes as container users write them: `128m`, `1g`, `1.5g`, `134217728`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// Parses a size into bytes, rounded up. A number without a unit counts bytes, as it does in docker.
pub fn bytes(text: &str) -> Result<u64, String> {
    let number = parse(text)?.ceil();
    match number >= 1.0 && number < (1u64 << 53) as f64 {
        true => Ok(number as u64),
        false => Err(format!("'{text}' is not a size that anything can have")),
    }
}

/// Parses a size of memory into MiB, rounded up.
pub fn mib(text: &str) -> Result<u64, String> {
    let mib = (parse(text)? / (1u64 << 20) as f64).ceil();
    // Above 2^43 MiB nothing means anything; below it f64 counts exactly.
    if !(mib.is_finite() && mib < (1u64 << 43) as f64) {
        return Err(format!("'{text}' is more memory than any machine has"));
    }
    let mib = mib as u64;
    if mib < vmm::config::MIN_MEMORY_MIB {
        return Err(format!("{text} is less than the {} MiB a microVM needs at least", vmm::config::MIN_MEMORY_MIB));
    }
    Ok(mib)
}

fn parse(text: &str) -> Result<f64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("'{text}' is not a memory size; write it like 256m or 1g")),
    };
    let number: f64 = number.parse().map_err(|_| format!("'{text}' is not a memory size; write it like 256m or 1g"))?;
    Ok(number * (1u64 << shift) as f64)
}

/// A number of CPUs, in thousandths of one: a machine has whole ones, and the rest is a matter of processor time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Cpus(u32);

impl Cpus {
    /// The least there is: the kernel gives no less than a millisecond in a tenth of a second.
    const LEAST: u32 = 10;

    /// This many.
    pub fn whole(count: u8) -> Self {
        Cpus(u32::from(count) * 1000)
    }

    /// Thousandths of a CPU.
    pub fn thousandths(self) -> u32 {
        self.0
    }

    /// How many vCPUs that takes.
    pub fn vcpus(self) -> u8 {
        // No more than there can be, as it is made.
        u8::try_from(self.0.div_ceil(1000)).unwrap_or(vmm::config::MAX_VCPUS)
    }

    /// Itself, if so many vCPUs could take more.
    pub fn as_quota(self, vcpus: u8) -> Option<Self> {
        (self < Self::whole(vcpus)).then_some(self)
    }
}

impl TryFrom<f64> for Cpus {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        let thousandths = (number * 1000.0).round();
        let most = u32::from(vmm::config::MAX_VCPUS) * 1000;
        if thousandths >= f64::from(Self::LEAST) && thousandths <= f64::from(most) {
            Ok(Cpus(thousandths as u32))
        } else {
            Err(format!("{number} is not a number of CPUs; a microVM has 0.01 to {}", vmm::config::MAX_VCPUS))
        }
    }
}

impl From<Cpus> for f64 {
    fn from(cpus: Cpus) -> f64 {
        f64::from(cpus.0) / 1000.0
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(*self))
    }
}

/// Parses a number of CPUs, as docker's `--cpus`: `2`, `0.5`.
pub fn cpus(text: &str) -> Result<Cpus, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = text.parse::<f64>().ok().filter(|_| plain).and_then(|number| Cpus::try_from(number).ok());
    let most = vmm::config::MAX_VCPUS;
    number.ok_or_else(|| format!("'{text}' is not a number of CPUs; a microVM has 0.01 to {most}"))
}

/// Docker's limit of memory and swap together, which means nothing here.
pub fn no_swap(_: &str) -> Result<Refused, String> {
    Err("a microVM's memory is all there is (-m): its guest has no swap of this host; leave it out".into())
}

/// What no value is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {}

/// Bytes for people: `78.1MB`, powers of ten as docker shows images.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes}B") } else { format!("{value:.1}{unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_dockers_units() {
        for (text, want) in [
            ("128m", 128),
            ("1g", 1024),
            ("1G", 1024),
            ("1gb", 1024),
            ("1GiB", 1024),
            ("1.5g", 1536),
            ("134217728", 128),
            ("134217729", 129),
            ("131072k", 128),
        ] {
            assert_eq!(mib(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_word_itself() {
        for text in ["", "m", "12q", "-1g", "1e9g", "1..2g", "nan", "inf", "1 m b", "15m", "0", "99999999999t", "١g"] {
            let error = mib(text).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn cpus_are_vcpus_and_what_of_them_is_used() {
        for (text, thousandths, vcpus) in
            [("2", 2000, 2), ("2.0", 2000, 2), ("32", 32000, 32), ("0.5", 500, 1), (".01", 10, 1), ("1.2504", 1250, 2)]
        {
            let got = cpus(text).unwrap();
            assert_eq!((got.thousandths(), got.vcpus()), (thousandths, vcpus), "{text}");
            assert_eq!(got.as_quota(vcpus).is_some(), !thousandths.is_multiple_of(1000), "{text}");
        }
        for text in ["0", "0.009", "33", "-1", "", "two", "1e1", "nan", "inf", ".", "1.2.3", "+1"] {
            assert!(cpus(text).unwrap_err().contains(text), "{text}");
        }
        assert_eq!(cpus("1.5").unwrap().to_string(), "1.5");
    }

    /// Records of containers that were made before there were fractions have a whole number.
    #[test]
    fn cpus_are_written_as_a_number_and_read_as_any() {
        let read = |text: &str| serde_json::from_str::<Cpus>(text);
        assert_eq!(read("2").unwrap(), Cpus::whole(2));
        assert_eq!(read(&serde_json::to_string(&cpus("0.29").unwrap()).unwrap()).unwrap().thousandths(), 290);
        assert!(read("0").is_err() && read("1e300").is_err() && read("\"1\"").is_err());
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(human(999), "999B");
        assert_eq!(human(78_100_000), "78.1MB");
        assert_eq!(human(u64::MAX), "18446744.1TB");
    }
}
