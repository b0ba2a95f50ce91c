/*
 * model.h: what is known of a device's contents, and what its log promises.
 *
 * A state is one version a sector (0 = zeros), kept in a file of u32 values. A log
 * is what a writer printed; lines that matter start with '@':
 *   @plan seed=… first=… …   the writes to come (struct plan)
 *   @flush N                 a flush that was sent after writes 0 … N-1 had completed was acknowledged
 *   @done N                  the run ended in good order after N writes, and a last flush
 * A line without its newline is a line that was cut off, and does not count.
 *
 * The law that model_check holds a sector to: it carries the newest version among the
 * writes below N (or, where there is none, what stood there before), or any version of the
 * plan from N on that may lie in this sector. After "@done" only the former is right.
 */
#ifndef BLKIO_MODEL_H
#define BLKIO_MODEL_H

#include "pattern.h"

#include <stddef.h>

struct model {
	uint64_t sectors;
	uint32_t *version; /* of each sector: the newest that is durable for certain */
};

struct history {
	bool has_plan;
	struct plan plan;
	uint32_t flushed; /* N of the last @flush or @done */
	bool done;
};

/* A model of that many sectors of zeros; false when memory is short. */
bool model_init(struct model *m, uint64_t sectors);

/* Loads a state; one of other length is taken if what it has too much is zero. */
bool model_load(struct model *m, const char *path);

bool model_save(const struct model *m, const char *path);

/* Applies one write of a plan. */
void model_apply(struct model *m, const struct plan_op *op);

bool history_load(struct history *h, const char *path);

/* Brings the model to what the history says is durable; false when the plan exceeds the device. */
bool model_replay(struct model *m, const struct history *h);

/* One bit a sector: whether a write of the history that may or may not be there wrote zeroes to it. */
uint8_t *history_zeroes(const struct history *h, uint64_t sectors);

/* Is what was found in a sector one of the permitted values? */
bool model_check(const struct model *m, const struct history *h, const uint8_t *zeroes, uint64_t sector,
		 int64_t found);

#endif
