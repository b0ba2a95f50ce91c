"""bcache superblocks and journals on images: read them, and damage them one field at a time.

Offsets are those of the on-disk format. A field is changed with the checksum made right again, so that it is the field
that is refused and not the checksum.
"""

import struct
import uuid

from . import images

MAGIC = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
JSET_MAGIC = 0x245235C1A3625032
POLYNOMIAL = 0x42F0E1EBA9EA3693
ONES = (1 << 64) - 1
KEYS_AT = 206
LIST_AT = 208

# name: (offset, struct format)
FIELDS = {
    "csum": (0, "<Q"), "offset": (8, "<Q"), "version": (16, "<Q"), "magic": (24, "16s"), "uuid": (40, "16s"),
    "set_uuid": (56, "16s"), "label": (72, "32s"), "flags": (104, "<Q"), "seq": (112, "<Q"),
    "feature_compat": (120, "<Q"), "feature_incompat": (128, "<Q"), "feature_ro_compat": (136, "<Q"),
    "nbuckets": (184, "<Q"), "data_offset": (184, "<Q"), "block_size": (192, "<H"), "bucket_size": (194, "<H"),
    "nr_in_set": (196, "<H"), "nr_this_dev": (198, "<H"), "first_bucket": (204, "<H"), "keys": (206, "<H"),
    "journal0": (208, "<Q"), "journal1": (216, "<Q"),
}


def crc_table():
    """One entry for each byte that leaves the register at its top."""
    table = []
    for byte in range(256):
        crc = byte << 56
        for _ in range(8):
            crc = (crc << 1 ^ (POLYNOMIAL if crc >> 63 else 0)) & ONES
        table.append(crc)
    return table


CRC_TABLE = crc_table()


def crc64(data):
    """CRC-64/WE."""
    crc = ONES
    for byte in data:
        crc = (crc << 8 & ONES) ^ CRC_TABLE[crc >> 56 ^ byte]
    return crc ^ ONES


class Superblock:
    """The superblock of an image; `write` makes the checksum right unless told otherwise."""

    def __init__(self, path):
        self.path = path
        self.data = bytearray(images.read(path, images.SUPERBLOCK_BYTE, 4096))

    def __getitem__(self, name):
        offset, form = FIELDS[name]
        return struct.unpack_from(form, self.data, offset)[0]

    def __setitem__(self, name, value):
        offset, form = FIELDS[name]
        struct.pack_into(form, self.data, offset, value)

    def checksum(self):
        """Over what the superblock's own count of keys says; over none of them where that count is absurd."""
        keys = self["keys"] if self["keys"] <= 256 else 0
        return crc64(self.data[8:LIST_AT + 8 * keys])

    def is_bcache(self):
        """Whether the magic is there."""
        return self["magic"] == MAGIC

    def set_uuid(self):
        """The set's UUID as text."""
        return str(uuid.UUID(bytes=self["set_uuid"]))

    def write(self, right_checksum=True):
        """Back to the image."""
        if right_checksum:
            self["csum"] = self.checksum()
        images.patch(self.path, images.SUPERBLOCK_BYTE, bytes(self.data))


def change(path, **fields):
    """Changes fields of an image's superblock, the checksum made right."""
    block = Superblock(path)
    for name, value in fields.items():
        block[name] = value
    block.write()


def journal_entries(path):
    """Every valid journal entry of a cache image: (seq, last_seq, byte offset), sorted by seq."""
    block = Superblock(path)
    bucket_bytes = block["bucket_size"] * images.SECTOR
    step = block["block_size"] * images.SECTOR
    magic = int.from_bytes(block["set_uuid"][:8], "little") ^ JSET_MAGIC
    entries = {}
    for number in range(block["keys"]):
        start = struct.unpack_from("<Q", block.data, LIST_AT + 8 * number)[0] * bucket_bytes
        data = images.read(path, start, bucket_bytes)
        for at in range(0, bucket_bytes, step):
            csum, found, seq = struct.unpack_from("<QQQ", data, at)
            if found != magic:
                continue
            keys, last_seq = struct.unpack_from("<IQ", data, at + 28)
            if at + 240 + 8 * keys <= bucket_bytes and csum == crc64(data[at + 8:at + 240 + 8 * keys]):
                entries[seq] = (seq, last_seq, start + at)
    return sorted(entries.values())


def cut_journal(path):
    """Wipes a journal entry in the middle of what recovery needs; returns its number."""
    entries = journal_entries(path)
    newest, last_seq, _ = entries[-1]
    needed = [entry for entry in entries if last_seq < entry[0] < newest]
    if not needed:
        raise ValueError("%s: recovery needs one journal entry only (%d)" % (path, newest))
    seq, _, offset = needed[len(needed) // 2]
    images.patch(path, offset, bytes(240))
    return seq


def key_bytes(row):
    """A key of `bcachectl dump keys --json` as it stands on disk."""
    high = 1 << 63 | 1 << 60 | int(row["dirty"]) << 36 | row["sectors"] << 20 | row["inode"]
    return struct.pack("<QQQ", high, row["start"] + row["sectors"], row["at"] << 8 | row["gen"])


def fill_journal(path, rows):
    """Writes journal entries behind the newest, of one block each, until one bucket is left: the brim up to which a
    writer may leave them to Linux. Their keys are those in `rows`, again and again. Returns how many keys that makes."""
    block = Superblock(path)
    step, bucket_bytes = block["block_size"] * images.SECTOR, block["bucket_size"] * images.SECTOR
    buckets = [struct.unpack_from("<Q", block.data, LIST_AT + 8 * number)[0] for number in range(block["keys"])]
    newest, _, at = journal_entries(path)[-1]
    head = images.read(path, at, 240)
    current = buckets.index(at // bucket_bytes)
    used = -(-(240 + 8 * struct.unpack_from("<I", head, 28)[0]) // step) * step
    places = list(range(at + used, (at // bucket_bytes + 1) * bucket_bytes, step))
    for number in range(1, len(buckets) - 1):
        start = buckets[(current + number) % len(buckets)] * bucket_bytes
        places += range(start, start + bucket_bytes, step)
    each = (step - 240) // 24
    for number, place in enumerate(places):
        keys = b"".join(key_bytes(rows[k % len(rows)]) for k in range(number * each, (number + 1) * each))
        entry = bytearray(head + keys)
        struct.pack_into("<Q", entry, 16, newest + 1 + number)
        struct.pack_into("<IQ", entry, 28, len(keys) // 8, newest)
        struct.pack_into("<Q", entry, 0, crc64(entry[8:]))
        images.patch(path, place, bytes(entry).ljust(step, b"\0"))
    return len(places) * each
