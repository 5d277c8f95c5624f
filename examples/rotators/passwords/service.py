#!/usr/bin/env python3
"""A small HTTP service with accounts, for trying the rotator: its users log in with a password, and its administrator sets passwords.

    service.py ADDRESS:PORT ACCOUNTS-FILE ADMINISTRATOR-TOKEN-FILE

    GET  /self            who is logged in (basic authentication)
    GET  /accounts/NAME   that there is such an account; its ETag changes with its password    } as the administrator,
    PUT  /accounts/NAME   {"password": …}; with If-Match, only if the ETag is that one still    } with a bearer token
"""
import base64
import hashlib
import hmac
import http.server
import json
import os
import secrets
import sys
import threading


class Accounts:
    """Names, and hashes of passwords, in a file that is replaced as a whole."""

    def __init__(self, path):
        self.path, self.lock = path, threading.Lock()
        with open(path, encoding="utf-8") as file:
            self.all = json.load(file)  # {name: {} or {"etag", "salt", "hash"}}

    @staticmethod
    def hash(salt, password):
        return hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), n=2**10, r=8, p=1).hex()

    def takes(self, name, password):
        account = self.all.get(name, {})
        return "hash" in account and hmac.compare_digest(account["hash"], self.hash(account["salt"], password))

    def put(self, name, password):
        salt = secrets.token_hex(16)
        self.all[name] = {"etag": '"' + secrets.token_hex(8) + '"', "salt": salt, "hash": self.hash(salt, password)}
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.all, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.path + ".new", self.path)


class Handler(http.server.BaseHTTPRequestHandler):
    timeout = 15
    accounts, administrator = None, ""

    def do_GET(self):
        self.serve()

    do_PUT = do_GET

    def serve(self):
        with self.accounts.lock:
            status, headers = self.answer()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self):
        kind, _, credential = self.headers.get("Authorization", "").partition(" ")
        if self.command == "GET" and self.path == "/self":
            try:
                name, _, password = base64.b64decode(credential).decode().partition(":")
            except ValueError:
                return 401, {}
            return (200 if kind == "Basic" and self.accounts.takes(name, password) else 401), {}
        if kind != "Bearer" or not hmac.compare_digest(credential.encode(), self.administrator.encode()):
            return 403, {}
        name = self.path.removeprefix("/accounts/")
        if name not in self.accounts.all:
            return 404, {}
        etag = self.accounts.all[name].get("etag", '"none"')
        if self.command == "PUT":
            wanted = self.headers.get("If-Match")
            if wanted is not None and wanted != etag:
                return 412, {}
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.accounts.put(name, body["password"])
            etag = self.accounts.all[name]["etag"]
        return 200, {"ETag": etag}

    def log_message(self, *_):
        pass


def main():
    address, accounts, administrator = sys.argv[1:]
    host, _, port = address.rpartition(":")
    Handler.accounts = Accounts(accounts)
    with open(administrator, encoding="utf-8") as file:
        Handler.administrator = file.read().strip()
    http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
