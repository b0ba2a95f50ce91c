"""A bdev made reachable from outside its target: iSCSI, NVMe/TCP, vhost-user-blk. All on the loopback."""

import socket

IQN = "iqn.2016-06.io.spdk:"
NQN = "nqn.2016-06.io.spdk:"


def free_port():
    """A TCP port of the loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Iscsi:
    """One target node with one LUN. It belongs to the process: after a restart call `start` again."""

    def __init__(self, bdev, port=None):
        self.bdev = bdev
        self.port = port or free_port()
        self.tag = None
        self.node = bdev.lower().replace("/", ".")
        self.url = "iscsi://127.0.0.1:%d/%s%s/0" % (self.port, IQN, self.node)

    def start(self, target, tag=1):
        """Makes the export, with portal and initiator groups of that number; returns its URL."""
        self.tag = tag
        target.call("iscsi_create_portal_group", tag=tag, portals=[{"host": "127.0.0.1", "port": str(self.port)}])
        target.call("iscsi_create_initiator_group", tag=tag, initiators=["ANY"], netmasks=["ANY"])
        target.call("iscsi_create_target_node", name=self.node, alias_name=self.node, disable_chap=True,
                    luns=[{"bdev_name": self.bdev, "lun_id": 0}], pg_ig_maps=[{"pg_tag": tag, "ig_tag": tag}],
                    queue_depth=64)
        return self.url

    def stop(self, target):
        """Removes the export, so that the bdev is free again."""
        target.call("iscsi_delete_target_node", name=IQN + self.node)
        target.call("iscsi_delete_initiator_group", tag=self.tag)
        target.call("iscsi_delete_portal_group", tag=self.tag)


class NvmeTcp:
    """One NVMe-oF subsystem over TCP, with a namespace for every bdev."""

    def __init__(self, *bdevs, port=None, name="disk"):
        self.bdevs = bdevs
        self.port = port or free_port()
        self.nqn = NQN + name

    def address(self):
        """What bdev_nvme_attach_controller takes."""
        return {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(self.port),
                "subnqn": self.nqn}

    def start(self, target, transport=True, **options):
        """Makes the export, and before it the transport, of which a target has one for all its subsystems. `options`
        are more of the subsystem's."""
        if transport:
            target.call("nvmf_create_transport", trtype="TCP")
        target.call("nvmf_create_subsystem", nqn=self.nqn, allow_any_host=True, serial_number="BCACHE0000000001",
                    max_namespaces=8, **options)
        for bdev in self.bdevs:
            target.call("nvmf_subsystem_add_ns", nqn=self.nqn, namespace={"bdev_name": bdev})
        target.call("nvmf_subsystem_add_listener", nqn=self.nqn,
                    listen_address={key: value for key, value in self.address().items() if key != "subnqn"})


class VhostBlk:
    """A vhost-user-blk controller; its socket lies in the target's folder."""

    def __init__(self, bdev, name="vhost0"):
        self.bdev = bdev
        self.name = name

    def start(self, target):
        """Makes the controller; returns the socket's path for QEMU."""
        target.call("vhost_create_blk_controller", ctrlr=self.name, dev_name=self.bdev)
        return target.folder / self.name

    def stop(self, target):
        """Removes it, so that the bdev is free again."""
        target.call("vhost_delete_controller", ctrlr=self.name)


KINDS = {"nvmf": NvmeTcp, "iscsi": Iscsi, "vhost": VhostBlk}


def exported(target, kind):
    """The names of the bdevs that a target exports."""
    if kind == "nvmf":
        return [ns["bdev_name"] for entry in target.call("nvmf_get_subsystems") for ns in entry.get("namespaces", [])]
    if kind == "iscsi":
        return [lun["bdev_name"] for node in target.call("iscsi_get_target_nodes") for lun in node["luns"]]
    return [entry["backend_specific"]["block"]["bdev"] for entry in target.call("vhost_get_controllers")]
