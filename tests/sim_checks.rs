//! Each check of the simulator can fail: a set is brought to rest, and spoilt in one way each.

use std::cell::RefCell;
use std::rc::Rc;

use spdk_bcache::format::superblock::{BackingState, SUPER_SECTOR};
use spdk_bcache::index::Extent;
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::CacheSet;
use spdk_bcache::sim::check;
use spdk_bcache::sim::disk::Fuse;
use spdk_bcache::sim::oracle::sector_of;
use spdk_bcache::sim::script::{Books, Layout, Machine, Media, VolumeKind};
use spdk_bcache::units::Inode;

const LAYOUT: Layout = Layout {
    nbuckets: 256,
    bucket_kb: 8,
    volumes: &[VolumeKind::Backed(4096)],
};

/// A machine whose volume has clean and dirty data, at rest.
fn machine() -> (Rc<Machine>, Rc<CacheSet>) {
    use spdk_bcache::format::superblock::CacheMode::WriteBack;
    let books = Rc::new(RefCell::new(Books::new(&LAYOUT)));
    let machine = Machine::new(LAYOUT, Media::new(&LAYOUT), books, 1, Fuse::sound());
    let m = machine.clone();
    let done = machine.run(async move {
        let created = m.create(0, WriteBack, Default::default()).await;
        created.map_err(|e| e.to_string())?;
        m.read(0, 1024, 512).await?;
        m.burst(0, 32, 4).await?;
        m.flush(0).await
    });
    assert_eq!(done, Ok(Some(Ok(()))));
    let set = machine.set().expect("a set");
    (machine, set)
}

fn first(set: &CacheSet, dirty: bool) -> (Inode, Extent) {
    let all = check::extents(set);
    *all.iter().find(|(_, e)| e.dirty == dirty).expect("one")
}

/// What the checks say, in the order in which they are made.
fn complaints(m: &Machine, set: &CacheSet) -> Vec<String> {
    let done = [
        check::counts(set),
        check::marks(set, m.media.backings()),
        check::clean_data(set, &m.media.fast, m.media.backings()),
    ];
    done.into_iter().filter_map(Result::err).collect()
}

fn assert_says(m: &Machine, set: &CacheSet, what: &str) {
    let said = complaints(m, set).join("; ");
    assert!(said.contains(what), "{what:?} is not in {said:?}");
}

#[test]
fn a_set_at_rest_passes() {
    let (m, set) = machine();
    assert_eq!(complaints(&m, &set), Vec::<String>::new());
    assert_eq!(check::same_map(&set, &check::extents(&set)), Ok(()));
}

#[test]
fn a_sector_too_many_is_counted() {
    for dirty in [false, true] {
        let (m, set) = machine();
        let (_, e) = first(&set, dirty);
        let bucket = set.alloc.gens.bucket_of(e.at);
        set.alloc.sub(bucket, e.generation, 1, dirty);
        assert_says(&m, &set, "the allocator says");
    }
}

#[test]
fn data_in_a_bucket_of_the_set_are_seen() {
    let (m, set) = machine();
    let (_, e) = first(&set, true);
    set.alloc.claim_meta(set.alloc.gens.bucket_of(e.at));
    assert_says(&m, &set, "in a bucket of Meta");
}

#[test]
fn a_pin_that_nobody_gives_back_is_seen() {
    let (m, set) = machine();
    m.run({
        let hub = m.hub.clone();
        async move { hub.stop_all().await }
    })
    .expect("it stops");
    assert_eq!(check::no_pins(&set), Ok(()));
    set.alloc
        .pin(set.alloc.gens.bucket_of(first(&set, false).1.at));
    assert!(check::no_pins(&set).is_err());
}

#[test]
fn a_superblock_that_says_clean_with_dirty_data_is_seen() {
    let (m, set) = machine();
    let slow = m.media.slow[0].clone().expect("a backing device");
    let mut sb = check::backing_super(&slow).expect("a superblock");
    assert_eq!(sb.state(), BackingState::Dirty);
    sb.set_state(BackingState::Clean);
    slow.poke(SUPER_SECTOR, &sb.encode());
    assert_says(&m, &set, "its superblock says clean");
}

#[test]
fn clean_data_that_differ_from_the_backing_device_are_seen() {
    let (m, set) = machine();
    let (_, e) = first(&set, false);
    m.media.fast.poke(e.at, &sector_of(0, 0, 77));
    assert_says(&m, &set, "holds something else");
}

#[test]
fn a_map_that_changes_over_a_restart_is_seen() {
    let (_, set) = machine();
    let map = check::extents(&set);
    let without = |gone: (Inode, Extent)| -> Vec<(Inode, Extent)> {
        map.iter().filter(|&&one| one != gone).copied().collect()
    };
    // What is dirty now was not, what is clean now was not, and what was dirty is no more.
    assert!(check::same_map(&set, &without(first(&set, true))).is_err());
    assert!(check::same_map(&set, &without(first(&set, false))).is_err());
    let mut more = map.clone();
    more.push((Inode(7), first(&set, true).1));
    assert!(check::same_map(&set, &more).is_err());
    more = map.clone();
    more.push((Inode(7), first(&set, false).1));
    assert_eq!(check::same_map(&set, &more), Ok(()));
}

#[test]
fn wrong_data_and_what_hangs_are_seen() {
    let (m, set) = machine();
    let (_, e) = first(&set, true);
    m.media.fast.poke(e.at, &sector_of(0, 0, 77));
    let (reader, at) = (m.clone(), e.start.0 - 16);
    let read = m.run(async move { reader.read(0, at, 1).await });
    let why = read
        .expect("it ends")
        .expect("there is power")
        .expect_err("wrong data");
    assert!(why.contains("returned value 77"), "{why}");
    let hangs = m.run(std::future::pending::<()>());
    assert_eq!(hangs, Err("a script hangs".to_string()));
    m.die(&Rng::new(1), true);
}
