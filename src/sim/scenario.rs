//! The scripts of the crash sweep: each takes the engine through one kind of change on its devices.
//!
//! Devices are as small as they can be, so that each change comes after few steps. A new scenario
//! is one more entry of [`ALL`]: a layout, a script that prepares, and the script that is cut.

use std::rc::Rc;

use super::disk::Unmapped;
use super::script::{Layout, Machine, VolumeKind};
use super::sweep::Scenario;
use crate::format::superblock::{BackingSuper, CacheMode, CacheSuper, SUPER_SECTOR};
use crate::gc;
use crate::request::Kind;
use crate::set::format::{Permission, label};
use crate::task::join_all;
use crate::units::BucketNr;
use VolumeKind::{Backed, Flash};

/// 2 MiB in buckets of 8 KiB.
const SMALL: Layout = Layout {
    nbuckets: 256,
    bucket_kb: 8,
    volumes: &[Backed(4096)],
};
/// With a second volume.
const TWO: Layout = Layout {
    volumes: &[Backed(4096), Backed(4096)],
    ..SMALL
};
/// With a volume on the cache alone.
const FLASH: Layout = Layout {
    volumes: &[Backed(4096), Flash(1)],
    ..SMALL
};
/// Nodes of 4 KiB, in which about 110 keys fit.
const DEEP: Layout = Layout {
    nbuckets: 512,
    bucket_kb: 4,
    volumes: &[Backed(4096)],
};

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "format",
        layout: SMALL,
        prepare: |_| Box::pin(async { Ok(()) }),
        script: |m| Box::pin(format(m)),
    },
    Scenario {
        name: "first_run",
        layout: SMALL,
        prepare: |m| Box::pin(formatted(m)),
        script: |m| Box::pin(first_run(m)),
    },
    Scenario {
        name: "attach",
        layout: TWO,
        prepare: |m| Box::pin(one_of_two(m)),
        script: |m| Box::pin(attach(m)),
    },
    Scenario {
        name: "new_root",
        layout: DEEP,
        prepare: |m| Box::pin(fresh(m)),
        script: |m| Box::pin(new_root(m)),
    },
    Scenario {
        name: "split",
        layout: DEEP,
        prepare: |m| Box::pin(deep(m)),
        script: |m| Box::pin(split(m)),
    },
    Scenario {
        name: "journal_wrap",
        layout: SMALL,
        prepare: |m| Box::pin(fresh(m)),
        script: |m| Box::pin(journal_wrap(m)),
    },
    Scenario {
        name: "prio_write",
        layout: TWO,
        prepare: |m| Box::pin(full(m)),
        script: |m| Box::pin(prio_write(m)),
    },
    Scenario {
        name: "gc_sweep",
        layout: TWO,
        prepare: |m| Box::pin(full(m)),
        script: |m| Box::pin(gc_sweep(m)),
    },
    Scenario {
        name: "moving_gc",
        layout: FLASH,
        prepare: |m| Box::pin(thin(m)),
        script: |m| Box::pin(moving_gc(m)),
    },
    Scenario {
        name: "write_back",
        layout: SMALL,
        prepare: |m| Box::pin(dirty(m)),
        script: |m| Box::pin(write_back(m)),
    },
    Scenario {
        name: "detach",
        layout: SMALL,
        prepare: |m| Box::pin(dirty(m)),
        script: |m| Box::pin(detach(m)),
    },
    Scenario {
        name: "flash_volume",
        layout: FLASH,
        prepare: |m| Box::pin(fresh(m)),
        script: |m| Box::pin(flash_volume(m)),
    },
    Scenario {
        name: "stop",
        layout: FLASH,
        prepare: |m| Box::pin(dirty_and_flash(m)),
        script: |m| Box::pin(stop(m)),
    },
    Scenario {
        name: "mode_change",
        layout: SMALL,
        prepare: |m| Box::pin(dirty(m)),
        script: |m| Box::pin(mode_change(m)),
    },
    Scenario {
        name: "recovery",
        layout: FLASH,
        prepare: |m| Box::pin(dirty_and_flash(m)),
        script: |m| Box::pin(recovery(m)),
    },
    Scenario {
        name: "clear",
        layout: SMALL,
        prepare: |m| Box::pin(dirty(m)),
        script: |m| Box::pin(clear(m)),
    },
];

type Done = Result<(), String>;

/// Runs two at once.
async fn both(a: impl Future<Output = Done>, b: impl Future<Output = Done>) -> Done {
    let jobs: Vec<std::pin::Pin<Box<dyn Future<Output = Done> + '_>>> =
        vec![Box::pin(a), Box::pin(b)];
    join_all(jobs).await.into_iter().collect()
}

async fn create(m: &Machine, i: usize, mode: CacheMode) -> Done {
    let done = m.create(i, mode, Permission::default()).await;
    done.map_err(|e| e.to_string())
}

// --- what is there before ---

/// A volume that writes back, empty.
async fn fresh(m: Rc<Machine>) -> Done {
    create(&m, 0, CacheMode::WriteBack).await?;
    m.flush(0).await
}

/// A volume with dirty and clean data, some of them in the journal alone.
async fn dirty(m: Rc<Machine>) -> Done {
    create(&m, 0, CacheMode::WriteBack).await?;
    m.read(0, 2048, 256).await?;
    m.burst(0, 48, 8).await?;
    m.set()?.tree.flush().await.map_err(|_| "the set stopped")?;
    m.burst(0, 48, 8).await?;
    m.flush(0).await
}

async fn dirty_and_flash(m: Rc<Machine>) -> Done {
    dirty(m.clone()).await?;
    m.create_flash(1).await?;
    m.burst(1, 24, 8).await?;
    m.flush(1).await
}

/// A volume on the cache alone whose buckets are mostly empty: of four writes that shared one, three
/// were written again elsewhere.
async fn thin(m: Rc<Machine>) -> Done {
    create(&m, 0, CacheMode::WriteBack).await?;
    m.create_flash(1).await?;
    for i in 0..96 {
        m.write(1, 4 * i, 4).await?;
    }
    for i in (0..96).filter(|i| i % 4 != 0) {
        m.write(1, 4 * i, 4).await?;
    }
    m.flush(1).await
}

/// A tree of two levels.
async fn deep(m: Rc<Machine>) -> Done {
    create(&m, 0, CacheMode::WriteBack).await?;
    grow(&m, 0, |m| Ok(m.set()?.tree.stats().depth > 0)).await
}

/// A backing device that is formatted and of no set.
fn stray(m: &Machine, i: usize) -> Done {
    let sb = BackingSuper::new(
        m.rng.uuid(),
        1,
        crate::format::superblock::DEFAULT_DATA_OFFSET,
    );
    let mut sb = sb.map_err(|e| e.to_string())?;
    sb.label = label(&super::script::name(i)).map_err(|e| e.to_string())?;
    let medium = m.media.slow[i].as_ref().ok_or("no backing device")?;
    medium.poke(SUPER_SECTOR, &sb.encode());
    m.books.borrow_mut().made[i] = true;
    Ok(())
}

/// Devices with superblocks that never ran.
async fn formatted(m: Rc<Machine>) -> Done {
    let (fast, bucket) = (&m.media.fast, m.layout.bucket_kb * 2);
    let sb = CacheSuper::new(m.rng.uuid(), m.rng.uuid(), fast.sectors(), 1, bucket);
    fast.poke(SUPER_SECTOR, &sb.map_err(|e| e.to_string())?.encode());
    stray(&m, 0)
}

/// A volume, and a second backing device that is of no set.
async fn one_of_two(m: Rc<Machine>) -> Done {
    dirty(m.clone()).await?;
    stray(&m, 1)
}

/// A cache full of clean data.
async fn full(m: Rc<Machine>) -> Done {
    create(&m, 0, CacheMode::WriteThrough).await?;
    create(&m, 1, CacheMode::WriteBack).await?;
    m.burst(0, 32, 8).await?;
    // Written, so that the data of the two volumes differ: who reads the other's shall notice. One after
    // the other, so that there is a bucket for each.
    for at in (0..4096).step_by(16) {
        m.write(0, at, 16).await?;
    }
    m.hub.stop_all().await;
    Ok(())
}

// --- what is cut ---

async fn format(m: Rc<Machine>) -> Done {
    create(&m, 0, CacheMode::WriteThrough).await?;
    m.write(0, 8, 16).await?;
    m.flush(0).await
}

async fn first_run(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    m.write(0, 0, 8).await?;
    let set = m.set()?.set_uuid().to_string();
    m.hub
        .attach("v0", &set, false)
        .await
        .map_err(|e| e.to_string())?;
    m.burst(0, 8, 4).await?;
    m.flush(0).await
}

async fn attach(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    m.burst(1, 16, 8).await?;
    m.flush(1).await?;
    m.burst(1, 16, 8).await?;
    let set = m.set()?.set_uuid().to_string();
    let joining = async {
        let done = m.hub.attach("v1", &set, false).await;
        done.map_err(|e| e.to_string())
    };
    let working = async {
        m.burst(1, 24, 4).await?;
        m.flush(1).await
    };
    both(joining, working).await?;
    m.hub
        .set_cache_mode("v1", CacheMode::WriteBack)
        .await
        .map_err(|e| e.to_string())?;
    m.burst(1, 8, 4).await?;
    m.flush(1).await
}

/// Short writes, none beside another, from a sector on, until the tree is as it should be.
async fn grow(m: &Machine, from: u64, enough: fn(&Machine) -> Result<bool, String>) -> Done {
    for i in 0..1024 {
        m.write(0, (from + i * 37 * 2) % 4096, 1).await?;
        if i % 16 == 15 {
            m.flush(0).await?;
            m.set()?.tree.flush().await.map_err(|_| "the set stopped")?;
            if enough(m)? {
                return Ok(());
            }
        }
    }
    Err("the tree does not grow".to_string())
}

async fn new_root(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    grow(&m, 0, |m| Ok(m.set()?.tree.stats().depth > 0)).await
}

async fn split(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    grow(&m, 1, |m| Ok(m.set()?.tree.stats().nodes > 4)).await
}

async fn journal_wrap(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    let set = m.set()?;
    let (first, blocks) = (set.journal.window().1, set.journal.space_blocks().1);
    let mut i = 0;
    while set.journal.window().1.0 < first.0 + u64::from(blocks) * 3 / 2 {
        m.write(0, i * 11 % 1024, 3).await?;
        m.flush(0).await?;
        // The volume may go on without it.
        set.latch.check().map_err(|_| "the set stopped")?;
        i += 1;
    }
    Ok(())
}

/// How often buckets have been used again, in all. Between the starts of a set, no generation
/// wraps here.
fn reuses(m: &Machine) -> Result<u64, String> {
    let set = m.set()?;
    let gens = &set.alloc.gens;
    let all = (0..gens.len()).map(|b| gens.generation(BucketNr(b as u32)));
    Ok(all.map(|g| u64::from(g.0)).sum())
}

/// Reads the second volume through a cache that is full, until so many buckets have been used again.
async fn churn(m: &Machine, buckets: u64) -> Done {
    let census = m.set()?.alloc.census();
    if census.clean + census.dirty < m.layout.nbuckets * 3 / 4 {
        return Err(format!("the cache is not full: {census:?}"));
    }
    let enough = reuses(m)? + buckets;
    for at in (0..4096).step_by(16).cycle().take(1024) {
        m.read(1, at, 16).await?;
        if at % 128 == 0 {
            m.write(1, at, 4).await?;
        }
        if reuses(m)? >= enough {
            return m.flush(1).await;
        }
    }
    Err("no bucket is used again".to_string())
}

async fn prio_write(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    churn(&m, 160).await?;
    // Cut too where what came into reused buckets is durable.
    churn(&m, 40).await
}

async fn gc_sweep(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    churn(&m, 60).await?;
    let set = m.set()?;
    let sweeping = async {
        let done = gc::sweep(&set.tree).await;
        done.map_err(|_| "the set stopped".to_string())
    };
    both(sweeping, m.burst(1, 24, 4)).await?;
    churn(&m, 60).await
}

async fn moving_gc(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    // No bucket is made free before one is wanted.
    m.write(1, 1024, 4).await?;
    let set = m.set()?;
    let moving = async {
        match set.mover.pass().await {
            Ok(0) => Err("nothing is moved".to_string()),
            Ok(_) => Ok(()),
            Err(_) => Err("the set stopped".to_string()),
        }
    };
    both(moving, m.burst(1, 24, 4)).await?;
    m.flush(1).await
}

async fn write_back(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    m.hub.flush_start("v0").map_err(|e| e.to_string())?;
    m.burst(0, 16, 4).await?;
    m.calm(0).await?;
    m.burst(0, 16, 4).await?;
    m.flush(0).await?;
    m.calm(0).await
}

async fn detach(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    let leaving = async {
        let done = m.hub.detach("v0", false).await;
        done.map_err(|e| e.to_string())
    };
    let working = async {
        m.burst(0, 24, 4).await?;
        m.flush(0).await
    };
    both(leaving, working).await?;
    m.burst(0, 8, 4).await?;
    m.flush(0).await
}

async fn flash_volume(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    m.write(0, 0, 64).await?;
    m.create_flash(1).await?;
    m.burst(1, 24, 4).await?;
    m.flush(1).await
}

async fn stop(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    m.burst(0, 16, 8).await?;
    m.burst(1, 16, 8).await?;
    m.hub.stop_all().await;
    Ok(())
}

async fn mode_change(m: Rc<Machine>) -> Done {
    use CacheMode::{None, WriteAround, WriteBack, WriteThrough};
    m.register_all().await?;
    for mode in [
        WriteThrough,
        WriteBack,
        WriteAround,
        WriteBack,
        None,
        WriteBack,
    ] {
        let changing = async {
            let done = m.hub.set_cache_mode("v0", mode).await;
            done.map_err(|e| e.to_string())
        };
        both(changing, m.burst(0, 8, 4)).await?;
        m.burst(0, 4, 4).await?;
        m.flush(0).await?;
    }
    Ok(())
}

async fn recovery(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    m.write(0, 100, 8).await?;
    m.flush(0).await
}

async fn clear(m: Rc<Machine>) -> Done {
    m.register_all().await?;
    for (i, kind) in [Kind::Unmap, Kind::WriteZeroes]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        // What is unmapped under dirty data is given up in the second half only.
        if let Some(slow) = &m.media.slow[0] {
            slow.unmapped.set(match i < 4 {
                true => Unmapped::Mixture,
                false => Unmapped::Zeros,
            });
        }
        m.io(kind, 0, 64 * i as u64, 96).await?;
        m.write(0, 64 * i as u64 + 30, 9).await?;
        m.flush(0).await?;
    }
    Ok(())
}
