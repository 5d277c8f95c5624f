#!/usr/bin/env python3
"""A rotator that lessor calls as a webhook: it changes passwords at an HTTP service. It is a program to copy and to change: what differs from service
to service is in the class Service, and needs nothing but Python's standard library.

    rotator.py CONFIGURATION-FILE

Each secret has two accounts with equal rights, which take turns. So nobody is locked out: the account in use keeps its password until all have moved
to the other one, and gets one that nobody knows then. The rotator keeps nothing: a password is made of the rotation's token.
"""
import base64
import hashlib
import hmac
import http.client
import http.server
import json
import os
import secrets
import ssl
import sys
import threading
import time
import urllib.parse

LARGEST = 1 << 20  # bytes of a request
TOLERANCE = 60  # seconds that a request's time may be from ours: lessor asks again after 25, and takes it that nothing lands any more after 120
PATIENCE = 15  # seconds to wait for anybody: less than the timeout that the rotator is registered with is better


class Failure(Exception):
    """One of the words that lessor knows. It repeats no others: they might hold a secret."""


class Forged(Exception):
    """A request that is not lessor's, or not for the first time."""


class Signatures:
    """Who may ask: whoever has signed with a key of ours (standardwebhooks.com), just now, and not with what was sent before."""

    def __init__(self, path):
        self.path, self.lock, self.seen = path, threading.Lock(), {}
        self.began = int(time.time())  # nobody remembers what came before

    def keys(self):
        """The file's lines, read each time: while lessor's key is changed both are in it, and nothing has to be restarted."""
        with open(self.path, encoding="utf-8") as file:
            return [base64.b64decode(line.strip().removeprefix("whsec_")) for line in file if line.strip()]

    def check(self, headers, body):
        ident, stamp = headers.get("Webhook-Id", ""), headers.get("Webhook-Timestamp", "")
        signed = f"{ident}.{stamp}.".encode() + body
        given = [s.removeprefix("v1,") for s in headers.get("Webhook-Signature", "").split() if s.startswith("v1,")]
        expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in self.keys()]
        if not ident or not any(hmac.compare_digest(g.encode(), e.encode()) for g in given for e in expected):
            raise Forged
        now = time.time()
        if not (stamp.isascii() and stamp.isdigit() and abs(now - int(stamp)) <= TOLERANCE and int(stamp) > self.began):
            raise Forged
        with self.lock:
            self.seen = {i: t for i, t in self.seen.items() if t >= now - TOLERANCE}
            if ident in self.seen:
                raise Forged
            self.seen[ident] = int(stamp)


class Service:
    """The target: a service whose administrator sets passwords, on condition that nobody has done so in between."""

    def __init__(self, url, token):
        self.url, self.token = urllib.parse.urlsplit(url), token

    def call(self, method, path, authorization, body=None, headers=None):
        """Asks the service directly: no proxies of the environment, no redirects."""
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.netloc, timeout=PATIENCE)
        try:
            connection.request(method, self.url.path.rstrip("/") + path, body, {"Authorization": authorization, **(headers or {})})
            answer = connection.getresponse()
            answer.read(LARGEST)
        except (OSError, http.client.HTTPException) as error:
            raise Failure("unreachable") from error
        finally:
            connection.close()
        if answer.status == 429:
            raise Failure("throttled")
        if answer.status >= 500:
            raise Failure("unreachable")
        return answer

    def takes(self, account):
        """Tries a password as its users do."""
        login = base64.b64encode(f"{account['username']}:{account['password']}".encode()).decode()
        answer = self.call("GET", "/self", "Basic " + login)
        if answer.status not in (200, 401):
            raise Failure("misconfigured")
        return answer.status == 200

    def manage(self, method, name, body=None, headers=None):
        answer = self.call(method, "/accounts/" + urllib.parse.quote(name, safe=""), "Bearer " + self.token, body, headers)
        if answer.status in (401, 403):
            raise Failure("denied")
        if answer.status == 412:
            raise Failure("throttled")  # somebody else was faster: lessor asks again
        if answer.status != 200:
            raise Failure("misconfigured")
        return answer

    def replace(self, name, password, unless):
        """Sets an account's password unless that has become needless. What this has seen is still so when the service does it: so a call that was
        overtaken by a later one changes nothing."""
        etag = self.manage("GET", name).headers["ETag"]
        if not unless():
            self.manage("PUT", name, json.dumps({"password": password}), {"If-Match": etag, "Content-Type": "application/json"})


class Rotator:
    def __init__(self, configuration):
        self.service = Service(configuration["service"], configuration["token"])
        self.accounts = configuration["accounts"]  # two for each secret: whoever configures a rotation does not choose them
        self.passwords = configuration["passwords"].encode()  # what they are made of
        self.lock = threading.Lock()  # one step at a time
        if len(self.passwords) < 32 or any(len(set(pair)) != 2 for pair in self.accounts.values()):
            raise ValueError("the configuration needs two accounts for each secret, and 32 characters or more of which passwords are made")

    def step(self, asked):
        if not isinstance(asked, dict) or asked.get("secret") not in self.accounts or not isinstance(asked.get("token"), str):
            raise Failure("invalid")
        step = {"create": self.create, "set": self.set, "test": self.test, "finish": self.finish}.get(asked.get("step"))
        if step is None:
            raise Failure("invalid")
        with self.lock:
            return step(asked, self.accounts[asked["secret"]])

    @staticmethod
    def value(asked, name):
        value = asked.get(name)
        if not isinstance(value, dict) or not all(isinstance(value.get(k), str) and value[k] for k in ("username", "password")):
            raise Failure("invalid")
        return value

    def create(self, asked, pair):
        """Makes the next password, for the account that is not in use. It is made of the token: asked again it is the same one."""
        current = asked.get("current") or {}
        name = pair[1] if current.get("username") == pair[0] else pair[0]
        made = hmac.digest(self.passwords, f"{name}\0{asked['token']}".encode(), hashlib.sha256)
        return {"pending": {"username": name, "password": base64.urlsafe_b64encode(made).decode().rstrip("=")}}

    def set(self, asked, pair):
        """Brings it into force. The account that others use is left alone, unless it is that one's own password."""
        pending, current = self.value(asked, "pending"), asked.get("current") or {}
        if pending["username"] not in pair or pending["username"] == current.get("username") and pending != current:
            raise Failure("invalid")
        self.service.replace(pending["username"], pending["password"], unless=lambda: self.service.takes(pending))
        return {}

    def test(self, asked, _):
        value = self.value(asked, "previous" if asked.get("expect") == "refused" else "pending")
        return {"verdict": "accepted" if self.service.takes(value) else "refused"}

    def finish(self, asked, pair):
        """Ends an account's password: it gets another one, which nobody is told. If it has another one already, that is left alone."""
        previous, current = self.value(asked, "previous"), asked.get("current") or {}
        if previous["username"] not in pair or previous == current:
            raise Failure("invalid")
        self.service.replace(previous["username"], secrets.token_urlsafe(32), unless=lambda: not self.service.takes(previous))
        return {}


class Handler(http.server.BaseHTTPRequestHandler):
    signatures, rotator = None, None

    def do_POST(self):
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            return self.reply(411)
        if not 0 <= length <= LARGEST:
            return self.reply(413)
        body = self.rfile.read(length)
        try:
            self.signatures.check(self.headers, body)
        except Forged:
            return self.reply(401)
        try:
            answer = self.rotator.step(json.loads(body))
        except Failure as failure:
            answer = {"failure": str(failure)}
        except Exception as error:  # its words may hold a secret
            print("a step failed:", type(error).__name__, file=sys.stderr)
            answer = {"failure": "misconfigured"}
        self.reply(200, answer)

    def reply(self, status, answer=None):
        body = json.dumps(answer).encode() if answer is not None else b""
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    tls = None

    def finish_request(self, request, client_address):
        """Shakes hands in the connection's own thread, where a slow client holds up nobody."""
        request.settimeout(PATIENCE)
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request, client_address):
        print("a connection failed:", type(sys.exc_info()[1]).__name__, file=sys.stderr)


def main():
    os.umask(0o077)
    with open(sys.argv[1], encoding="utf-8") as file:
        configuration = json.load(file)
    Handler.signatures, Handler.rotator = Signatures(configuration["signing_keys"]), Rotator(configuration)
    Server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Server.tls.load_cert_chain(configuration["certificate"], configuration["key"])
    host, _, port = configuration["listen"].rpartition(":")
    Server((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
