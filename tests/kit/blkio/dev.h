/*
 * dev.h: a block device with many requests in flight, whatever stands behind it:
 * a file or block device (dev_file.c, Linux AIO) or a LUN (dev_iscsi.c, libiscsi).
 *
 * A request belongs to the device from dev_submit until its done() is called,
 * which happens inside dev_poll only. Requests that overlap in time are not
 * ordered. A device that fails once stays failed: every later call says so.
 */
#ifndef BLKIO_DEV_H
#define BLKIO_DEV_H

#include <stdint.h>
#include <string.h>

enum dev_op { DEV_READ, DEV_WRITE, DEV_FLUSH, DEV_ZERO };

struct dev;

struct dev_io {
	enum dev_op op;
	uint64_t sector; /* 512-byte sectors, a multiple of dev->block */
	uint32_t count;  /* sectors; 0 for a flush, which covers the whole device */
	void *buf;       /* 4096-byte aligned, count sectors */
	int error;       /* set before done(): 0 or a positive errno */
	void (*done)(struct dev_io *io);
	void *owner;      /* the caller's */
	char private[64]; /* the backend's */
};

struct dev {
	uint64_t sectors; /* size in 512-byte sectors */
	uint32_t block;   /* logical block in sectors, a power of two */
	int (*submit)(struct dev *dev, struct dev_io *io);
	int (*poll)(struct dev *dev, int wait_ms);
	void (*close)(struct dev *dev);
};

/* Opens a path or, where it was compiled in, an iscsi:// URL. NULL and a message on stderr if that fails. */
struct dev *dev_open(const char *name, int write);

struct dev *dev_file_open(const char *path, int write);
struct dev *dev_iscsi_open(const char *url);

/* 0, or -1 when the device is lost (a message has been printed). */
static inline int dev_submit(struct dev *dev, struct dev_io *io)
{
	memset(io->private, 0, sizeof(io->private));
	return dev->submit(dev, io);
}

/* Completes what is finished, waiting up to wait_ms for the first; 0, or -1 when the device is lost. */
static inline int dev_poll(struct dev *dev, int wait_ms) { return dev->poll(dev, wait_ms); }

static inline void dev_close(struct dev *dev) { dev->close(dev); }

#endif
