/*
 * read.c: the commands that only read: verify, read and golden. They share one
 * reader, which keeps some requests in flight and hands each sector's range over
 * as it arrives.
 */
#include "run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { POLL_MS = 1000, STALL_SECONDS = 60, SHOWN = 10 };

#define SWEEP_STEP 2654435761ull /* a prime beyond any number of places */

struct reader {
	struct dev *dev;
	uint32_t depth;
	uint32_t busy;
	uint64_t done;   /* requests completed */
	uint64_t failed; /* of them, with an error */
	time_t progress;
	struct dev_io *ios;
	/* The next range to read; false when there is none. */
	bool (*next)(struct reader *r, uint64_t *sector, uint32_t *count);
	void (*arrived)(struct reader *r, const struct dev_io *io);
	void *owner;
};

static bool reader_start(struct reader *r, struct dev_io *io)
{
	if (!r->next(r, &io->sector, &io->count))
		return true;
	r->busy++;
	io->error = 0;
	return !dev_submit(r->dev, io);
}

static bool lost;

static void reader_done(struct dev_io *io)
{
	struct reader *r = io->owner;

	r->busy--;
	r->done++;
	r->progress = time(NULL);
	if (io->error) {
		if (r->failed++ < SHOWN)
			fprintf(stderr, "read of %u sectors at %" PRIu64 ": %s\n", io->count, io->sector,
				strerror(io->error));
	} else {
		r->arrived(r, io);
	}
	if (!reader_start(r, io))
		lost = true;
}

/* Reads everything next() names; false when the device is lost. */
static bool reader_run(struct reader *r, uint32_t max_count)
{
	r->ios = calloc(r->depth, sizeof(*r->ios));
	r->progress = time(NULL);
	for (uint32_t k = 0; r->ios && k < r->depth; k++) {
		r->ios[k] = (struct dev_io){ .op = DEV_READ, .done = reader_done, .owner = r };
		if (posix_memalign(&r->ios[k].buf, 4096, (size_t)max_count * SECTOR) || !reader_start(r, &r->ios[k]))
			return false;
	}
	while (r->ios && r->busy) {
		if (dev_poll(r->dev, POLL_MS) || lost)
			return false;
		if (time(NULL) - r->progress > STALL_SECONDS) {
			fprintf(stderr, "no read has completed for %d seconds\n", STALL_SECONDS);
			return false;
		}
	}
	return r->ios != NULL;
}

/* One pass over the device, from its first sector to its last. */
struct scan {
	uint64_t at, end;
	uint32_t size;
	void (*sector)(struct scan *s, uint64_t sector, const void *data);
	struct model model;
	struct history history;
	uint8_t *zeroes;
	uint64_t offset; /* golden: where the volume's sector 0 stands on the device */
	uint64_t written, newer, bad;
};

static bool scan_next(struct reader *r, uint64_t *sector, uint32_t *count)
{
	struct scan *s = r->owner;
	uint64_t left = s->end - s->at;

	if (!left)
		return false;
	*sector = s->at;
	*count = left < s->size ? (uint32_t)left : s->size;
	s->at += *count;
	return true;
}

static void scan_arrived(struct reader *r, const struct dev_io *io)
{
	struct scan *s = r->owner;
	const char *p = io->buf;

	for (uint32_t k = 0; k < io->count; k++)
		s->sector(s, io->sector + k, p + (size_t)k * SECTOR);
}

static int scan_run(struct dev *dev, struct scan *s, uint32_t depth)
{
	struct reader r = {
		.dev = dev, .depth = depth, .next = scan_next, .arrived = scan_arrived, .owner = s
	};

	if (!reader_run(&r, s->size))
		return EXIT_LOST;
	printf("@verify sectors=%" PRIu64 " written=%" PRIu64 " newer=%" PRIu64 " bad=%" PRIu64 " errors=%" PRIu64 "\n",
	       s->end - s->offset, s->written, s->newer, s->bad, r.failed);
	return s->bad || r.failed ? EXIT_WRONG : EXIT_RIGHT;
}

static void verify_sector(struct scan *s, uint64_t sector, const void *data)
{
	int64_t found = pattern_decode(data, sector);
	uint32_t *version = &s->model.version[sector];

	s->written += found != 0;
	if (!model_check(&s->model, &s->history, s->zeroes, sector, found)) {
		if (s->bad++ < SHOWN)
			printf("sector %" PRIu64 ": want version %" PRIu32 "%s, found %s %" PRId64 "\n", sector, *version,
			       s->history.has_plan && !s->history.done ? " or a later one" : "", pattern_found(found), found);
	} else if (found != (int64_t)*version) {
		s->newer++;
	}
	*version = found < 0 ? 0 : (uint32_t)found;
}

int run_verify(struct dev *dev, const struct options *o)
{
	struct scan s = { .end = dev->sectors, .size = o->size, .sector = verify_sector };
	int code;

	if (!model_init(&s.model, dev->sectors) || (o->state && !model_load(&s.model, o->state)))
		return EXIT_USAGE;
	if (o->log && (!history_load(&s.history, o->log) || !model_replay(&s.model, &s.history)))
		return EXIT_USAGE;
	s.zeroes = history_zeroes(&s.history, dev->sectors);
	if (!s.zeroes)
		return EXIT_USAGE;
	code = scan_run(dev, &s, o->depth);
	if (code == EXIT_RIGHT && o->newstate && !model_save(&s.model, o->newstate))
		return EXIT_USAGE;
	return code;
}

/* The golden fixtures' layout: 64 times (sector << 24 | version), see tests/fixtures. */
static void golden_sector(struct scan *s, uint64_t sector, const void *data)
{
	const uint64_t *w = data;
	uint32_t version = s->model.version[sector - s->offset];
	uint64_t want = version ? (sector - s->offset) << 24 | (version & 0xffffff) : 0;
	bool ok = true;

	s->written += version != 0;
	for (int k = 0; k < SECTOR_WORDS; k++)
		ok = ok && w[k] == want;
	if (!ok && s->bad++ < SHOWN)
		printf("sector %" PRIu64 ": want version %" PRIu32 ", found word %016" PRIx64 "\n", sector - s->offset,
		       version, w[0]);
}

int run_golden(struct dev *dev, const char *expect, uint64_t at)
{
	struct scan s = { .at = at, .offset = at, .size = 1024, .sector = golden_sector };
	FILE *f = fopen(expect, "rb");
	long bytes;

	if (!f || fseek(f, 0, SEEK_END) || (bytes = ftell(f)) < 0) {
		perror(expect);
		return EXIT_USAGE;
	}
	fclose(f);
	s.end = at + (uint64_t)bytes / sizeof(uint32_t);
	if (s.end > dev->sectors) {
		fprintf(stderr, "the device has %" PRIu64 " sectors, the fixture %" PRIu64 "\n", dev->sectors - at, s.end - at);
		return EXIT_WRONG;
	}
	if (!model_init(&s.model, s.end - at) || !model_load(&s.model, expect))
		return EXIT_USAGE;
	return scan_run(dev, &s, 8);
}

/* Random reads for a rate; checked where there is a state to check against. */
struct sampling {
	const struct options *o;
	struct plan where;
	uint32_t issued;
	double end;
	struct model model;
	uint64_t bad;
};

static double seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool sampling_next(struct reader *r, uint64_t *sector, uint32_t *count)
{
	struct sampling *s = r->owner;
	struct plan_op op;

	if (s->issued == s->where.count || (s->end > 0 && seconds_now() >= s->end))
		return false;
	if (s->o->sweep) {
		/* a prime step reaches every place, and no two in a row are neighbours */
		*sector = s->where.at + (uint64_t)s->issued++ * SWEEP_STEP % s->where.count * s->where.min;
		*count = s->where.min;
		return true;
	}
	op = plan_op(&s->where, s->issued++);
	*sector = op.sector;
	*count = op.count;
	return true;
}

static void sampling_arrived(struct reader *r, const struct dev_io *io)
{
	struct sampling *s = r->owner;
	const char *p = io->buf;

	for (uint32_t k = 0; s->o->state && k < io->count; k++) {
		uint64_t sector = io->sector + k;
		int64_t found = pattern_decode(p + (size_t)k * SECTOR, sector);

		if (found != (int64_t)s->model.version[sector] && s->bad++ < SHOWN)
			printf("sector %" PRIu64 ": want version %" PRIu32 ", found %s %" PRId64 "\n", sector,
			       s->model.version[sector], pattern_found(found), found);
	}
}

int run_read(struct dev *dev, const struct options *o)
{
	double begin = seconds_now(), took;
	struct sampling s = { .o = o, .where = o->plan, .end = o->seconds ? begin + o->seconds : 0 };
	struct reader r = {
		.dev = dev, .depth = o->depth, .next = sampling_next, .arrived = sampling_arrived, .owner = &s
	};

	if (!model_init(&s.model, dev->sectors) || (o->state && !model_load(&s.model, o->state)))
		return EXIT_USAGE;
	if (o->sweep)
		s.where.count = (uint32_t)(s.where.span / s.where.min);
	begin = seconds_now();
	if (!reader_run(&r, o->plan.max))
		return EXIT_LOST;
	took = seconds_now() - begin;
	printf("@read ios=%" PRIu64 " seconds=%.3f iops=%.0f bad=%" PRIu64 " errors=%" PRIu64 "\n", r.done, took,
	       took > 0 ? (double)r.done / took : 0, s.bad, r.failed);
	return s.bad || r.failed ? EXIT_WRONG : EXIT_RIGHT;
}
