//! Types of options and parameters: which JSON values they take, and the values that were taken.

use std::fmt;

use serde_json::{Value as Json, json};

use crate::units::Uuid;

/// Bytes of a label on disk, and of the longest name that a new volume may get.
pub const LABEL_BYTES: usize = 32;
/// Characters of a refused value that a message repeats.
const QUOTED_MAX: usize = 60;

/// The type of an option or parameter, with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// True or false.
    Bool,
    /// A whole number, from the least to the most, both included.
    Uint(u64, u64),
    /// A power of two, from the least to the most, both included.
    PowerOfTwo(u64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// The name of a volume, see [`is_name`].
    Name,
    /// The name of a bdev: any text but an empty one, without NUL.
    Bdev,
    /// A list of names of bdevs, without repetition.
    Bdevs,
    /// A UUID as text, but not the nil UUID, which nothing has.
    Uuid,
}

/// A value that was checked by its [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// No value.
    Null,
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Uint`] and [`Kind::PowerOfTwo`].
    Uint(u64),
    /// Of [`Kind::Word`].
    Word(&'static str),
    /// Of [`Kind::Name`], [`Kind::Bdev`] and [`Kind::Uuid`].
    Text(String),
    /// Of [`Kind::Bdevs`].
    Texts(Vec<String>),
}

impl Value {
    /// The value as JSON.
    pub fn to_json(&self) -> Json {
        match self {
            Value::Null => Json::Null,
            Value::Bool(value) => json!(value),
            Value::Uint(value) => json!(value),
            Value::Word(value) => json!(value),
            Value::Text(value) => json!(value),
            Value::Texts(values) => json!(values),
        }
    }
}

/// Whether a volume can have this name: 1 to 32 bytes, no spaces and no control characters. Names
/// are kept as labels on disk.
pub fn is_name(text: &str) -> bool {
    let fits = !text.is_empty() && text.len() <= LABEL_BYTES;
    fits && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

fn is_bdev(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

impl Kind {
    /// Takes a JSON value for the option or parameter `name`.
    ///
    /// # Errors
    /// The value is of another type or out of range: what is possible, and what was given.
    pub fn check(&self, name: &str, given: &Json) -> Result<Value, String> {
        let value = match self {
            Kind::Bool => given.as_bool().map(Value::Bool),
            Kind::Uint(least, most) => {
                let number = given.as_u64().filter(|n| (*least..=*most).contains(n));
                number.map(Value::Uint)
            }
            Kind::PowerOfTwo(least, most) => {
                let number = given.as_u64().filter(|n| (*least..=*most).contains(n));
                number.filter(|n| n.is_power_of_two()).map(Value::Uint)
            }
            Kind::Word(words) => {
                let word = words.iter().find(|word| given.as_str() == Some(word));
                word.map(|word| Value::Word(word))
            }
            Kind::Name => text(given, is_name),
            Kind::Bdev => text(given, is_bdev),
            Kind::Uuid => text(given, |text| {
                Uuid::parse(text).is_some_and(|uuid| !uuid.is_nil())
            }),
            Kind::Bdevs => bdevs(given),
        };
        value.ok_or_else(|| format!("{name} must be {self}, got {}", quoted(given)))
    }

    /// The type's name, for the reference and the plugin.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Bool => "boolean",
            Kind::Uint(..) | Kind::PowerOfTwo(..) => "number",
            Kind::Bdevs => "array of strings",
            Kind::Word(_) | Kind::Name | Kind::Bdev | Kind::Uuid => "string",
        }
    }
}

fn text(given: &Json, fits: impl Fn(&str) -> bool) -> Option<Value> {
    let text = given.as_str().filter(|text| fits(text));
    text.map(|text| Value::Text(text.into()))
}

fn bdevs(given: &Json) -> Option<Value> {
    let mut names = Vec::new();
    for name in given.as_array()? {
        let name = name.as_str().filter(|name| is_bdev(name))?.to_string();
        if names.contains(&name) {
            return None;
        }
        names.push(name);
    }
    Some(Value::Texts(names))
}

/// A refused value, as a message repeats it.
fn quoted(given: &Json) -> String {
    let text = given.to_string();
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl fmt::Display for Kind {
    /// What is possible, so that "must be" may stand before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Bool => f.write_str("true or false"),
            Kind::Uint(least, most) => write!(f, "{least} to {most}"),
            Kind::PowerOfTwo(least, most) => write!(f, "a power of two from {least} to {most}"),
            Kind::Word(words) => match words.split_last() {
                Some((last, rest)) if !rest.is_empty() => {
                    write!(f, "{} or {last}", rest.join(", "))
                }
                _ => f.write_str(&words.concat()),
            },
            Kind::Name => write!(
                f,
                "the name of a volume (1 to {LABEL_BYTES} bytes, no spaces or control characters)"
            ),
            Kind::Bdev => f.write_str("the name of a bdev"),
            Kind::Bdevs => f.write_str("a list of names of bdevs, each once"),
            Kind::Uuid => f.write_str("a UUID (8-4-4-4-12 hex digits, not all zero)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kind` takes all of `good`, and refuses all of `bad` with a message that has `word`.
    fn check(kind: Kind, good: &[Json], bad: &[Json], word: &str) {
        for value in good {
            let taken = kind.check("x", value).map(|taken| taken.to_json());
            assert_eq!(taken.as_ref(), Ok(value));
        }
        let other_types = [json!(null), json!([1]), json!({}), json!(1.5)];
        for value in bad.iter().chain(&other_types) {
            let refused = kind.check("x", value).expect_err(&value.to_string());
            assert!(
                refused.starts_with("x must be ") && refused.contains(word),
                "{refused}"
            );
        }
    }

    #[test]
    fn values_are_of_their_type_and_in_range() {
        check(
            Kind::Bool,
            &[json!(true)],
            &[json!(0), json!("true")],
            "true or false",
        );
        check(
            Kind::Uint(1, 4),
            &[json!(1), json!(4)],
            &[json!(0), json!(5), json!(-1), json!("1")],
            "1 to 4",
        );
        check(
            Kind::PowerOfTwo(4, 16),
            &[json!(4), json!(16)],
            &[json!(2), json!(6), json!(32)],
            "power of two",
        );
        check(
            Kind::Word(&["a", "b", "c"]),
            &[json!("b")],
            &[json!("d"), json!("")],
            "a, b or c",
        );
        let long = "n".repeat(32);
        let bad = [
            json!(""),
            json!("a b"),
            json!(long.clone() + "n"),
            json!("a\n"),
            json!("a\0"),
        ];
        check(Kind::Name, &[json!("Vol0"), json!(long)], &bad, "32 bytes");
        check(
            Kind::Bdev,
            &[json!("lvs/lvol 0")],
            &[json!(""), json!("a\0b")],
            "bdev",
        );
        check(
            Kind::Bdevs,
            &[json!([]), json!(["a", "b"])],
            &[json!("a"), json!(["a", "a"]), json!([""])],
            "each once",
        );
        let uuid = json!("e3b97f1f-d932-466a-8902-c3e095bb0974");
        let nil = json!("00000000-0000-0000-0000-000000000000");
        check(Kind::Uuid, &[uuid], &[nil, json!("e3b97f1f")], "UUID");
    }

    #[test]
    fn a_message_says_what_was_given() {
        let refused = Kind::Uint(0, 40).check("writeback_percent", &json!(41));
        assert_eq!(
            refused,
            Err("writeback_percent must be 0 to 40, got 41".into())
        );
        let refused = Kind::Bool.check("force", &json!("é".repeat(1000)));
        assert!(refused.unwrap_err().len() < 200);
    }
}
