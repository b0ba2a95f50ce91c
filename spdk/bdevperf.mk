# Links SPDK's bdevperf with the module, by SPDK's own rules: they know which libraries the tree was built with and how
# its version wants them linked. bdevperf.sh runs this in a folder of its own, so that the SPDK tree stays untouched:
#   make -f bdevperf.mk SPDK_ROOT_DIR=<the SPDK tree> MODULE=<libspdk_bcache.a>
# The folder has bdevperf.c in it. The module is linked whole, because nothing but its constructors refers to it.

include $(SPDK_ROOT_DIR)/mk/spdk.common.mk
include $(SPDK_ROOT_DIR)/mk/spdk.modules.mk

APP = bdevperf

C_SRCS := bdevperf.c

# -w, because the source is SPDK's and its warnings are not ours to heed
CFLAGS += -w

SPDK_LIB_LIST = $(ALL_MODULES_LIST)
SPDK_LIB_LIST += $(EVENT_BDEV_SUBSYSTEM) event_bdev event
SPDK_LIB_LIST += bdev accel trace log conf thread util sock notify
SPDK_LIB_LIST += rpc jsonrpc json app_rpc log_rpc bdev_rpc
SPDK_LIB_LIST += event_nbd nbd env_dpdk_rpc
# the module's glue knows of vhost, which bcache_tgt exports volumes by
SPDK_LIB_LIST += vhost scsi
# some of these were merged into others since 20.07
SPDK_LIB_LIST := $(foreach lib,$(sort $(SPDK_LIB_LIST)),$(if $(wildcard $(SPDK_ROOT_DIR)/build/lib/libspdk_$(lib).a),$(lib)))

LIBS += -Wl,--whole-archive $(MODULE) -Wl,--no-whole-archive
SYS_LIBS += -lm -ldl -lpthread

include $(SPDK_ROOT_DIR)/mk/spdk.app.mk

$(APP) : $(MODULE)
