//! Style as a test: what reviews would otherwise have to find anew each time.
//!
//! - Arrows between modules go down only, in the picture that the head of `src/lib.rs` draws.
//! - The engine asks the world (clock, threads, files) through its traits alone, so that the
//!   simulator can stand in for it.
//! - `unsafe` stands only where C or atomics are, and says each time why it is sound.
//! - Every file opens with its contract, and files and functions keep a length that can be read.
//! - Nothing unfinished, and no path or host of somebody's machine, is checked in.
//!
//! Each check is a function from text to complaints, and has a test that it can complain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a file.
const FILE_LINES_MAX: usize = 800;
/// Lines of a function, its signature and closing brace included.
const FN_LINES_MAX: usize = 70;
/// Lines of a function of a test: a scenario is read from top to bottom.
const TEST_FN_LINES_MAX: usize = 100;

/// What may be longer than the limits, how long, and why.
const LONGER: &[(&str, usize, &str)] = &[(
    "src/set/error.rs::fmt",
    100,
    "one arm and one message for each way in which a set can fail",
)];

/// Where `unsafe` may stand.
const UNSAFE_HOMES: &[&str] = &["src/spdk/", "src/index/"];

/// Modules that may know the world: the two that implement the traits, and the programs.
const WORLDLY: &[&str] = &["spdk", "sim", "bin"];
/// What the others may not use.
const WORLD: &[&str] = &[
    "std::time",
    "std::thread",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
];

/// Words that say that something is unfinished. Put together here, lest they be found here.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("todo", "!"),
    concat!("unimple", "mented!"),
    concat!("db", "g!"),
    concat!("#[ig", "nore"),
];
/// Folders and hosts of machines, not of the project.
const MACHINES: &[&str] = &[
    concat!("/wo", "rk"),
    concat!("/ro", "ot"),
    concat!("/tmp/pl", "an"),
    concat!("crates", ".io"),
    concat!("py", "pi.org"),
    concat!("pythonho", "sted.org"),
    concat!("proxy.go", "lang.org"),
    concat!("deb.deb", "ian.org"),
    concat!("doc", "ker.io"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project.
struct Source {
    /// Its path from the root, with slashes.
    path: String,
    text: String,
}

/// All text files that are, or are about to be, checked in.
fn tracked() -> Vec<Source> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|out| out.status.success())
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let mut paths: Vec<String> = match listed {
        Some(list) => list.lines().map(String::from).collect(),
        // an unpacked tarball, in which all is the project's
        None => walk(root()),
    };
    paths.sort();
    paths.dedup();
    let read = |path: String| {
        let text = fs::read_to_string(root().join(&path)).ok()?;
        Some(Source { path, text })
    };
    paths.into_iter().filter_map(read).collect()
}

fn walk(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = vec![folder.into()];
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(path).unwrap().map(|e| e.unwrap().path()) {
            let name = entry.strip_prefix(root()).unwrap().to_str().unwrap();
            if entry.is_dir() && name != "target" && name != ".git" {
                left.push(entry);
            } else if entry.is_file() {
                found.push(name.to_string());
            }
        }
    }
    found
}

fn rust_files(under: &[&str]) -> Vec<Source> {
    let mut files = tracked();
    files.retain(|f| f.path.ends_with(".rs") && under.iter().any(|u| f.path.starts_with(u)));
    assert!(!files.is_empty(), "no Rust files under {under:?}");
    files
}

fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

// --- reading Rust ---

/// The text with comments, strings and characters blanked out, line by line as long as before.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let skipped = match rest[0] {
            b'/' if rest.starts_with(b"//") => line_len(rest),
            b'/' if rest.starts_with(b"/*") => block_comment_len(rest),
            b'"' => string_len(rest),
            b'r' if !follows_word(bytes, at) => raw_string_len(rest),
            b'\'' => char_len(rest),
            _ => 0,
        };
        let blank = |b: &u8| if *b == b'\n' { b'\n' } else { b' ' };
        out.extend(rest[..skipped].iter().map(blank));
        if skipped == 0 {
            out.push(rest[0]);
        }
        at += skipped.max(1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether what stands at a place goes on a word. The `b` of `br"…"` counts as none.
fn follows_word(bytes: &[u8], at: usize) -> bool {
    match at.checked_sub(1).map(|i| bytes[i]) {
        Some(b'b') => follows_word(bytes, at - 1),
        before => before.is_some_and(is_word),
    }
}

fn line_len(rest: &[u8]) -> usize {
    rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of a raw string, or 0 where an `r` begins something else.
fn raw_string_len(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let body = 2 + hashes;
    let closing = rest[body..].windows(end.len()).position(|w| w == end);
    closing.map_or(rest.len(), |at| body + at + end.len())
}

/// The length of a character literal, or 0 where a quote begins a lifetime.
fn char_len(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        let end = rest[3..].iter().position(|&b| b == b'\'');
        return end.map_or(0, |end| end + 4);
    }
    // a character has up to four bytes
    let end = (2..6).find(|&i| rest.get(i) == Some(&b'\''));
    match end {
        Some(2) => 3,
        Some(end) if rest[1] >= 0x80 => end + 1,
        _ => 0,
    }
}

/// Where the item ends that begins at `at`: behind its braces, or its semicolon.
fn item_end(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (i, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth -= 1;
                if depth == 0 && byte == b'}' {
                    return i + 1;
                }
            }
            b';' if depth == 0 => return i + 1,
            _ => {}
        }
    }
    code.len()
}

/// The code without what only tests compile.
fn shipped(code: &str) -> String {
    let mut out = code.to_string();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(") {
        let at = from + found;
        let condition_end = at + out[at..].find(']').unwrap_or(0) + 1;
        let condition = &out[at..condition_end];
        from = condition_end;
        let only_tests = words(condition).any(|(_, w)| w == "test" || w == "loom");
        if only_tests && !condition.contains("not(") {
            let end = item_end(&out, condition_end);
            let blank: String = out[at..end]
                .chars()
                .map(|c| if c == '\n' { '\n' } else { ' ' })
                .collect();
            out.replace_range(at..end, &blank);
            from = at;
        }
    }
    out
}

/// The words of a code and where they stand.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let bytes = code.as_bytes();
        while at < bytes.len() && !is_word(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        (start < at).then(|| (start, &code[start..at]))
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

// --- the picture ---

/// The rows of the table of layers in the head of lib.rs, top first: `| \`a\` \`b\` | … |`.
fn picture(lib: &str) -> Vec<Vec<String>> {
    let rows = lib.lines().filter_map(|line| {
        let cells = line.strip_prefix("//! | `")?;
        let names = cells.split(" | ").next()?;
        let names = names.split('`').filter(|n| !n.trim().is_empty());
        Some(names.map(String::from).collect())
    });
    rows.collect()
}

fn row_of(picture: &[Vec<String>], module: &str) -> Option<usize> {
    let mut rows = picture.iter();
    rows.position(|row| row.iter().any(|name| name == module))
}

/// The module of the first level that a file belongs to, and how deep in it the file lies.
fn module_of(path: &str) -> (String, usize) {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    let mut parts: Vec<&str> = inner.trim_end_matches(".rs").split('/').collect();
    if parts.last() == Some(&"mod") {
        parts.pop();
    }
    (parts[0].to_string(), parts.len())
}

/// The modules of the first level that a code names, by `crate::`, by enough `super::`, or by the
/// crate's name, with the lines.
fn uses(code: &str, depth: usize) -> Vec<(usize, String)> {
    let supers = "super::".repeat(depth);
    let mut found = Vec::new();
    for prefix in ["crate::", "spdk_bcache::", &supers] {
        for (at, _) in code.match_indices(prefix) {
            if at > 0 && (is_word(code.as_bytes()[at - 1]) || code[..at].ends_with("::")) {
                continue;
            }
            let line = line_of(code, at);
            for name in first_names(&code[at + prefix.len()..]) {
                found.push((line, name));
            }
        }
    }
    found
}

/// The name that a path begins with, or the names, where it begins with a group.
fn first_names(path: &str) -> Vec<String> {
    let first = |text: &str| words(text).next().map(|(_, word)| word.to_string());
    if !path.starts_with('{') {
        return first(path).into_iter().collect();
    }
    let (mut depth, mut names, mut begin) = (0, Vec::new(), 1);
    for (i, byte) in path.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && byte == b',') {
            names.extend(first(&path[begin..i]));
            begin = i + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Arrows of one file that do not go down, and modules that are not in the picture.
fn check_arrows(picture: &[Vec<String>], file: &Source) -> Vec<String> {
    let (module, depth) = module_of(&file.path);
    let Some(own) = row_of(picture, &module) else {
        return vec![format!(
            "{}: module {module} is not in the picture of src/lib.rs",
            file.path
        )];
    };
    let code = shipped(&code_of(&file.text));
    let mut wrong = Vec::new();
    for (line, used) in uses(&code, depth) {
        let goes_down = match row_of(picture, &used) {
            Some(row) => row > own || used == module,
            // a macro or an item of lib.rs itself
            None => true,
        };
        if !goes_down {
            wrong.push(format!(
                "{}:{line}: {module} uses {used}, which is not below it",
                file.path
            ));
        }
    }
    wrong
}

/// What an engine file asks of the world by itself.
fn check_world(file: &Source) -> Vec<String> {
    if WORLDLY.contains(&module_of(&file.path).0.as_str()) {
        return Vec::new();
    }
    let code = shipped(&code_of(&file.text));
    let found = WORLD.iter().flat_map(|&w| code.match_indices(w));
    let say = |(at, what): (usize, &str)| {
        let line = line_of(&code, at);
        format!("{}:{line}: the engine may not use {what}", file.path)
    };
    found.map(say).collect()
}

/// Names of files that only tests compile, by the declarations in the module above.
fn test_files(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let code = code_of(&file.text);
        let kept = shipped(&code);
        let folder = match file.path.strip_suffix("/mod.rs") {
            Some(folder) => folder,
            None => file.path.trim_end_matches(".rs"),
        };
        for (at, _) in code.match_indices("mod ") {
            let name = words(&code[at + 4..]).next().map_or("", |(_, w)| w);
            if kept[at..].starts_with("    ") {
                found.push(format!("{folder}/{name}.rs"));
            }
        }
    }
    found
}

#[test]
fn arrows_go_down() {
    let files = rust_files(&["src/"]);
    let lib = files.iter().find(|f| f.path == "src/lib.rs").unwrap();
    let picture = picture(&lib.text);
    assert!(picture.len() > 5, "no picture in src/lib.rs: {picture:?}");
    let tests = test_files(&files);
    let engine = files
        .iter()
        .filter(|f| f.path != "src/lib.rs" && !tests.contains(&f.path));
    let mut wrong: Vec<String> = Vec::new();
    for file in engine {
        wrong.extend(check_arrows(&picture, file));
        wrong.extend(check_world(file));
    }
    for name in picture.iter().flatten() {
        let there = files.iter().any(|f| module_of(&f.path).0 == *name);
        // what only a feature or a later branch brings is allowed to be missing
        if !there && !WORLDLY.contains(&name.as_str()) {
            wrong.push(format!(
                "src/lib.rs draws {name}, but there is no such module"
            ));
        }
    }
    assert_none(wrong);
}

// --- unsafe ---

/// `unsafe` where it may not be, and blocks and impls without a word about why they are sound.
fn check_unsafe(file: &Source) -> Vec<String> {
    let code = code_of(&file.text);
    let at_home = UNSAFE_HOMES.iter().any(|h| file.path.starts_with(h));
    let lines: Vec<&str> = file.text.lines().collect();
    let mut wrong = Vec::new();
    for (at, _) in words(&code).filter(|(_, w)| *w == "unsafe") {
        let line = line_of(&code, at);
        if !at_home {
            wrong.push(format!("{}:{line}: unsafe outside of its homes", file.path));
        }
        let next = code[at + 6..].trim_start();
        let must_say = next.starts_with('{') || next.starts_with("impl");
        if must_say && !is_explained(&lines, line - 1) {
            wrong.push(format!(
                "{}:{line}: unsafe without a SAFETY comment before it",
                file.path
            ));
        }
    }
    wrong
}

/// Whether a comment before the statement at a line (counted from 0) says `SAFETY:`.
fn is_explained(lines: &[&str], line: usize) -> bool {
    if lines[line].contains("// SAFETY:") {
        return true;
    }
    for text in lines[..line].iter().rev().map(|l| l.trim()) {
        if text.starts_with("//") {
            if text.starts_with("// SAFETY:") {
                return true;
            }
        } else if text.is_empty() || text.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

#[test]
fn unsafe_is_at_home_and_explained() {
    let files = rust_files(&["src/", "tests/", "build.rs"]);
    assert_none(files.iter().flat_map(check_unsafe).collect());
}

// --- heads and lengths ---

/// Something that is longer than the limit for its kind.
struct TooLong {
    /// A path, or `path::function`.
    what: String,
    lines: usize,
    most: usize,
}

/// Whether a program's text opens with what it is for.
fn has_head(file: &Source) -> bool {
    !file.path.ends_with(".rs") || file.text.starts_with("//! ")
}

/// The file, when it is longer than can be read.
fn check_file(file: &Source) -> Option<TooLong> {
    let lines = file.text.lines().count();
    (lines > FILE_LINES_MAX).then(|| TooLong {
        what: file.path.clone(),
        lines,
        most: FILE_LINES_MAX,
    })
}

/// Functions that are longer than can be read.
fn check_functions(file: &Source, in_tests: bool) -> Vec<TooLong> {
    let code = code_of(&file.text);
    let kept = shipped(&code);
    let mut found = Vec::new();
    for (at, _) in words(&code).filter(|(_, w)| *w == "fn") {
        // `fn(…)` is a type
        if !code[at + 2..].starts_with(' ') {
            continue;
        }
        let name = words(&code[at + 2..]).next().map_or("", |(_, w)| w);
        let is_test = in_tests || kept[at..].starts_with("  ");
        let most = if is_test {
            TEST_FN_LINES_MAX
        } else {
            FN_LINES_MAX
        };
        let lines = line_of(&code, item_end(&code, at) - 1) - line_of(&code, at) + 1;
        if lines > most {
            let what = format!("{}::{name}", file.path);
            found.push(TooLong { what, lines, most });
        }
    }
    found
}

/// What is longer than an exception allows, and exceptions that nothing needs any more.
fn judge_lengths(found: &[TooLong], exceptions: &[(&str, usize, &str)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for long in found {
        let exception = exceptions.iter().find(|(what, ..)| *what == long.what);
        let most = exception.map_or(long.most, |&(_, lines, _)| lines);
        if long.lines > most {
            let (what, lines) = (&long.what, long.lines);
            wrong.push(format!("{what} has {lines} lines, {most} are the most"));
        }
    }
    for (what, ..) in exceptions {
        if !found.iter().any(|long| long.what == *what) {
            wrong.push(format!("{what} needs no exception any more"));
        }
    }
    wrong
}

#[test]
fn files_open_with_their_contract_and_can_be_read() {
    let program = [".rs", ".c", ".h", ".py", ".sh"];
    let mut files = tracked();
    files.retain(|f| program.iter().any(|end| f.path.ends_with(end)));
    let tests = test_files(&files);
    let (mut wrong, mut long) = (Vec::new(), Vec::new());
    for file in &files {
        if !has_head(file) {
            wrong.push(format!("{} does not open with its contract", file.path));
        }
        long.extend(check_file(file));
        if file.path.ends_with(".rs") {
            let in_tests = file.path.starts_with("tests/") || tests.contains(&file.path);
            long.extend(check_functions(file, in_tests));
        }
    }
    wrong.extend(judge_lengths(&long, LONGER));
    assert_none(wrong);
}

// --- words ---

/// Whether a word stands at a place by itself, not as a part of a longer one.
fn stands_alone(line: &str, at: usize, word: &str) -> bool {
    let bytes = line.as_bytes();
    let before = at.checked_sub(1).map(|i| bytes[i]);
    let after = bytes.get(at + word.len());
    if word.starts_with('/') {
        // a folder of that name below another one is somebody else's
        let begins = before.is_none_or(|b| !is_word(b) && !b"/.-}~*>".contains(&b));
        return begins && after.is_none_or(|&b| !is_word(b) && b != b'-');
    }
    let open_end = word.ends_with(|c: char| !c.is_alphanumeric());
    before.is_none_or(|b| !is_word(b)) && (open_end || after.is_none_or(|&b| !is_word(b)))
}

/// What a line may not say.
fn check_words(file: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (nr, line) in file.text.lines().enumerate() {
        for word in UNFINISHED.iter().chain(MACHINES) {
            let mut found = line.match_indices(word);
            // cargo writes where a crate came from
            let allowed = file.path == "Cargo.lock" && MACHINES.contains(word);
            if !allowed && found.any(|(at, _)| stands_alone(line, at, word)) {
                wrong.push(format!("{}:{}: says {word}", file.path, nr + 1));
            }
        }
    }
    wrong
}

#[test]
fn nothing_is_unfinished_and_no_machine_is_named() {
    assert_none(tracked().iter().flat_map(check_words).collect());
}

// --- the checks can fail ---

fn sample(path: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        text: text.into(),
    }
}

#[test]
fn comments_strings_and_characters_are_no_code() {
    let text = "a /* b /* c */ d */ e // f\n\"g \\\" h\" r#\"i \" j\"# 'k' '\\'' 'ü' l: &'m str";
    let code = code_of(text);
    let left: Vec<&str> = words(&code).map(|(_, word)| word).collect();
    assert_eq!(left, ["a", "e", "l", "m", "str"]);
    assert_eq!(code.matches('\n').count(), text.matches('\n').count());
}

#[test]
fn what_only_tests_compile_is_left_out() {
    let code = "use a;\n#[cfg(test)]\nmod tests { fn f() { b } }\n#[cfg(test)]\nmod c;\n\
                #[cfg(not(test))]\nfn d() {}";
    let kept = shipped(code);
    let left: Vec<&str> = words(&kept).map(|(_, word)| word).collect();
    assert_eq!(left, ["use", "a", "cfg", "not", "test", "fn", "d"]);
    let files = [sample("src/index/mod.rs", code)];
    assert_eq!(test_files(&files), ["src/index/tests.rs", "src/index/c.rs"]);
}

#[test]
fn the_picture_is_read_from_a_table() {
    let lib = "//! | layer | what |\n//! |---|---|\n//! | `a` `b` | `c` does | \n//! | `d` | e |\n";
    assert_eq!(picture(lib), [vec!["a", "b"], vec!["d"]]);
}

#[test]
fn arrows_that_go_up_or_sideways_are_found() {
    let names = |row: &[&str]| row.iter().map(|n| n.to_string()).collect();
    let picture: Vec<Vec<String>> = vec![
        names(&["set"]),
        names(&["gc", "writeback"]),
        names(&["units"]),
    ];
    let wrong = |path, text| check_arrows(&picture, &sample(path, text)).len();
    assert_eq!(
        wrong("src/set/hub.rs", "use crate::gc; use super::error;"),
        0
    );
    assert_eq!(wrong("src/gc/mod.rs", "use crate::set::hub::Hub;"), 1);
    assert_eq!(
        wrong("src/gc/mod.rs", "fn f() { crate::writeback::g() }"),
        1
    );
    assert_eq!(wrong("src/gc/mod.rs", "use super::set::Hub;"), 1);
    assert_eq!(wrong("src/gc/slice.rs", "use super::super::set::Hub;"), 1);
    assert_eq!(wrong("src/gc/slice.rs", "use super::set::Hub;"), 0);
    assert_eq!(
        wrong("src/units.rs", "use crate::{gc::{a, set}, units, set};"),
        2
    );
    assert_eq!(
        wrong("src/gc/mod.rs", "//! [`crate::set`]\nuse crate::units::A;"),
        0
    );
    assert_eq!(wrong("src/other.rs", ""), 1);
    let worldly = |path| check_world(&sample(path, "use std::time::Instant;")).len();
    assert_eq!(
        (worldly("src/gc/mod.rs"), worldly("src/spdk/app.rs")),
        (1, 0)
    );
}

#[test]
fn unsafe_without_a_reason_is_found() {
    let wrong = |path, text| check_unsafe(&sample(path, text)).len();
    let explained = "// SAFETY: it is\n// so\nlet a =\n    unsafe { b() };";
    assert_eq!(wrong("src/spdk/a.rs", explained), 0);
    assert_eq!(wrong("src/gc/mod.rs", explained), 1);
    let late = "// SAFETY: of another\nlet c = 1;\nunsafe { b() }";
    assert_eq!(wrong("src/index/a.rs", late), 1);
    assert_eq!(wrong("src/index/a.rs", "unsafe impl Send for A {}"), 1);
    assert_eq!(
        wrong("src/index/a.rs", "#![deny(unsafe_code)] // unsafe"),
        0
    );
}

#[test]
fn headless_and_long_files_and_functions_are_found() {
    assert!(!has_head(&sample("src/a.rs", "use b;")));
    let long = format!("//! B.\n{}", "\n".repeat(FILE_LINES_MAX));
    assert!(has_head(&sample("src/a.rs", &long)));
    let found: Vec<TooLong> = check_file(&sample("src/a.rs", &long)).into_iter().collect();
    assert_eq!(judge_lengths(&found, &[]).len(), 1);
    assert_eq!(judge_lengths(&found, &[("src/a.rs", 900, "why")]).len(), 0);
    assert_eq!(judge_lengths(&[], &[("src/a.rs", 900, "why")]).len(), 1);
    let function = |lines| format!("fn f(a: fn(u8)) {{\n{}}}\n", "    g();\n".repeat(lines));
    let wrong = |text: &str, tests| check_functions(&sample("src/a.rs", text), tests).len();
    assert_eq!(wrong(&function(FN_LINES_MAX - 2), false), 0);
    assert_eq!(wrong(&function(FN_LINES_MAX - 1), false), 1);
    assert_eq!(wrong(&function(FN_LINES_MAX - 1), true), 0);
    let in_test = format!("#[cfg(test)]\nmod t {{\n{}}}", function(FN_LINES_MAX));
    assert_eq!(wrong(&in_test, false), 0);
}

#[test]
fn unfinished_words_and_machines_are_found() {
    let wrong = |text: &str| check_words(&sample("a.md", text)).len();
    for word in UNFINISHED {
        assert_eq!(wrong(&format!("// {word}: later")), 1, "{word}");
    }
    for word in MACHINES {
        assert_eq!(wrong(&format!("see \"{word}/a\"")), 1, "{word}");
    }
    let mktemp = format!("mktemp -d /tmp/a.{}", "X".repeat(6));
    assert_eq!(wrong(&mktemp), 0);
    assert_eq!(
        wrong(&format!("frame{} and ${{HOME}}{}", "work", MACHINES[0])),
        0
    );
}
