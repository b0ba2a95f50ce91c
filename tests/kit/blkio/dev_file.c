/*
 * dev_file.c: files and block devices through the kernel's AIO calls, without a
 * library, so that the tool links statically and runs in a guest's initrd.
 * Flushes go the same way (FDSYNC); write-zeroes is a synchronous ioctl.
 */
#define _GNU_SOURCE
#include "dev.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH = 512, BATCH = 64 };

struct file_dev {
	struct dev dev;
	int fd;
	int is_block;
	aio_context_t aio;
	struct dev_io *finished; /* completed without AIO, handed out by the next poll */
};

_Static_assert(sizeof(struct iocb) <= sizeof(((struct dev_io *)0)->private), "an iocb fits the private part");

static int zero_range(struct file_dev *f, const struct dev_io *io)
{
	uint64_t range[2] = { io->sector * 512, (uint64_t)io->count * 512 };

	if (f->is_block)
		return ioctl(f->fd, BLKZEROOUT, range) ? errno : 0;
	return fallocate(f->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]) ?
		       errno : 0;
}

static int file_submit(struct dev *dev, struct dev_io *io)
{
	struct file_dev *f = (struct file_dev *)dev;
	struct iocb cb = { .aio_fildes = (uint32_t)f->fd, .aio_data = (uintptr_t)io }, *list;

	if (io->op == DEV_ZERO) {
		io->error = zero_range(f, io);
		memcpy(io->private, &f->finished, sizeof(f->finished));
		f->finished = io;
		return 0;
	}
	if (io->op == DEV_FLUSH) {
		cb.aio_lio_opcode = IOCB_CMD_FDSYNC;
	} else {
		cb.aio_lio_opcode = io->op == DEV_READ ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE;
		cb.aio_buf = (uintptr_t)io->buf;
		cb.aio_nbytes = (uint64_t)io->count * 512;
		cb.aio_offset = (int64_t)(io->sector * 512);
	}
	memcpy(io->private, &cb, sizeof(cb));
	list = (struct iocb *)io->private;
	if (syscall(SYS_io_submit, f->aio, 1L, &list) != 1) {
		perror("io_submit");
		return -1;
	}
	return 0;
}

static int file_poll(struct dev *dev, int wait_ms)
{
	struct file_dev *f = (struct file_dev *)dev;
	struct io_event events[BATCH];
	struct timespec wait = { wait_ms / 1000, wait_ms % 1000 * 1000000L };
	long n;

	if (f->finished) {
		wait = (struct timespec){ 0, 0 };
		while (f->finished) {
			struct dev_io *io = f->finished;

			memcpy(&f->finished, io->private, sizeof(f->finished));
			io->done(io);
		}
	}
	n = syscall(SYS_io_getevents, f->aio, wait_ms ? 1L : 0L, (long)BATCH, events, &wait);
	if (n < 0 && errno != EINTR) {
		perror("io_getevents");
		return -1;
	}
	for (long k = 0; k < n; k++) {
		struct dev_io *io = (struct dev_io *)(uintptr_t)events[k].data;
		int64_t want = io->op == DEV_FLUSH ? 0 : (int64_t)io->count * 512;

		io->error = events[k].res == want ? 0 : events[k].res < 0 ? (int)-events[k].res : EIO;
		io->done(io);
	}
	return 0;
}

static void file_close(struct dev *dev)
{
	struct file_dev *f = (struct file_dev *)dev;

	syscall(SYS_io_destroy, f->aio);
	close(f->fd);
	free(f);
}

static int file_size(struct file_dev *f)
{
	struct stat st;
	uint64_t bytes;
	int block;

	if (fstat(f->fd, &st))
		return -1;
	f->is_block = S_ISBLK(st.st_mode);
	if (!f->is_block) {
		f->dev.sectors = (uint64_t)st.st_size / 512;
		f->dev.block = 1;
		return 0;
	}
	if (ioctl(f->fd, BLKGETSIZE64, &bytes) || ioctl(f->fd, BLKSSZGET, &block))
		return -1;
	f->dev.sectors = bytes / 512;
	f->dev.block = (uint32_t)block / 512;
	return 0;
}

struct dev *dev_file_open(const char *path, int write)
{
	struct file_dev *f = calloc(1, sizeof(*f));
	int mode = write ? O_RDWR : O_RDONLY;

	if (!f)
		return NULL;
	f->dev = (struct dev){ .submit = file_submit, .poll = file_poll, .close = file_close };
	f->fd = open(path, mode | O_DIRECT | O_CLOEXEC);
	if (f->fd < 0 && errno == EINVAL) /* tmpfs knows no direct I/O */
		f->fd = open(path, mode | O_CLOEXEC);
	if (f->fd < 0 || file_size(f) || syscall(SYS_io_setup, (unsigned)DEPTH, &f->aio)) {
		perror(path);
		free(f);
		return NULL;
	}
	return &f->dev;
}
