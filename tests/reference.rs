//! docs/rpc.md and spdk/bcache_rpc.json say what the tables of methods and options say.
//!
//! `make docs` writes both; without it these tests compare. The JSON is what the rpc.py plugin reads,
//! so that it knows all methods without a target.

use std::fmt::Write;
use std::{env, fs};

use serde_json::{Value as Json, json};
use spdk_bcache::options::{
    FORMAT_ROWS, Kept, Kind, ModuleOption, Row, SetOption, Table, Value, VolumeOption,
};
use spdk_bcache::rpc::methods::{METHODS, Method, Need, Param, Takes, When};

/// Set by `make docs`: the files are written, not compared.
const WRITE: &str = "WRITE_REFERENCE";

fn rows<O: Table>() -> Vec<&'static Row> {
    O::ALL.iter().map(|option| option.row()).collect()
}

fn all_rows() -> Vec<&'static Row> {
    let mut all = [rows::<VolumeOption>(), rows::<SetOption>()].concat();
    all.extend(rows::<ModuleOption>());
    all.extend(FORMAT_ROWS);
    all
}

/// Writes a file of the reference, or says that it is stale.
fn check(path: &str, text: &str) {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    if env::var_os(WRITE).is_some() {
        return fs::write(&path, text).expect("the tree can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "{path} is stale: run `make docs`, and commit what it writes"
    );
}

#[test]
fn the_reference_of_rpcs_is_up_to_date() {
    check("docs/rpc.md", &markdown());
}

#[test]
fn what_the_plugin_knows_is_up_to_date() {
    let methods: Vec<Json> = METHODS.iter().map(plugin_method).collect();
    let options = json!({
        "volume": plugin_options::<VolumeOption>(),
        "set": plugin_options::<SetOption>(),
    });
    let all = json!({"methods": methods, "options": options});
    let text = serde_json::to_string_pretty(&all).expect("plain JSON");
    check("spdk/bcache_rpc.json", &(text + "\n"));
}

// --- the plugin ---

fn plugin_type(kind: &Kind) -> Json {
    match kind {
        Kind::Word(words) => json!({"type": "word", "words": words}),
        kind => json!({"type": kind.name()}),
    }
}

fn plugin_param(param: &Param) -> Json {
    let mut entry = plugin_type(&param.kind);
    entry["name"] = json!(param.name);
    entry["help"] = json!(help_of(param.help, &param.kind, ""));
    if let Need::Optional(default) = param.need {
        entry["flag"] = json!(param.short);
        entry["default"] = json!(default);
    }
    entry
}

fn plugin_options<O: Table>() -> Json {
    let option = |row: &Row| {
        let mut entry = plugin_type(&row.kind);
        entry["name"] = json!(row.name);
        entry["help"] = json!(help_of(row.help, &row.kind, row.unit));
        entry["default"] = json!(text_of(&row.default));
        entry
    };
    rows::<O>().into_iter().map(option).collect()
}

fn plugin_method(method: &Method) -> Json {
    let mut params: Vec<Json> = method.params.iter().map(plugin_param).collect();
    let pairs = match method.takes {
        Takes::VolumeOptions => Some("volume"),
        Takes::SetOptions => Some("set"),
        Takes::Nothing => None,
        Takes::ModuleOptions => {
            for mut flag in plugin_options::<ModuleOption>()
                .as_array()
                .cloned()
                .unwrap()
            {
                flag["flag"] = json!("");
                params.push(flag);
            }
            None
        }
    };
    json!({
        "name": method.name,
        "help": method.help,
        "params": params,
        "one_of": method.one_of,
        "options": pairs,
    })
}

/// What an option or parameter does, with its range where that is no matter of course.
fn help_of(help: &str, kind: &Kind, unit: &str) -> String {
    match kind {
        Kind::Uint(..) | Kind::PowerOfTwo(..) if unit.is_empty() => format!("{help}: {kind}"),
        Kind::Uint(..) | Kind::PowerOfTwo(..) => format!("{help}: {kind} {unit}"),
        _ => help.to_string(),
    }
}

// --- docs/rpc.md ---

const HEAD: &str = "\
# The RPCs

This page is made from the tables of methods and options (`src/rpc/methods.rs`, `src/options/rows.rs`)
by `make docs`. Do not edit it.

Every method is also in the plugin of rpc.py: `rpc.py --plugin bcache_rpc METHOD --help`. Parameters are
an object of names and values; unknown parameters, a parameter given twice, and positional arrays are
refused. Errors: -32602 for bad parameters, otherwise a negative errno, and a message that says what is
wrong and what to do. Methods can be called once the framework runs, but for those that say *startup*:
these can be called before `framework_start_init` only.

A *name* of a volume has 1 to 32 bytes, without spaces and control characters. With `when_up` a call
waits for what it names, if that is not there yet: a saved configuration is loaded before there are
bdevs. Names and UUIDs that nothing can ever have are refused at once.
";

fn markdown() -> String {
    let mut out = String::from(HEAD);
    out += "\n## Methods\n";
    for method in METHODS {
        write_method(&mut out, method);
    }
    out += "\n## Options\n";
    out += "
Options are kept in memory (*run*), also in what `save_config` writes (*config*), or on the device
(*disk*). Options that are kept on the device are parameters of `bdev_bcache_create`; the cache mode is
changed by `bdev_bcache_set_cache_mode`.

| option | of | type and range | default | kept in | meaning |
|---|---|---|---|---|---|
";
    for row in all_rows() {
        write_option(&mut out, row);
    }
    out
}

fn write_method(out: &mut String, method: &Method) {
    let startup = match method.when {
        When::Startup => " (startup)",
        When::Runtime => "",
    };
    let _ = write!(out, "\n### {}{startup}\n\n{}.\n", method.name, method.help);
    if !method.params.is_empty() {
        *out += "\n| parameter | type and range | default | meaning |\n|---|---|---|---|\n";
    }
    for param in method.params {
        let default = match param.need {
            _ if method.one_of.contains(&param.name) => "*one of these*",
            Need::Required => "*required*",
            Need::Optional("") => "",
            Need::Optional(default) => default,
        };
        let (name, kind, help) = (param.name, &param.kind, param.help);
        let _ = writeln!(
            out,
            "| `{name}` | {} | {default} | {help} |",
            type_of(kind, "")
        );
    }
    if method.takes != Takes::Nothing {
        let names: Vec<String> = method
            .takes
            .rows()
            .iter()
            .map(|r| format!("`{}`", r.name))
            .collect();
        let _ = write!(out, "\nIt takes the options {}.\n", names.join(", "));
    }
    let _ = write!(out, "\nResult: {}.\n", method.result);
    if !method.fields.is_empty() {
        *out += "\n| member | what it says |\n|---|---|\n";
    }
    for (name, help) in method.fields {
        let _ = writeln!(out, "| `{name}` | {help} |");
    }
}

fn write_option(out: &mut String, row: &Row) {
    let of = format!("{:?}", row.of).to_lowercase();
    let kept = format!("{:?}", row.kept).to_lowercase();
    let (kind, default) = (type_of(&row.kind, row.unit), text_of(&row.default));
    let _ = writeln!(
        out,
        "| `{}` | {of} | {kind} | {default} | {kept} | {} |",
        row.name, row.help
    );
}

fn type_of(kind: &Kind, unit: &str) -> String {
    match (kind, unit) {
        (Kind::Bool, _) => "boolean".into(),
        (Kind::Word(words), _) => format!("`{}`", words.join("`, `")),
        (Kind::Name, _) => "name of a volume".into(),
        (Kind::Bdev, _) => "name of a bdev".into(),
        (Kind::Bdevs, _) => "list of names of bdevs".into(),
        (Kind::Uuid, _) => "UUID".into(),
        (kind, "") => kind.to_string(),
        (kind, unit) => format!("{kind} {unit}"),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Word(word) => (*word).into(),
        Value::Texts(texts) if texts.is_empty() => "none".into(),
        value => value.to_json().to_string(),
    }
}

#[test]
fn the_tables_have_what_the_reference_needs() {
    for row in all_rows() {
        assert!(
            !row.help.contains('|'),
            "{} breaks the table of options",
            row.name
        );
        assert!(
            row.kept != Kept::Config || row.default != Value::Null,
            "{}",
            row.name
        );
    }
}
