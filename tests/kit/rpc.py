"""JSON-RPC 2.0 over a Unix socket, as SPDK speaks it: one object after the other, no framing."""

import json
import socket


class RpcError(Exception):
    """The target refused a call: `code` and `message` are its own."""

    def __init__(self, method, code, message):
        super().__init__("%s: %s (code %d)" % (method, message, code))
        self.method = method
        self.code = code
        self.message = message


class RpcLost(Exception):
    """The connection broke, or no answer came in time."""


class RpcClient:
    """One connection. `call` blocks for at most `limit` seconds; calls are answered in order."""

    def __init__(self, path, limit=30.0):
        self.limit = limit
        self.next_id = 1
        self.text = ""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(limit)
        try:
            self.socket.connect(str(path))
        except OSError as error:
            self.socket.close()
            raise RpcLost("cannot connect to %s: %s" % (path, error)) from error

    def close(self):
        self.socket.close()

    def call(self, method, limit=None, **params):
        """Calls `method`; returns its result, or raises RpcError or RpcLost."""
        return self.request(method, params or None, limit)

    def send(self, method, params=None):
        """Sends a request whose answer nobody waits for, or later; returns its id."""
        request = {"jsonrpc": "2.0", "method": method, "id": self.next_id}
        self.next_id += 1
        if params is not None:
            request["params"] = params
        self.socket.sendall(json.dumps(request).encode())
        return request["id"]

    def request(self, method, params, limit=None):
        """As `call`, for parameters that are no plain keywords."""
        self.socket.settimeout(limit or self.limit)
        try:
            response = self.receive(self.send(method, params))
        except OSError as error:
            raise RpcLost("%s: %s" % (method, error)) from error
        if "error" in response:
            raise RpcError(method, response["error"]["code"], response["error"]["message"])
        return response["result"]

    def receive(self, request_id):
        """The response to one request; one to an earlier call that was given up on is dropped."""
        decoder = json.JSONDecoder()
        while True:
            self.text = self.text.lstrip()
            try:
                response, end = decoder.raw_decode(self.text)
            except ValueError:
                data = self.socket.recv(65536)
                if not data:
                    raise OSError("the target closed the connection") from None
                self.text += data.decode()
                continue
            self.text = self.text[end:]
            if response.get("id") == request_id:
                return response
