//! Memory sizes as container users write them: `128m`, `1g`, `1.5g`, `134217728`.

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

/// Parses a number of vCPUs. Docker takes fractions of a CPU there; a machine has whole ones.
pub fn cpus(text: &str) -> Result<u8, String> {
    let most = vmm::config::MAX_VCPUS;
    let whole = text.strip_suffix(".0").unwrap_or(text);
    match whole.parse::<u8>() {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ => Err(format!("'{text}' is not a number of vCPUs; a microVM has 1 to {most} whole ones")),
    }
}

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
    fn cpus_are_whole() {
        assert_eq!((cpus("2"), cpus("2.0"), cpus("32")), (Ok(2), Ok(2), Ok(32)));
        for text in ["0", "1.5", "33", "-1", "", "two"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(human(999), "999B");
        assert_eq!(human(78_100_000), "78.1MB");
        assert_eq!(human(u64::MAX), "18446744.1TB");
    }
}
