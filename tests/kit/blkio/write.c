/*
 * write.c: the plan carried out with many requests in flight.
 *
 * A request that overlaps one in flight waits until that one is done, so for every
 * sector the order of issue is the order of completion, and a read has exactly one
 * right answer: what the model says. A flush does not wait for the writes in flight;
 * what its acknowledgment covers is every write below the oldest one that had not
 * completed when it was sent.
 */
#define _GNU_SOURCE
#include "run.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { POLL_MS = 1000, STALL_SECONDS = 60 };

struct run;

struct slot {
	struct dev_io io;
	struct plan_op op; /* of a write; of a read only its range */
	uint32_t index;    /* number of the write in the plan */
	bool busy;
	struct run *run;
};

struct run {
	struct dev *dev;
	const struct options *o;
	struct model model; /* what every sector holds once what was issued is done */
	struct slot *slots;
	struct dev_io flush;
	bool flushing;
	uint32_t flush_covers;
	uint32_t next;  /* the write to issue next */
	uint32_t reads; /* reads issued */
	uint32_t busy;
	uint64_t wrong;
	int failed; /* errno of the first failed request */
	int log;
	time_t progress; /* when something last completed */
};

static void check_read(struct run *r, const struct slot *s)
{
	const char *p = s->io.buf;

	for (uint32_t k = 0; k < s->op.count; k++, p += SECTOR) {
		uint64_t sector = s->op.sector + k;
		int64_t found = pattern_decode(p, sector);

		if (found == (int64_t)r->model.version[sector])
			continue;
		if (r->wrong++ < 10)
			fprintf(stderr, "read at sector %" PRIu64 ": want version %" PRIu32 ", found %s %" PRId64 "\n",
				sector, r->model.version[sector], pattern_found(found), found);
	}
}

static void slot_done(struct dev_io *io)
{
	struct slot *s = io->owner;
	struct run *r = s->run;

	s->busy = false;
	r->busy--;
	r->progress = time(NULL);
	if (io->error) {
		if (!r->failed)
			r->failed = io->error;
	} else if (io->op == DEV_READ) {
		check_read(r, s);
	} else {
		model_apply(&r->model, &s->op);
	}
}

static void flush_done(struct dev_io *io)
{
	struct run *r = io->owner;

	r->flushing = false;
	r->progress = time(NULL);
	if (io->error) {
		if (!r->failed)
			r->failed = io->error;
		return;
	}
	dprintf(r->log, "@flush %" PRIu32 "\n", r->flush_covers);
}

static int wait_some(struct run *r)
{
	if (dev_poll(r->dev, POLL_MS))
		return -1;
	if (time(NULL) - r->progress > STALL_SECONDS) {
		fprintf(stderr, "nothing has completed for %d seconds\n", STALL_SECONDS);
		return -1;
	}
	return 0;
}

static int drain(struct run *r)
{
	while (r->busy || r->flushing)
		if (wait_some(r))
			return -1;
	return 0;
}

static int start_flush(struct run *r)
{
	uint32_t covers = r->next;

	if (r->flushing)
		return 0;
	for (uint32_t k = 0; k < r->o->depth; k++)
		if (r->slots[k].busy && r->slots[k].io.op != DEV_READ && r->slots[k].index < covers)
			covers = r->slots[k].index;
	r->flush_covers = covers;
	r->flush = (struct dev_io){ .op = DEV_FLUSH, .done = flush_done, .owner = r };
	r->flushing = true;
	return dev_submit(r->dev, &r->flush);
}

/* A free slot whose range overlaps nothing in flight, waiting until there is one. */
static struct slot *acquire(struct run *r, const struct plan_op *op)
{
	for (;;) {
		struct slot *free_slot = NULL;
		bool clash = false;

		for (uint32_t k = 0; k < r->o->depth; k++) {
			struct slot *s = &r->slots[k];

			if (!s->busy)
				free_slot = s;
			else if (s->op.sector < op->sector + op->count && op->sector < s->op.sector + s->op.count)
				clash = true;
		}
		if (free_slot && !clash)
			return free_slot;
		if (wait_some(r))
			return NULL;
	}
}

static int start(struct run *r, const struct plan_op *op, enum dev_op what)
{
	struct slot *s = acquire(r, op);

	if (!s)
		return -1;
	s->op = *op;
	s->index = r->next;
	s->busy = true;
	r->busy++;
	s->io.op = what;
	s->io.sector = op->sector;
	s->io.count = op->count;
	s->io.error = 0;
	if (what == DEV_WRITE)
		pattern_fill(s->io.buf, op->sector, op->count, op->version);
	return dev_submit(r->dev, &s->io);
}

/* The reads that are due before write number r->next, so that their share is kept. */
static int start_reads(struct run *r)
{
	struct plan where = r->o->plan;

	where.seed = ~where.seed;
	while (r->reads < (uint64_t)r->next * r->o->reads / 100) {
		struct plan_op op = plan_op(&where, r->reads++);

		if (start(r, &op, DEV_READ))
			return -1;
	}
	return 0;
}

static int run_plan(struct run *r)
{
	const struct options *o = r->o;
	time_t end = time(NULL) + o->seconds;

	while (r->next < o->plan.count && !r->failed && !r->wrong) {
		struct plan_op op = plan_op(&o->plan, r->next);

		if (o->seconds && time(NULL) >= end)
			break;
		if (start_reads(r) || start(r, &op, op.kind == PLAN_ZERO ? DEV_ZERO : DEV_WRITE))
			return -1;
		r->next++;
		if (o->flush && r->next % o->flush == 0 && start_flush(r))
			return -1;
		if (dev_poll(r->dev, 0))
			return -1;
	}
	if (drain(r))
		return -1;
	if (r->failed || r->wrong)
		return 0;
	return start_flush(r) || drain(r) ? -1 : 0;
}

static bool prepare(struct run *r)
{
	const struct options *o = r->o;

	r->log = o->log ? open(o->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : STDOUT_FILENO;
	r->slots = calloc(o->depth, sizeof(*r->slots));
	if (r->log < 0 || !r->slots || !model_init(&r->model, r->dev->sectors) ||
	    (o->state && !model_load(&r->model, o->state)))
		return false;
	for (uint32_t k = 0; k < o->depth; k++) {
		struct slot *s = &r->slots[k];

		s->run = r;
		s->io.owner = s;
		s->io.done = slot_done;
		if (posix_memalign(&s->io.buf, 4096, (size_t)o->plan.max * SECTOR))
			return false;
	}
	return true;
}

int run_write(struct dev *dev, const struct options *o)
{
	const struct plan *p = &o->plan;
	struct run *r = calloc(1, sizeof(*r));

	if (!r)
		return EXIT_USAGE;
	r->dev = dev;
	r->o = o;
	r->progress = time(NULL);
	if (!prepare(r)) {
		fprintf(stderr, "cannot set the run up\n");
		return EXIT_USAGE;
	}
	dprintf(r->log,
		"@plan seed=%" PRIu64 " first=%" PRIu32 " count=%" PRIu32 " at=%" PRIu64 " span=%" PRIu64 " align=%" PRIu32
		" min=%" PRIu32 " max=%" PRIu32 " hot=%" PRIu32 " zero=%" PRIu32 "\n",
		p->seed, p->first, p->count, p->at, p->span, p->align, p->min, p->max, p->hot, p->zero);
	if (run_plan(r)) {
		dprintf(r->log, "@lost %" PRIu32 "\n", r->next);
		return EXIT_LOST;
	}
	if (r->failed || r->wrong) {
		dprintf(r->log, "@failed error=%d wrong=%" PRIu64 "\n", r->failed, r->wrong);
		return EXIT_WRONG;
	}
	dprintf(r->log, "@done %" PRIu32 "\n", r->next);
	return o->newstate && !model_save(&r->model, o->newstate) ? EXIT_USAGE : EXIT_RIGHT;
}
