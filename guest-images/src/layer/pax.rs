//! PAX extended headers (POSIX pax, "ustar Interchange Format" extensions): records `LEN KEY=VALUE\n`.
//!
//! Values may hold any byte, newlines too (binary attributes), so records are cut by their length.

use super::tar::TarError;
use crate::tree::Xattrs;

/// What the records of one header say. Unknown keys are ignored, as POSIX wants it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Xattrs,
    pub sparse: PaxSparse,
}

/// GNU's sparse formats 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxSparse {
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub major: Option<u64>,
    /// Format 0.1: the whole list. Format 0.0 is collected into the same form.
    pub list: Option<Vec<u8>>,
}

/// An unsigned decimal number of digits only.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `seconds[.fraction]`, perhaps negative, as seconds rounded down and nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match digits.iter().position(|b| *b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0u32, |n, i| n * 10 + u32::from(fraction.get(i).map_or(0, |b| b - b'0')));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

impl Pax {
    /// Adds the records in `data`; later ones win. An empty value takes an earlier one back.
    pub(super) fn parse(&mut self, mut data: &[u8]) -> Result<(), TarError> {
        while !data.is_empty() && data[0] != 0 {
            let space = data.iter().take(20).position(|b| *b == b' ').ok_or(TarError::Pax)?;
            let len = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(TarError::Pax)?;
            let record = data.get(space + 1..len).ok_or(TarError::Pax)?;
            let record = record.strip_suffix(b"\n").ok_or(TarError::Pax)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(TarError::Pax)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            data = &data[len..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = || match value {
            b"" => Ok(None),
            _ => decimal(value).map(Some).ok_or(TarError::Pax),
        };
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or(TarError::Pax)?),
            b"GNU.sparse.name" => self.sparse.name = bytes(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = number()?,
            b"GNU.sparse.major" => self.sparse.major = number()?,
            b"GNU.sparse.map" => self.sparse.list = Some(value.to_vec()),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let list = self.sparse.list.get_or_insert_default();
                list.extend_from_slice(value);
                list.push(b',');
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.into(), value.into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_cut_by_length_not_by_newline() {
        let mut pax = Pax::default();
        pax.parse(b"30 SCHILY.xattr.user.a=x\n=y\nz\n12 uid=1000\n").expect("valid");
        assert_eq!(pax.xattrs.get(&b"user.a"[..]).map(|v| &**v), Some(&b"x\n=y\nz"[..]));
        assert_eq!(pax.uid, Some(1000));
    }

    #[test]
    fn times_have_signs_and_fractions() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"3.1234567891"), Some((3, 123_456_789)));
        assert_eq!(time(b"-7"), Some((-7, 0)));
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"99999999999999999999"), None);
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [&b"5 a=b"[..], b"99 a=b\n", b"6 ab=\0", b"x a=b\n", b"0 a=b\n", b"2 a=b\n", b"5 ab\n\n"] {
            assert!(Pax::default().parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
