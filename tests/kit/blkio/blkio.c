/*
 * blkio: writes and verifies self-describing data on a block device, a file or an
 * iSCSI LUN, and knows which of it a flush had made durable.
 *
 *   blkio info DEV
 *   blkio write DEV [KEY=VALUE…]       carry out a plan and log what becomes durable
 *   blkio verify DEV [KEY=VALUE…]      hold every sector of DEV to state= and log=
 *   blkio read DEV [KEY=VALUE…]        random reads, checked against state=, and their rate
 *   blkio golden DEV EXPECT [at=N]     compare with a golden fixture
 *
 * Plan: seed=1 first=1 count=1000 at=0 span=(to the end) align=(the block) min=align max=min
 *       hot=0 zero=0. Run: depth=16 flush=0 reads=0 seconds=0. Files: state= newstate= log=.
 *       verify also takes size=1024, read sweep=1 (every place of the region once). All lengths and places are in 512-byte sectors.
 *       See pattern.h (the plan, the contents), model.h (the log, the law), run.h (exit codes).
 * DEV is a path, or iscsi://HOST:PORT/TARGET/LUN where the tool was built with libiscsi.
 */
#include "run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 256, SECTORS_MAX = 1 << 16 };

struct dev *dev_open(const char *name, int write)
{
#ifdef WITH_ISCSI
	if (!strncmp(name, "iscsi://", 8))
		return dev_iscsi_open(name);
#endif
	return dev_file_open(name, write);
}

static int set_number(struct options *o, const char *key, uint64_t v)
{
	struct plan *p = &o->plan;
	const struct {
		const char *key;
		uint32_t *to;
	} keys[] = {
		{ "first", &p->first },	  { "count", &p->count },   { "align", &p->align }, { "min", &p->min },
		{ "max", &p->max },	  { "hot", &p->hot },	    { "zero", &p->zero },   { "depth", &o->depth },
		{ "flush", &o->flush },	  { "reads", &o->reads },   { "size", &o->size },   { "seconds", &o->seconds },
		{ "sweep", &o->sweep },
	};

	if (!strcmp(key, "seed"))
		p->seed = v;
	else if (!strcmp(key, "at"))
		p->at = v;
	else if (!strcmp(key, "span"))
		p->span = v;
	else
		for (size_t k = 0;; k++) {
			if (k == sizeof(keys) / sizeof(keys[0]))
				return -1;
			if (!strcmp(key, keys[k].key)) {
				*keys[k].to = (uint32_t)v;
				return v > UINT32_MAX ? -1 : 0;
			}
		}
	return 0;
}

static int set_option(struct options *o, char *arg)
{
	char *value = strchr(arg, '='), *end;
	uint64_t v;

	if (!value)
		return -1;
	*value++ = 0;
	if (!strcmp(arg, "state"))
		o->state = value;
	else if (!strcmp(arg, "newstate"))
		o->newstate = value;
	else if (!strcmp(arg, "log"))
		o->log = value;
	else {
		v = strtoull(value, &end, 10);
		return *value && !*end ? set_number(o, arg, v) : -1;
	}
	return 0;
}

/* What was not given follows from the device. */
static int complete_options(struct options *o, const struct dev *dev)
{
	struct plan *p = &o->plan;

	if (!p->align)
		p->align = dev->block;
	if (!p->min)
		p->min = p->align;
	if (p->max < p->min)
		p->max = p->min;
	if (!p->span && p->at < dev->sectors)
		p->span = dev->sectors - p->at;
	p->span -= p->span % p->align;
	if (!plan_valid(p) || p->align % dev->block || p->at + p->span > dev->sectors || !o->depth ||
	    o->depth > DEPTH_MAX || !o->size || o->size % dev->block || o->size > SECTORS_MAX || p->max > SECTORS_MAX) {
		fprintf(stderr, "the plan does not suit the device (%" PRIu64 " sectors, blocks of %" PRIu32 ")\n",
			dev->sectors, dev->block);
		return -1;
	}
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: blkio info|write|verify|read|golden DEV … (see the head of blkio.c)\n");
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	struct options o = { .plan = { .seed = 1, .first = 1, .count = 1000 }, .depth = 16, .size = 1024 };
	int golden = argc > 3 && !strcmp(argv[1], "golden"), code;
	struct dev *dev;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 3)
		return usage();
	for (int k = golden ? 4 : 3; k < argc; k++)
		if (set_option(&o, argv[k])) {
			fprintf(stderr, "%s: unknown, or not a number\n", argv[k]);
			return usage();
		}
	dev = dev_open(argv[2], !strcmp(argv[1], "write"));
	if (!dev)
		return EXIT_LOST;
	if (!strcmp(argv[1], "info")) {
		printf("@info sectors=%" PRIu64 " block=%" PRIu32 "\n", dev->sectors, dev->block);
		code = EXIT_RIGHT;
	} else if (golden) {
		code = run_golden(dev, argv[3], o.plan.at);
	} else if (complete_options(&o, dev)) {
		code = EXIT_USAGE;
	} else if (!strcmp(argv[1], "write")) {
		code = run_write(dev, &o);
	} else if (!strcmp(argv[1], "verify")) {
		code = run_verify(dev, &o);
	} else if (!strcmp(argv[1], "read")) {
		code = run_read(dev, &o);
	} else {
		code = usage();
	}
	if (code != EXIT_LOST)
		dev_close(dev);
	return code;
}
