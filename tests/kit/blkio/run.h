/*
 * run.h: the tool's commands on an open device. Each prints one line that starts
 * with '@' and sums up, and gives the exit code: 0 right, 1 wrong data or a failed
 * request, 2 a bad call, 3 the device was lost on the way.
 */
#ifndef BLKIO_RUN_H
#define BLKIO_RUN_H

#include "dev.h"
#include "model.h"

enum exit_code { EXIT_RIGHT, EXIT_WRONG, EXIT_USAGE, EXIT_LOST };

struct options {
	struct plan plan;
	uint32_t depth;     /* requests in flight, 1 … 256 */
	uint32_t flush;     /* a flush after every so many writes; 0 = at the end only */
	uint32_t reads;     /* reads, each checked against the model, per 100 writes */
	uint32_t seconds;   /* stop in good order after so long; 0 = when the plan ends */
	uint32_t size;      /* sectors of a request of verify */
	uint32_t sweep;     /* read: 1 = every place of the region once, scattered, instead of the plan's places */
	const char *state;  /* contents at the start; NULL = all zeros */
	const char *newstate; /* where to keep what was found */
	const char *log;    /* write: where the log goes (NULL = stdout); verify: whose promises to check */
};

/* Carries out the plan; see model.h for what goes into the log. */
int run_write(struct dev *dev, const struct options *o);

/* Reads the whole device and holds every sector to the state and the log. */
int run_verify(struct dev *dev, const struct options *o);

/* Random reads, checked against the state if there is one, and how many a second. */
int run_read(struct dev *dev, const struct options *o);

/* Compares every sector with a golden fixture's list of versions, in that fixture's own layout. */
int run_golden(struct dev *dev, const char *expect, uint64_t at);

#endif
