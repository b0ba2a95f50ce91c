/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The C side of the boundary: registration with SPDK, the function table of volumes, wrappers of
 * what is inline or differs between SPDK's versions. It decides nothing; see bcache.h.
 */
#include "bcache.h"

#include <libaio.h>

#include "spdk/config.h"
#include "spdk/event.h"
#include "spdk/log.h"
#include "spdk/string.h"
#include "spdk/version.h"
#if defined(SPDK_CONFIG_VHOST)
#include "spdk/vhost.h"
#endif

#define SINCE(major, minor) (SPDK_VERSION >= SPDK_VERSION_NUM(major, minor, 0))

_Static_assert(offsetof(struct spdk_bdev_io, driver_ctx) % _Alignof(struct bcache_io) == 0,
	       "the context of an I/O is not aligned");
_Static_assert(sizeof(struct spdk_uuid) == 16, "a UUID has 16 bytes");

/* --- the module --- */

static int bcache_init(void);
static void bcache_fini_start(void);
static void bcache_fini(void);
static int bcache_config_json(struct spdk_json_write_ctx *w);
static int bcache_get_ctx_size(void);
static void bcache_examine(struct spdk_bdev *bdev);

static struct spdk_bdev_module g_module = {
	.name = "bcache",
	.module_init = bcache_init,
	.fini_start = bcache_fini_start,
	.module_fini = bcache_fini,
	.async_fini = true,
	.config_json = bcache_config_json,
	.get_ctx_size = bcache_get_ctx_size,
	.examine_disk = bcache_examine,
};

SPDK_BDEV_MODULE_REGISTER(bcache, &g_module)

static void __attribute__((constructor))
bcache_register_rpcs(void)
{
	bcache_ops_of_rust.register_rpcs();
}

static int
bcache_init(void)
{
	return bcache_ops_of_rust.init();
}

static void
bcache_fini_start(void)
{
	bcache_ops_of_rust.fini_start();
}

static void
bcache_fini(void)
{
	bcache_ops_of_rust.fini();
}

void
bcache_fini_done(void)
{
#if SINCE(21, 10)
	spdk_bdev_module_fini_done();
#else
	spdk_bdev_module_finish_done();
#endif
}

static int
bcache_config_json(struct spdk_json_write_ctx *w)
{
	bcache_ops_of_rust.write_config(w);
	return 0;
}

static int
bcache_get_ctx_size(void)
{
	return bcache_ops_of_rust.io_ctx_bytes;
}

static void
bcache_examine(struct spdk_bdev *bdev)
{
	bcache_ops_of_rust.examine(spdk_bdev_get_name(bdev));
	/*
	 * At once, whatever becomes of the bdev: newer releases keep every bdev that is registered open
	 * until all examinations of all bdevs are done, and its module may wait for that.
	 */
	spdk_bdev_module_examine_done(&g_module);
}

/* --- volumes --- */

static int
volume_destruct(void *volume)
{
	bcache_ops_of_rust.destruct(volume);
	return 1; /* goes on until spdk_bdev_destruct_done */
}

/*
 * Whether a host wants this one write to be durable before it is answered. From 24.05 on the bdev
 * layer hands on what the NVMe-oF target got; in dword 12 of NVMe's write commands that is bit 30.
 */
static bool
wants_durability(struct spdk_bdev_io *bdev_io)
{
#if SINCE(24, 5)
	return bdev_io->type == SPDK_BDEV_IO_TYPE_WRITE &&
	       (bdev_io->u.bdev.nvme_cdw12.raw & (1u << 30)) != 0;
#else
	(void)bdev_io;
	return false;
#endif
}

static void
submit_with_buffer(struct spdk_io_channel *ch, struct spdk_bdev_io *bdev_io)
{
	struct bcache_io *io = (struct bcache_io *)bdev_io->driver_ctx;

	io->bdev_io = bdev_io;
	io->iovs = bdev_io->u.bdev.iovs;
	io->iovcnt = bdev_io->u.bdev.iovcnt;
	io->offset_blocks = bdev_io->u.bdev.offset_blocks;
	io->num_blocks = bdev_io->u.bdev.num_blocks;
	io->durable = wants_durability(bdev_io);
	bcache_ops_of_rust.submit(spdk_io_channel_get_ctx(ch), io);
}

static void
got_buffer(struct spdk_io_channel *ch, struct spdk_bdev_io *bdev_io, bool success)
{
	if (!success) {
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	submit_with_buffer(ch, bdev_io);
}

/*
 * Up to 20.10 the AIO module counts an I/O out after it has completed it, through a pointer in the
 * I/O's context. bcache_free_io keeps our own from being used anew before that; the pieces that the
 * bdev layer cuts at 64 KiB it frees itself, and they may by then be a volume's. They find a counter
 * of no meaning.
 */
_Static_assert(offsetof(struct bcache_io, counted_out) ==
	       sizeof(struct iocb) + sizeof(uint64_t), "where struct bdev_aio_task has its channel");
static _Thread_local uint64_t g_counted_out;

static void
volume_submit_request(struct spdk_io_channel *ch, struct spdk_bdev_io *bdev_io)
{
	struct bcache_io *io = (struct bcache_io *)bdev_io->driver_ctx;

	io->counted_out = &g_counted_out;
	switch (bdev_io->type) {
	case SPDK_BDEV_IO_TYPE_READ:
		io->kind = BCACHE_READ;
		if (bdev_io->u.bdev.iovs == NULL || bdev_io->u.bdev.iovs[0].iov_base == NULL) {
			spdk_bdev_io_get_buf(bdev_io, got_buffer,
					     bdev_io->u.bdev.num_blocks * bdev_io->bdev->blocklen);
			return;
		}
		break;
	case SPDK_BDEV_IO_TYPE_WRITE:
		io->kind = BCACHE_WRITE;
		break;
	case SPDK_BDEV_IO_TYPE_FLUSH:
		io->kind = BCACHE_FLUSH;
		break;
	case SPDK_BDEV_IO_TYPE_UNMAP:
		io->kind = BCACHE_UNMAP;
		break;
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		io->kind = BCACHE_WRITE_ZEROES;
		break;
	case SPDK_BDEV_IO_TYPE_RESET:
		/* Has no range: the fields of u.bdev mean other things. */
		io->kind = BCACHE_RESET;
		io->bdev_io = bdev_io;
		io->iovs = NULL;
		io->iovcnt = 0;
		io->offset_blocks = 0;
		io->num_blocks = 0;
		io->durable = false;
		bcache_ops_of_rust.submit(spdk_io_channel_get_ctx(ch), io);
		return;
	default:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	submit_with_buffer(ch, bdev_io);
}

static bool
volume_io_type_supported(void *volume, enum spdk_bdev_io_type type)
{
	switch (type) {
	case SPDK_BDEV_IO_TYPE_READ:
	case SPDK_BDEV_IO_TYPE_WRITE:
	case SPDK_BDEV_IO_TYPE_FLUSH:
	case SPDK_BDEV_IO_TYPE_UNMAP:
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
	case SPDK_BDEV_IO_TYPE_RESET:
		return true;
	default:
		return false;
	}
}

static struct spdk_io_channel *
volume_get_io_channel(void *volume)
{
	return bcache_ops_of_rust.get_io_channel(volume);
}

static int
volume_dump_info_json(void *volume, struct spdk_json_write_ctx *w)
{
	bcache_ops_of_rust.dump_info(volume, w);
	return 0;
}

static void
volume_write_config_json(struct spdk_bdev *bdev, struct spdk_json_write_ctx *w)
{
	bcache_ops_of_rust.write_volume_config(bdev->ctxt, w);
}

static const struct spdk_bdev_fn_table g_volume_fns = {
	.destruct = volume_destruct,
	.submit_request = volume_submit_request,
	.io_type_supported = volume_io_type_supported,
	.get_io_channel = volume_get_io_channel,
	.dump_info_json = volume_dump_info_json,
	.write_config_json = volume_write_config_json,
};

/* A name that a volume has or had. Other threads read a bdev's name without a lock, and may keep it. */
struct volume_name {
	struct volume_name *older;
	char text[];
};

struct volume_bdev {
	struct spdk_bdev bdev;
	struct volume_name *names;
};

static struct volume_name *
keep_name(struct volume_bdev *volume, const char *text)
{
	struct volume_name *name = malloc(sizeof(*name) + strlen(text) + 1);

	if (name != NULL) {
		strcpy(name->text, text);
		name->older = volume->names;
		volume->names = name;
	}
	return name;
}

struct spdk_bdev *
bcache_volume_new(const struct bcache_volume_info *info)
{
	struct volume_bdev *volume = calloc(1, sizeof(*volume));
	struct spdk_bdev *bdev = (struct spdk_bdev *)volume;

	if (volume == NULL || keep_name(volume, info->name) == NULL) {
		free(volume);
		return NULL;
	}
	bdev->name = volume->names->text;
	bdev->product_name = "bcache";
	bdev->write_cache = 1;
	bdev->blocklen = info->block_bytes;
	bdev->blockcnt = info->num_blocks;
	/*
	 * No alignment is asked of hosts: their memory goes to the base bdevs as it is, and these have it
	 * copied where they need to, in steps that are short enough for that (lane.rs). To ask for it would
	 * have the bdev layer cut every request at 64 KiB.
	 */
	bdev->required_alignment = 0;
	memcpy(&bdev->uuid, info->uuid, sizeof(bdev->uuid));
	bdev->ctxt = info->volume;
	bdev->fn_table = &g_volume_fns;
	bdev->module = &g_module;
	return bdev;
}

void
bcache_volume_free(struct spdk_bdev *bdev)
{
	struct volume_bdev *volume = SPDK_CONTAINEROF(bdev, struct volume_bdev, bdev);
	struct volume_name *name;

	while ((name = volume->names) != NULL) {
		volume->names = name->older;
		free(name);
	}
	free(volume);
}

int
bcache_volume_rename(struct spdk_bdev *bdev, const char *text)
{
	struct spdk_bdev *holder = spdk_bdev_get_by_name(text);
	struct volume_name *name;
	int rc = 0;

	if (holder != NULL && holder != bdev) {
		return -EEXIST;
	}
	name = keep_name(SPDK_CONTAINEROF(bdev, struct volume_bdev, bdev), text);
	if (name == NULL) {
		return -ENOMEM;
	}
#if SINCE(21, 7)
	/* Found in a tree by the name that it was registered under and by aliases: the new one is one. */
	if (holder == NULL) {
		rc = spdk_bdev_alias_add(bdev, text);
	}
	if (rc == 0) {
		__atomic_store_n(&bdev->name, name->text, __ATOMIC_RELEASE);
	}
#else
	char *old = bdev->name;

	if (holder != NULL) {
		spdk_bdev_alias_del(bdev, text);
	}
	__atomic_store_n(&bdev->name, name->text, __ATOMIC_RELEASE);
	rc = spdk_bdev_alias_add(bdev, old);
	if (rc != 0) {
		__atomic_store_n(&bdev->name, old, __ATOMIC_RELEASE);
	}
#endif
	return rc;
}

void
bcache_volume_forget_names(struct spdk_bdev *bdev)
{
	/* Before 26.01 the bdev layer leaves a module's aliases behind: in its tree of names, from 21.07 on. */
	spdk_bdev_alias_del_all(bdev);
}

int
bcache_volume_resize(struct spdk_bdev *bdev, uint64_t num_blocks)
{
	return spdk_bdev_notify_blockcnt_change(bdev, num_blocks);
}

bool
bcache_volume_is_open(struct spdk_bdev *bdev)
{
	return !TAILQ_EMPTY(&bdev->internal.open_descs);
}

void
bcache_io_complete(struct spdk_bdev_io *bdev_io, enum bcache_outcome outcome)
{
	switch (outcome) {
	case BCACHE_SUCCESS:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_SUCCESS);
		break;
	case BCACHE_NO_SPACE:
		/* What NVMe has for it, and what an initiator makes ENOSPC of; SCSI hosts see a medium error. */
		spdk_bdev_io_complete_nvme_status(bdev_io, 0, SPDK_NVME_SCT_GENERIC,
						  SPDK_NVME_SC_CAPACITY_EXCEEDED);
		break;
	default:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
	}
}

void *
bcache_channel_ctx(struct spdk_io_channel *ch)
{
	return spdk_io_channel_get_ctx(ch);
}

/* --- devices --- */

static void
device_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *device)
{
	switch (type) {
	case SPDK_BDEV_EVENT_REMOVE:
		bcache_ops_of_rust.device_event(device, BCACHE_EVENT_REMOVE);
		break;
	case SPDK_BDEV_EVENT_RESIZE:
		bcache_ops_of_rust.device_event(device, BCACHE_EVENT_RESIZE);
		break;
	default:
		break;
	}
}

int
bcache_open(const char *name, bool write, void *device, struct spdk_bdev_desc **desc)
{
	int rc;

	/* Asked first, because opening logs an error of its own for a name that does not exist. */
	if (spdk_bdev_get_by_name(name) == NULL) {
		return -ENODEV;
	}
	rc = spdk_bdev_open_ext(name, write, device_event, device, desc);
	if (rc != 0 || !write) {
		return rc;
	}
	rc = spdk_bdev_module_claim_bdev(spdk_bdev_desc_get_bdev(*desc), *desc, &g_module);
	if (rc != 0) {
		spdk_bdev_close(*desc);
	}
	return rc;
}

const char *
bcache_module_name(const struct spdk_bdev *bdev)
{
	return bdev->module->name;
}

void
bcache_traits_of(struct spdk_bdev *bdev, struct bcache_traits *traits)
{
	traits->takes_writes = spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_WRITE);
	traits->is_zoned = spdk_bdev_is_zoned(bdev);
	traits->block_bytes = spdk_bdev_get_block_size(bdev);
	traits->md_bytes = spdk_bdev_is_md_interleaved(bdev) ? 0 : spdk_bdev_get_md_size(bdev);
	traits->write_unit_blocks = spdk_bdev_get_write_unit_size(bdev);
}

bool
bcache_supports(struct spdk_bdev *bdev, enum bcache_kind kind)
{
	switch (kind) {
	case BCACHE_READ:
		return spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_READ);
	case BCACHE_WRITE:
		return spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_WRITE);
	case BCACHE_FLUSH:
		return spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_FLUSH);
	case BCACHE_UNMAP:
		return spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_UNMAP);
	case BCACHE_WRITE_ZEROES:
		return spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_WRITE_ZEROES);
	default:
		return false;
	}
}

static bool
is_of(struct spdk_bdev *bdev, const char *module)
{
	return strcmp(bdev->module->name, module) == 0;
}

/* Whether a bdev is a driver's of its own: it stands on no other bdev. */
static bool
stands_alone(struct spdk_bdev *bdev)
{
	static const char *const drivers[] = {
		"aio", "nvme", "malloc", "null", "uring", "rbd", "virtio_blk", "virtio_scsi", "iscsi", "pmem",
		"ocssd", "xnvme", "daos",
	};

	for (size_t i = 0; i < SPDK_COUNTOF(drivers); i++) {
		if (is_of(bdev, drivers[i])) {
			return true;
		}
	}
	return false;
}

/* A drive of NVMe's whose cache loses what was not flushed. */
static bool
is_volatile_drive(struct spdk_bdev *bdev)
{
	return is_of(bdev, "nvme") && spdk_bdev_has_write_cache(bdev);
}

enum bcache_flush_worth
bcache_flush_worth(struct spdk_bdev *bdev)
{
	struct spdk_bdev *other;

	/* Persistent memory needs none. */
	if (is_of(bdev, "pmem") || (is_of(bdev, "nvme") && !is_volatile_drive(bdev))) {
		return BCACHE_FLUSH_SOUND;
	}
	if (spdk_bdev_has_write_cache(bdev) &&
	    spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_NVME_IO)) {
		return BCACHE_FLUSH_COMMAND;
	}
	/* virtio_scsi says that it takes flushes, and fails each. */
	if (!spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_FLUSH) || is_of(bdev, "virtio_scsi")) {
		return BCACHE_FLUSH_ABSENT;
	}
#if !SINCE(21, 10)
	if (is_of(bdev, "rbd")) {
		return BCACHE_FLUSH_ONE_THREAD;
	}
#endif
	if (!stands_alone(bdev)) {
		for (other = spdk_bdev_first(); other != NULL; other = spdk_bdev_next(other)) {
			if (is_volatile_drive(other)) {
				return BCACHE_FLUSH_BELOW;
			}
		}
	}
	return BCACHE_FLUSH_SOUND;
}

int
bcache_flush_command(struct spdk_bdev_desc *desc, struct spdk_io_channel *ch,
		     spdk_bdev_io_completion_cb cb, void *arg)
{
	struct spdk_nvme_cmd cmd = { .opc = SPDK_NVME_OPC_FLUSH };

	/* The driver puts the namespace in. */
	return spdk_bdev_nvme_io_passthru(desc, ch, &cmd, NULL, 0, cb, arg);
}

uint32_t
bcache_shared_queue_cut(struct spdk_bdev *bdev)
{
	/* Where the bdev layer of 20.07 cuts transfers of AIO bdevs; later ones cut at larger multiples. */
	const uint32_t aio_cut = 16;
#if !SINCE(24, 1)
	/*
	 * Up to 23.09 the bdev layer forgets what has found a queue full that others filled. A bdev does not
	 * tell what it stands on: where there is an AIO bdev at all, any that stands on another may stand on
	 * it, and may cut its transfers into pieces of 4 KiB, as a RAID does.
	 */
	const uint32_t stack_cut = 12;
	struct spdk_bdev *other;

	if (!stands_alone(bdev)) {
		for (other = spdk_bdev_first(); other != NULL; other = spdk_bdev_next(other)) {
			if (is_of(other, "aio")) {
				return stack_cut;
			}
		}
	}
#endif
	return is_of(bdev, "aio") ? aio_cut : 0;
}

/*
 * What a drive says of a command that it did not carry out. An abort says nothing of the drive, and a
 * malformed command nothing but that the host's memory or range did not suit it.
 */
static enum bcache_reason
nvme_reason(struct spdk_bdev_io *bdev_io)
{
	uint32_t cdw0;
	int sct, sc;

	spdk_bdev_io_get_nvme_status(bdev_io, &cdw0, &sct, &sc);
	if (sct != SPDK_NVME_SCT_GENERIC) {
		return BCACHE_WHY_DEVICE;
	}
	switch (sc) {
	case SPDK_NVME_SC_ABORTED_POWER_LOSS:
	case SPDK_NVME_SC_ABORTED_BY_REQUEST:
	case SPDK_NVME_SC_ABORTED_SQ_DELETION:
	case SPDK_NVME_SC_NAMESPACE_NOT_READY:
		return BCACHE_WHY_ABORTED;
	case SPDK_NVME_SC_INVALID_OPCODE:
	case SPDK_NVME_SC_INVALID_FIELD:
	case SPDK_NVME_SC_INVALID_SGL_SEG_DESCRIPTOR:
	case SPDK_NVME_SC_INVALID_NUM_SGL_DESCIRPTORS:
	case SPDK_NVME_SC_DATA_SGL_LENGTH_INVALID:
	case SPDK_NVME_SC_SGL_DESCRIPTOR_TYPE_INVALID:
	case SPDK_NVME_SC_INVALID_PRP_OFFSET:
	case SPDK_NVME_SC_INVALID_SGL_OFFSET:
	case SPDK_NVME_SC_SGL_DATA_BLOCK_GRANULARITY_INVALID:
	case SPDK_NVME_SC_LBA_OUT_OF_RANGE:
		return BCACHE_WHY_INVALID;
	default:
		return BCACHE_WHY_DEVICE;
	}
}

enum bcache_reason
bcache_why(struct spdk_bdev_io *bdev_io)
{
	switch (bdev_io->internal.status) {
	case SPDK_BDEV_IO_STATUS_ABORTED:
		return BCACHE_WHY_ABORTED;
	case SPDK_BDEV_IO_STATUS_NOMEM:
		return BCACHE_WHY_NO_MEMORY;
	case SPDK_BDEV_IO_STATUS_NVME_ERROR:
		return nvme_reason(bdev_io);
#if SINCE(21, 1)
	case SPDK_BDEV_IO_STATUS_AIO_ERROR: {
		int error;

		spdk_bdev_io_get_aio_status(bdev_io, &error);
		return error == -EINVAL ? BCACHE_WHY_INVALID : BCACHE_WHY_DEVICE;
	}
#endif
	default:
		return BCACHE_WHY_DEVICE;
	}
}

#if !SINCE(21, 1)
static void
free_io_late(void *bdev_io)
{
	spdk_bdev_free_io(bdev_io);
}
#endif

void
bcache_free_io(struct spdk_bdev_io *bdev_io)
{
#if !SINCE(21, 1)
	/*
	 * The AIO module of these releases counts an I/O out after it has completed it, in the I/O's
	 * own context. Freed at once, the I/O is taken for the next one, of any module, which writes
	 * its own there.
	 */
	if (is_of(bdev_io->bdev, "aio")) {
		spdk_thread_send_msg(spdk_get_thread(), free_io_late, bdev_io);
		return;
	}
#endif
	spdk_bdev_free_io(bdev_io);
}

bool
bcache_is_volume(const char *name)
{
	struct spdk_bdev *bdev = spdk_bdev_get_by_name(name);

	return bdev != NULL && bdev->module == &g_module;
}

bool
bcache_dump_info(const char *name, struct spdk_json_write_ctx *w)
{
	struct spdk_bdev *bdev = spdk_bdev_get_by_name(name);
	int rc;

	if (bdev == NULL) {
		return false;
	}
	spdk_json_write_object_begin(w);
	rc = spdk_bdev_dump_info_json(bdev, w);
	spdk_json_write_object_end(w);
	return rc == 0;
}

void
bcache_each_bdev(void (*each)(void *ctx, const char *name), void *ctx)
{
	struct spdk_bdev *bdev;

	for (bdev = spdk_bdev_first(); bdev != NULL; bdev = spdk_bdev_next(bdev)) {
		each(ctx, spdk_bdev_get_name(bdev));
	}
}

/* --- the log --- */

void
bcache_log(int level, const char *file, size_t file_bytes, int line, const char *text,
	   size_t text_bytes)
{
	char name[64];
	size_t bytes = file_bytes < sizeof(name) ? file_bytes : sizeof(name) - 1;

	memcpy(name, file, bytes);
	name[bytes] = '\0';
	spdk_log((enum spdk_log_level)level, name, line, "bcache", "%.*s\n", (int)text_bytes, text);
}

int
bcache_log_level(void)
{
	int print = spdk_log_get_print_level();
	int syslog = spdk_log_get_level();

	return print > syslog ? print : syslog;
}

/* --- the target --- */

static const char *g_pid_path;

/* Trace entries of each core unless --num-trace-entries says otherwise. */
#define TRACE_ENTRIES 64

#if defined(SPDK_CONFIG_VHOST)
#define TARGET_OPTIONS "f:S:"
#else
#define TARGET_OPTIONS "f:"
#endif

static void
target_usage(void)
{
	printf(" -f <file>                 write the process id into this file once the target is up\n");
#if defined(SPDK_CONFIG_VHOST)
	printf(" -S <path>                 folder for vhost's sockets (default: the current one)\n");
#endif
}

static int
target_option(int option, char *value)
{
	switch (option) {
	case 'f':
		g_pid_path = value;
		return 0;
#if defined(SPDK_CONFIG_VHOST)
	case 'S':
		spdk_vhost_set_socket_path(value);
		return 0;
#endif
	default:
		return -EINVAL;
	}
}

/* A signal asks the target to end. */
static void
target_ends(void)
{
	bcache_ops_of_rust.end_begins();
	spdk_app_stop(0);
}

void
bcache_exit(int status)
{
	_exit(status);
}

static void
target_started(void *ctx)
{
	FILE *file;

	if (g_pid_path == NULL) {
		return;
	}
	file = fopen(g_pid_path, "w");
	if (file == NULL || fprintf(file, "%d\n", getpid()) < 0 || fclose(file) != 0) {
		SPDK_ERRLOG("cannot write the process id into %s: %s\n", g_pid_path, spdk_strerror(errno));
		spdk_app_stop(1);
	}
}

int
bcache_app_run(int argc, char **argv)
{
	struct spdk_app_opts opts;
	int rc;

	memset(&opts, 0, sizeof(opts));
#if SINCE(21, 1)
	spdk_app_opts_init(&opts, sizeof(opts));
#else
	spdk_app_opts_init(&opts);
#endif
	opts.name = "bcache_tgt";
	/* The usual number makes a file of 129 MB in /dev/shm, which stays there after a kill. */
	opts.num_entries = TRACE_ENTRIES;
	opts.shutdown_cb = target_ends;
	rc = spdk_app_parse_args(argc, argv, &opts, TARGET_OPTIONS, NULL, target_option, target_usage);
	if (rc != SPDK_APP_PARSE_ARGS_SUCCESS) {
		return rc == SPDK_APP_PARSE_ARGS_HELP ? 0 : 1;
	}
	rc = spdk_app_start(&opts, target_started, NULL);
	spdk_app_fini();
	return rc != 0;
}
