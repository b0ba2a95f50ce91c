//! Finds SPDK, makes the bindings of `spdk/bcache.h`, compiles `spdk/glue.c`, and tells how to link.
//!
//! Without the feature `spdk` there is nothing to do: the engine is plain Rust. With it, the tree is
//! `$SPDK_DIR`, else the newest finished build of `spdk/setup.sh` in the user's cache folder. SPDK's
//! libraries are linked as whole archives, because their constructors register modules, subsystems
//! and RPCs that nothing refers to by name.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "spdk")]
    spdk::build();
}

#[cfg(feature = "spdk")]
mod spdk {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::SystemTime;

    /// Archives of a build that a target does not want: mocks for unit tests, what needs FUSE or
    /// C++, and a storage backend of another program.
    const LEFT_OUT: [&str; 5] = ["ut_mock", "ut", "blobfs_bdev", "trace_parser", "rocksdb"];

    /// DPDK's part of SPDK 20.07, which has no pkg-config files to ask.
    const DPDK_2007: [&str; 13] = [
        "eal",
        "mempool",
        "ring",
        "mbuf",
        "mempool_ring",
        "pci",
        "bus_pci",
        "telemetry",
        "kvargs",
        "vhost",
        "net",
        "cryptodev",
        "hash",
    ];

    /// What SPDK 20.07 takes from the system.
    const SYSTEM_2007: [&str; 10] = [
        "numa", "dl", "rt", "uuid", "crypto", "ssl", "aio", "pthread", "m", "isal",
    ];

    pub fn build() {
        for name in ["SPDK_DIR", "HOME", "XDG_CACHE_HOME", "PKG_CONFIG"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        for file in ["spdk/bcache.h", "spdk/glue.c"] {
            println!("cargo:rerun-if-changed={file}");
        }
        let tree = find_tree();
        // Rewritten by every configure of the tree, and by a change of its version.
        for file in ["include/spdk/version.h", "include/spdk/config.h"] {
            println!("cargo:rerun-if-changed={}", tree.join(file).display());
        }
        println!(
            "cargo:rerun-if-changed={}",
            tree.join("build/lib/libspdk_bdev.a").display()
        );
        make_bindings(&tree);
        compile_glue(&tree);
        for arg in link_args(&tree) {
            println!("cargo:rustc-link-arg={arg}");
        }
    }

    fn fail(message: &str) -> ! {
        println!("cargo:warning={message}");
        panic!("{message}");
    }

    /// The SPDK tree to use.
    fn find_tree() -> PathBuf {
        if let Some(dir) = env::var_os("SPDK_DIR").filter(|d| !d.is_empty()) {
            let dir = PathBuf::from(dir);
            if !dir.join("build/lib/libspdk_bdev.a").exists() {
                fail(&format!(
                    "SPDK_DIR is {}, where no built SPDK is (build/lib/libspdk_bdev.a is missing)",
                    dir.display()
                ));
            }
            return dir;
        }
        let cache = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        let newest = cache.and_then(|cache| newest_build(&cache.join("spdk-bcache")));
        newest.unwrap_or_else(|| {
            fail(
                "no SPDK was found: run `make`, which sets it up, or name a built tree in SPDK_DIR",
            )
        })
    }

    /// The newest build that `spdk/setup.sh` finished (its stamp says so).
    fn newest_build(folder: &Path) -> Option<PathBuf> {
        let stamped = |dir: PathBuf| -> Option<(SystemTime, PathBuf)> {
            let stamp = dir.join(".built").metadata().ok()?;
            Some((stamp.modified().ok()?, dir))
        };
        let entries = std::fs::read_dir(folder).ok()?;
        let builds = entries.filter_map(|entry| stamped(entry.ok()?.path()));
        builds.max_by_key(|build| build.0).map(|build| build.1)
    }

    fn make_bindings(tree: &Path) {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let mut builder = bindgen::Builder::default();
        for name in STRUCTS {
            builder = builder.blocklist_type(name).raw_line(format!(
                "#[repr(C)] pub struct {name} {{ _opaque: [u8; 0] }}"
            ));
        }
        builder
            .header("spdk/bcache.h")
            .clang_arg(format!("-I{}", tree.join("include").display()))
            .allowlist_function("bcache_.*")
            .allowlist_type("bcache_.*")
            .allowlist_type(TYPES)
            .allowlist_recursively(false)
            .allowlist_function(FUNCTIONS)
            .blocklist_item("bcache_ops_of_rust")
            .allowlist_var("SPDK_RPC_(STARTUP|RUNTIME)")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
            .generate_comments(false)
            .layout_tests(true)
            .derive_debug(false)
            .use_core()
            .rust_target(bindgen::RustTarget::stable(85, 0).expect("1.85 is a Rust version"))
            .generate()
            .unwrap_or_else(|e| fail(&format!("bindgen could not read spdk/bcache.h: {e}")))
            .write_to_file(out.join("bindings.rs"))
            .unwrap_or_else(|e| fail(&format!("the bindings cannot be written: {e}")));
    }

    /// The structs of SPDK that Rust has pointers to, and nothing else.
    const STRUCTS: [&str; 10] = [
        "spdk_bdev",
        "spdk_bdev_desc",
        "spdk_bdev_io",
        "spdk_io_channel",
        "spdk_io_channel_iter",
        "spdk_json_val",
        "spdk_json_write_ctx",
        "spdk_jsonrpc_request",
        "spdk_poller",
        "spdk_thread",
    ];

    /// The other types in the signatures of [`FUNCTIONS`].
    const TYPES: &str = "iovec|spdk_bdev_io_completion_cb|spdk_bdev_unregister_cb|\
        spdk_io_channel_create_cb|spdk_io_channel_destroy_cb|spdk_io_device_unregister_cb|\
        spdk_channel_msg|spdk_channel_for_each_cpl|spdk_msg_fn|spdk_poller_fn|spdk_json_write_cb|\
        spdk_rpc_method_handler";

    /// The functions of SPDK that Rust calls by itself; all else goes through the glue.
    const FUNCTIONS: &str = "spdk_bdev_free_io|spdk_bdev_(readv|writev|flush|unmap|write_zeroes)_blocks|\
        spdk_bdev_get_io_channel|spdk_put_io_channel|spdk_get_io_channel|\
        spdk_bdev_dump_info_json|spdk_json_write_object_(begin|end)|\
        spdk_bdev_desc_get_bdev|spdk_bdev_close|spdk_bdev_get_name|spdk_bdev_get_by_name|\
        spdk_bdev_get_block_size|spdk_bdev_get_num_blocks|spdk_bdev_get_buf_align|\
        spdk_bdev_has_write_cache|spdk_bdev_module_release_bdev|\
        spdk_bdev_register|spdk_bdev_unregister|spdk_bdev_destruct_done|spdk_bdev_alias_del_all|\
        spdk_poller_register_named|spdk_poller_unregister|spdk_get_ticks|spdk_get_ticks_hz|\
        spdk_dma_malloc|spdk_dma_zmalloc|spdk_dma_free|spdk_get_thread|spdk_thread_send_msg|\
        spdk_io_device_register|spdk_io_device_unregister|\
        spdk_for_each_channel|spdk_for_each_channel_continue|\
        spdk_io_channel_iter_get_(channel|ctx)|\
        spdk_rpc_register_method|spdk_jsonrpc_(begin|end)_result|\
        spdk_jsonrpc_send_error_response|\
        spdk_json_write_(begin|end|val|val_raw|name)";

    fn compile_glue(tree: &Path) {
        cc::Build::new()
            .file("spdk/glue.c")
            .include(tree.join("include"))
            .opt_level(2)
            .std("gnu11")
            .warnings(true)
            .flag_if_supported("-Wno-unused-parameter")
            .flag_if_supported("-Wno-missing-field-initializers")
            .compile("bcache_glue");
    }

    /// Arguments for the linker, in order.
    fn link_args(tree: &Path) -> Vec<String> {
        let mut args = vec![
            "-Wl,--whole-archive".to_string(),
            "-Wl,--no-as-needed".into(),
        ];
        args.extend(spdk_archives(tree));
        let pkgconfig = tree.join("build/lib/pkgconfig");
        let system = if pkgconfig.join("spdk_syslibs.pc").exists() {
            let dpdk = tree.join("dpdk/build/lib/pkgconfig");
            let path = format!("{}:{}", pkgconfig.display(), dpdk.display());
            args.extend(dpdk_archives(&ask_pkg_config(&path, "spdk_dpdklibs")));
            system_args(&ask_pkg_config(&path, "spdk_syslibs"))
        } else {
            let dpdk = tree.join("dpdk/build/lib");
            let archive = |name| dpdk.join(format!("librte_{name}.a")).display().to_string();
            args.extend(DPDK_2007.iter().map(archive));
            let isal = format!("-L{}", tree.join("isa-l/.libs").display());
            let names = SYSTEM_2007.iter().map(|name| format!("-l{name}"));
            std::iter::once(isal).chain(names).collect()
        };
        args.push("-Wl,--no-whole-archive".into());
        args.extend(system);
        // What rustc names of these comes before the archives (up to 1.85 at least), too early for
        // what only the archives want of their static parts: atexit, the processor's model.
        args.extend(["-lc".into(), "-lgcc".into()]);
        args
    }

    /// All of the tree's own archives, in a stable order.
    fn spdk_archives(tree: &Path) -> Vec<String> {
        let folder = tree.join("build/lib");
        let entries = std::fs::read_dir(&folder)
            .unwrap_or_else(|e| fail(&format!("{} cannot be read: {e}", folder.display())));
        let mut archives: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let module = name.strip_prefix("libspdk_")?.strip_suffix(".a")?;
                (!LEFT_OUT.contains(&module)).then(|| folder.join(&name).display().to_string())
            })
            .collect();
        archives.sort();
        archives
    }

    fn ask_pkg_config(path: &str, package: &str) -> Vec<String> {
        let tool = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
        let run = Command::new(&tool)
            .args(["--libs", "--static", package])
            .env("PKG_CONFIG_PATH", path)
            .output()
            .unwrap_or_else(|e| fail(&format!("{tool} does not run: {e}")));
        if !run.status.success() {
            let said = String::from_utf8_lossy(&run.stderr);
            fail(&format!("{tool} knows no {package}: {said}"));
        }
        let text = String::from_utf8_lossy(&run.stdout);
        text.split_whitespace().map(str::to_string).collect()
    }

    /// DPDK's libraries as archives: their folder may hold shared ones as well.
    fn dpdk_archives(args: &[String]) -> Vec<String> {
        let folders: Vec<&Path> = args
            .iter()
            .filter_map(|arg| arg.strip_prefix("-L").map(Path::new))
            .collect();
        let mut found: Vec<String> = Vec::new();
        for arg in args {
            let name = arg.strip_prefix("-l:").map(str::to_string).or_else(|| {
                let name = arg.strip_prefix("-l")?;
                Some(format!("lib{name}.a"))
            });
            let Some(name) = name.filter(|name| name.starts_with("librte_")) else {
                continue;
            };
            let archive = folders
                .iter()
                .map(|dir| dir.join(&name))
                .find(|p| p.exists());
            let archive = archive
                .unwrap_or_else(|| fail(&format!("DPDK's {name} is missing in {folders:?}")))
                .display()
                .to_string();
            if !found.contains(&archive) {
                found.push(archive);
            }
        }
        found
    }

    /// What is left for the system's linker to find.
    fn system_args(args: &[String]) -> Vec<String> {
        let ours = |arg: &String| !arg.starts_with("-lspdk_") && !arg.starts_with("-lrte_");
        args.iter().filter(|arg| ours(arg)).cloned().collect()
    }
}
