/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The one header between SPDK and the Rust side: bindgen reads it, glue.c implements it.
 *
 * Rust never looks into a struct of SPDK: what it needs of one stands in a struct of this file or
 * comes from a function of this file. What glue.c calls in Rust is one table, struct bcache_ops,
 * which Rust defines with the types that bindgen found here, so that neither side can drift.
 * Differences between SPDK's versions (20.07 to 26.05) end in glue.c.
 */
#ifndef BCACHE_H
#define BCACHE_H

#include "spdk/stdinc.h"
#include "spdk/bdev.h"
#include "spdk/bdev_module.h"
#include "spdk/env.h"
#include "spdk/json.h"
#include "spdk/jsonrpc.h"
#include "spdk/rpc.h"
#include "spdk/thread.h"

/* What a host wants of a volume. */
enum bcache_kind {
	BCACHE_READ,
	BCACHE_WRITE,
	BCACHE_FLUSH,
	BCACHE_UNMAP,
	BCACHE_WRITE_ZEROES,
	BCACHE_RESET,
};

/* How a host's I/O ends. */
enum bcache_outcome {
	BCACHE_SUCCESS,
	BCACHE_FAILED,
	BCACHE_NO_SPACE,
};

/* Why a device did not do an I/O. */
enum bcache_reason {
	BCACHE_WHY_DEVICE,
	BCACHE_WHY_ABORTED,
	BCACHE_WHY_NO_MEMORY,
	BCACHE_WHY_INVALID,
};

/* The head of the module's context in every spdk_bdev_io of a volume; filled before ops.submit. */
struct bcache_io {
	struct spdk_bdev_io *bdev_io;
	struct iovec *iovs;
	uint64_t offset_blocks;
	uint64_t num_blocks;
	uint32_t iovcnt;
	uint32_t kind;
	/* Of a write: it is to be durable when it is answered. */
	bool durable;
	uint64_t unused[3];
	/* See volume_submit_request. */
	uint64_t *counted_out;
};

/* What a volume looks like to the bdev layer. */
struct bcache_volume_info {
	const char *name;
	uint8_t uuid[16];
	uint32_t block_bytes;
	uint64_t num_blocks;
	/* Given back to every function of struct bcache_ops as `volume`. */
	void *volume;
};

enum bcache_event {
	BCACHE_EVENT_REMOVE,
	BCACHE_EVENT_RESIZE,
};

/* What the bdev layer asks of the module. On SPDK's app thread unless it says otherwise. */
struct bcache_ops {
	/* Bytes of the context of each I/O, struct bcache_io included. */
	int io_ctx_bytes;
	/* At load time, before main: no thread, no environment. */
	void (*register_rpcs)(void);
	int (*init)(void);
	void (*fini_start)(void);
	/* Ends in bcache_fini_done. */
	void (*fini)(void);
	/* A bdev has appeared. What is done about it goes on after the call. */
	void (*examine)(const char *bdev_name);
	void (*write_config)(struct spdk_json_write_ctx *w);
	/*
	 * Comes after write_config, for each volume in its place among all bdevs. The list of bdevs is
	 * locked: nothing of SPDK's but the writing may be called.
	 */
	void (*write_volume_config)(void *volume, struct spdk_json_write_ctx *w);
	/* The target has been told to end, and has not begun to. */
	void (*end_begins)(void);
	/* On any thread. Ends in spdk_bdev_destruct_done. */
	void (*destruct)(void *volume);
	/* An opened device is about to go, or has another size. */
	void (*device_event)(void *device, enum bcache_event event);
	void (*dump_info)(void *volume, struct spdk_json_write_ctx *w);
	/* The two below on any thread; `channel` is the context of the volume's channel there. */
	struct spdk_io_channel *(*get_io_channel)(void *volume);
	void (*submit)(void *channel, struct bcache_io *io);
};

/* Defined in Rust. */
extern const struct bcache_ops bcache_ops_of_rust;

/* Runs the target until it is told to stop; returns the exit status. `argv` as main got it. */
int bcache_app_run(int argc, char **argv);

/* Ends the process at once. Only for a target that bcache_app_run runs. */
void bcache_exit(int status);

/* Level as in enum spdk_log_level; the texts need not end in a NUL. */
void bcache_log(int level, const char *file, size_t file_bytes, int line, const char *text,
		size_t text_bytes);

/* The highest level that is logged anywhere, as in enum spdk_log_level. */
int bcache_log_level(void);

void bcache_fini_done(void);

/*
 * Opens a bdev and, for writing, claims it. ops.device_event is called here with `device`.
 * -ENODEV: there is none of that name; -EPERM: it is claimed already.
 */
int bcache_open(const char *name, bool write, void *device, struct spdk_bdev_desc **desc);

/* The name of the module that makes the device: the same for all bdevs of a kind, valid for ever. */
const char *bcache_module_name(const struct spdk_bdev *bdev);

/* What a flush of a bdev is worth; see docs/flush.md. */
enum bcache_flush_worth {
	/* What it says. */
	BCACHE_FLUSH_SOUND,
	/* Nothing, but the drive beneath may take NVMe's own command. */
	BCACHE_FLUSH_COMMAND,
	/* The bdev takes none. */
	BCACHE_FLUSH_ABSENT,
	/* It covers the writes of the thread that it comes from. */
	BCACHE_FLUSH_ONE_THREAD,
	/* It is handed down, maybe to an NVMe bdev that does not send it. */
	BCACHE_FLUSH_BELOW,
};

enum bcache_flush_worth bcache_flush_worth(struct spdk_bdev *bdev);

/* Sends NVMe's flush command to the drive of a bdev. Returns and ends as spdk_bdev_flush_blocks. */
int bcache_flush_command(struct spdk_bdev_desc *desc, struct spdk_io_channel *ch,
			 spdk_bdev_io_completion_cb cb, void *arg);

/* What decides whether a bdev can bear a superblock. */
struct bcache_traits {
	bool takes_writes;
	bool is_zoned;
	uint32_t block_bytes;
	/* Of metadata beside each block; those within are part of block_bytes. */
	uint32_t md_bytes;
	uint32_t write_unit_blocks;
};

void bcache_traits_of(struct spdk_bdev *bdev, struct bcache_traits *traits);

/* Whether the device does such I/O itself or the bdev layer does it with others. */
bool bcache_supports(struct spdk_bdev *bdev, enum bcache_kind kind);

/*
 * Whether what the device does ends in a queue of bounded length that other bdevs of its thread share:
 * 0 where it does not, else log2 of the bytes at multiples of which its transfers are cut on the way
 * there. Not every release of the bdev layer tries again what has found such a queue full.
 */
uint32_t bcache_shared_queue_cut(struct spdk_bdev *bdev);

/* Why an I/O failed that was completed without success and is not freed yet. */
enum bcache_reason bcache_why(struct spdk_bdev_io *bdev_io);

/* Whether there is a bdev of that name, and it is a volume of this module. */
bool bcache_is_volume(const char *name);

/* Writes, as an object, what a bdev's module tells about it. False when there is no such bdev. */
bool bcache_dump_info(const char *name, struct spdk_json_write_ctx *w);

/* Calls `each` with the name of each bdev, in the order in which they were registered. */
void bcache_each_bdev(void (*each)(void *ctx, const char *name), void *ctx);

/* Gives a completed I/O back; in place of spdk_bdev_free_io. */
void bcache_free_io(struct spdk_bdev_io *bdev_io);

/* Makes a bdev that is not yet registered, or NULL when there is no memory. */
struct spdk_bdev *bcache_volume_new(const struct bcache_volume_info *info);
void bcache_volume_free(struct spdk_bdev *bdev);

/*
 * Gives a registered volume another name than it has. Those that it had find it, too, until it is unregistered,
 * and may become its name again. -EEXIST: another bdev has the name.
 */
int bcache_volume_rename(struct spdk_bdev *bdev, const char *name);

/* The volume is unregistered: nothing finds it by a name any more. Before its names may be another's. */
void bcache_volume_forget_names(struct spdk_bdev *bdev);

/* Tells the bdev layer and who has the volume open that its size changed. */
int bcache_volume_resize(struct spdk_bdev *bdev, uint64_t num_blocks);

/* Whether anyone has a registered volume open, or has claimed it. */
bool bcache_volume_is_open(struct spdk_bdev *bdev);

/* Completes a host's I/O. */
void bcache_io_complete(struct spdk_bdev_io *bdev_io, enum bcache_outcome outcome);

/* The context of a channel, as spdk_io_device_register made it. */
void *bcache_channel_ctx(struct spdk_io_channel *ch);

#endif
