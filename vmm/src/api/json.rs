//! JSON from strangers: a value in which no key comes twice, and Firecracker's way with `null`.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses one value. A key that comes twice in an object is an error: which of the two is meant, nobody knows. The
/// parser bounds depth (128).
pub fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Without the members that are `null`, which Firecracker takes for absent ones.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let present = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(present.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = members.next_value_seed(Strict)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key '{key}' comes twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_json() {
        let text = r#" {"a": [1, -2, 0.5, "x\n", true, null], "b": {"a": {}}} "#;
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        for bad in ["", "{", "{} {}", "{'a': 1}", "nul", "[1,]", "\"\u{1}\""] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn group_9_keys_that_come_twice_are_refused_at_any_depth() {
        for bad in [r#"{"a": 1, "a": 1}"#, r#"[{"b": {"a": 1, "c": 2, "a": null}}]"#] {
            assert!(parse(bad.as_bytes()).unwrap_err().to_string().contains("'a' comes twice"), "{bad}");
        }
    }

    #[test]
    fn group_9_depth_is_bounded() {
        let deep = "[".repeat(1 << 20);
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion"));
    }

    #[test]
    fn nulls_are_absent() {
        let value = json!({ "a": null, "b": [{ "c": null, "d": 1 }, null], "e": {} });
        assert_eq!(without_nulls(value), json!({ "b": [{ "d": 1 }, null], "e": {} }));
    }
}
