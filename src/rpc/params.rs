//! Parameters of a call: JSON text to checked values.
//!
//! Parameters are an object whose keys are all known and differ; anything else is refused, with a
//! message that names the parameter, what is possible, and what was given. A parameter that is null
//! counts as not given.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};

use super::methods::{Method, Need, Param, Takes};
use super::{RpcError, invalid};
use crate::options::{ModuleOption, SetOption, Table, Value, Values, VolumeOption};

/// JSON in which no object has a key twice, at any depth.
struct Unambiguous(Json);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor).map(Unambiguous)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(Unambiguous(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut values = Map::new();
        while let Some((key, Unambiguous(value))) = map.next_entry::<String, _>()? {
            if values.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("{key} is given twice")));
            }
        }
        Ok(values.into())
    }
}

/// Reads the text of parameters.
///
/// # Errors
/// It is no JSON, or an object in it has a key twice.
pub fn read(text: &[u8]) -> Result<Json, RpcError> {
    let read = serde_json::from_slice(text);
    let read = read.map(|Unambiguous(value)| value);
    read.map_err(|error| unreadable(&error.to_string()))
}

/// Parameters that cannot be read, and why.
pub fn unreadable(why: &str) -> RpcError {
    invalid(format!("bad parameters: {why}"))
}

/// The checked parameters of a call.
#[derive(Debug)]
pub struct Args(BTreeMap<&'static str, Value>);

impl Args {
    /// Checks the parameters of a call of `method`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(method: &Method, params: Json) -> Result<Args, RpcError> {
        let mut given = match params {
            Json::Null => Map::new(),
            Json::Object(given) => given,
            _ => return Err(invalid("parameters must be an object of names and values")),
        };
        let mut values = BTreeMap::new();
        for param in method.params {
            let value = match given.remove(param.name) {
                None | Some(Json::Null) => missing(method, param)?,
                Some(value) => Some(param.kind.check(param.name, &value).map_err(invalid)?),
            };
            if let Some(value) = value {
                values.insert(param.name, value);
            }
        }
        for row in method.takes.rows() {
            match given.remove(row.name) {
                None | Some(Json::Null) => {}
                Some(value) => {
                    let value = row.kind.check(row.name, &value).map_err(invalid)?;
                    values.insert(row.name, value);
                }
            }
        }
        if let Some((unknown, _)) = given.iter().next() {
            return Err(unknown_param(method, unknown));
        }
        let chosen = method.one_of.iter().filter(|n| values.contains_key(*n));
        if !method.one_of.is_empty() && chosen.count() != 1 {
            return Err(invalid(format!(
                "give either {}",
                method.one_of.join(" or ")
            )));
        }
        Ok(Args(values))
    }

    /// A parameter that is text; empty where it is not given.
    pub fn text(&self, name: &str) -> &str {
        self.maybe_text(name).unwrap_or_default()
    }

    /// A parameter that is text, if it is given.
    pub fn maybe_text(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Value::Text(text) => Some(text),
            Value::Word(word) => Some(word),
            _ => None,
        }
    }

    /// Whether a parameter is given and true.
    pub fn is_set(&self, name: &str) -> bool {
        self.0.get(name) == Some(&Value::Bool(true))
    }

    /// A parameter that is a number, if it is given.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Value::Uint(number) => Some(*number),
            _ => None,
        }
    }

    /// The options that are given, of a table that the method takes.
    pub fn options<O: Table>(&self) -> Values<O> {
        let mut values = Values::default();
        for &option in O::ALL {
            if let Some(value) = self.0.get(option.row().name) {
                values.set(option, value.clone());
            }
        }
        values
    }
}

fn missing(method: &Method, param: &Param) -> Result<Option<Value>, RpcError> {
    match param.need {
        Need::Required => Err(invalid(format!(
            "{} is missing: {} needs it, and it must be {}",
            param.name, method.name, param.kind
        ))),
        Need::Optional(_) => Ok(None),
    }
}

fn unknown_param(method: &Method, unknown: &str) -> RpcError {
    let params = method.params.iter().map(|param| param.name);
    let options = method.takes.rows().into_iter().map(|row| row.name);
    let known: Vec<&str> = params.chain(options).collect();
    invalid(match known.is_empty() {
        true => format!("unknown parameter {unknown}: {} takes none", method.name),
        false => format!(
            "unknown parameter {unknown}: {} takes {}",
            method.name,
            known.join(", ")
        ),
    })
}

impl Takes {
    /// The rows of the options that are parameters, too.
    pub fn rows(self) -> Vec<&'static crate::options::Row> {
        match self {
            Takes::Nothing => Vec::new(),
            Takes::VolumeOptions => VolumeOption::ALL.iter().map(|o| o.row()).collect(),
            Takes::SetOptions => SetOption::ALL.iter().map(|o| o.row()).collect(),
            Takes::ModuleOptions => ModuleOption::ALL.iter().map(|o| o.row()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rpc::methods::METHODS;

    fn parse(name: &str, params: Json) -> Result<Args, String> {
        let method = METHODS.iter().find(|method| method.name == name);
        let args = Args::parse(method.expect("a method"), params);
        args.map_err(|error| {
            assert_eq!(error.code, -32602);
            error.message
        })
    }

    #[test]
    fn unknown_missing_and_positional_parameters_are_refused_by_every_method() {
        for method in METHODS {
            let error = parse(method.name, json!({"surprise": 1})).unwrap_err();
            let complains = ["surprise", "missing"].iter().any(|w| error.contains(w));
            assert!(complains, "{error}");
            for positional in [json!([]), json!(["a"]), json!("a"), json!(1)] {
                let error = parse(method.name, positional).unwrap_err();
                assert!(error.contains("object"), "{error}");
            }
            let required = method
                .params
                .iter()
                .any(|p| matches!(p.need, Need::Required));
            let needs_some = required || !method.one_of.is_empty();
            assert_eq!(
                parse(method.name, Json::Null).is_err(),
                needs_some,
                "{}",
                method.name
            );
        }
    }

    #[test]
    fn exactly_one_of_two_is_taken() {
        let uuid = json!("e3b97f1f-d932-466a-8902-c3e095bb0974");
        let get = |params| parse("bdev_bcache_get_stats", params);
        assert_eq!(get(json!({"name": "V"})).unwrap().text("name"), "V");
        assert!(get(json!({"set": uuid})).is_ok());
        assert!(
            get(json!({"name": "V", "set": uuid}))
                .unwrap_err()
                .contains("either")
        );
        assert!(get(json!({"name": null, "set": null})).is_err());
    }

    #[test]
    fn no_key_is_given_twice_at_any_depth() {
        for text in [
            r#"{"name": "a", "name": "b"}"#,
            r#"{"x": {"name": 1, "name": 1}}"#,
            r#"{"x": [{"y": 0}, {"name": 1, "name": 2}]}"#,
            r#"{"name": 1, "na\u006de": 2}"#,
        ] {
            let error = read(text.as_bytes()).expect_err(text);
            assert_eq!(error.code, -32602);
            assert!(error.message.contains("name is given twice"), "{error:?}");
        }
        let text = r#"{"a": {"b": [1, -2, 0.5, null, true, "c", {}]}, "b": {"a": 1}}"#;
        let plain: Json = serde_json::from_str(text).unwrap();
        assert_eq!(read(text.as_bytes()).unwrap(), plain);
        assert!(read(b"{").is_err());
    }
}
