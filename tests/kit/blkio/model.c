/* model.c: see model.h. */
#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool model_init(struct model *m, uint64_t sectors)
{
	m->sectors = sectors;
	m->version = calloc(sectors ? sectors : 1, sizeof(*m->version));
	return m->version;
}

bool model_load(struct model *m, const char *path)
{
	FILE *f = fopen(path, "rb");
	uint32_t rest;
	size_t n;
	bool ok = true;

	if (!f) {
		perror(path);
		return false;
	}
	n = fread(m->version, sizeof(*m->version), m->sectors, f);
	if (n == m->sectors)
		while (ok && fread(&rest, sizeof(rest), 1, f) == 1)
			ok = rest == 0;
	if (!ok)
		fprintf(stderr, "%s: holds data beyond the device's %" PRIu64 " sectors\n", path, m->sectors);
	fclose(f);
	return ok;
}

bool model_save(const struct model *m, const char *path)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(m->version, sizeof(*m->version), m->sectors, f) != m->sectors || fclose(f)) {
		perror(path);
		return false;
	}
	return true;
}

void model_apply(struct model *m, const struct plan_op *op)
{
	uint32_t v = op->kind == PLAN_ZERO ? 0 : op->version;

	for (uint32_t k = 0; k < op->count; k++)
		m->version[op->sector + k] = v;
}

static void history_line(struct history *h, const char *line)
{
	struct plan p;
	uint32_t n;

	if (sscanf(line,
		   "@plan seed=%" SCNu64 " first=%" SCNu32 " count=%" SCNu32 " at=%" SCNu64 " span=%" SCNu64
		   " align=%" SCNu32 " min=%" SCNu32 " max=%" SCNu32 " hot=%" SCNu32 " zero=%" SCNu32,
		   &p.seed, &p.first, &p.count, &p.at, &p.span, &p.align, &p.min, &p.max, &p.hot, &p.zero) == 10) {
		h->plan = p;
		h->has_plan = true;
	} else if (sscanf(line, "@flush %" SCNu32, &n) == 1) {
		h->flushed = n > h->flushed ? n : h->flushed;
	} else if (sscanf(line, "@done %" SCNu32, &n) == 1) {
		h->flushed = n;
		h->done = true;
	}
}

bool history_load(struct history *h, const char *path)
{
	FILE *f = fopen(path, "rb");
	char line[512];

	memset(h, 0, sizeof(*h));
	if (!f) {
		perror(path);
		return false;
	}
	while (fgets(line, sizeof(line), f))
		if (line[0] == '@' && strchr(line, '\n'))
			history_line(h, line);
	fclose(f);
	if (!h->has_plan || !plan_valid(&h->plan) || h->flushed > h->plan.count) {
		fprintf(stderr, "%s: no usable @plan, or a count beyond it\n", path);
		return false;
	}
	return true;
}

bool model_replay(struct model *m, const struct history *h)
{
	if (h->plan.at + h->plan.span > m->sectors) {
		fprintf(stderr, "the plan reaches to sector %" PRIu64 ", the device ends at %" PRIu64 "\n",
			h->plan.at + h->plan.span, m->sectors);
		return false;
	}
	for (uint32_t i = 0; i < h->flushed; i++) {
		struct plan_op op = plan_op(&h->plan, i);

		model_apply(m, &op);
	}
	return true;
}

uint8_t *history_zeroes(const struct history *h, uint64_t sectors)
{
	uint8_t *bits = calloc(sectors / 8 + 1, 1);

	if (!bits || h->done || !h->plan.zero)
		return bits;
	for (uint32_t i = h->flushed; i < h->plan.count; i++) {
		struct plan_op op = plan_op(&h->plan, i);

		for (uint64_t s = op.sector; op.kind == PLAN_ZERO && s < op.sector + op.count; s++)
			bits[s / 8] |= (uint8_t)(1 << s % 8);
	}
	return bits;
}

bool model_check(const struct model *m, const struct history *h, const uint8_t *zeroes, uint64_t sector,
		 int64_t found)
{
	uint32_t i;
	struct plan_op op;

	if (found == (int64_t)m->version[sector])
		return true;
	if (found < 0 || !h->has_plan || h->done)
		return false;
	if (found == 0)
		return zeroes[sector / 8] >> sector % 8 & 1;
	if (found < (int64_t)h->plan.first + h->flushed || found >= (int64_t)h->plan.first + h->plan.count)
		return false;
	i = (uint32_t)found - h->plan.first;
	op = plan_op(&h->plan, i);
	return op.kind == PLAN_WRITE && sector >= op.sector && sector < op.sector + op.count;
}
