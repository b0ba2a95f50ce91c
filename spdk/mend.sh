# shellcheck shell=bash
# Faults of SPDK 20.07 that its users meet through a cache, mended in the tree that setup.sh builds. Read by setup.sh.
#
# Each function gets the tree as $1, leaves other releases alone, and stops the set-up where the file is not as it is
# known. A change here wants a new RECIPE in setup.sh.

# Whether the tree $1 is 20.07.
is_2007() { [[ $(spdk_version "$1") == 2007 ]]; }

# Checks that the file $1 has the text $2 (a basic regular expression) on exactly $3 lines.
expect_lines() {
  (($(grep -c -- "$2" "$1") == $3)) || die "$1 is not 20.07's as it is known"
}

# The iSCSI target loses connections.
#
# Until a connection's first NOP-In, 20.07 counts its idle time from the start of the machine. Where the timer of
# NOP-Ins (once a second) fires just after a login, the NOP-In that it queues is aborted by the hand-over of the
# connection to its poll group, and the connection is dropped in between the two: nobody answers it any more, and the
# target's shutdown waits for it for ever. Later releases count from the beginning of the connection; so does this.
mend_iscsi() {
  local file=$1/lib/iscsi/conn.c after='conn->nopininterval \*= spdk_get_ticks_hz();'
  is_2007 "$1" || return 0
  sed -i "s|^\(\s*\)$after.*|&\n\1conn->last_nopin = spdk_get_ticks();|" "$file"
  expect_lines "$file" 'conn->last_nopin = spdk_get_ticks();' 3
}

# AIO bdevs hang and write into freed I/Os.
#
# All AIO bdevs of a thread share one queue of the kernel's. What finds it full is handed back to the bdev layer, which
# tries it again when an I/O of the same bdev ends: never, where others filled the queue. It is kept in a list of the
# thread's here, in its order, and submitted when the queue has room. And an I/O is counted out after it was completed,
# when its memory may be another's; it is counted out before that here.
mend_aio() {
  local file=$1/module/bdev/aio/bdev_aio.c functions
  is_2007 "$1" || return 0
  functions=$(
    cat <<'CODE'
static int
submit_or_keep(struct bdev_aio_group_channel *group, struct bdev_aio_task *task)
{
	struct iocb *iocb = &task->iocb;
	int rc = -EAGAIN;

	if (TAILQ_EMPTY(&group->kept)) {
		rc = io_submit(group->io_ctx, 1, &iocb);
	}
	if (rc == -EAGAIN) {
		TAILQ_INSERT_TAIL(&group->kept, task, link);
		rc = 1;
	}
	return rc;
}

static void
submit_kept(struct bdev_aio_group_channel *group)
{
	struct bdev_aio_task *task;
	struct iocb *iocb;
	int rc;

	while ((task = TAILQ_FIRST(&group->kept)) != NULL) {
		iocb = &task->iocb;
		rc = io_submit(group->io_ctx, 1, &iocb);
		if (rc == -EAGAIN) {
			return;
		}
		TAILQ_REMOVE(&group->kept, task, link);
		if (rc < 0) {
			task->ch->io_inflight--;
			spdk_bdev_io_complete(spdk_bdev_io_from_ctx(task), SPDK_BDEV_IO_STATUS_FAILED);
		}
	}
}

CODE
  )
  FUNCTIONS=$functions awk '
    /^static int64_t$/ && !placed { print ENVIRON["FUNCTIONS"] "\n"; placed = 1 }
    /io_context_t[ \t]+io_ctx;/ { print; print "\tTAILQ_HEAD(, bdev_aio_task)\t\tkept;"; next }
    /SPDK_POLLER_REGISTER\(bdev_aio_group_poll, ch/ { print "\tTAILQ_INIT(&ch->kept);" }
    /aio_task->ch->io_inflight--;/ { next }
    /spdk_bdev_io_from_ctx\(aio_task\), status\)/ { print "\t\taio_task->ch->io_inflight--;" }
    /return nr > 0 \?/ { print "\tsubmit_kept(group_ch);\n" }
    { sub(/io_submit\(aio_ch->group_ch->io_ctx, 1, &iocb\)/, "submit_or_keep(aio_ch->group_ch, aio_task)"); print }
  ' "$file" >"$file.mended"
  mv "$file.mended" "$file"
  expect_lines "$file" 'submit_or_keep(aio_ch->group_ch, aio_task)' 2
  expect_lines "$file" 'io_inflight--;' 2
  expect_lines "$file" 'submit_kept(group_ch);' 1
  expect_lines "$file" 'TAILQ_INIT(&ch->kept);' 1
  expect_lines "$file" 'kept;$' 1
}

# The JSON-RPC server goes away under requests.
#
# It is freed as soon as the target is told to end, with the requests that are still under way: the answer to one of
# these spins in freed memory, or crashes. Such a server stays in memory until the process ends here; what is answered
# to its closed connections is never sent.
mend_jsonrpc() {
  local file=$1/lib/jsonrpc/jsonrpc_server_tcp.c
  is_2007 "$1" || return 0
  sed -i '/^spdk_jsonrpc_server_shutdown(/,/^}/ {
    s/^\tstruct spdk_jsonrpc_server_conn \*conn;/&\n\tint under_way = 0;/
    s/^\t\tjsonrpc_server_conn_close(conn);/&\n\t\tunder_way += conn->outstanding_requests;/
    s/^\tfree(server);/\tif (under_way == 0) {\n\t\tfree(server);\n\t}/
  }' "$file"
  expect_lines "$file" 'under_way' 3
}

# All of the above.
mend() {
  mend_iscsi "$1"
  mend_aio "$1"
  mend_jsonrpc "$1"
}
