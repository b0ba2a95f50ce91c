//! Huge pages that are free, looked at before SPDK starts: what it says without them names neither
//! them nor what to do ("OCF ctx initialization failed").

use std::fs;
use std::path::Path;

/// Where the kernel counts them, a folder for each size.
const SYSFS: &str = "/sys/kernel/mm/hugepages";
/// Memory in MiB in which a target starts that was not told how much to take.
const LEAST_MIB: u64 = 512;

/// The memory in MiB that the arguments ask for: `-s 512`, `-s512`, `--mem-size=512`. `None` where
/// the target runs without huge pages.
fn wanted_mib(args: &[String]) -> Option<u64> {
    let mut wanted = LEAST_MIB;
    for (i, arg) in args.iter().enumerate() {
        let next = args.get(i + 1).map(String::as_str);
        let value = match arg.as_str() {
            "--no-huge" => return None,
            "-s" | "--mem-size" => next,
            _ if arg.starts_with("-s") => arg.strip_prefix("-s"),
            _ => arg.strip_prefix("--mem-size="),
        };
        if let Some(mib) = value.and_then(|text| text.parse().ok()) {
            wanted = mib;
        }
    }
    Some(wanted)
}

/// The free huge pages below a folder like the kernel's, in MiB; `None` where there is no such folder.
fn free_mib(sysfs: &Path) -> Option<u64> {
    let mut kib = 0;
    for entry in fs::read_dir(sysfs).ok()?.flatten() {
        let name = entry.file_name();
        let size = name
            .to_str()
            .and_then(|name| name.strip_prefix("hugepages-"));
        let size = size.and_then(|size| size.strip_suffix("kB")?.parse::<u64>().ok());
        let count = |file| {
            let text = fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or(0)
        };
        let pages = count("free_hugepages").saturating_sub(count("resv_hugepages"));
        kib += size.unwrap_or(0) * pages;
    }
    Some(kib / 1024)
}

/// What is missing for a target with these arguments, and what to do; `None` where nothing is.
pub fn missing(args: &[String]) -> Option<String> {
    let wanted = wanted_mib(args)?;
    let free = free_mib(Path::new(SYSFS))?;
    (free < wanted).then(|| {
        format!(
            "{wanted} MiB of huge pages are needed, and {free} MiB are free: end the programs that hold \
             the others, run spdk/hugepages.sh {}, or ask for less with -s",
            wanted.div_ceil(2)
        )
    })
}
