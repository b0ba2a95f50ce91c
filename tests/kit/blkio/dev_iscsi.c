/*
 * dev_iscsi.c: a LUN over libiscsi, for I/O to an SPDK bdev from a machine whose
 * kernel has no initiator. The library never reconnects by itself here: a target
 * that goes away is what the tests provoke, and must be seen at once.
 */
#include "dev.h"

#include <errno.h>
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOGIN_SECONDS = 20, BUSY_RETRIES = 100 };

struct iscsi_dev {
	struct dev dev;
	struct iscsi_context *iscsi;
	int lun;
	int lost;
	uint32_t block_bytes;
	uint64_t blocks;
};

/* The backend's part of a request. */
struct iscsi_private {
	struct iscsi_dev *dev;
	int retries;
};

static int iscsi_submit(struct dev *dev, struct dev_io *io);

static void iscsi_done(struct iscsi_context *iscsi, int status, void *data, void *owner)
{
	struct dev_io *io = owner;
	struct scsi_task *task = data;
	struct iscsi_private p;

	(void)iscsi;
	memcpy(&p, io->private, sizeof(p));
	if (p.dev->lost) { /* the context is being torn down */
		scsi_free_scsi_task(task);
		return;
	}
	if ((status == SCSI_STATUS_BUSY || status == SCSI_STATUS_TASK_SET_FULL) && p.retries++ < BUSY_RETRIES) {
		scsi_free_scsi_task(task);
		memcpy(io->private, &p, sizeof(p));
		if (iscsi_submit(&p.dev->dev, io))
			p.dev->lost = 1;
		return;
	}
	io->error = status == SCSI_STATUS_GOOD ? 0 : EIO;
	if (io->error && status == SCSI_STATUS_CHECK_CONDITION)
		fprintf(stderr, "%s of %u sectors at %llu: sense key %d, code 0x%04x\n",
			io->op == DEV_READ ? "read" : io->op == DEV_WRITE ? "write" : "flush", io->count,
			(unsigned long long)io->sector, task->sense.key, task->sense.ascq);
	scsi_free_scsi_task(task);
	io->done(io);
}

static int iscsi_submit(struct dev *dev, struct dev_io *io)
{
	struct iscsi_dev *d = (struct iscsi_dev *)dev;
	uint64_t lba = io->sector / dev->block;
	uint32_t bytes = io->count * 512;
	struct iscsi_private p;
	struct scsi_task *task = NULL;

	memcpy(&p, io->private, sizeof(p));
	p.dev = d;
	memcpy(io->private, &p, sizeof(p));
	if (d->lost)
		return -1;
	switch (io->op) {
	case DEV_READ:
		task = iscsi_read16_task(d->iscsi, d->lun, lba, bytes, (int)d->block_bytes, 0, 0, 0, 0, 0,
					 iscsi_done, io);
		if (task && scsi_task_add_data_in_buffer(task, (int)bytes, io->buf))
			task = NULL;
		break;
	case DEV_WRITE:
		task = iscsi_write16_task(d->iscsi, d->lun, lba, io->buf, bytes, (int)d->block_bytes, 0, 0, 0, 0, 0,
					  iscsi_done, io);
		break;
	case DEV_FLUSH:
		/* The range is named in full: SPDK completes a flush of "0 blocks, the rest" without doing anything. */
		task = iscsi_synchronizecache16_task(d->iscsi, d->lun, 0, (uint32_t)d->blocks, 0, 0, iscsi_done, io);
		break;
	case DEV_ZERO:
		fprintf(stderr, "SPDK's iSCSI target has no command that writes zeroes\n");
		return -1;
	}
	if (!task) {
		fprintf(stderr, "iscsi: %s\n", iscsi_get_error(d->iscsi));
		return -1;
	}
	return 0;
}

static int iscsi_poll(struct dev *dev, int wait_ms)
{
	struct iscsi_dev *d = (struct iscsi_dev *)dev;
	struct pollfd pfd = { .fd = iscsi_get_fd(d->iscsi), .events = (short)iscsi_which_events(d->iscsi) };

	if (d->lost)
		return -1;
	if (poll(&pfd, 1, wait_ms) < 0 && errno != EINTR)
		return -1;
	if (iscsi_service(d->iscsi, pfd.revents) || d->lost || (pfd.revents & (POLLHUP | POLLERR))) {
		fprintf(stderr, "iscsi: connection lost: %s\n", iscsi_get_error(d->iscsi));
		d->lost = 1;
		return -1;
	}
	return 0;
}

static void iscsi_close(struct dev *dev)
{
	struct iscsi_dev *d = (struct iscsi_dev *)dev;

	if (!d->lost)
		iscsi_logout_sync(d->iscsi);
	d->lost = 1;
	iscsi_destroy_context(d->iscsi);
	free(d);
}

/* The size; the first command of a session may be told of a power-on. */
static int iscsi_capacity(struct iscsi_dev *d)
{
	for (int tries = 0; tries < 3; tries++) {
		struct scsi_task *task = iscsi_readcapacity16_sync(d->iscsi, d->lun);
		struct scsi_readcapacity16 *rc = NULL;

		if (task && task->status == SCSI_STATUS_GOOD)
			rc = scsi_datain_unmarshall(task);
		if (rc) {
			d->block_bytes = rc->block_length;
			d->blocks = rc->returned_lba + 1;
		}
		if (task)
			scsi_free_scsi_task(task);
		if (rc)
			return 0;
	}
	return -1;
}

struct dev *dev_iscsi_open(const char *url)
{
	struct iscsi_dev *d = calloc(1, sizeof(*d));
	struct iscsi_url *u = NULL;

	if (!d)
		return NULL;
	d->dev = (struct dev){ .submit = iscsi_submit, .poll = iscsi_poll, .close = iscsi_close };
	d->iscsi = iscsi_create_context("iqn.2016-06.io.spdk:blkio");
	if (!d->iscsi || !(u = iscsi_parse_full_url(d->iscsi, url)))
		goto fail;
	d->lun = u->lun;
	iscsi_set_session_type(d->iscsi, ISCSI_SESSION_NORMAL);
	iscsi_set_header_digest(d->iscsi, ISCSI_HEADER_DIGEST_NONE);
	iscsi_set_noautoreconnect(d->iscsi, 1);
	iscsi_set_timeout(d->iscsi, LOGIN_SECONDS);
	iscsi_set_targetname(d->iscsi, u->target);
	if (iscsi_full_connect_sync(d->iscsi, u->portal, u->lun) || iscsi_capacity(d))
		goto fail;
	iscsi_set_timeout(d->iscsi, 0); /* the caller's own time limit bounds a request */
	iscsi_destroy_url(u);
	d->dev.block = d->block_bytes / 512;
	d->dev.sectors = d->blocks * d->dev.block;
	return &d->dev;
fail:
	fprintf(stderr, "%s: %s\n", url, d->iscsi ? iscsi_get_error(d->iscsi) : "out of memory");
	if (u)
		iscsi_destroy_url(u);
	if (d->iscsi)
		iscsi_destroy_context(d->iscsi);
	free(d);
	return NULL;
}
