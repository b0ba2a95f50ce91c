//! A start takes empty buckets for nodes before it has written the priorities, in Linux: what a crash leaves
//! then is sound.

mod fixtures;

use fixtures::lab::{Lab, check_images};

#[test]
fn a_node_may_be_one_generation_ahead_of_its_bucket() {
    let mut lab = Lab::new("deep-tree");
    let bucket = lab.bucket_of(lab.key(lab.child()).ptr);
    lab.raise_gen(bucket, 0u8.wrapping_sub(1));
    let report = check_images(&lab.golden.cache, &lab.golden.backings).expect("it is readable");
    assert_eq!(report.findings, []);
}
