"""A server-first protocol: greets before the client says a word, then answers each line.

usage: banner.py PORT
"""

import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 banner ready\r\n")
        for line in self.rfile:
            self.wfile.write(b"250 you said " + line)
            if line.strip() == b"QUIT":
                return


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
