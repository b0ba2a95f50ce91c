//! The command line of `bcachectl`, as people and scripts use it: exit codes, valid JSON, columns
//! that are aligned, and devices that stay as they were.

mod fixtures;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fixtures::load;
use serde_json::Value;
use spdk_bcache::format::superblock::reseal;

/// A folder of images that goes when the test does.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("an image");
        path.to_str().expect("a path of plain text").to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The images of a golden case as files: cache, backings.
fn unpack(folder: &Folder, case: &str) -> (String, Vec<String>) {
    let golden = load(case);
    let backings = golden.backings.iter().enumerate();
    let backings = backings.map(|(i, bytes)| folder.write(&format!("back{i}.img"), bytes));
    let backings = backings.collect();
    (folder.write("cache.img", &golden.cache), backings)
}

fn run(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_bcachectl");
    Command::new(program).args(args).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("valid JSON")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

/// Changes a byte of an image.
fn spoil(path: &str, at: usize) {
    let mut bytes = fs::read(path).expect("an image");
    bytes[at] ^= 0xff;
    fs::write(path, bytes).expect("an image");
}

/// Whether all rows but the first have something right-aligned under the end of a head.
fn ends_align(table: &[&str], head: &str) -> bool {
    let end = table[0].find(head).expect("the head") + head.len();
    table[1..].iter().all(|row| {
        let row = row.as_bytes();
        row.len() >= end && row[end - 1] != b' ' && row.get(end).is_none_or(|&b| b == b' ')
    })
}

#[test]
fn usage_errors_have_their_own_code() {
    for args in [
        &[][..],
        &["check"],
        &["dump", "keys"],
        &["dump", "nothing", "x"],
        &["show"],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(text(&output.stderr).contains("--help"), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["check", "--help"]] {
        assert_eq!(code(&run(args)), 0, "{args:?}");
    }
}

#[test]
fn what_cannot_be_read_is_said_with_its_own_code() {
    let folder = Folder::new("unreadable");
    let small = folder.write("small", &[0; 100]);
    let missing = folder.0.join("missing").to_str().unwrap().to_string();
    let directory = folder.0.to_str().unwrap().to_string();
    for path in [&small, &missing, &directory] {
        for args in [
            &["show", path][..],
            &["check", path],
            &["dump", "uuids", path],
        ] {
            let output = run(args);
            assert_eq!(code(&output), 2, "{args:?}");
            assert!(text(&output.stderr).contains(path.as_str()), "{args:?}");
        }
    }
    let shown = run(&["show", "--json", &missing]);
    assert_eq!(json(&shown)[0]["kind"], "unreadable");
    let checked = run(&["check", "--json", &missing]);
    assert_eq!(
        (code(&checked), &json(&checked)["clean"]),
        (2, &Value::Bool(false))
    );
    let (cache, backings) = unpack(&folder, "clean-dirty");
    let swapped = run(&["check", &backings[0], &cache]);
    assert_eq!(code(&swapped), 2);
    assert!(text(&swapped.stderr).contains("backing device"));
}

#[test]
fn superblocks_are_shown() {
    let folder = Folder::new("show");
    let (cache, backings) = unpack(&folder, "clean-dirty");
    let output = run(&["show", "--json", &cache, &backings[0]]);
    assert_eq!(code(&output), 0);
    let shown = json(&output);
    assert_eq!(shown[0]["kind"], "cache");
    assert_eq!(
        (&shown[0]["checksum_ok"], &shown[0]["error"]),
        (&true.into(), &Value::Null)
    );
    let buckets = shown[0]["journal_buckets"].as_array().expect("a list");
    assert_eq!(buckets.len(), 8);
    assert_eq!(shown[0]["nbuckets"], 1024);
    assert_eq!(
        (&shown[1]["kind"], &shown[1]["state"]),
        (&"backing".into(), &"dirty".into())
    );
    assert_eq!(shown[1]["cache_mode"], "writeback");
    assert_eq!(shown[0]["set_uuid"], shown[1]["set_uuid"]);

    let output = run(&["show", &cache, &backings[0]]);
    let text_shown = text(&output.stdout);
    for part in [
        "  set uuid",
        "  journal        8 buckets",
        "  state          dirty",
        " ok\n",
    ] {
        assert!(text_shown.contains(part), "{part:?} in\n{text_shown}");
    }
    let values = text_shown.lines().filter(|line| line.starts_with("  "));
    assert!(values.clone().count() > 20);
    for line in values {
        assert!(line.len() < 17 || line.as_bytes()[16] == b' ', "{line:?}");
    }

    spoil(&cache, 4096 + 72);
    let output = run(&["show", &cache]);
    assert_eq!(code(&output), 1);
    assert!(text(&output.stdout).contains("WRONG"));
    let shown = json(&run(&["show", "--json", &cache]));
    assert_eq!(shown[0]["checksum_ok"], false);
    assert_eq!(shown[0]["nbuckets"], 1024);
    assert_eq!(shown[0]["error_byte"], 4096);
}

#[test]
fn a_check_says_what_is_wrong_and_where() {
    let folder = Folder::new("check");
    let (cache, backings) = unpack(&folder, "two-backing");
    let before = fs::read(&cache).expect("an image");
    let args = ["check", &cache, &backings[0], &backings[1]];
    let output = run(&args);
    assert_eq!(code(&output), 0, "{}", text(&output.stdout));
    let said = text(&output.stdout);
    assert!(said.ends_with("nothing is wrong\n"), "{said}");
    let rows: Vec<&str> = said
        .lines()
        .skip_while(|l| !l.starts_with("VOLUME"))
        .take(3)
        .collect();
    for head in ["VOLUME", "EXTENTS", "CACHED", "DIRTY"] {
        assert!(ends_align(&rows, head), "{head} in\n{said}");
    }
    assert!(
        fs::read(&cache).expect("an image") == before,
        "it was written to"
    );
    let clean = json(&run(&["check", "--json", &cache]));
    assert_eq!(clean["clean"], true);
    assert_eq!(
        clean["notes"].as_array().map(Vec::len),
        Some(2),
        "{}",
        clean["notes"]
    );

    // The uuid table and a backing device are spoiled: both are said.
    spoil(&backings[0], 4096 + 60);
    let journal = json(&run(&["dump", "journal", "--json", &cache]));
    let newest = journal.as_array().expect("rows").iter();
    let newest = newest
        .max_by_key(|row| row["seq"].as_u64())
        .expect("an entry");
    let bucket = json(&run(&["show", "--json", &cache]))[0]["bucket_bytes"]
        .as_u64()
        .unwrap();
    let table = (newest["uuid_bucket"].as_u64().unwrap() * bucket) as usize;
    spoil(&cache, table + 60);
    let output = run(&args);
    assert_eq!(code(&output), 1);
    let said = text(&output.stdout);
    assert!(
        said.contains("super_checksum") && said.contains("uuid_entry"),
        "{said}"
    );
    assert!(said.contains("\nfindings: "), "{said}");
    let rows: Vec<&str> = said
        .lines()
        .skip_while(|l| !l.starts_with("FINDING"))
        .collect();
    let rows: Vec<&str> = rows.into_iter().take_while(|l| !l.is_empty()).collect();
    assert!(rows.len() > 2 && ends_align(&rows, "BYTE"), "{said}");
    let found = json(&run(&["check", "--json", &cache]));
    assert_eq!(found["clean"], false);
    assert_eq!(found["findings"][0]["kind"], "uuid_entry");
    assert_eq!(found["findings"][0]["byte"].as_u64(), Some(table as u64));
    assert_eq!(found["findings"][0]["bucket"], newest["uuid_bucket"]);
}

#[test]
fn structures_are_dumped_as_text_and_as_json() {
    let folder = Folder::new("dump");
    let (cache, _) = unpack(&folder, "flash-volume");
    for (what, column) in [
        ("keys", "SECTORS"),
        ("journal", "BYTE"),
        ("prios", "GEN"),
        ("uuids", "BYTES"),
    ] {
        let output = run(&["dump", what, &cache]);
        assert_eq!(code(&output), 0, "{what}");
        let said = text(&output.stdout);
        let rows: Vec<&str> = said.lines().collect();
        assert!(ends_align(&rows, column), "{what}:\n{said}");
        let output = run(&["dump", what, "--json", &cache]);
        assert_eq!(code(&output), 0, "{what}");
        let listed = json(&output);
        let listed = listed.as_array().expect("an array");
        assert_eq!(listed.len(), rows.len() - 1, "{what}");
    }
    let volumes = json(&run(&["dump", "uuids", "--json", &cache]));
    assert_eq!(
        (&volumes[0]["kind"], &volumes[1]["kind"]),
        (&"backing".into(), &"flash".into())
    );
    let prios = json(&run(&["dump", "prios", "--json", &cache]));
    assert_eq!(prios.as_array().map(Vec::len), Some(1024));

    // A broken chain: the rows before it are there, the damage is said, and the JSON is whole.
    let place = prios[0]["stands_in"].as_u64().unwrap();
    let bucket = json(&run(&["show", "--json", &cache]))[0]["bucket_bytes"]
        .as_u64()
        .unwrap();
    spoil(&cache, (place * bucket) as usize + 100);
    let output = run(&["dump", "prios", "--json", &cache]);
    assert_eq!((code(&output), json(&output)), (1, serde_json::json!([])));
    assert!(
        text(&output.stderr).contains("checksum"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_clean_copy_gets_a_uuid_of_its_own_only_when_that_is_confirmed() {
    let folder = Folder::new("new-uuid");
    let (cache, backings) = unpack(&folder, "clean-dirty");
    let dirty = &backings[0];
    for path in [&cache, dirty] {
        let before = fs::read(path).expect("an image");
        let refused = run(&["new-uuid", "--yes", path]);
        assert_eq!(code(&refused), 1, "{path}");
        assert!(fs::read(path).expect("an image") == before, "{path}");
    }
    // The same device, clean: the state stands in the two bits below the highest.
    let mut bytes = fs::read(dirty).expect("an image");
    let mut sb: [u8; 4096] = bytes[4096..8192].try_into().expect("4096 bytes");
    sb[111] = sb[111] & 0x9f | 1 << 5;
    reseal(&mut sb);
    bytes[4096..8192].copy_from_slice(&sb);
    let clean = folder.write("clean.img", &bytes);
    let unasked = run(&["new-uuid", &clean]);
    assert_eq!(code(&unasked), 2);
    assert!(text(&unasked.stderr).contains("--yes"));
    assert!(fs::read(&clean).expect("an image") == bytes);
    let old = json(&run(&["show", "--json", &clean]));
    let done = run(&["new-uuid", "--yes", &clean]);
    assert_eq!(code(&done), 0, "{}", text(&done.stderr));
    let new = json(&run(&["show", "--json", &clean]));
    assert_ne!(new[0]["uuid"], old[0]["uuid"]);
    assert!(text(&done.stdout).contains(new[0]["uuid"].as_str().expect("a text")));
    assert_eq!(new[0]["set_uuid"], Value::Null);
    assert_eq!(
        (&new[0]["state"], &new[0]["checksum_ok"]),
        (&"none".into(), &true.into())
    );
    let after = fs::read(&clean).expect("an image");
    assert!(after[..4096] == bytes[..4096] && after[8192..] == bytes[8192..]);
}

#[test]
fn other_data_with_the_same_magic_number_are_not_called_broken() {
    let folder = Folder::new("foreign");
    let (cache, backings) = unpack(&folder, "clean-dirty");
    for (at, value) in [(4096 + 8, [0u8; 8]), (4096 + 16, [9, 4, 0, 4, 0, 0, 0, 0])] {
        let mut bytes = fs::read(&cache).expect("an image");
        bytes[at..at + 8].copy_from_slice(&value);
        let other = folder.write("other.img", &bytes);
        let shown = run(&["show", &other]);
        assert_eq!(code(&shown), 0);
        let said = text(&shown.stdout);
        assert!(
            said.contains("other data") && !said.contains("WRONG"),
            "{said}"
        );
        let shown = json(&run(&["show", "--json", &other]));
        assert_eq!(
            (&shown[0]["kind"], &shown[0]["error"]),
            (&"other".into(), &Value::Null)
        );
        let checked = run(&["check", &other]);
        assert_eq!(code(&checked), 2);
        assert!(text(&checked.stderr).contains("other data"));
        let checked = run(&["check", &cache, &backings[0], &other]);
        assert!(text(&checked.stdout).contains("other data"));
        let refused = run(&["new-uuid", "--yes", &other]);
        assert_eq!(code(&refused), 1);
        assert!(fs::read(&other).expect("an image") == bytes);
    }
}
