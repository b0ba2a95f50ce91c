"""A small NVMe/TCP initiator that sends what a well-behaved one would not: lists of memory of any length, aborts,
malformed ranges. One controller with one I/O queue; commands are asynchronous."""

import socket
import struct
import threading

HOST_NQN = b"nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111"
WAIT_SECONDS = 60
WRITE, READ, ZEROES, DEALLOCATE = 1, 2, 8, 9
FABRICS, PROPERTY_SET, CONNECT, PROPERTY_GET = 0x7f, 0, 1, 4
# the length of a PDU's header with a command in it
COMMAND_PDU = 72


class Failed(Exception):
    """A command ended with a status other than success, or not at all."""


class Command:
    """A command under way: `wait` for its end, then `status` and `data`."""

    def __init__(self, out, read_bytes):
        self.out = out
        self.data = bytearray(read_bytes)
        self.completion = None
        self.done = threading.Event()

    def wait(self, limit=WAIT_SECONDS):
        """Waits for the end, whatever that is."""
        if not self.done.wait(limit):
            raise Failed("no answer after %d s" % limit)
        if self.completion is None:
            raise Failed("the connection broke")
        return self

    @property
    def status(self):
        """Status code and type as NVMe has them; 0 is success."""
        return (struct.unpack_from("<H", self.completion, 14)[0] >> 1) & 0x7ff

    def ok(self, limit=WAIT_SECONDS):
        """Waits for success."""
        if self.wait(limit).status:
            raise Failed("status %#x" % self.status)
        return self


class Queue:
    """One connection: a queue of commands."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)
        self.socket.settimeout(None)
        self.socket.sendall(struct.pack("<BBBBI", 0, 0, 128, 0, 128) + bytes(120))
        self.receive(128)
        self.commands = {}
        self.next_id = 1
        self.lock = threading.Lock()
        self.sending = threading.Lock()
        self.thread = threading.Thread(target=self.read_all, daemon=True)
        self.thread.start()

    def close(self):
        """Ends the connection without a word to the controller."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.thread.join(WAIT_SECONDS)
        self.socket.close()

    def receive(self, count):
        """So many bytes."""
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise OSError("closed")
            data += part
        return bytes(data)

    def read_all(self):
        """Takes PDUs until the connection ends."""
        try:
            while True:
                kind, flags, header_bytes, offset, length = struct.unpack("<BBBBI", self.receive(8))
                self.take(kind, flags, (offset or header_bytes) - 8, self.receive(length - 8))
        except (OSError, KeyError):
            pass
        with self.lock:
            left, self.commands = self.commands, {}
        for command in left.values():
            command.done.set()

    def take(self, kind, flags, data_at, body):
        """One PDU: a completion, data to the host, or a request for data."""
        if kind == 5:
            self.finish(struct.unpack_from("<H", body, 12)[0], body[:16])
        elif kind == 7:
            number, _, offset, length = struct.unpack_from("<HHII", body, 0)
            self.commands[number].data[offset:offset + length] = body[data_at:data_at + length]
            if flags & 8:
                self.finish(number, bytes(16))
        elif kind == 9:
            number, tag, offset, length = struct.unpack_from("<HHII", body, 0)
            head = struct.pack("<BBBBI", 6, 4, 24, 24, 24 + length) + struct.pack("<HHIII", number, tag, offset, length, 0)
            with self.sending:
                self.socket.sendall(head + bytes(self.commands[number].out[offset:offset + length]))

    def finish(self, number, completion):
        """A command is over."""
        with self.lock:
            command = self.commands.pop(number)
        command.completion = completion
        command.done.set()

    def submit(self, entry, out=b"", read_bytes=0, in_capsule=False):
        """Sends a submission queue entry with its data, in the capsule or when the controller asks for them."""
        command = Command(out, read_bytes)
        with self.lock:
            while self.next_id in self.commands:
                self.next_id = self.next_id % 60000 + 1
            number = self.next_id
            self.next_id = self.next_id % 60000 + 1
            self.commands[number] = command
        struct.pack_into("<H", entry, 2, number)
        data = bytes(out) if in_capsule else b""
        head = struct.pack("<BBBBI", 4, 0, COMMAND_PDU, COMMAND_PDU if data else 0, COMMAND_PDU + len(data))
        with self.sending:
            self.socket.sendall(head + bytes(entry) + data)
        return command


def entry_of(opcode, kind=0, namespace=0):
    """A submission queue entry; `kind` is a fabrics command's type."""
    entry = bytearray(64)
    entry[0] = opcode
    if opcode == FABRICS:
        entry[1], entry[4] = 0x40, kind
    else:
        struct.pack_into("<I", entry, 4, namespace)
    return entry


def describe_memory(entry, length, in_capsule=False):
    """Puts the host's memory into an entry: so many bytes, in the controller's buffers or in the capsule."""
    entry[1] = 0x40
    struct.pack_into("<QI", entry, 24, 0, length)
    entry[39] = 0x01 if in_capsule else 0x5a
    return entry


class Initiator:
    """A controller of a subsystem, connected."""

    def __init__(self, port, nqn, depth=128):
        self.admin = Queue(port)
        completion = self.connect(self.admin, 0, 31, 0xffff, nqn)
        controller = struct.unpack_from("<H", completion, 0)[0]
        enable = entry_of(FABRICS, PROPERTY_SET)
        struct.pack_into("<IQ", enable, 44, 0x14, 0x00460001)
        self.admin.submit(enable).ok()
        while not self.property(0x1c) & 1:
            pass
        self.io = Queue(port)
        self.connect(self.io, 1, depth - 1, controller, nqn)

    @staticmethod
    def connect(queue, number, size, controller, nqn):
        """The fabrics command that makes a connection a queue."""
        entry = describe_memory(entry_of(FABRICS, CONNECT), 1024, in_capsule=True)
        struct.pack_into("<HHH", entry, 40, 0, number, size)
        data = bytearray(1024)
        data[0:16] = b"\x11" * 16
        struct.pack_into("<H", data, 16, controller)
        data[256:256 + len(nqn)] = nqn.encode()
        data[512:512 + len(HOST_NQN)] = HOST_NQN
        return queue.submit(entry, out=data, in_capsule=True).ok().completion

    def property(self, offset):
        """A register of the controller."""
        entry = entry_of(FABRICS, PROPERTY_GET)
        struct.pack_into("<I", entry, 44, offset)
        return struct.unpack_from("<I", self.admin.submit(entry).ok().completion, 0)[0]

    def close(self):
        """Leaves both queues."""
        self.io.close()
        self.admin.close()

    @staticmethod
    def range(opcode, block, blocks, namespace=1):
        """An entry for a range of blocks: 1 to 65536 of them."""
        entry = entry_of(opcode, namespace=namespace)
        struct.pack_into("<QH", entry, 40, block, blocks - 1)
        return entry

    def write(self, block, blocks, data):
        """Writes blocks from memory that may be longer."""
        return self.io.submit(describe_memory(self.range(WRITE, block, blocks), len(data)), out=data)

    def read(self, block, blocks, memory_bytes):
        """Reads blocks into memory that may be longer."""
        entry = describe_memory(self.range(READ, block, blocks), memory_bytes)
        return self.io.submit(entry, read_bytes=memory_bytes)

    def zeroes(self, block, blocks):
        """Zeroes blocks."""
        return self.io.submit(self.range(ZEROES, block, blocks))

    def deallocate(self, ranges):
        """Discards (block, blocks) ranges."""
        data = b"".join(struct.pack("<IIQ", 0, blocks, block) for block, blocks in ranges)
        entry = describe_memory(entry_of(DEALLOCATE, namespace=1), len(data))
        struct.pack_into("<II", entry, 40, len(ranges) - 1, 4)
        return self.io.submit(entry, out=data)

    def flush(self):
        """Makes durable what was answered."""
        return self.io.submit(entry_of(0, namespace=1))
